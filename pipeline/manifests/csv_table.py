"""The user's questions as a CSV table: its rows by column, with the line of whatever is invalid.

Of the columns that tables of questions have in common, `video` is a path, and `choices` are separated by `|`.
"""

import codecs
import io
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError
from pipeline.manifests.manifest import read_csv

# Other separators than commas, and their names in messages.
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}

Row = dict[str, str]


def read_table(table: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Yield (line, row) of the table, column names and values stripped.

    `required`: columns, `video` among them, of which every row has a value; others may be missing. Raises `UserError`
    with the line if the table is invalid, or has no rows.
    """
    try:
        text = table.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"table {str(table)!r} does not exist: pass an existing CSV file") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        begins = error.object[:2] if isinstance(error, UnicodeDecodeError) else b""
        found = "UTF-16" if begins in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "not UTF-8"
        raise UserError(f"table {str(table)!r} is {found} text: save it as CSV in UTF-8") from None
    rows = read_csv(io.StringIO(text, newline=""), table)
    header = [column.strip().lower() for column in next(rows, (1, []))[1]]
    if repeated := [column for column in dict.fromkeys(header) if header.count(column) > 1]:
        raise UserError(
            f"{table}:1: column {repeated[0]!r} is there {header.count(repeated[0])} times: keep one of them"
        )
    missing = [column for column in required if column not in header]
    if missing:
        raise UserError(
            f"{table}:1: column {missing[0]!r} is missing in {','.join(header)!r}: "
            f"expected {','.join(required)} and optionally {','.join(optional)}, separated by commas"
            f"{_describe_separator(text)}"
        )
    count = 0
    for line, values in rows:
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(header):
            raise UserError(f"{table}:{line}: {len(values)} values for {len(header)} columns")
        row = {key: value.strip() for key, value in zip(header, values, strict=True)}
        for column in required:
            if not row[column]:
                raise UserError(f"{table}:{line}: column {column!r} is empty: fill it in")
        row["video"] = str(PurePosixPath(row["video"]))
        yield line, row
        count += 1
    if not count:
        raise UserError(f"table {str(table)!r} contains no questions: add rows below its header")


def read_choices(row: Row) -> tuple[str, ...] | None:
    """Return the answers in the column `choices`; None if there are none."""
    return tuple(choice.strip() for choice in row.get("choices", "").split("|") if choice.strip()) or None


def _describe_separator(text: str) -> str:
    """Return which separator other than commas the first line has, such as ", not by tabs"; "" if none."""
    first = text.partition("\n")[0]
    found = [name for separator, name in SEPARATORS.items() if separator in first]
    line = ", and without the line 'sep=' of Excel" if first.lower().startswith("sep=") else ""
    return f"{f', not by {found[0]}' if found else ''}{line}"

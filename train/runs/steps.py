"""The log of a run's training steps, `steps.csv`: losses, learning rate and epoch, which are reproducible.

It has a row per step of the unfinished epoch, and of each finished one at most 100 rows, with the means over equal
parts of it: some 10 KB an epoch of any length. Numbers have six digits. A row is named after its last step.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.errors import UserError, one_line
from pipeline.files import replace_text

STEPS = "steps.csv"
PARTS_OF_EPOCH = 100

# {column: number}; a loss that the steps of the row do not have is missing
Row = dict[str, float]


def read_steps(run: Path) -> list[Row]:
    """Return the rows of the log, with "step" and "epoch"; [] if there is none. Raises `UserError` if it is corrupt."""
    path = run / STEPS
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    # A full disk may have cut the last line.
    lines = io.StringIO(text[: text.rfind("\n") + 1])
    try:
        rows = [{name: float(number) for name, number in row.items() if number} for row in csv.DictReader(lines)]
        return [row | {"step": int(row["step"]), "epoch": row["epoch"]} for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a log of training steps ({one_line(error)}): remove it") from None


class StepsFile:
    """Write `steps.csv` in the run folder; the validation accuracies are in `metrics.jsonl`."""

    def start(self, run: Path, settings: dict[str, Any], first_step: int) -> None:
        """Keep the steps before `first_step` of an earlier training of the run."""
        self._path = run / STEPS
        self._rewrite([row for row in read_steps(run) if row["step"] < first_step])

    def log_step(self, step: int, values: dict[str, float]) -> None:
        """Append a row."""
        row = {"step": step, **{name: _six_digits(value) for name, value in values.items()}}
        self._rows.append(row)
        if row.keys() <= set(self._columns):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_to_csv(self._columns, [row]))
        else:
            self._rewrite(self._rows)

    def log_epoch(self, step: int, values: dict[str, float]) -> None:
        """Replace the rows of the epoch by their means over parts of it: it is saved, no step is trained again."""
        parts = groupby(self._rows, lambda row: math.ceil(_six_digits(row["epoch"] * PARTS_OF_EPOCH)))
        self._rewrite([mean_row(list(rows)) for _, rows in parts])

    def close(self) -> None:
        """Do nothing: every row is written."""

    def _rewrite(self, rows: list[Row]) -> None:
        self._rows, self._columns = rows, list(dict.fromkeys(name for row in rows for name in row))
        header = {name: name for name in self._columns}
        replace_text(self._path, _to_csv(self._columns, [header, *rows]))


def mean_row(rows: Sequence[Row]) -> Row:
    """Return the means of neighbouring rows, each over those that have the column; it is named after the last one."""
    columns = dict.fromkeys(name for row in rows for name in row)
    means = {name: _six_digits(fmean(row[name] for row in rows if name in row)) for name in columns}
    return means | {name: rows[-1][name] for name in ("step", "epoch")}


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def _to_csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue()

"""Blocks as text: Markdown and LaTeX tables to read, one long CSV for programs."""

import csv
import io
import re
from collections.abc import Sequence

from train.evaluation.statistics import Estimate, Interval
from train.evaluation.two_way import FEWEST_SEEDS, FEWEST_VIDEOS
from train.report.published import comparable_rows
from train.report.tables import Block, Line, pool_counts, table_blocks

CSV_FIELDS = (
    *("dataset", "release", "split", "scenario", "row", "role", "backbone", "method", "variant", "inputs"),
    *("sees", "trains_on", "diffusion_steps", "options"),
    *("column", "accuracy", "low", "high", "interval", "seeds", "correct", "questions"),
    *("seconds", "questions_sha256", "checkpoints"),
)


# {character: what LaTeX prints it for}
LATEX = str.maketrans(
    {
        **{character: rf"\{character}" for character in "%&#_${}"},
        **{"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"},
        **{"†": r"$^\dagger$", "–": "--"},
    }
)


def markdown(blocks: Sequence[Block]) -> str:
    """Return a table per block: accuracies in percent, the interval of `All`, seeds; curves are only in the CSV."""
    return "\n".join(["# Results\n", *(_markdown_block(block) for block in table_blocks(blocks)), LEGEND])


def latex(blocks: Sequence[Block]) -> str:
    """Return a LaTeX table per block (package booktabs): accuracies in percent, the interval of `All`, the seeds."""
    return "\n".join(_latex_block(block) for block in table_blocks(blocks))


def comma_separated(blocks: Sequence[Block]) -> str:
    """Return one CSV line per cell of every block; `correct` and `questions` are summed over seeds."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for block in blocks:
        for line in block.lines:
            writer.writerows(_csv_records(block, line))
    return sink.getvalue()


def percent(value: float) -> str:
    """Format a percentage with two decimals."""
    return f"{value:.2f}"


def describe_interval(cell: Estimate) -> str:
    """Describe in words a cell's interval and what it covers."""
    runs = "1 run" if cell.seeds == 1 else f"{cell.seeds} seeds"
    if cell.interval is None:
        return f"{runs}, no interval"
    bounds = f"{percent(cell.interval.low)} to {percent(cell.interval.high)}"
    method = "Wilson interval" if cell.interval.over == "questions" else "interval"
    return f"{bounds}: {method} over {cell.interval.over}; {runs}, {cell.questions} questions"


def mark_interval(interval: Interval) -> str:
    """Return the letter of what an interval is over where there is no room for the word; "" for seeds and videos."""
    return "" if interval.over == "seeds and videos" else interval.over[0]


def p_value(p: float) -> str:
    """Format a p-value with three decimals."""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


LEGEND = (
    "Accuracies in percent, pooled over questions. Brackets hold the 95 % interval of All and what it is over: seeds "
    f"and videos (two-way variance model, {FEWEST_SEEDS} or more seeds), videos (for these trained models, one or "
    "two seeds) or questions (Wilson, of floors and of one run with too few videos). Several seeds without stored "
    f"predictions, with fewer than {FEWEST_VIDEOS} videos or with the same accuracy on each have none. † stands where "
    "a trained model is below the majority answer of the question's template, which sees no video.\n"
)


def _markdown_block(block: Block) -> str:
    heads = ["", *(column.label for column in block.columns), "95 % interval", "seeds"]
    rows = [_line_cells(block, line) for line in block.lines] + _published_cells(block)
    table = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    title = f"## {_escape_markdown(block.title)}\n"
    is_notable = block.multiple_choice or block.unknown_answers or block.use_in_training
    questions = [f"{block.questions}\n"] if is_notable else []
    return "\n".join([title, *questions, *(f"| {' | '.join(map(_escape_markdown, cells))} |" for cells in table), ""])


def _latex_block(block: Block) -> str:
    heads = ["", *(column.label for column in block.columns), "95 % interval", "seeds"]
    rows = [_line_cells(block, line) for line in block.lines] + _published_cells(block)
    title = f"{block.title}; {block.questions}"
    body = [_latex_row(heads), r"\midrule", *map(_latex_row, rows)]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_escape_latex(title)}.}}",
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_escape_latex, cells)) + r" \\"


def _escape_markdown(text: str) -> str:
    """Return a cell's text: one line, whose characters do not end the cell."""
    return re.sub(r"([\\|])", r"\\\1", " ".join(text.split()))


def _escape_latex(text: str) -> str:
    return " ".join(text.split()).translate(LATEX).replace(r" \%", r"\,\%")


def _published_cells(block: Block) -> list[list[str]]:
    return [
        [
            f"{row.label} (paper, Table {row.table})",
            *(percent(row.cells[c.label]) if c.label in row.cells else "–" for c in block.columns),
            *("–", "–"),
        ]
        for row in comparable_rows(block)
    ]


def _line_cells(block: Block, line: Line) -> list[str]:
    cells = []
    for column in block.columns:
        cell = line.cells[column.label]
        mark = " †" if block.is_below_floor(line, column) else ""
        cells.append("–" if cell is None else percent(cell.mean) + mark)
    last = line.cells[block.columns[-1].label]
    return [line.label, *cells, _bracket(last.interval if last else None), ", ".join(map(str, line.seeds)) or "–"]


def _bracket(interval: Interval | None) -> str:
    return "–" if interval is None else f"[{percent(interval.low)}, {percent(interval.high)}] {interval.over}"


def _csv_records(block: Block, line: Line) -> list[dict[str, str | int]]:
    head = line.rows[0]
    records: list[dict[str, str | int]] = []
    for column in block.columns:
        cell = line.cells[column.label]
        counts = [count for row in line.rows if (count := pool_counts(row.accuracies, column))]
        if cell is None:
            continue
        records.append(
            {
                **{name: getattr(block, name) for name in ("dataset", "release", "split", "scenario")},
                "row": line.label,
                "role": line.role,
                **{name: getattr(head, name) for name in ("backbone", "method", "variant", "inputs")},
                **{name: getattr(head, name) for name in ("sees", "trains_on", "diffusion_steps")},
                "options": ", ".join(f"{name} {value}" for name, value in head.options.items()),
                "column": column.label,
                "accuracy": f"{cell.mean:.4f}",
                "low": f"{cell.interval.low:.4f}" if cell.interval else "",
                "high": f"{cell.interval.high:.4f}" if cell.interval else "",
                "interval": cell.interval.over if cell.interval else "none",
                "seeds": " ".join(map(str, line.seeds)),
                "seconds": block.seconds,
                "questions_sha256": block.questions_sha256,
                "checkpoints": " ".join(row.subject.checkpoint_sha256 for row in line.rows if line.seeds),
                "correct": sum(count.correct for count in counts),
                "questions": sum(count.questions for count in counts),
            }
        )
    return records

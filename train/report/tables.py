"""Result rows become blocks: one per dataset, split and scenario, the paper's columns in their true order.

It draws and writes nothing. Seeds of one method are pooled, rows that answered other questions are refused.
Source: Tables 1 (MUSIC-AVQA) and 2 (AVQA) of the ECCV 2024 missing-modality paper, whose audio-visual "Loc" and "Cnt"
columns stand exchanged: here each figure stands under its own name.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.errors import UserError
from pipeline.manifests.templates import AVQA_COLUMNS, AVQA_TYPES, COLUMNS, TYPES, Column
from train.data.scenarios import ALL_SCENARIOS
from train.report.statistics import Estimate, estimate
from train.runs.results import Accuracies, Count, Masking, ResultRow

FLOORS = ("template-majority", "filled-majority")
ROLES = ("floor", "reference", "method")

Role = Literal["floor", "reference", "method"]


@dataclass(frozen=True)
class Line:
    """One row of a block: a floor, a reference that never sees a modality, or a method, its seeds pooled."""

    label: str
    role: Role
    rows: tuple[ResultRow, ...]
    cells: dict[str, Estimate | None]

    @property
    def method(self) -> str:
        """The method or floor that the line shows."""
        return self.rows[0].method

    @property
    def inputs(self) -> str:
        """What the line's model saw in training."""
        return self.rows[0].inputs

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds pooled; none for a floor, which draws nothing."""
        return () if self.role == "floor" else tuple(row.seed for row in self.rows)


@dataclass(frozen=True)
class Block:
    """All lines of one dataset, release, split and scenario."""

    dataset: str
    release: str
    split: str
    scenario: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @property
    def multiple_choice(self) -> int:
        """How many questions were answered among their choices; the same in all rows."""
        return self.lines[0].rows[0].multiple_choice

    @property
    def masking(self) -> Masking | None:
        """How the questions that lack a modality were drawn; None where all of them are treated alike."""
        return self.lines[0].rows[0].masking

    @property
    def questions(self) -> str:
        """Say how many questions each run answered, and how many of them among choices."""
        asked = f"{self.lines[0].rows[0].accuracies.overall.questions} questions"
        return f"{asked}, {self.multiple_choice} of them multiple choice" if self.multiple_choice else asked

    def is_below_floor(self, line: Line, column: Column) -> bool:
        """Tell whether a line's figure is below what the template majority gives without any video."""
        cell = line.cells[column.label]
        floors = [floor.cells[column.label] for floor in self.lines if floor.method == FLOORS[0]]
        if line.role == "floor" or cell is None or not floors or floors[0] is None:
            return False
        return cell.mean < floors[0].mean


def build_blocks(rows: Iterable[ResultRow]) -> list[Block]:
    """Group rows into blocks, scenarios in their usual order, and pool the seeds of each method.

    Raises `UserError` where two runs of a block answered different questions or one seed stands in two runs.
    """
    grouped: dict[tuple[str, str, str, str], list[ResultRow]] = {}
    for row in rows:
        grouped.setdefault((row.dataset, row.release, row.split, row.scenario), []).append(row)
    labels = _labels([row for rows in grouped.values() for row in rows])
    return [_block(key, grouped[key], labels) for key in sorted(grouped, key=lambda key: (*key[:3], _rank(key[3])))]


def columns_of(rows: Sequence[ResultRow]) -> tuple[Column, ...]:
    """Return a paper's columns, MUSIC-AVQA's or AVQA's, where its types cover the rows, else one per type, and all."""
    types = sorted({name for row in rows for name in row.accuracies.types})
    for known, columns in ((TYPES, COLUMNS), (AVQA_TYPES, AVQA_COLUMNS)):
        if types and set(types) <= set(known):
            return columns
    return (*(Column(name, (name,)) for name in types), COLUMNS[-1])


def pooled(accuracies: Accuracies, column: Column) -> Count | None:
    """Return the count over a column's types, or None where no such question was asked."""
    if not column.types:
        return accuracies.overall
    counts = [accuracies.types[name] for name in column.types if name in accuracies.types]
    if not counts:
        return None
    return Count(correct=sum(c.correct for c in counts), questions=sum(c.questions for c in counts))


def _block(key: tuple[str, str, str, str], rows: list[ResultRow], labels: dict[str, str]) -> Block:
    _check_same_questions(rows)
    columns = columns_of(rows)
    groups: dict[str, list[ResultRow]] = {}
    for row in rows:
        groups.setdefault(identity(row), []).append(row)
    lines = [_line(labels[name], members, columns) for name, members in groups.items()]
    return Block(*key, columns, tuple(sorted(lines, key=_order)))


def _line(label: str, rows: list[ResultRow], columns: tuple[Column, ...]) -> Line:
    role = _role(rows[0])
    if role == "floor":
        rows = rows[:1]
    _check_distinct_seeds(rows)
    rows = sorted(rows, key=lambda row: row.seed)
    cells = {column.label: _cell([pooled(row.accuracies, column) for row in rows]) for column in columns}
    over_all = cells.get("All")
    if len(rows) == 1 and over_all is not None and rows[0].interval is not None:
        low, high = rows[0].interval
        cells["All"] = replace(over_all, low=low, high=high, interval="videos")
    return Line(label, role, tuple(rows), cells)


def _role(row: ResultRow) -> Role:
    if row.kind == "floor":
        return "floor"
    return "method" if row.inputs == "all" else "reference"


def _cell(counts: Sequence[Count | None]) -> Estimate | None:
    present = [count for count in counts if count is not None]
    return estimate(present) if present else None


def identity(row: ResultRow) -> str:
    """Return what all seeds of one line share: how the model was built, trained and fed; of a floor, its figures."""
    if row.kind == "floor":
        return json.dumps([row.kind, row.method, row.accuracies.model_dump()])
    features = {name: feature.fingerprint for name, feature in row.features.items()}
    what = [row.kind, row.backbone, row.method, row.variant, row.inputs, row.training, features]
    return json.dumps(what, sort_keys=True)


def _labels(rows: list[ResultRow]) -> dict[str, str]:
    """Return {identity: label}: one label in all blocks, with the run's name where two would be called the same."""
    first: dict[str, ResultRow] = {}
    for row in rows:
        first.setdefault(identity(row), row)
    models = [row for row in first.values() if row.kind == "model"]
    many_backbones = len({row.backbone for row in models}) > 1
    variants = Counter(method for method, _ in {(row.method, row.variant) for row in models})
    labels = {name: _label(row, many_backbones, variants[row.method] > 1) for name, row in first.items()}
    named = Counter(labels[name] for name, row in first.items() if row.kind == "model")
    return {name: label if named[label] < 2 else f"{label} [{_entry(first[name])}]" for name, label in labels.items()}


def _entry(row: ResultRow) -> str:
    """Return the run's name without the seed that a sweep puts behind it."""
    return row.run.removesuffix(f"-seed{row.seed}")


def _label(row: ResultRow, with_backbone: bool, with_variant: bool) -> str:
    if row.kind == "floor":
        return row.method
    name = row.method if row.inputs == "all" else f"{row.inputs.replace(',', '+')}-only"
    parts = [row.backbone.upper()] if with_backbone else []
    return " ".join([*parts, name, *([f"({row.variant})"] if with_variant and row.inputs == "all" else [])])


def _order(line: Line) -> tuple[int, int]:
    rank = FLOORS.index(line.method) if line.method in FLOORS else len(FLOORS)
    return (ROLES.index(line.role), rank)


def _rank(scenario: str) -> tuple[int, str]:
    return (ALL_SCENARIOS.index(scenario) if scenario in ALL_SCENARIOS else len(ALL_SCENARIOS), scenario)


def _check_same_questions(rows: list[ResultRow]) -> None:
    first = rows[0]
    for row in rows[1:]:
        if row.questions_sha256 != first.questions_sha256:
            counts = f"{first.accuracies.overall.questions} and {row.accuracies.overall.questions}"
            raise UserError(
                f"runs {first.run!r} and {row.run!r} answered different questions in {row.split} "
                f"{row.scenario} ({counts} of them): evaluate both with one manifest, or report them apart"
            )


def _check_distinct_seeds(rows: list[ResultRow]) -> None:
    seen: dict[int, str] = {}
    for row in rows:
        if row.seed in seen:
            raise UserError(
                f"seed {row.seed} of {row.method} stands in runs {seen[row.seed]!r} and {row.run!r}: "
                "the same seed twice is no second sample, name one of them"
            )
        seen[row.seed] = row.run

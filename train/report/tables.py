"""Tables from result rows: a block per dataset, split and scenario, with the paper's columns.

The seeds of a method are pooled; rows on different questions or seconds are in different blocks.
Source: Tables 1 (MUSIC-AVQA) and 2 (AVQA) of the ECCV 2024 missing-modality paper. The paper exchanges its audio-visual
columns "Loc" and "Cnt"; here each accuracy is under its own name.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from pipeline.errors import UserError
from pipeline.manifests.templates import AVQA_COLUMNS, AVQA_TYPES, COLUMNS, TYPES, Column
from train.data.scenarios import ALL_SCENARIOS, MASKED
from train.evaluation.statistics import Estimate, estimate_accuracy
from train.report.hits import Hits, check_same_questions, read_hits
from train.report.predictions import Folders
from train.runs.results import Accuracies, Count, Masking, ResultRow

FLOORS = ("template-majority", "filled-majority")
# Digits of a hash that is printed to distinguish things of the same name.
HASH_LENGTH = 8
ROLES = ("floor", "reference", "method")
# What a line's label says of `ResultRow.sees`.
EXPOSURES = ("sampled", "all")
# Options that a label has in other words.
SHOWN_OTHERWISE = ("exposure", "steps")

Role = Literal["floor", "reference", "method"]
NO_FOLDERS: Folders = {}
_Key = TypeVar("_Key")
# Dataset, release, split, hash of the questions, seconds, scenario.
_Place = tuple[str, str, str, str, int, str]


@dataclass(frozen=True)
class Line:
    """One row of a block, pooled over seeds: a floor, a reference trained on fewer inputs, or a method.

    `hits`: {seed: its correct answers}, of the runs with stored predictions.
    """

    label: str
    role: Role
    rows: tuple[ResultRow, ...]
    cells: dict[str, Estimate | None]
    hits: Mapping[int, Hits]

    @property
    def method(self) -> str:
        """The name of the method or floor."""
        return self.rows[0].method

    @property
    def inputs(self) -> str:
        """The inputs that the line's model is trained on."""
        return self.rows[0].inputs

    @property
    def seeds(self) -> tuple[int, ...]:
        """The pooled seeds; none for a floor, which is deterministic."""
        return () if self.role == "floor" else tuple(row.seed for row in self.rows)


@dataclass(frozen=True)
class Block:
    """All lines of one scenario on the same questions and seconds of a dataset, release and split.

    `distinction`: how the questions or seconds differ from others of this split, for headings; "" if there are none.
    """

    dataset: str
    release: str
    split: str
    questions_sha256: str
    seconds: int
    scenario: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    distinction: str = ""

    @property
    def multiple_choice(self) -> int:
        """The number of questions answered among their choices; equal in all rows."""
        return self.lines[0].rows[0].multiple_choice

    @property
    def unknown_answers(self) -> int:
        """The largest number of questions with an answer outside the vocabulary of a run."""
        return max(row.unknown_answers for line in self.lines for row in line.rows)

    @property
    def masking(self) -> Masking | None:
        """How the questions that lose a modality were sampled; None if the scenario treats all questions alike."""
        return self.lines[0].rows[0].masking

    @property
    def questions(self) -> str:
        """The number of questions per run, of multiple-choice ones, and of those that cannot be right, as text."""
        text = f"{self.lines[0].rows[0].accuracies.overall.questions} questions"
        text = f"{text}, {self.multiple_choice} of them multiple choice" if self.multiple_choice else text
        text = f"{text}, {self.unknown_answers} with unknown answers (wrong)" if self.unknown_answers else text
        return f"{text}; {self.use_in_training}" if self.use_in_training else text

    @property
    def title(self) -> str:
        """The heading of the block's table."""
        return f"{self.dataset} {self.release}, {self.split}{self.distinction}: {self.scenario}"

    @property
    def use_in_training(self) -> str:
        """What the training of runs used these questions for, as text; "" if it did not use them."""
        rows = [row for line in self.lines for row in line.rows if row.kind == "model"]
        runs: dict[str, str] = {row.subject.run_id: row.seen for row in rows}
        uses = {"selection": "the epoch was selected on them", "training": "trained on them"}
        counts = [(list(runs.values()).count(use), text) for use, text in uses.items()]
        return ", ".join(f"in {count} of {len(runs)} runs {text}" for count, text in counts if count)

    def is_below_floor(self, line: Line, column: Column) -> bool:
        """Return whether a model's accuracy in a column is below that of the template majority, which uses no video."""
        cell = line.cells[column.label]
        floors = [floor.cells[column.label] for floor in self.lines if floor.method == FLOORS[0]]
        if line.role == "floor" or cell is None or not floors or floors[0] is None:
            return False
        return cell.mean < floors[0].mean


def build_blocks(rows: Iterable[ResultRow], folders: Folders = NO_FOLDERS) -> list[Block]:
    """Group rows into blocks, scenarios in their usual order, and pool the seeds of each method.

    Rows on different questions or seconds are in different blocks. `folders`: {key of a row: the folder of its
    results}, whose predictions the intervals of pooled seeds need. Raises `UserError` if two runs of a line share a
    seed, or if their predictions are of different questions or do not have the counts of their row.
    """
    rows = list(rows)
    scenarios = _name_scenarios(rows)
    grouped: dict[_Place, list[ResultRow]] = {}
    for row in rows:
        subject = row.subject
        place = (row.dataset, row.release, row.split, subject.questions_sha256, subject.seconds, scenarios[row.key])
        grouped.setdefault(place, []).append(row)
    labels, distinctions, stored = _labels(rows), _distinguish(grouped), _stored_values(rows)
    hits = read_hits(rows, folders)

    def order(place: _Place) -> tuple[object, ...]:
        *split, scenario = place
        rank = ALL_SCENARIOS.index(scenario) if scenario in ALL_SCENARIOS else len(ALL_SCENARIOS)
        return (*split, rank, scenario)

    places = sorted(grouped, key=order)
    return [_block(place, grouped[place], labels, stored, distinctions[place], hits) for place in places]


def group_by_split(blocks: Sequence[Block]) -> list[list[Block]]:
    """Return the blocks of each dataset, release and split together, and apart if their questions or seconds differ."""
    groups: dict[tuple[object, ...], list[Block]] = {}
    for block in blocks:
        key = (block.dataset, block.release, block.split, block.questions_sha256, block.seconds)
        groups.setdefault(key, []).append(block)
    return list(groups.values())


def rate_blocks(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks of a missing-rate curve, those of the unit and seed with the most rates; [] for a single rate.

    `blocks` must be of one dataset and split. A single mask file is a scenario like any other.
    """
    by_masks: dict[tuple[str, int], list[Block]] = {}
    for block in blocks:
        if block.masking and block.scenario.startswith(MASKED):
            by_masks.setdefault((block.masking.unit, block.masking.seed), []).append(block)
    longest = max(by_masks.values(), key=len, default=[])
    return longest if len(longest) > 1 else []


def table_blocks(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks that are printed as tables: all that are not part of a missing-rate curve."""
    plotted = {id(block) for members in group_by_split(blocks) for block in rate_blocks(members)}
    return [block for block in blocks if id(block) not in plotted]


def columns_of(rows: Sequence[ResultRow]) -> tuple[Column, ...]:
    """Return the columns of MUSIC-AVQA or AVQA if they cover the rows' types, else one per type and `All`.

    Their labels differ: those of types begin with "type " if one is named as the total.
    """
    types = sorted({name for row in rows for name in row.accuracies.types})
    for known, columns in ((TYPES, COLUMNS), (AVQA_TYPES, AVQA_COLUMNS)):
        if types and set(types) <= set(known):
            return columns
    total = COLUMNS[-1]
    prefix = "type " if total.label in types else ""
    return (*(Column(prefix + name, (name,)) for name in types), total)


def pool_counts(accuracies: Accuracies, column: Column) -> Count | None:
    """Return the count over a column's question types; None if there are no such questions."""
    if not column.types:
        return accuracies.overall
    counts = [accuracies.types[name] for name in column.types if name in accuracies.types]
    if not counts:
        return None
    return Count(correct=sum(c.correct for c in counts), questions=sum(c.questions for c in counts))


def _name_scenarios(rows: Sequence[ResultRow]) -> dict[str, str]:
    """Return {row's key: its scenario}, with a hash if masks of the same name hide different modalities."""
    hashes: dict[str, set[str]] = {}
    for row in rows:
        if row.masking:
            hashes.setdefault(row.subject.questions_sha256 + row.scenario, set()).add(row.masking.sha256)
    is_ambiguous = {name for name, of_name in hashes.items() if len(of_name) > 1}
    return {
        row.key: f"{row.scenario} [{row.masking.sha256[:HASH_LENGTH]}]"
        if row.masking and row.subject.questions_sha256 + row.scenario in is_ambiguous
        else row.scenario
        for row in rows
    }


def _distinguish(places: Iterable[_Place]) -> dict[_Place, str]:
    """Return the distinction of each block."""
    variants: dict[tuple[str, str, str], set[tuple[str, int]]] = {}
    for dataset, release, split, questions, seconds, _ in places:
        variants.setdefault((dataset, release, split), set()).add((questions, seconds))
    distinctions = {}
    for place in places:
        dataset, release, split, questions, seconds, _ = place
        of_split = variants[dataset, release, split]
        has_many_questions, has_many_seconds = (len(set(values)) > 1 for values in zip(*of_split, strict=True))
        parts = [f"{seconds} s per video"] if has_many_seconds else []
        parts += [f"questions {questions[:HASH_LENGTH]}"] if has_many_questions else []
        distinctions[place] = f" ({', '.join(parts)})" if parts else ""
    return distinctions


def _stored_values(rows: Iterable[ResultRow]) -> dict[tuple[str, str], set[str]]:
    """Return {(line identity, hash of the questions): hashes of the stored values that its rows are on}."""
    stored: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        stored.setdefault((line_identity(row), row.subject.questions_sha256), set()).add(_features_hash(row))
    return stored


def _block(
    place: _Place,
    rows: list[ResultRow],
    labels: dict[str, str],
    stored: Mapping[tuple[str, str], Collection[str]],
    distinction: str,
    hits: Mapping[str, Hits],
) -> Block:
    columns = columns_of(rows)
    groups: dict[tuple[str, str], list[ResultRow]] = {}
    for row in rows:
        groups.setdefault((line_identity(row), _features_hash(row)), []).append(row)
    of_lines = {}
    for (identity, features), members in groups.items():
        has_many_stores = len(stored[identity, members[0].subject.questions_sha256]) > 1
        of_lines[identity, features] = labels[identity] + (f" [features {features}]" if has_many_stores else "")
    # Floors of one training differ if versions of mavqa count differently.
    of_lines = _tell_apart(of_lines, {key: _short_hash(key[0]) for key in of_lines})
    assert len({*of_lines.values()}) == len(of_lines), "pages and plots find lines by their labels"
    lines = [_line(of_lines[key], members, columns, hits) for key, members in groups.items()]
    return Block(*place, columns, tuple(sorted(lines, key=_line_order)), distinction)


def _features_hash(row: ResultRow) -> str:
    """Return a short hash of the stored values that a model was evaluated on; "" for a floor."""
    if row.kind == "floor":
        return ""
    return _short_hash({name: feature.sha256 for name, feature in row.subject.features.items()})


def _short_hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:HASH_LENGTH]


def _line(label: str, rows: list[ResultRow], columns: tuple[Column, ...], answered: Mapping[str, Hits]) -> Line:
    role: Role = "floor" if rows[0].kind == "floor" else "method" if rows[0].inputs == "all" else "reference"
    if role == "floor":
        rows = rows[:1]
    _check_distinct_seeds(rows)
    rows = sorted(rows, key=lambda row: row.seed)
    hits = {row.seed: answered[row.key] for row in rows if row.key in answered}
    check_same_questions([*hits.values()])
    of_all_seeds = [*hits.values()] if len(hits) == len(rows) else []
    cells = {column.label: _cell(rows, column, of_all_seeds) for column in columns}
    return Line(label, role, tuple(rows), cells, hits)


def _cell(rows: Sequence[ResultRow], column: Column, hits: Sequence[Hits]) -> Estimate | None:
    """Return the accuracy of a line in a column; `hits` of its seeds, [] if they are not all stored."""
    counts = [count for row in rows if (count := pool_counts(row.accuracies, column))]
    if not counts:
        return None
    if not hits:
        # The intervals of result rows are of their overall accuracy.
        return estimate_accuracy(counts, over_videos=rows[0].interval if column.label == "All" else None)
    is_counted = hits[0].questions.are_of(column.types)
    if is_counted.sum() != counts[0].questions:
        raise UserError(
            f"the predictions of run {rows[0].run} in {rows[0].scenario} have {is_counted.sum()} questions of "
            f"{column.label}, its results {counts[0].questions}: evaluate it again"
        )
    correct = np.array([of_seed.correct[is_counted] for of_seed in hits])
    return estimate_accuracy(counts, correct, hits[0].questions.videos[is_counted])


def line_identity(row: ResultRow) -> str:
    """Return the key of a row's line, common to all its seeds: model, training and features; a floor's accuracies."""
    if row.kind == "floor":
        return json.dumps([row.kind, row.method, row.trained_on_sha256, row.accuracies.model_dump()])
    model = [row.kind, row.backbone, row.method, row.variant, row.inputs, row.training, row.trained_on_sha256]
    return json.dumps([*model, _fingerprints(row)], sort_keys=True)


def _fingerprints(row: ResultRow) -> dict[str, str]:
    return {name: feature.fingerprint for name, feature in row.subject.features.items()}


def _labels(rows: list[ResultRow]) -> dict[str, str]:
    """Return {line identity: label}, the same in all blocks.

    Models with equal labels also get the `_MARKS` that distinguish them. Floors of several sets of training questions
    get a hash of these.
    """
    first: dict[str, ResultRow] = {}
    for row in rows:
        first.setdefault(line_identity(row), row)
    models = [row for row in first.values() if row.kind == "model"]
    has_many_backbones = len({row.backbone for row in models}) > 1
    variants = Counter(method for method, _ in {(row.method, row.variant) for row in models})
    labels = {
        key: _label(row, has_many_backbones, row.has_variants or variants[row.method] > 1) for key, row in first.items()
    }
    of_models = {key: labels[key] for key, row in first.items() if row.kind == "model"}
    for mark in _MARKS:
        of_models = _tell_apart(of_models, {key: mark(first[key]) for key in of_models})
    labels |= of_models
    trainings: dict[str, set[str]] = {}
    for row in first.values():
        trainings.setdefault(row.method, set()).add(row.trained_on_sha256)
    for key, row in first.items():
        if row.kind == "floor" and len(trainings[row.method]) > 1:
            labels[key] = f"{labels[key]} [train {row.trained_on_sha256[:HASH_LENGTH]}]"
    return labels


# Of a model's line; the last one always differs.
_MARKS: tuple[Callable[[ResultRow], str], ...] = (
    lambda row: row.run.removesuffix(f"-seed{row.seed}"),  # the suffix that sweeps append
    lambda row: row.subject.run_id[:HASH_LENGTH],
    lambda row: f"fingerprints {_short_hash(_fingerprints(row))}",
    lambda row: _short_hash(line_identity(row)),
)


def _tell_apart(labels: Mapping[_Key, str], marks: Mapping[_Key, str]) -> dict[_Key, str]:
    """Return the labels with the mark of their line, where lines of equal labels have different marks."""
    of_label: dict[str, set[str]] = {}
    for key, label in labels.items():
        of_label.setdefault(label, set()).add(marks[key])
    return {key: f"{label} [{marks[key]}]" if len(of_label[label]) > 1 else label for key, label in labels.items()}


def _label(row: ResultRow, with_backbone: bool, with_variant: bool) -> str:
    """Return the name of a line with what its numbers depend on: variant, steps of its reverse chain, exposure."""
    if row.kind == "floor":
        return row.method
    name = row.method if row.inputs == "all" else f"{row.inputs.replace(',', '+')}-only"
    details = [row.variant] if with_variant and row.inputs == "all" else []
    details += [f"{row.diffusion_steps} steps"] if row.diffusion_steps else []
    details += [f"{name} {value}" for name, value in row.options.items() if name not in SHOWN_OTHERWISE]
    details += [row.sees] if row.sees in EXPOSURES else []
    parts = [row.backbone.upper()] if with_backbone else []
    return " ".join([*parts, name, *([f"({', '.join(details)})"] if details else [])])


def _line_order(line: Line) -> tuple[int, int]:
    rank = FLOORS.index(line.method) if line.method in FLOORS else len(FLOORS)
    return (ROLES.index(line.role), rank)


def _check_distinct_seeds(rows: list[ResultRow]) -> None:
    seen: dict[int, str] = {}
    for row in rows:
        if row.seed in seen:
            raise UserError(
                f"runs {seen[row.seed]!r} and {row.run!r} of {row.method} share seed {row.seed}; pass only one"
            )
        seen[row.seed] = row.run

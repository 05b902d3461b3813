"""Published accuracies of the ECCV 2024 paper, shown next to ours if the questions are the same.

Source: Tables 1, 3 and 4 of "Learning Trimodal Relation for AVQA with Missing Modality" (ECCV 2024). Errors that the
numbers of questions reveal are corrected: the audio-visual columns "Loc" and "Cnt" were exchanged, and two averages did
not follow from their cells. Rows without the method are on the release json, rows with it on json_update, so gains
between them compare two test sets. Table 2 is omitted, because its split of AVQA was never published; Tables 5 and 6
are omitted, because they print two numbers for one setting.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from train.report.tables import Block
from train.runs.results import ResultRow

DATASET, SPLIT = "music-avqa", "test"
# Questions of each release's test split, and the least share to be evaluated: some videos are no longer available.
QUESTIONS = {"json": 9_185, "json_update": 9_129}
LEAST_SHARE = 0.99
KEY_COLUMNS = ("table", "scenario", "release", "backbone", "method")


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table; `cells`: {column: accuracy in percent} of the printed columns."""

    table: str
    scenario: str
    release: str
    backbone: str
    method: str
    cells: dict[str, float]

    @property
    def label(self) -> str:
        """The row's name in our tables; the method "bare" is the backbone without any missing-modality method."""
        return f"{self.backbone.upper()} {self.method}"


def read_published() -> list[PublishedRow]:
    """Return all published rows, in the order of the tables."""
    text = files("train.report").joinpath("published.csv").read_text(encoding="utf-8")
    rows = []
    for record in csv.DictReader(text.splitlines()):
        table, scenario, release, backbone, method = (record.pop(name) for name in KEY_COLUMNS)
        cells = {column: float(value) for column, value in record.items() if value}
        rows.append(PublishedRow(table, scenario, release, backbone, method, cells))
    return rows


def comparable_rows(block: Block) -> list[PublishedRow]:
    """Return the published rows with the dataset, release, split, scenario and backbones of the block.

    There are none if the block was evaluated on a different number of questions or has seeded features.
    """
    rows = [row for line in block.lines for row in line.rows]
    if (block.dataset, block.split) != (DATASET, SPLIT) or block.masking is not None or not _are_comparable(rows):
        return []
    backbones = {row.backbone for row in rows}
    return [
        row
        for row in read_published()
        if (row.scenario, row.release) == (block.scenario, block.release) and row.backbone in backbones
    ]


def _are_comparable(rows: Sequence[ResultRow]) -> bool:
    is_seeded = any(feature.weights == "seeded" for row in rows for feature in row.subject.features.values())
    shares = (row.accuracies.overall.questions / QUESTIONS.get(row.release, math.inf) for row in rows)
    return not is_seeded and all(LEAST_SHARE <= share <= 1 for share in shares)

"""Figures of the ECCV 2024 paper, to stand beside ours where the questions are the same. None of them was made here.

Source: Tables 1, 3 and 4 of "Learning Trimodal Relation for AVQA with Missing Modality" (ECCV 2024), its errors mended
by what counts of questions allow: "Loc" and "Cnt" of the audio-visual questions stood exchanged, two averages did not
follow from their cells. Its rows without the method are on the release json, those with it on json_update: gains
between them are across two test sets. Table 2 is left out: it is on a split of AVQA that was never published, so that
no one can have its questions. Tables 5 and 6 are left out: they print two figures for a setting.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from train.report.tables import Block
from train.runs.results import ResultRow

DATASET, SPLIT = "music-avqa", "test"
# Questions of each release's test split, and how many of them must have been asked: some videos cannot be had any more.
QUESTIONS = {"json": 9_185, "json_update": 9_129}
LEAST_ASKED = 0.99
ABOUT = ("table", "scenario", "release", "backbone", "method")


@dataclass(frozen=True)
class PublishedRow:
    """One printed row: which table, method and backbone, and {column: accuracy in percent} of what it prints."""

    table: str
    scenario: str
    release: str
    backbone: str
    method: str
    cells: dict[str, float]

    @property
    def label(self) -> str:
        """What the row is called here: "bare" is the backbone without any method, however its input went missing."""
        return f"{self.backbone.upper()} {self.method}"


def read_published() -> list[PublishedRow]:
    """Return all printed rows, in the order of the tables."""
    text = files("train.report").joinpath("published.csv").read_text(encoding="utf-8")
    rows = []
    for record in csv.DictReader(text.splitlines()):
        table, scenario, release, backbone, method = (record.pop(name) for name in ABOUT)
        cells = {column: float(value) for column, value in record.items() if value}
        rows.append(PublishedRow(table, scenario, release, backbone, method, cells))
    return rows


def published_beside(block: Block) -> list[PublishedRow]:
    """Return the printed rows on the same dataset, release, split and scenario, of backbones that the block has.

    There are none beside other questions of that name, nor beside seeded features.
    """
    rows = [row for line in block.lines for row in line.rows]
    if (block.dataset, block.split) != (DATASET, SPLIT) or block.masking is not None or not _are_those(rows):
        return []
    backbones = {row.backbone for row in rows}
    return [
        row
        for row in read_published()
        if (row.scenario, row.release) == (block.scenario, block.release) and row.backbone in backbones
    ]


def _are_those(rows: Sequence[ResultRow]) -> bool:
    seeded = any(feature.weights == "seeded" for row in rows for feature in row.features.values())
    asked = (row.accuracies.overall.questions / QUESTIONS.get(row.release, math.inf) for row in rows)
    return not seeded and all(LEAST_ASKED <= share <= 1 for share in asked)

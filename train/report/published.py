"""Figures of the ECCV 2024 paper, to stand beside ours where the questions are the same. None of them was made here.

Source: Tables 1 and 3 of "Learning Trimodal Relation for AVQA with Missing Modality" (ECCV 2024), its errors mended by
what counts of questions allow: "Loc" and "Cnt" of the audio-visual questions stood exchanged, two averages did not
follow from their cells. Its rows without the method are on the release json, those with it on json_update: gains
between them are across two test sets. Table 2 is left out: it is on a split of AVQA that was never published, so that
no one can have its questions.
"""

import csv
from dataclasses import dataclass
from importlib.resources import files

from train.report.tables import Block

DATASET, SPLIT = "music-avqa", "test"
ABOUT = ("table", "scenario", "release", "backbone", "method")


@dataclass(frozen=True)
class PublishedRow:
    """One printed row: which table, method and backbone, and {column: accuracy in percent}."""

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
        cells = {column: float(value) for column, value in record.items()}
        rows.append(PublishedRow(table, scenario, release, backbone, method, cells))
    return rows


def published_beside(block: Block) -> list[PublishedRow]:
    """Return the printed rows on the same dataset, release, split and scenario, of backbones that the block has."""
    if (block.dataset, block.split) != (DATASET, SPLIT) or block.masking is not None:
        return []
    backbones = {row.backbone for line in block.lines for row in line.rows}
    return [
        row
        for row in read_published()
        if (row.scenario, row.release) == (block.scenario, block.release) and row.backbone in backbones
    ]

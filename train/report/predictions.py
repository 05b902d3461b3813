"""The stored predictions of the runs in a line of a block."""

from collections.abc import Mapping
from pathlib import Path

from train.report.tables import Block, Line, line_identity
from train.runs.results import Prediction, predictions_path, read_predictions

Folders = Mapping[tuple[str, int], Path]


def predictions_by_seed(line: Line, block: Block, folders: Folders) -> dict[int, list[Prediction]]:
    """Return {seed: predictions, sorted by question} of the runs that have stored predictions.

    `folders`: {(line identity, seed): run folder}.
    """
    predictions = {}
    for row in line.rows:
        folder = folders.get((line_identity(row), row.seed))
        path = predictions_path(folder, block.split, block.scenario) if folder else None
        if path is not None and path.exists():
            predictions[row.seed] = sorted(
                read_predictions(path, row.accuracies.overall.questions), key=lambda prediction: prediction.question_id
            )
    return predictions

"""The stored predictions of the runs in a line of a block."""

from collections.abc import Mapping
from pathlib import Path

from train.report.tables import Line
from train.runs.results import Prediction, predictions_path, read_predictions

# {key of a result row: folder of its results}
Folders = Mapping[str, Path]


def predictions_by_seed(line: Line, folders: Folders) -> dict[int, list[Prediction]]:
    """Return {seed: predictions, sorted by question} of the runs that have stored predictions."""
    predictions = {}
    for row in line.rows:
        folder = folders.get(row.key)
        path = predictions_path(folder, row) if folder else None
        if path is not None and path.exists():
            predictions[row.seed] = sorted(
                read_predictions(path, row.accuracies.overall), key=lambda prediction: prediction.question_id
            )
    return predictions

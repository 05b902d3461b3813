"""The stored predictions of result rows."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from train.runs.results import Prediction, ResultRow, predictions_path, read_predictions

# {key of a result row: folder of its results}
Folders = Mapping[str, Path]


def stored_predictions(row: ResultRow, folders: Folders) -> list[Prediction] | None:
    """Return the predictions of a row, sorted by question; None if they are not stored.

    Raises `UserError` if they are malformed or do not have the counts of the row.
    """
    folder = folders.get(row.key)
    path = predictions_path(folder, row) if folder else None
    if path is None or not path.exists():
        return None
    predictions = read_predictions(path, row.accuracies.overall)
    return sorted(predictions, key=lambda prediction: prediction.question_id)


def predictions_by_seed(rows: Iterable[ResultRow], folders: Folders) -> dict[int, list[Prediction]]:
    """Return {seed: predictions, sorted by question} of the rows that have stored predictions."""
    found = ((row.seed, stored_predictions(row, folders)) for row in rows)
    return {seed: predictions for seed, predictions in found if predictions is not None}

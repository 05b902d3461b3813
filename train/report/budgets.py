"""What the methods of a table were not trained alike in: exposure, questions, epochs, batches, rate, match loss."""

import inspect
from collections.abc import Callable, Iterable

from pipeline.plugins import load_plugin
from train.backbones.registry import BACKBONES
from train.methods.imputation import matches_imputed
from train.methods.registry import METHODS
from train.report.tables import Line
from train.runs.results import ResultRow

UNKNOWN = "not recorded"


def describe_differences(lines: Iterable[Line]) -> list[str]:
    """Return a sentence for each part of a training in which the methods among `lines` differ, with their labels."""
    methods = [line for line in lines if line.role == "method"]
    sentences = []
    for subject, describe in _PARTS.items():
        of_value: dict[str, list[str]] = {}
        for line in methods:
            of_value.setdefault(describe(line.rows[0]), []).append(line.label)
        if len(of_value) > 1:
            values = "; ".join(f"{value} ({', '.join(labels)})" for value, labels in of_value.items())
            sentences.append(f"{subject}: {values}.")
    return sentences


def _describe_epochs(row: ResultRow) -> str:
    start = row.training.get("start_from")
    epochs = row.training.get("epochs", UNKNOWN)
    return f"{epochs} epoch{'' if epochs == 1 else 's'}" + (f" from {start}" if start else "")


def _describe_batch(row: ResultRow) -> str:
    batch_size = row.training.get("batch_size")
    return UNKNOWN if batch_size is None else str(batch_size * row.training.get("accumulate", 1))


def _describe_rate(row: ResultRow) -> str:
    rate = row.training.get("learning_rate")
    return UNKNOWN if rate is None else f"{rate:g}"


def _describe_match(row: ResultRow) -> str:
    """Return whether the backbone's match loss was computed on pairs with imputed features; "" if it has none."""
    if row.backbone not in BACKBONES or not load_plugin("backbone", BACKBONES, row.backbone).uses_negatives:
        return ""
    build = load_plugin("method", METHODS, row.method) if row.method in METHODS else None
    option = None if build is None else inspect.signature(build).parameters.get("match_imputed")
    if option is None:
        return "no"
    choice = row.training.get("options", {}).get("match_imputed", option.default)
    return "yes" if matches_imputed(row.variant, choice) else "no"


_PARTS: dict[str, Callable[[ResultRow], str]] = {
    "Exposure": lambda row: row.sees or UNKNOWN,
    "Trained on questions": lambda row: row.trains_on or UNKNOWN,
    "Trained for": _describe_epochs,
    "Questions per step": _describe_batch,
    "Learning rate": _describe_rate,
    "Match loss on imputed pairs": _describe_match,
}

"""Computed result rows, and run folders that contain them."""

import json
from pathlib import Path

from pipeline.manifests.templates import TYPES
from train.report.tables import line_identity
from train.runs.results import (
    Accuracies,
    Count,
    Feature,
    ResultRow,
    append_results,
)


def accuracies(correct: int, types: tuple[str, ...] = TYPES) -> Accuracies:
    """Return counts in which question type k has `correct + k` correct answers out of 20 + k, pooled into groups."""
    counts = {name: Count(correct=correct + k, questions=20 + k) for k, name in enumerate(types)}
    groups: dict[str, list[Count]] = {}
    for name, count in counts.items():
        groups.setdefault(name.rpartition(" ")[0], []).append(count)
    return Accuracies(overall=add(counts.values()), groups={g: add(c) for g, c in groups.items()}, types=counts)


def add(counts: object) -> Count:
    members = list(counts)  # type: ignore[call-overload]
    return Count(correct=sum(c.correct for c in members), questions=sum(c.questions for c in members))


def row(method: str = "zero-fill", seed: int = 0, correct: int = 8, **changes: object) -> ResultRow:
    fields = {
        "kind": "model",
        "run": f"{method}-{changes.get('variant', '')}{changes.get('inputs', '')}{seed}",
        "split": "test",
        "scenario": "complete",
        "method": method,
        "backbone": "avst",
        "variant": "recommended",
        "inputs": "all",
        "seed": seed,
        "dataset": "demo",
        "release": "1",
        "training": {"epochs": 3},
        "features": {"vggish": Feature(fingerprint="ab" * 32, weights="seeded")},
        "questions_sha256": "00",
        "accuracies": accuracies(correct),
        **changes,
    }
    return ResultRow.model_validate(fields)


def save(folder: Path, rows: list[ResultRow]) -> list[Path]:
    runs = sorted({folder / r.run for r in rows})
    for run in runs:
        append_results(run / "results.jsonl", [r for r in rows if r.run == run.name])
        epochs = [
            {"epoch": e, "losses": {"total": 2.0 / e}, "validation": {"complete": e}, "selected": True} for e in (1, 2)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in epochs))
    return runs


def folders_of(rows: list[ResultRow], folder: Path) -> dict[tuple[str, int], Path]:
    return {(line_identity(row), row.seed): folder / row.run for row in rows}

"""Computed result rows, and run folders that contain them."""

import json
from pathlib import Path

from pipeline.manifests.templates import TYPES
from train.runs.results import (
    Accuracies,
    Count,
    Feature,
    Prediction,
    ResultRow,
    predictions_path,
    read_predictions,
    read_results,
    save_results,
    write_predictions,
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
        "scenario": "complete",
        "method": method,
        "backbone": "avst",
        "variant": "recommended",
        "inputs": "all",
        "seed": seed,
        "dataset": "demo",
        "release": "1",
        "training": {"epochs": 3},
        "accuracies": accuracies(correct),
        **changes,
    }
    subject = {
        "run_id": str(fields["run"]),
        "checkpoint_sha256": "cc" * 32,
        "split": "test",
        "questions_sha256": "00",
        "seconds": 60,
        "features": {"vggish": Feature(fingerprint="ab" * 32, weights="seeded", sha256="dd" * 32)},
    }
    fields["subject"] = {name: fields.pop(name, value) for name, value in subject.items()}
    return ResultRow.model_validate(fields)


def save(folder: Path, rows: list[ResultRow]) -> list[Path]:
    runs = sorted({folder / r.run for r in rows})
    for run in runs:
        save_results(run, [r for r in rows if r.run == run.name])
        epochs = [
            {"epoch": e, "losses": {"total": 2.0 / e}, "validation": {"complete": e}, "selected": True} for e in (1, 2)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in epochs))
    return runs


def folders_of(rows: list[ResultRow], folder: Path) -> dict[str, Path]:
    return {row.key: folder / row.run for row in rows}


def stored_predictions(run: Path, scenario: str, split: str = "test") -> list[Prediction]:
    """Return the predictions of the only evaluation of a run in a scenario."""
    (found,) = [r for r in read_results(run) if (r.kind, r.split, r.scenario) == ("model", split, scenario)]
    return read_predictions(predictions_path(run, found), found.accuracies.overall)


def save_predictions(folder: Path, rows: list[ResultRow], videos: int = 30) -> list[Path]:
    """Save rows and, of the models, predictions with their counts, the questions spread over `videos`.

    Of each type the first questions are answered correctly.
    """
    runs = save(folder, rows)
    for result in (result for result in rows if result.kind == "model"):
        types = result.accuracies.types or {"": result.accuracies.overall}
        questions = [(name, n, n < count.correct) for name, count in types.items() for n in range(count.questions)]
        predictions = [
            Prediction(
                question_id=f"{name}-{n}",
                video_id=str(number % videos),
                type=name,
                prediction="yes" if is_correct else "no",
                answer="yes",
                correct=is_correct,
            )
            for number, (name, n, is_correct) in enumerate(questions)
        ]
        write_predictions(predictions_path(folder / result.run, result), predictions)
    return runs

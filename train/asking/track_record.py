"""What is known of a run on questions like the one asked: its measured accuracy beside the floors'.

The type of a question is that of the training questions with the same text, else of those with the same template.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest, load_manifest
from pipeline.manifests.templates import find_template
from train.runs.results import RESULTS_FILE, ResultRow, read_results

# Of these splits, the first one that was evaluated counts.
SPLITS = ("test", "val")


@dataclass(frozen=True)
class Accuracy:
    """The accuracy on one question type in one scenario, in percent, beside that of the higher floor (`floor_name`).

    `split`: where it was measured, on `questions` questions.
    """

    type: str
    scenario: str
    split: str
    questions: int
    accuracy: float
    floor: float
    floor_name: str

    @property
    def exceeds_floor(self) -> bool:
        """Whether the run answers more questions of the type correctly than the floor."""
        return self.accuracy > self.floor

    def to_document(self) -> dict[str, Any]:
        """Return the entry of `mavqa-ask --json`."""
        return {**asdict(self), "exceeds_floor": self.exceeds_floor}


class TrackRecord:
    """The results of `run` by question type. `manifest`: the folder with its training questions, which may be missing.

    Nothing is evaluated or written.
    """

    def __init__(self, run: Path, manifest: Path) -> None:
        self._rows, self._why_no_rows = _read_rows(run)
        self._types: dict[str, str] = {}
        self._templates: dict[str, str] = {}
        self._why_no_types = ""
        try:
            self._types, self._templates = _read_types(load_manifest(manifest))
        except (UserError, OSError) as error:
            self._why_no_types = f"the type of the question is not known: {error}"

    def look_up(self, text: str, scenario: str) -> Accuracy | str:
        """Return the accuracy on questions like `text` in `scenario`, or why it is not known."""
        if self._why_no_rows or self._why_no_types:
            return self._why_no_rows or self._why_no_types
        template = find_template(text, self._templates)
        found = self._types.get(text) or (self._templates[template] if template else "")
        if not found:
            return "no training question has its text or template, so that its type is not known"
        return _compare(self._rows, found, scenario) or f"the run was not evaluated on {found!r} in scenario {scenario}"


def _read_rows(run: Path) -> tuple[Sequence[ResultRow], str]:
    """Return the rows of the run's results, and why there are none."""
    if not (run / RESULTS_FILE).exists():
        return (), f"the run was not evaluated: mavqa-evaluate {run}"
    try:
        return read_results(run), ""
    except UserError as error:
        return (), str(error)


def _read_types(manifest: Manifest) -> tuple[dict[str, str], dict[str, str]]:
    """Return {question text: type} and {template with slots: type} of the training questions.

    Of several types, it is the most frequent one.
    """
    texts: dict[str, Counter[str]] = {}
    templates: dict[str, Counter[str]] = {}
    for question in manifest.questions.get("train", ()):
        for table, key in ((texts, question.text), (templates, question.template)):
            if question.type:
                table.setdefault(key, Counter())[question.type] += 1
    return _most_frequent(texts), {name: kind for name, kind in _most_frequent(templates).items() if "<" in name}


def _most_frequent(counts: Mapping[str, Counter[str]]) -> dict[str, str]:
    return {key: types.most_common(1)[0][0] for key, types in counts.items()}


def _compare(rows: Sequence[ResultRow], kind: str, scenario: str) -> Accuracy | None:
    """Return the accuracy of the model on type `kind` beside the floors' on the same questions, None without rows."""
    for split in SPLITS:
        own = [row for row in rows if (row.split, row.scenario) == (split, scenario) and kind in row.accuracies.types]
        model = next((row for row in reversed(own) if row.kind == "model"), None)
        same = [row for row in own if row.kind == "floor" and model is not None and row.subject == model.subject]
        floors = {row.method: row.accuracies.types[kind].accuracy for row in same}
        if model is not None and floors:
            count = model.accuracies.types[kind]
            name = max(floors, key=floors.__getitem__)
            return Accuracy(kind, scenario, split, count.questions, count.accuracy, floors[name], name)
    return None

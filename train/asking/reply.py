"""The reply to questions about one video: what was available, and the answers with their probabilities."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from train.asking.track_record import Accuracy

FORMAT = 1


@dataclass(frozen=True)
class ModalityReport:
    """One modality of the file.

    `state`: "available", "dropped" (on request), "absent" (the file has no such track), "failed" (it cannot be
    decoded), or "unread" (the file has it, but at none of the seconds that the model reads). `reason`: why it is not
    available, or which errors it has. `hint`: "silent" or "black" of an available modality without content. It has
    frames or audio from `first_second` to before `stop_second` of the seconds that were decoded.
    """

    state: str
    reason: str = ""
    hint: str = ""
    first_second: int = 0
    stop_second: int = 0


@dataclass(frozen=True)
class RankedAnswer:
    """One answer and its probability."""

    answer: str
    probability: float


@dataclass(frozen=True)
class AnsweredQuestion:
    """The answers to one question that are possible, the most probable first.

    `notes`: on words and choices that the run does not know. `track_record`: how the run did on such questions, or why
    that is not known.
    """

    question: str
    answers: tuple[RankedAnswer, ...]
    notes: tuple[str, ...]
    track_record: Accuracy | str

    @property
    def best(self) -> RankedAnswer:
        """The most probable answer, which is the prediction of `mavqa-evaluate`."""
        return self.answers[0]


@dataclass(frozen=True)
class Reply:
    """The reply of a run to questions about one video.

    `run`: name of its folder. `video`: path of the file, `sha256` its hash. `seconds`: how many, from the beginning of
    the file, the features cover. `modalities`: {"audio" | "visual": report}.
    `scenario`: that of `mavqa-evaluate` with the same modalities missing. `handling`: what the method does without
    them, "" if none is missing. `temperature`: of the calibration, None if the probabilities are not calibrated.
    `notes`: in what the features may differ from those of the training.
    """

    run: str
    method: str
    video: str
    sha256: str
    seconds: int
    modalities: dict[str, ModalityReport]
    scenario: str
    handling: str
    temperature: float | None
    notes: tuple[str, ...]
    questions: tuple[AnsweredQuestion, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """The modalities that the answers do not use."""
        return tuple(name for name, report in self.modalities.items() if report.state != "available")

    def to_document(self, top: int | None = None) -> dict[str, Any]:
        """Return the document of `mavqa-ask --json`, with the `top` answers to each question (None: all)."""
        return {
            "format": FORMAT,
            "run": self.run,
            "method": self.method,
            "video": self.video,
            "sha256": self.sha256,
            "seconds": self.seconds,
            "modalities": {name: asdict(report) for name, report in self.modalities.items()},
            "scenario": self.scenario,
            "missing": list(self.missing),
            "handling": self.handling,
            "calibrated": self.temperature is not None,
            "temperature": self.temperature,
            "notes": list(self.notes),
            "questions": [_to_document(answered, top) for answered in self.questions],
        }


def _to_document(answered: AnsweredQuestion, top: int | None) -> dict[str, Any]:
    record = answered.track_record
    return {
        "question": answered.question,
        "answers": [asdict(ranked) for ranked in _first(answered.answers, top)],
        "notes": list(answered.notes),
        "track_record": record.to_document() if isinstance(record, Accuracy) else None,
        "why_unknown": record if isinstance(record, str) else "",
    }


def _first(answers: Sequence[RankedAnswer], top: int | None) -> Sequence[RankedAnswer]:
    return answers if top is None else answers[:top]

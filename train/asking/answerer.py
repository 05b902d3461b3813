"""Answer questions about new videos with a trained run, loaded once. Nothing is written.

The features are those that an extraction into the store of the training would have; the answers are those of
`mavqa-evaluate` on that store.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest
from pipeline.run.in_memory import InMemoryExtractor
from pipeline.store.reader import FeatureStore
from pipeline.store.schema import MODALITIES, State
from train.asking.questions import AskedQuestion, read_question
from train.asking.reply import AnsweredQuestion, ModalityReport, RankedAnswer, Reply
from train.asking.specs import training_specs
from train.asking.track_record import TrackRecord
from train.backbones.registry import needs_of
from train.data.batch import Batch
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.loading import LoadingSettings
from train.data.scenarios import SCENARIO_OF
from train.evaluation.calibration import find_calibration
from train.evaluation.predict import BATCH_SIZE, predict_each, probabilities
from train.interfaces import MissingModalityMethod, SupportsImputation, inputs_of
from train.runs.config import TrainConfig
from train.runs.folder import read_vocabulary

SPLIT = "test"


class Answerer:
    """Answers questions about media files with the trained `method` of the folder `run`, on the method's device.

    `device`: of the feature networks, cpu or cuda; "auto" is that of the training's features if it is available, else
    the CPU, so that new features are rounded like them. `weights`: of these networks, as for `mavqa-extract`; None:
    seeded ones if the training's were, else the published ones. `store`: for runs that did not record how their
    features were extracted. `close`, or the end of a `with` block, ends the decoder process.
    Raises `UserError` if the run has no answers, is a reference that does not read both modalities, or if the features
    of its training cannot be computed here.
    """

    def __init__(
        self,
        run: Path,
        method: MissingModalityMethod,
        config: TrainConfig,
        *,
        device: str = "auto",
        weights: str | None = None,
        store: str | None = None,
        on_download: Callable[[str, int, int], None] = lambda name, done, total: None,
    ) -> None:
        check_answers(run, config)
        self._run, self._method, self._config = run, method, config
        self._vocabulary = read_vocabulary(run)
        self._reads_tokens = "tokens" in needs_of(config.backbone)["question"]
        self._extractor = InMemoryExtractor(
            training_specs(run, config, store),
            self._vocabulary if self._reads_tokens else None,
            weights=weights,
            device=device,
            on_download=on_download,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decoder process; the next video starts another one."""
        self._extractor.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """In what the features may differ from those of the training, by rounding, one text each.

        Loads the networks. Raises `UserError` if their weights are not those of the training.
        """
        return self._extractor.differences

    @cached_property
    def _calibration(self) -> dict[str, float]:
        """The temperatures of the present checkpoint, {} if it is not calibrated."""
        found = find_calibration(self._run)
        return {} if found is None else found.temperatures

    @cached_property
    def _track_record(self) -> TrackRecord:
        return TrackRecord(self._run, Path(self._config.manifest))

    def read(self, text: str, choices: Sequence[str] | None = None, question_id: str = "1") -> AskedQuestion:
        """Return a question as the run reads it. Raises `UserError` if it cannot be read (`read_question`)."""
        return read_question(text, self._vocabulary, self._reads_tokens, choices, question_id)

    def ask(
        self,
        video: str | Path,
        questions: str | Iterable[str],
        *,
        choices: Sequence[str] | None = None,
        drop: Collection[str] = (),
    ) -> Reply:
        """Return the answers to `questions` about the file `video`.

        `choices`: restrict the answers to these. `drop`: modalities ("audio", "visual") to treat as missing. Raises
        `UserError` if a question cannot be read, if the file does not exist, or if it has neither audio nor video that
        can be decoded.
        """
        texts = [questions] if isinstance(questions, str) else list(questions)
        asked = [self.read(text, choices, str(number)) for number, text in enumerate(texts, start=1)]
        return self.answer(video, asked, drop)

    def answer(self, video: str | Path, asked: Sequence[AskedQuestion], drop: Collection[str] = ()) -> Reply:
        """Return the answers to questions that were read; all else is as in `ask`."""
        video = Path(video)
        if not asked:
            raise UserError("no question was asked: pass at least one")
        if unknown := sorted(set(drop) - set(MODALITIES)):
            raise UserError(f"{unknown[0]!r} is no modality that can be dropped: use {' or '.join(MODALITIES)}")
        if not video.is_file():
            what = "is not a file" if video.exists() else "does not exist"
            raise UserError(f"video {video} {what}: pass a media file")
        extracted = self._extractor.extract(video, [one.question.text for one in asked])
        _refuse_empty(extracted.store, video)
        logits, batch = self._predict(extracted.store, asked, drop)
        if batch.choices is not None:
            logits = logits.masked_fill(~batch.choices, -torch.inf)
        modalities = {m: _report(extracted.store, m, batch, drop, extracted.hints.get(m, "")) for m in MODALITIES}
        missing = tuple(m for m in MODALITIES if modalities[m].state != "available")
        scenario = SCENARIO_OF[missing]
        temperature = self._calibration.get(scenario)
        chances = probabilities(logits, batch.choices, temperature or 1.0)
        return Reply(
            run=self._run.resolve().name,
            method=self._config.method,
            video=str(video),
            sha256=extracted.store.source_sha256()[0],
            seconds=self._extractor.seconds,
            modalities=modalities,
            scenario=scenario,
            handling=describe_handling(self._method, self._config.method, missing),
            temperature=temperature,
            notes=self.notes,
            questions=tuple(
                AnsweredQuestion(
                    one.question.text,
                    self._rank(own_logits, own_chances),
                    one.notes,
                    self._track_record.look_up(one.question.text, scenario),
                )
                for one, own_logits, own_chances in zip(asked, logits, chances, strict=True)
            ),
        )

    def _predict(
        self, store: FeatureStore, asked: Sequence[AskedQuestion], drop: Collection[str]
    ) -> tuple[Tensor, Batch]:
        """Return logits [question, answer] on the CPU, and the batch of all questions."""
        questions = tuple(replace(one.question, video_id=store.video_ids[0]) for one in asked)
        manifest = Manifest("asked", "", "", (), {SPLIT: questions}, self._vocabulary)
        bank = FeatureBank(store, LoadingSettings("none", workers=0))
        inputs = inputs_of(self._method.backbone, self._config.map_size)
        dataset = QuestionDataset(bank, manifest, SPLIT, inputs)
        rows = np.arange(len(questions))
        hidden = dict.fromkeys((question.question_id for question in questions), tuple(drop))
        logits = predict_each(
            self._method,
            dataset,
            rows,
            hidden,
            BATCH_SIZE,
            next(self._method.parameters()).device,  # type: ignore[attr-defined]
            lambda batch, logits: list(logits.cpu()),
        )
        return torch.stack(logits), dataset.batch(rows, masks=hidden)

    def _rank(self, logits: Tensor, chances: Tensor) -> tuple[RankedAnswer, ...]:
        """Return the answers that are possible, of logits [answer] above -inf, with their probabilities [answer].

        Of equal logits the first answer of the vocabulary is the first, as in an evaluation.
        """
        order = torch.sort(logits, descending=True, stable=True).indices.tolist()
        possible = [index for index in order if logits[index] > -torch.inf]
        return tuple(RankedAnswer(self._vocabulary.answers[index], chances[index].item()) for index in possible)


def check_answers(run: Path, config: TrainConfig) -> None:
    """Raise `UserError` unless `run` answers questions from both modalities."""
    if config.objective != "answer":
        raise UserError(
            f"run {run} is a pre-training ({config.objective}) without answers: train a run with "
            f"--start-from {run.name} and ask that one"
        )
    if config.inputs != "all":
        raise UserError(
            f"run {run} is a reference that reads only {config.inputs.replace(',', ' and ')}: ask a run that was "
            "trained with a --method"
        )


def describe_handling(method: MissingModalityMethod, name: str, missing: Sequence[str]) -> str:
    """Return what `method` does without the `missing` modalities, "" if none is missing."""
    if not missing:
        return ""
    if len(missing) == len(MODALITIES):
        return f"{name} answers from the question alone"
    if isinstance(method, SupportsImputation):
        return f"{name} imputes the {missing[0]} features"
    return f"{name} answers without {missing[0]} features"


def _refuse_empty(store: FeatureStore, video: Path) -> None:
    """Raise `UserError`, with the reasons, if neither modality of the file has features."""
    reports = {modality: _describe_state(store, modality) for modality in MODALITIES}
    if all(state for state, _ in reports.values()):
        reasons = "; ".join(f"{modality}: {reason or state}" for modality, (state, reason) in reports.items())
        raise UserError(f"{video} has neither audio nor frames that can be used ({reasons}): pass another file")


def _describe_state(store: FeatureStore, modality: str) -> tuple[str, str]:
    """Return "absent" or "failed" and the reason, of the modality or of one of its features; "" if all have values."""
    features = [name for name in store.feature_names if store.spec(name).modality == modality]
    states = [(store.presence(modality)[0], store.reasons(modality)[0])]
    states += [(store.state(name)[0], store.feature_reasons(name)[0]) for name in features]
    lost = next(((state, reason) for state, reason in states if state != State.COMPLETE), None)
    return ("", states[0][1]) if lost is None else (State(lost[0]).name.lower(), lost[1])


def _report(store: FeatureStore, modality: str, batch: Batch, drop: Collection[str], hint: str) -> ModalityReport:
    state, reason = _describe_state(store, modality)
    if modality in drop:
        return ModalityReport("dropped", hint=hint)
    if state:
        return ModalityReport(state, reason)
    first, stop = int(store.first_steps(modality)[0]), int(store.steps(modality)[0])
    is_read = bool(batch.mask(modality).any())
    return ModalityReport("available" if is_read else "unread", reason, hint, first, stop)

"""The questions of one split with the stored features of their videos, as batches.

A modality that is missing, naturally or because a mask hides it, is never read: its rows are NaN, its mask is False.
Source: AVST's released loader (strided rows, negatives). Differs from the released code: a modality may be missing.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest, Question, Vocabulary
from pipeline.manifests.templates import encode, index_tokens
from pipeline.store.schema import MODALITIES, State, tokens_name
from train.data.batch import Batch
from train.data.feature_bank import FeatureBank
from train.data.negatives import NegativePool
from train.data.prefetch import compute_ahead, in_groups
from train.data.scenarios import missing_span
from train.data.selected_feature import pooled_size, stored_shape, strided_steps

if TYPE_CHECKING:
    from pipeline.store.reader import FeatureStore

HiddenModalities = Mapping[str, Collection[str]]


@dataclass(frozen=True)
class _Draw:
    """What a batch is made of: its questions, and the frames of other videos that were sampled for them, if any.

    `rows` int64 [row]; `available` {modality: bool [row, time]}; `negatives`: (videos, positions), each int64 [row *
    time].
    """

    rows: np.ndarray
    available: dict[str, np.ndarray]
    negatives: tuple[np.ndarray, np.ndarray] | None

    def part(self, rows: slice) -> "_Draw":
        """Return what these rows of the batch are made of."""
        steps = self.available["visual"].shape[1]
        available = {modality: steps_of[rows] for modality, steps_of in self.available.items()}
        if self.negatives is None:
            return _Draw(self.rows[rows], available, None)
        videos, positions = (values.reshape(-1, steps)[rows].ravel() for values in self.negatives)
        return _Draw(self.rows[rows], available, (videos, positions))


@dataclass(frozen=True)
class ModelInputs:
    """What a model reads from a store.

    - `features` {"question" | "audio" | "visual": names of stored features}.
    - `time_steps`: the number of steps per video, spread evenly over the stored seconds.
    - `uses_negatives`: whether training uses frames of other videos.
    - `map_size`: maps are average-pooled to `map_size` x `map_size`; None keeps them as stored.

    Raises `UserError` if a number is below 1.
    """

    features: Mapping[str, tuple[str, ...]]
    time_steps: int
    uses_negatives: bool = False
    map_size: int | None = None

    def __post_init__(self) -> None:
        for name, number in (("time_steps", self.time_steps), ("map_size", self.map_size)):
            if number is not None and number < 1:
                raise UserError(f"{name} is {number}: pass at least 1")


class QuestionDataset(Dataset[Batch]):
    """The questions of one split of a manifest, with the features that a model reads from one store.

    `questions` are in the order of the manifest; a row is an index into them. `answers`: int64 [question], -1 for an
    answer outside the vocabulary. An item is a `Batch` of one question; `collate` joins items.
    `vocabulary`: that of a trained model, if its words and answers have another order than those of the manifest; the
    stored tokens are the manifest's, so the questions are encoded again.
    Raises `UserError` if a video, a question or a feature is missing in the store or its extraction is not finished.
    """

    def __init__(
        self,
        bank: FeatureBank,
        manifest: Manifest,
        split: str,
        inputs: ModelInputs,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        if split not in manifest.questions:
            raise UserError(
                f"manifest {manifest.name!r} has no split {split!r}: its splits are {manifest.describe_splits()}; pass "
                "another --manifest, or build it again"
            )
        store = bank.store
        self.questions = manifest.questions[split]
        self.steps = strided_steps(store.seconds, inputs.time_steps)
        self.vocabulary = vocabulary or manifest.vocabulary
        index = {answer: number for number, answer in enumerate(self.vocabulary.answers)}
        self.answers = torch.tensor([index.get(q.answer, -1) for q in self.questions], dtype=torch.int64)
        self._answer_count = len(index)
        self._offered_answers = [
            None if q.choices is None else [index[c] for c in q.choices if c in index] for q in self.questions
        ]
        self._uses_negatives = inputs.uses_negatives
        self._video_ids = store.video_ids
        self._videos = _find_videos(store, [q.video_id for q in self.questions])
        self._question_features = _read_questions(store, manifest, split, inputs.features["question"], self.vocabulary)
        self._available = {
            m: _find_available_steps(store, m, inputs.features[m], self.steps, self._videos) for m in MODALITIES
        }
        self._workers, self._is_on_gpu = bank.settings.workers, bank.is_on_gpu
        self._negative_pool: tuple[HiddenModalities | None, NegativePool] | None = None
        self._failed = np.any(
            [(_states(store, m, inputs.features[m]) == State.FAILED).any(0) for m in MODALITIES], axis=0
        )
        self._rows = {
            m: {name: bank.rows(name, self.steps, inputs.map_size) for name in inputs.features[m]} for m in MODALITIES
        }

    def __len__(self) -> int:
        return len(self.questions)

    def __repr__(self) -> str:
        features = [*self._question_features, *(name for rows in self._rows.values() for name in rows)]
        return f"<QuestionDataset: {len(self)} questions, {len(self.steps)} steps; {', '.join(features)}>"

    def __getitem__(self, row: int) -> Batch:
        """Return the question `row` as a batch of one, without negatives."""
        return self.batch([range(len(self))[row]])

    def __getitems__(self, rows: Sequence[int]) -> list[Batch]:
        """Return the questions `rows` as a list of one batch: a torch `DataLoader` reads so what it then collates."""
        return [self.batch(rows)]

    def loader(self, batch_size: int, *, shuffle: bool = False, **options: Any) -> "DataLoader[Batch]":
        """Return a torch `DataLoader` of batches without negatives; `options` are torch's."""
        return DataLoader(self, batch_size=batch_size, shuffle=shuffle, collate_fn=self.collate, **options)

    @staticmethod
    def collate(items: Sequence[Batch]) -> Batch:
        """Return the batch of `items`, as the `collate_fn` of a torch `DataLoader`. It need not be homogeneous."""
        return Batch.concatenate(items)

    @cached_property
    def naturally_complete(self) -> np.ndarray:
        """Bool [question]: both modalities of its video were recorded and extracted."""
        return np.all([self._available[m][self._videos].any(1) for m in MODALITIES], axis=0)

    @cached_property
    def naturally_incomplete(self) -> np.ndarray:
        """Bool [question]: a modality of its video was not recorded, and what was recorded was extracted.

        A question that is neither naturally complete nor naturally incomplete is about a video whose decoding or
        extraction failed.
        """
        return ~self.naturally_complete & ~self._failed[self._videos]

    def without_part(self, modality: str, share: float, seed: int = 0) -> "QuestionDataset":
        """Return the dataset with one span of `share` of the steps of `modality` missing in every video.

        All questions on a video lose the same span. `naturally_complete` and `naturally_incomplete` do not change.
        """
        available = self._available[modality].copy()
        for video in np.unique(self._videos):
            recorded = np.flatnonzero(available[video])
            span = missing_span(len(recorded), share, seed, modality + self._video_ids[video])
            available[video, recorded[span]] = False
        changed = copy(self)
        changed.__dict__.update(
            naturally_complete=self.naturally_complete,
            naturally_incomplete=self.naturally_incomplete,
            _available={**self._available, modality: available},
            _negative_pool=None,
        )
        return changed

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        masks: HiddenModalities | None = None,
        rows: np.ndarray | None = None,
    ) -> Iterator[Batch]:
        """Yield the questions of `rows` (default: all) in batches; the last one may be smaller.

        With a generator, for training: the batches of `partition`, with negatives. Without one: in order.
        """
        rows = np.arange(len(self)) if rows is None else rows
        parts = _chunk(rows, batch_size) if generator is None else self.partition(batch_size, generator, masks, rows)
        yield from self.load(parts, generator, masks)

    def load(
        self,
        parts: Iterable[np.ndarray],
        generator: torch.Generator | None = None,
        masks: HiddenModalities | None = None,
        first: int = 0,
        part_of: Callable[[int], slice] = slice,
    ) -> Iterator[Batch]:
        """Yield the batch of each of `parts` (rows of questions), as `batch` returns them, from number `first` on.

        `part_of`: a function of a batch's number of rows that returns which of them to yield; default: all.
        They are gathered ahead of their use by the threads of the bank's settings, which change nothing in them, and
        are in pinned memory if the bank's device is a GPU.
        """
        drawn = (self._draw(rows, generator, masks).part(part_of(len(rows))) for rows in parts)
        draws = islice(in_groups(drawn), first, None)
        yield from compute_ahead(lambda draw: self._pinned(self._gather(draw)), draws, self._workers)

    def partition(
        self,
        batch_size: int,
        generator: torch.Generator,
        masks: HiddenModalities | None = None,
        rows: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """Return the rows of each batch of an epoch: `rows` (default: all), shuffled into homogeneous batches.

        The rows of a batch have the same available modalities, so that it is encoded in one pass. The last batch of
        each combination of modalities may be smaller and is still one training step. The batches are shuffled too.
        """
        rows = np.arange(len(self)) if rows is None else rows
        rows = rows[torch.randperm(len(rows), generator=generator).numpy()]
        questions = [self.questions[row] for row in rows]
        available = [
            self._available[m][self._videos[rows]].any(1) & _not_hidden(questions, m, masks) for m in MODALITIES
        ]
        codes = available[0] + 2 * available[1]
        parts = [part for code in np.unique(codes) for part in _chunk(rows[codes == code], batch_size)]
        return [parts[number] for number in torch.randperm(len(parts), generator=generator).tolist()]

    def batch(
        self,
        rows: Sequence[int] | np.ndarray,
        generator: torch.Generator | None = None,
        masks: HiddenModalities | None = None,
    ) -> Batch:
        """Return one batch of the questions `rows`.

        `masks` {question id: hidden modalities}: hidden modalities are not read. With a generator, and for a model that
        uses negatives, the batch has negatives: frames of other videos of the split, sampled with `generator`. A video
        provides negatives only if the split has a question on it from which `masks` do not hide the visual modality.
        """
        return self._gather(self._draw(np.asarray(rows), generator, masks))

    def _draw(self, rows: np.ndarray, generator: torch.Generator | None, masks: HiddenModalities | None) -> _Draw:
        """Return what a batch is made of; only this uses the `generator`."""
        questions, videos = [self.questions[row] for row in rows], self._videos[rows]
        available = {m: self._available[m][videos] & _not_hidden(questions, m, masks)[:, None] for m in MODALITIES}
        return _Draw(
            rows, available, self._sample_negatives(videos, generator, masks) if available["visual"].any() else None
        )

    def _gather(self, draw: _Draw) -> Batch:
        rows, available = draw.rows, draw.available
        questions, videos = [self.questions[row] for row in rows], self._videos[rows]
        audio, _ = self._values("audio", videos, available["audio"])
        visual, negatives = self._values("visual", videos, available["visual"], draw.negatives)
        return Batch(
            question={
                name: values[torch.from_numpy(index[rows])] for name, (values, index) in self._question_features.items()
            },
            audio=audio,
            visual=visual,
            audio_mask=torch.from_numpy(available["audio"]),
            visual_mask=torch.from_numpy(available["visual"]),
            answer=self.answers[torch.from_numpy(rows)],
            type=tuple(q.type for q in questions),
            question_id=tuple(q.question_id for q in questions),
            video_id=tuple(q.video_id for q in questions),
            negatives=negatives,
            choices=self._choices(rows),
        )

    def _values(
        self,
        modality: str,
        videos: np.ndarray,
        available: np.ndarray,
        negatives: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]:
        """Return the features of `videos` and those of the sampled `negatives`, each {feature: [row, time, ...]}.

        Both are gathered at once. Steps where `available` [row, time] is False are NaN; None if all of it is False.
        """
        row, position = np.nonzero(available)
        if not len(row):
            return None, None
        of_videos, at_positions = videos[row], position
        if negatives is not None:
            of_videos, at_positions = np.append(of_videos, negatives[0]), np.append(position, negatives[1])
        own, sampled = {}, {}
        for name, table in self._rows[modality].items():
            values = table.gather(of_videos, at_positions)
            values, others = values[: len(row)], values[len(row) :]
            if len(row) < available.size:
                padded = values.new_full((available.size, *values.shape[1:]), torch.nan)
                rows = torch.from_numpy(row * available.shape[1] + position).to(values.device)
                values = padded.index_copy_(0, rows, values)
            own[name] = values.unflatten(0, available.shape)
            sampled[name] = others.unflatten(0, (-1, available.shape[1]))
        return own, sampled if negatives is not None else None

    def _choices(self, rows: np.ndarray) -> Tensor | None:
        """Return bool [row, answer], True for the answers that a question offers; None if no row has choices."""
        offered = [self._offered_answers[row] for row in rows]
        if all(answers is None for answers in offered):
            return None
        choices = torch.zeros(len(rows), self._answer_count, dtype=torch.bool)
        for row, answers in enumerate(offered):
            choices[row, slice(None) if answers is None else torch.tensor(answers, dtype=torch.int64)] = True
        return choices

    def _sample_negatives(
        self, videos: np.ndarray, generator: torch.Generator | None, masks: HiddenModalities | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return (videos, positions) of the negatives of `videos`; None if there are none."""
        if generator is None or not self._uses_negatives:
            return None
        if self._negative_pool is None or self._negative_pool[0] is not masks:
            shown = np.unique(self._videos[_not_hidden(self.questions, "visual", masks)])
            self._negative_pool = masks, NegativePool.of(shown, self._available["visual"][shown])
        return self._negative_pool[1].sample(videos, len(self.steps), generator)

    def _pinned(self, batch: Batch) -> Batch:
        return batch.pin_memory() if self._is_on_gpu else batch


def _chunk(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def input_shapes(
    store: "FeatureStore", needs: Mapping[str, Sequence[str]], map_size: int | None
) -> dict[str, tuple[int, ...]]:
    """Return {feature: shape of one step in a batch} of the audio and visual features in `needs`."""
    names = [name for modality in MODALITIES for name in needs[modality]]
    return {name: stored_shape(tuple(store.spec(name).shape), pooled_size(store, name, map_size)) for name in names}


def _find_videos(store: "FeatureStore", video_ids: list[str]) -> np.ndarray:
    missing = sorted({video_id for video_id in video_ids if video_id not in store.rows})
    if missing:
        raise UserError(
            f"store {store.path}: {len(missing)} videos of the manifest are missing, such as {missing[0]!r}: "
            "extract them with mavqa-extract"
        )
    return np.array([store.rows[video_id] for video_id in video_ids], dtype=np.int64)


def _read_questions(
    store: "FeatureStore", manifest: Manifest, split: str, needs: Sequence[str], vocabulary: Vocabulary
) -> dict[str, tuple[Tensor, np.ndarray]]:
    """Return {feature: (values of the unique texts [text, ...], index of each question's text int64 [question])}."""
    texts = [q.text for q in manifest.questions[split]]
    missing = [text for text in texts if text not in store.question_rows]
    if missing:
        raise UserError(
            f"store {store.path}: {len(missing)} questions of the manifest are missing, such as {missing[0]!r}: "
            "extract them with mavqa-extract"
        )
    unique, index = np.unique(
        np.array([store.question_rows[text] for text in texts], dtype=np.int64), return_inverse=True
    )
    features = {}
    for name in needs:
        if name == "tokens" and vocabulary != manifest.vocabulary:
            features[name] = _encode_texts(texts, vocabulary)
            continue
        stored = tokens_name(vocabulary.tokens, vocabulary.question_length) if name == "tokens" else name
        values = torch.from_numpy(np.asarray(store.question_values(stored).oindex[unique]))
        is_missing = values.isnan() if values.is_floating_point() else values == -1
        if is_missing.flatten(1).all(1).any():
            raise UserError(
                f"store {store.path}: {stored} is missing for some questions of manifest {manifest.name!r}: "
                "extract it with mavqa-extract"
            )
        features[name] = (values, index)
    return features


def _encode_texts(texts: Sequence[str], vocabulary: Vocabulary) -> tuple[Tensor, np.ndarray]:
    """Return (tokens of the unique texts int32 [text, token], index of each question's text int64 [question])."""
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    tokens = index_tokens(vocabulary)
    values = [encode(text, tokens, vocabulary.question_length) for text in rows]
    return torch.tensor(values, dtype=torch.int32), np.array([rows[text] for text in texts], dtype=np.int64)


def _find_available_steps(
    store: "FeatureStore", modality: str, features: Sequence[str], steps: tuple[int, ...], videos: np.ndarray
) -> np.ndarray:
    """Return bool [video of the store, step]: the step was recorded and extracted for every feature."""
    states = _states(store, modality, features)
    pending = np.unique(videos[(states[:, videos] == State.PENDING).any(0)])
    if len(pending):
        are_imported = any(store.spec(name).is_imported for name in features)
        raise UserError(
            f"store {store.path}: the {modality} features of {len(pending)} videos are not "
            f"{'imported' if are_imported else 'extracted'} yet, such as {store.video_ids[pending[0]]!r}: run "
            f"{'mavqa-import-features' if are_imported else 'mavqa-extract'} again to finish the store"
        )
    complete = (states == State.COMPLETE).all(0)
    firsts, stops = store.first_steps(modality)[:, None], store.steps(modality)[:, None]
    return complete[:, None] & (firsts <= np.asarray(steps)) & (np.asarray(steps) < stops)


def _states(store: "FeatureStore", modality: str, features: Sequence[str]) -> np.ndarray:
    """Return the `State` codes of `modality` and of each feature, [1 + feature, video of the store]."""
    return np.stack([store.presence(modality), *(store.state(name) for name in features)])


def _not_hidden(questions: Sequence[Question], modality: str, masks: HiddenModalities | None) -> np.ndarray:
    """Return bool [question]: `masks` do not hide `modality` from the question."""
    hidden = {} if masks is None else masks
    return np.array([modality not in hidden.get(q.question_id, ()) for q in questions], dtype=bool)

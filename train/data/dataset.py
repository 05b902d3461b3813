"""Questions of one split with the stored features of their videos, as batches. It runs no model.

What is absent, by nature or by a mask, is never read: its rows are NaN with an empty mask.
Source: AVST's released loader, for the strided rows and the negatives; both modalities are optional here.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest, Question
from pipeline.store.schema import MODALITIES, State, tokens_name
from train.data.batch import Batch
from train.data.feature_bank import FeatureBank, stored_shape, strided_steps
from train.data.scenarios import missing_stretch

if TYPE_CHECKING:
    from pipeline.store.reader import FeatureStore

Masks = Mapping[str, Collection[str]]


@dataclass(frozen=True)
class ModelInputs:
    """What a model reads of a store.

    `features`: {"question" | "audio" | "visual": stored feature names}. `time_steps`: the rows of each video, spread
    evenly over the stored seconds. Maps are pooled to `map_size` x `map_size` where one is given. `uses_negatives`:
    whether its training looks at frames of other videos.
    """

    features: Mapping[str, tuple[str, ...]]
    time_steps: int
    uses_negatives: bool = False
    map_size: int | None = None


class QuestionDataset:
    """The questions of one split of a manifest, with the features that a model reads, from one store.

    `questions` are in the manifest's order, and every row below counts them. `answers`: int64 [question], -1 for
    an answer outside the frozen list.
    Raises `UserError` where the store lacks a video, a question or a feature, or has not finished one.
    """

    def __init__(self, bank: FeatureBank, manifest: Manifest, split: str, inputs: ModelInputs) -> None:
        if split not in manifest.questions:
            known = ", ".join(manifest.splits) or "none"
            raise UserError(f"manifest {manifest.name!r} has no split {split!r}: it has {known}")
        store = bank.store
        self.questions = manifest.questions[split]
        self.steps = strided_steps(store.seconds, inputs.time_steps)
        index = {answer: number for number, answer in enumerate(manifest.vocabulary.answers)}
        self.answers = torch.tensor([index.get(q.answer, -1) for q in self.questions], dtype=torch.int64)
        self._answer_count = len(index)
        self._offered = [
            None if q.choices is None else [index[c] for c in q.choices if c in index] for q in self.questions
        ]
        self._uses_negatives = inputs.uses_negatives
        self._video_ids = store.video_ids
        self._videos = _find_videos(store, [q.video_id for q in self.questions])
        self._question_features = _read_questions(store, manifest, split, inputs.features["question"])
        self._there = {m: _steps_there(store, m, inputs.features[m], self.steps, self._videos) for m in MODALITIES}
        self._pool: tuple[Masks | None, np.ndarray] | None = None
        self._failed = np.any([_states(store, m, inputs.features[m]) == State.FAILED for m in MODALITIES], axis=(0, 1))
        self._rows = {
            m: {
                name: bank.rows(name, self.steps, _map_size(store, name, inputs.map_size))
                for name in inputs.features[m]
            }
            for m in MODALITIES
        }

    def __len__(self) -> int:
        return len(self.questions)

    @cached_property
    def naturally_complete(self) -> np.ndarray:
        """Bool [question]: both modalities of its video were recorded and extracted."""
        return np.all([self._there[m][self._videos].any(1) for m in MODALITIES], axis=0)

    @cached_property
    def naturally_incomplete(self) -> np.ndarray:
        """Bool [question]: a modality of its video was never recorded, and what was recorded was extracted.

        Questions in neither kind are about videos that could not be decoded or extracted: nothing natural lacks.
        """
        return ~self.naturally_complete & ~self._failed[self._videos]

    def without_part(self, modality: str, share: float, seed: int = 0) -> "QuestionDataset":
        """Return the dataset in which every video lacks a stretch of `share` of its steps of `modality`.

        What counts as naturally complete stays as it is. All questions on a video lose the same stretch.
        """
        there = self._there[modality].copy()
        for video in np.unique(self._videos):
            recorded = np.flatnonzero(there[video])
            there[video, recorded[missing_stretch(len(recorded), share, seed, modality + self._video_ids[video])]] = (
                False
            )
        changed = copy(self)
        changed.__dict__.update(
            naturally_complete=self.naturally_complete,
            naturally_incomplete=self.naturally_incomplete,
            _there={**self._there, modality: there},
            _pool=None,
        )
        return changed

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        masks: Masks | None = None,
        rows: np.ndarray | None = None,
    ) -> Iterator[Batch]:
        """Yield the questions of `rows` (all by default) in batches, the last one as short as it comes.

        With a generator they are those of `partition` and carry negatives: this is training. Without one they come in
        order.
        """
        rows = np.arange(len(self)) if rows is None else rows
        parts = _cut(rows, batch_size) if generator is None else self.partition(batch_size, generator, masks, rows)
        for part in parts:
            yield self.batch(part, generator, masks)

    def partition(
        self,
        batch_size: int,
        generator: torch.Generator,
        masks: Masks | None = None,
        rows: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """Return `rows` (all by default), shuffled, as an epoch's batches, each lacking the same modalities all over.

        So each is encoded once. The last batch of a kind is as short as it comes, yet a whole step of training; the
        batches are shuffled too.
        """
        rows = np.arange(len(self)) if rows is None else rows
        rows = rows[torch.randperm(len(rows), generator=generator).numpy()]
        asked = [self.questions[row] for row in rows]
        there = [self._there[m][self._videos[rows]].any(1) & _seen(asked, m, masks) for m in MODALITIES]
        kinds = there[0] + 2 * there[1]
        parts = [part for kind in np.unique(kinds) for part in _cut(rows[kinds == kind], batch_size)]
        return [parts[number] for number in torch.randperm(len(parts), generator=generator).tolist()]

    def batch(
        self,
        rows: Sequence[int] | np.ndarray,
        generator: torch.Generator | None = None,
        masks: Masks | None = None,
    ) -> Batch:
        """Return one batch of the given questions.

        `masks` {question id: hidden modalities}: what is hidden is not read. With a generator, negatives are drawn,
        from videos whose picture some question of the split sees.
        """
        rows = np.asarray(rows)
        chosen = [self.questions[row] for row in rows]
        videos = self._videos[rows]
        there = {m: self._there[m][videos] & _seen(chosen, m, masks)[:, None] for m in MODALITIES}
        return Batch(
            question={
                name: values[torch.from_numpy(place[rows])] for name, (values, place) in self._question_features.items()
            },
            audio=self._values("audio", videos, there["audio"]),
            visual=self._values("visual", videos, there["visual"]),
            audio_mask=torch.from_numpy(there["audio"]),
            visual_mask=torch.from_numpy(there["visual"]),
            answer=self.answers[torch.from_numpy(rows)],
            type=tuple(q.type for q in chosen),
            question_id=tuple(q.question_id for q in chosen),
            video_id=tuple(q.video_id for q in chosen),
            negatives=self._negatives(videos, generator, masks) if there["visual"].any() else None,
            choices=self._choices(rows),
        )

    def _values(self, modality: str, videos: np.ndarray, there: np.ndarray) -> dict[str, Tensor] | None:
        """Return {feature: [row, time, ...]}, NaN where `there` [row, time] is False; None where all of it is."""
        row, position = np.nonzero(there)
        if not len(row):
            return None
        features = {}
        for name, table in self._rows[modality].items():
            values = table.gather(videos[row], position)
            if len(row) < there.size:
                holes = values.new_full((there.size, *values.shape[1:]), torch.nan)
                values = holes.index_copy_(0, torch.from_numpy(row * there.shape[1] + position), values)
            features[name] = values.unflatten(0, there.shape)
        return features

    def _choices(self, rows: np.ndarray) -> Tensor | None:
        """Return bool [row, answer], False for what a row's question does not offer; None where none offers choices."""
        offered = [self._offered[row] for row in rows]
        if all(answers is None for answers in offered):
            return None
        choices = torch.zeros(len(rows), self._answer_count, dtype=torch.bool)
        for row, answers in enumerate(offered):
            choices[row, slice(None) if answers is None else torch.tensor(answers, dtype=torch.int64)] = True
        return choices

    def _pictured(self, masks: Masks | None) -> np.ndarray:
        """Return the videos that have a picture which `masks` do not hide from every question, in the store's order."""
        if self._pool is None or self._pool[0] is not masks:
            videos = np.unique(self._videos[_seen(self.questions, "visual", masks)])
            self._pool = masks, videos[self._there["visual"][videos].any(1)]
        return self._pool[1]

    def _negatives(
        self, videos: np.ndarray, generator: torch.Generator | None, masks: Masks | None
    ) -> dict[str, Tensor] | None:
        """Return pictures of other videos, drawn independently for every step; None where there is no other."""
        if generator is None or not self._uses_negatives:
            return None
        pool = self._pictured(masks)
        if len(pool) < 2:
            return None
        shape = (len(videos), len(self.steps))
        own = np.searchsorted(pool, videos)
        has_own = pool[np.minimum(own, len(pool) - 1)] == videos
        place, moment = torch.rand((2, *shape), generator=generator, dtype=torch.float64).numpy()
        other = (place * (len(pool) - has_own)[:, None]).astype(np.int64)
        other += has_own[:, None] & (other >= own[:, None])
        position = (moment * self._there["visual"][pool].sum(1)[other]).astype(np.int64)
        drawn = (pool[other].ravel(), position.ravel())
        return {name: table.gather(*drawn).unflatten(0, shape) for name, table in self._rows["visual"].items()}


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def input_shapes(
    store: "FeatureStore", needs: Mapping[str, Sequence[str]], map_size: int | None
) -> dict[str, tuple[int, ...]]:
    """Return {feature: shape of one step}, as a dataset gives it, of the audio and visual features in `needs`."""
    names = [name for modality in MODALITIES for name in needs[modality]]
    return {name: stored_shape(tuple(store.spec(name).shape), _map_size(store, name, map_size)) for name in names}


def _map_size(store: "FeatureStore", feature: str, map_size: int | None) -> int | None:
    shape = store.spec(feature).shape
    if map_size is None or len(shape) != 3:
        return None
    if map_size > min(shape[1:]):
        raise UserError(f"map size {map_size} exceeds the stored maps {shape[1:]} of {feature}: give a smaller one")
    return map_size


def _find_videos(store: "FeatureStore", video_ids: list[str]) -> np.ndarray:
    lacking = sorted({video_id for video_id in video_ids if video_id not in store.rows})
    if lacking:
        raise UserError(
            f"the store lacks {len(lacking)} videos of the manifest, such as {lacking[0]!r}: extract them first"
        )
    return np.array([store.rows[video_id] for video_id in video_ids], dtype=np.int64)


def _read_questions(
    store: "FeatureStore", manifest: Manifest, split: str, needs: Sequence[str]
) -> dict[str, tuple[Tensor, np.ndarray]]:
    """Return {feature: (values of the unique texts [text, ...], the place of each question among them)}."""
    texts = [q.text for q in manifest.questions[split]]
    lacking = [text for text in texts if text not in store.question_rows]
    if lacking:
        raise UserError(f"the store lacks {len(lacking)} questions, such as {lacking[0]!r}: extract them first")
    unique, place = np.unique(
        np.array([store.question_rows[text] for text in texts], dtype=np.int64), return_inverse=True
    )
    features = {}
    for name in needs:
        words = manifest.vocabulary
        stored = tokens_name(words.tokens, words.question_length) if name == "tokens" else name
        values = torch.from_numpy(np.asarray(store.question_values(stored).oindex[unique]))
        holes = values.isnan() if values.is_floating_point() else values == -1
        if holes.flatten(1).all(1).any():
            raise UserError(f"the store lacks {stored} of some questions of {manifest.name!r}: extract them first")
        features[name] = (values, place)
    return features


def _steps_there(
    store: "FeatureStore", modality: str, features: Sequence[str], steps: tuple[int, ...], videos: np.ndarray
) -> np.ndarray:
    """Return bool [video of the store, step]: recorded, and extracted for every feature."""
    states = _states(store, modality, features)
    pending = np.unique(videos[(states[:, videos] == State.PENDING).any(0)])
    if len(pending):
        raise UserError(
            f"{len(pending)} videos are not extracted yet ({modality}), such as "
            f"{store.video_ids[pending[0]]!r}: run mavqa-extract again to finish the store"
        )
    complete = (states == State.COMPLETE).all(0)
    return complete[:, None] & (np.asarray(steps)[None, :] < store.steps(modality)[:, None])


def _states(store: "FeatureStore", modality: str, features: Sequence[str]) -> np.ndarray:
    """Return the `State` codes of the recording and of each feature, [1 + feature, video of the store]."""
    return np.stack([store.presence(modality), *(store.state(name) for name in features)])


def _seen(questions: Sequence[Question], modality: str, masks: Masks | None) -> np.ndarray:
    hidden = {} if masks is None else masks
    return np.array([modality not in hidden.get(q.question_id, ()) for q in questions], dtype=bool)

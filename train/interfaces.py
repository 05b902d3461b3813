"""The roles in stage two: what a backbone and a missing-modality method are. It holds no implementation."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from train.data.batch import Batch
from train.data.dataset import ModelInputs


@dataclass(frozen=True)
class Representation:
    """A batch inside a backbone, each modality at one of three levels (the deepest level given counts).

    `features`: before any fusion, as `Backbone.feature_shapes` says: {modality: [batch, time, ...]}; RMM and AVR act
    here. `steps`: {modality: [batch, time, channel]}, one vector per second; ShaSpec and ActionMAE act here.
    `pooled`: {modality: [batch, channel]}, conditioned on the question; DrFuse and the learned constants act here.
    `question`: [batch, channel], what RMM points with. `words`: [batch, word, channel of the backbone's own], where a
    backbone reads the question word by word, with `word_mask` bool [batch, word]. `masks`: {modality: bool [batch,
    time]}, True where a step is there. `negatives`: features of other videos' pictures, only in training. A modality
    in none of the three levels is absent.
    """

    question: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, Tensor] = field(default_factory=dict)
    pooled: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    negatives: Tensor | None = None
    words: Tensor | None = None
    word_mask: Tensor | None = None

    def level(self, modality: str) -> str | None:
        """Return the deepest level at which `modality` stands: "pooled", "steps", "features", or None."""
        return next((level for level in ("pooled", "steps", "features") if modality in getattr(self, level)), None)

    def mask(self, modality: str, steps: Tensor) -> Tensor:
        """Return bool [batch, time] of `modality`, whose values are `steps` [batch, time, ...]; True without one."""
        mask = self.masks.get(modality)
        return steps.new_ones(steps.shape[:2], dtype=torch.bool) if mask is None else mask

    def question_alone(self) -> "Representation":
        """Return what is left when no video was ever there."""
        return Representation(self.question, words=self.words, word_mask=self.word_mask)

    def detached(self) -> "Representation":
        """Return the question as a constant, without any modality."""
        words = None if self.words is None else self.words.detach()
        return Representation(self.question.detach(), words=words, word_mask=self.word_mask)


@dataclass(frozen=True)
class Answer:
    """What a backbone answers: `logits` [batch, answer] and its auxiliary losses (scalars, weighted) by name."""

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Matches:
    """Whether sound and picture belong together: logits [batch, time, 2], class 1 for yes.

    `matching` are of a second's own pair, `mismatching` of its sound with another video's picture; `real`, bool
    [batch, time], says where the pair is there.
    """

    matching: Tensor
    mismatching: Tensor
    real: Tensor

    def loss(self) -> Tensor:
        """Return the mean cross-entropy (scalar) over all pairs of both kinds."""
        weights = self.real.to(self.matching.dtype)
        right = F.log_softmax(self.matching, dim=-1)[..., 1] + F.log_softmax(self.mismatching, dim=-1)[..., 0]
        return -(right * weights).sum() / (2 * weights.sum()).clamp_min(1)

    def count_correct(self) -> int:
        """Return how many pairs are told rightly."""
        told = (self.matching.argmax(-1) == 1).long() + (self.mismatching.argmax(-1) == 0).long()
        return int((told * self.real).sum())


class Backbone(Protocol):
    """A model that answers questions about videos, open at three levels. Implementations are `torch.nn.Module`s.

    `needs`: {"question" | "audio" | "visual": stored feature names}. `feature_shapes`: {modality: shape of one time
    step at the features level}, for example {"audio": (512,), "visual": (512, 14, 14)}. `channels`: the width of steps,
    pooled vectors and the question. `answers`: how many it chooses from. `time_steps`: the rows it takes from a store,
    spread evenly over the stored seconds. `input_shapes`: {stored feature: shape of one time step}, what `Batch.audio`
    and `Batch.visual` hold. `input_whitening`: {stored feature: `networks.layers.InputWhitening`}, the identity unless
    a run whitens its inputs. `uses_negatives`: whether its training looks at pictures of other videos.
    """

    needs: dict[str, tuple[str, ...]]
    feature_shapes: dict[str, tuple[int, ...]]
    input_shapes: dict[str, tuple[int, ...]]
    input_whitening: Any
    channels: int
    answers: int
    time_steps: int
    uses_negatives: bool

    def encode(self, batch: Batch) -> Representation:
        """Return the features level of what the (homogeneous) batch holds; an absent modality stays absent."""
        ...

    def steps(self, representation: Representation) -> dict[str, Tensor]:
        """Return {modality: [batch, time, channel]} of the modalities at the features or steps level."""
        ...

    def pool(self, representation: Representation, prompts: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return {modality: [batch, channel]}, the question's view of each modality.

        `prompts`: {modality: [prompt, channel]} joins the keys and values that the question attends to.
        """
        ...

    def answer(self, representation: Representation) -> Answer:
        """Return logits and auxiliary losses, each modality entering at the deepest level given.

        A backbone that sees several things in a second (places, patches) sees one vector where steps are given, and
        the answer may differ from the one that its own features would have had.
        Raises ValueError where a modality stands at no level: a method must say what stands in for it.
        """
        ...


def inputs_of(backbone: Backbone, map_size: int | None = None) -> ModelInputs:
    """Return what `backbone` reads of a store whose maps are pooled to `map_size` (None keeps them)."""
    return ModelInputs(backbone.needs, backbone.time_steps, backbone.uses_negatives, map_size)


@runtime_checkable
class SupportsMatching(Protocol):
    """What a backbone offers besides where it tells matching sound and picture from others."""

    def match(self, representation: Representation) -> Matches:
        """Return the logits of every second's own pair and of its pair with `negatives`, which must be there."""
        ...


@dataclass(frozen=True)
class Stage:
    """One part of a staged training: its name, its share of the epochs, and the parameters trained in it.

    `trains`: prefixes of parameter names (`("backbone.",)`); the default trains all of them.
    """

    name: str
    share: float
    trains: tuple[str, ...] = ("",)


class MissingModalityMethod(Protocol):
    """A method owns a backbone and decides what stands in for an absent modality. Implementations are Modules.

    Both verbs take homogeneous batches (`Batch.split_by_presence`). `selection_scenarios`: the scenarios whose
    validation accuracies are averaged to choose a checkpoint. `sees`: what it sees of missing modalities in training:
    "nothing"; "thirds", each complete question whole, without audio or without visual, sampled at each step;
    "replaced", each complete question with either modality replaced. `trains_on`: "complete" where the loop must drop
    the training rows that lack a modality before the method sees them, "videos" where it wants one complete row a
    video, "all" otherwise. Draws in training (dropout, noise) come from torch's default generator, which the loop seeds
    once and saves.
    """

    backbone: Backbone
    selection_scenarios: tuple[str, ...]
    sees: str
    trains_on: str

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the scalar losses by name; "total" is the one to minimise."""
        ...

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; nothing of an absent modality is read."""
        ...


@runtime_checkable
class SupportsImputation(Protocol):
    """What a method offers besides where something stands in for the features of a missing modality."""

    def complete(self, batch: Batch) -> Representation:
        """Return what the backbone answers from: both modalities' features, of a (homogeneous) batch that has one.

        A stand-in's steps are those of the modality that is there.
        """
        ...


@runtime_checkable
class SupportsScoring(Protocol):
    """What a method offers besides where answers are not what chooses its checkpoint."""

    def score(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return percentages by name, over complete batches that carry negatives; their mean chooses."""
        ...


@runtime_checkable
class SupportsPreparation(Protocol):
    """What a method offers besides where it must look at the training split before the first step."""

    def prepare(self, videos: Iterable[Batch], questions: Iterable[Batch]) -> None:
        """Take in `videos`, one complete row a video, and `questions`, all that are trained on, without features.

        What a run's masks hide is not there. What is kept must be in the state dict: a resumed run is not prepared.
        """
        ...


@runtime_checkable
class SupportsStages(Protocol):
    """What a method offers besides where it can be trained in stages (`training = "staged"`)."""

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages in order; their shares sum to 1."""
        ...

    def enter(self, stage: str) -> None:
        """Be told that the stage of this name begins: `training_loss` gives its losses from now on."""
        ...

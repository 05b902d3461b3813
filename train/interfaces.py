"""The contracts of stage two: what a backbone and a missing-modality method provide, and what they may rely on.

The training loop and the evaluation pass batches to a method, and the method calls its backbone: `encode`, then `steps`
or `pool` if it works on these levels, and finally `answer`. Between these calls it replaces a missing modality. All
batches are homogeneous: their rows have the same available modalities, and a missing one has no tensor.

Axes: batch (questions), time (the steps of a video that the backbone reads, in order), channel.
"""

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
    """A batch encoded by a backbone: the question, and each modality at one or more of three levels.

    - `question` [batch, channel]: the question as one vector, with which RMM addresses its slots.
    - `features` {modality: [batch, time, ...]}: before any fusion, steps shaped as in `Backbone.feature_shapes`.
      RMM and AVR work on this level.
    - `steps` {modality: [batch, time, channel]}: one vector per time step. ShaSpec and ActionMAE work on this level.
    - `pooled` {modality: [batch, channel]}: one vector per video, conditioned on the question. DrFuse and the learned
      constants work on this level.
    - `masks` {modality: bool [batch, time]}: True for available steps. Without an entry, all steps are available.
    - `negatives` [batch, time, ...]: visual features of other videos, shaped like `features["visual"]`; None outside
      training and for backbones that do not use them.
    - `words` [batch, word, channel of the backbone's choice], `word_mask` bool [batch, word]: the question word by
      word, and a mask that is True for the words to read; None for backbones that read only `question`.

    If a modality is at several levels, the deepest one is used: pooled, then steps, then features. A modality that is
    at no level is missing.
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
        """Return the deepest level of `modality`: "pooled", "steps" or "features", None if it is missing."""
        return next((level for level in ("pooled", "steps", "features") if modality in getattr(self, level)), None)

    def mask(self, modality: str, steps: Tensor) -> Tensor:
        """Return the mask of `modality`, bool [batch, time]; True everywhere if it has none.

        `steps` [batch, time, ...]: the values of the modality, which give the shape.
        """
        mask = self.masks.get(modality)
        return steps.new_ones(steps.shape[:2], dtype=torch.bool) if mask is None else mask

    def question_alone(self) -> "Representation":
        """Return the question without any modality."""
        return Representation(self.question, words=self.words, word_mask=self.word_mask)

    def detached(self) -> "Representation":
        """Return the question without any modality, detached from the graph."""
        words = None if self.words is None else self.words.detach()
        return Representation(self.question.detach(), words=words, word_mask=self.word_mask)


@dataclass(frozen=True)
class Answer:
    """The output of a backbone: `logits` [batch, answer] and its auxiliary losses {name: scalar}, already weighted."""

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Matches:
    """Predictions of whether audio and frame belong together, as logits [batch, time, 2]; class 1: they match.

    - `positive`: of the audio and the frame of the same step.
    - `negative`: of the audio of a step and a frame of another video.
    - `mask` bool [batch, time]: True for the steps that have both modalities; other steps do not count.
    """

    positive: Tensor
    negative: Tensor
    mask: Tensor

    def loss(self) -> Tensor:
        """Return the mean cross-entropy (scalar) over all positive and negative pairs."""
        weights = self.mask.to(self.positive.dtype)
        log_likelihood = F.log_softmax(self.positive, dim=-1)[..., 1] + F.log_softmax(self.negative, dim=-1)[..., 0]
        return -(log_likelihood * weights).sum() / (2 * weights.sum()).clamp_min(1)

    def count_correct(self) -> int:
        """Return the number of positive and negative pairs that are classified correctly."""
        correct = (self.positive.argmax(-1) == 1).long() + (self.negative.argmax(-1) == 0).long()
        return int((correct * self.mask).sum())


class Backbone(Protocol):
    """A model that answers questions about videos and accepts each modality at three levels (`Representation`).

    An implementation is a `torch.nn.Module`, built as `Class(sizes, **options)` with the `ModelSizes` of a run and the
    user's options. A ValueError from the constructor is reported as sizes or options that do not fit. Weights are
    initialised from torch's default generator, which the caller seeds. A class with an attribute `variants` (names, the
    default first) is built with the option `variant`.

    - `needs` {"question" | "audio" | "visual": names of stored features}: what is read from the store. A class
      attribute, because it is read before the backbone is built.
    - `input_shapes` {stored feature: shape of one time step}: the tensors in `Batch.audio` and `Batch.visual`.
    - `feature_shapes` {modality: shape of one time step}: the tensors of the features level, for example
      {"audio": (512,), "visual": (512, 14, 14)}.
    - `channels`: the width of the question, of steps and of pooled vectors.
    - `answers`: the number of answers to choose from.
    - `time_steps`: the number of steps to read per video, spread evenly over the stored seconds; all seconds if the
      store has fewer.
    - `input_whitening` {stored feature: `train.networks.layers.InputWhitening`}, an `nn.ModuleDict` over `input_shapes`
      that `encode` applies to its inputs. The identity, unless the run whitens its inputs before training.
    - `uses_negatives`: whether training uses `Batch.negatives`, frames of other videos.
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
        """Return the question and the features level of a homogeneous batch, with a mask for each available modality.

        Missing steps, where `batch.mask(modality)` is False, are NaN in the batch and must be zero in the features. A
        missing modality is in none of the fields. Both may be missing: methods encode the question alone in this way.
        """
        ...

    def steps(self, representation: Representation) -> dict[str, Tensor]:
        """Return {modality: [batch, time, channel]} of the modalities whose level is features or steps.

        Values given at the steps level are returned unchanged.
        """
        ...

    def pool(self, representation: Representation, prompts: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return {modality: [batch, channel]}, each available modality conditioned on the question.

        Values given at the pooled level are returned unchanged. `prompts` {modality: [prompt, channel]} are additional
        keys and values where the modality is attended to; those of a missing modality are ignored.
        """
        ...

    def answer(self, representation: Representation) -> Answer:
        """Return logits and auxiliary losses; each modality enters at its deepest level.

        A step at the features level may have several vectors (locations, patches), at the steps level it has one: a
        backbone may answer differently from `steps(representation)` than from the features themselves.
        Raises ValueError if a modality is missing at all levels: the method must impute or replace it first.
        """
        ...


def inputs_of(backbone: Backbone, map_size: int | None = None) -> ModelInputs:
    """Return what `backbone` reads from a store, with maps pooled to `map_size` x `map_size` (None: as stored)."""
    return ModelInputs(backbone.needs, backbone.time_steps, backbone.uses_negatives, map_size)


@runtime_checkable
class SupportsMatching(Protocol):
    """Optional capability of a backbone: predicts whether audio and frame match. Grounding pre-training needs it."""

    def match(self, representation: Representation) -> Matches:
        """Return the match logits of every step and of its audio with `negatives`.

        Both modalities must be at the features level, and `negatives` must not be None.
        """
        ...


@dataclass(frozen=True)
class Stage:
    """One stage of a staged training: its name, its share of the epochs, and the parameters that it trains.

    `trains`: prefixes of the names of these parameters, for example `("backbone.",)`; all parameters by default.
    """

    name: str
    share: float
    trains: tuple[str, ...] = ("",)


class MissingModalityMethod(Protocol):
    """A method owns a backbone and decides what replaces a missing modality.

    An implementation is a `torch.nn.Module`, built as `Class(backbone, **options)`; a class attribute `variants` works
    as for backbones. Random numbers in training (dropout, noise, sampled missingness) must come from torch's default
    generator, which the loop seeds before every epoch, so that a resumed run ends in the same weights. With a class
    attribute `freezes_backbone = True`, the last stage trains on a frozen backbone; joint training, which has no stage
    before it, is then refused unless the run starts from a trained one. With an attribute `uses_negatives` that is
    False, the batches of training have no negatives (`uses_negatives`). An attribute `learning_rates` {prefix of
    parameter names: learning rate of the first epoch} gives these parameters a rate of their own, with the schedule of
    the run. An attribute `diffusion_steps` is the number of steps that a reverse chain runs, for reports.

    - `backbone`: a submodule of this name, so that another run can start from its weights.
    - `selection_scenarios`: scenarios of `train.data.scenarios`. The mean of their validation accuracies selects the
      checkpoint.
    - `sees`: which missing modalities the method sees in training, its exposure, for reports. "nothing"; "sampled":
      each step samples for every complete question whether it stays complete or loses audio or visual, a third each;
      "all": every complete question is answered three times, complete and with either modality missing.
    - `trains_on`: which training questions the loop passes. "complete": those with both modalities; "videos": one
      complete question per video; "all".
    """

    backbone: Backbone
    selection_scenarios: tuple[str, ...]
    sees: str
    trains_on: str

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the scalar losses of a homogeneous batch by name; "total" is minimised, all are logged.

        Called once per training step, in training mode. The batch has negatives only if the backbone and the method use
        them and the visual modality is available.
        """
        ...

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer] of a homogeneous batch, in which one modality or both may be missing.

        Called in evaluation mode, without gradients. The logits of a row must not depend on other rows.
        """
        ...


def uses_negatives(method: MissingModalityMethod) -> bool:
    """Return whether the present stage of `method` uses `Batch.negatives` in training.

    They are as many maps as the questions' own, and need not be read for a method that drops them.
    """
    return method.backbone.uses_negatives and getattr(method, "uses_negatives", True)


@runtime_checkable
class SupportsImputation(Protocol):
    """Optional capability: imputes the features of a missing modality."""

    def complete(self, batch: Batch) -> Representation:
        """Return the representation to answer from, with the features of both modalities.

        The (homogeneous) batch has at least one. Imputed features have the available steps of the other modality.
        """
        ...


@runtime_checkable
class SupportsScoring(Protocol):
    """Optional capability: selects the checkpoint by scores of its own instead of answers."""

    def score(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return percentages by name; the checkpoint with the highest mean is selected.

        `batches`: one complete question per validation video, with negatives. Called after every epoch.
        """
        ...


@runtime_checkable
class SupportsPreparation(Protocol):
    """Optional capability: reads the training split once before the first training step."""

    def prepare(self, videos: Iterable[Batch], questions: Iterable[Batch]) -> None:
        """Learn from the training split whatever training and prediction need.

        `videos`: one complete question per training video; questions with a modality hidden by the run's masks are
        left out. `questions`: the questions that are trained on, without any modality. What is learned must be kept in
        the state dict, because a resumed run loads that instead.
        """
        ...


@runtime_checkable
class SupportsStages(Protocol):
    """Optional capability: can be trained in stages (`training = "staged"`)."""

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages in order; their shares sum to 1."""
        ...

    def enter(self, stage: str) -> None:
        """Switch to the stage of this name; from now on `training_loss` returns its losses.

        Called at the start of a stage, and when a run resumes within it.
        """
        ...

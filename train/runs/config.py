"""What a run is made of, as data: sizes, and every setting of training. It builds nothing and loads no torch.

Source: the settings' values stand, paper by paper, in `train.runs.presets`.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UserError
from train.backbones.sizes import ModelSizes
from train.runs.presets import PRESETS

Inputs = Literal["all", "question", "audio,question", "visual,question"]


class TrainConfig(BaseModel):
    """Every setting of one run; what stands here and the stores decide the weights.

    `objective` "grounding" trains no answer, but the backbone's telling of matching sound and picture from others.
    `options` are keywords of the method, `backbone_options` of the backbone. `variant` is the reading of both, where
    they know several: "recommended" means the backbone's paper and the mended method. `map_size`: maps are pooled to
    that many cells a side, None keeps them. `whiten`: stored channels are given mean 0, at most variance 1 and little
    correlation over the training videos, which seeded features need and pretrained ones do not. `start_from`: the run
    beside this one whose trained backbone this one starts with. The learning rate is multiplied by `decay_factor` after
    every `decay_epochs` epochs of a stage. `ema_decay`: the share of a running average of the weights that every step
    keeps; the average is what is validated and kept, 0 keeps the weights themselves. `missing_rates`: share of the
    training questions that lose a modality, drawn by `unit` from `seed`. `inputs` other than "all" train a reference
    that never sees a modality. `sizes` is filled in by the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: Literal["answer", "grounding"] = "answer"
    backbone: str = "avst"
    method: str = "rmm-avr"
    variant: str = "recommended"
    inputs: Inputs = "all"
    preset: str = "paper"
    manifest: str = ""
    store: str = ""
    seed: int = Field(1, ge=0)
    device: str = "auto"
    precision: Literal["float32"] = "float32"
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    decay_epochs: int = Field(8, ge=1)
    decay_factor: float = Field(0.1, gt=0, le=1)
    training: Literal["joint", "staged"] = "joint"
    channels: int = Field(512, ge=1)
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    time_steps: int = Field(10, ge=1)
    map_size: int | None = Field(None, ge=1)
    whiten: bool = False
    start_from: str = ""
    ema_decay: float = Field(0, ge=0, lt=1)
    missing_rates: dict[str, float] = Field(default_factory=dict)
    unit: Literal["video", "question"] = "question"
    options: dict[str, Any] = Field(default_factory=dict)
    backbone_options: dict[str, Any] = Field(default_factory=dict)
    sizes: ModelSizes | None = None

    @model_validator(mode="after")
    def _references_have_their_own_method(self) -> "TrainConfig":
        if (self.inputs == "all") == (self.method == "reference"):
            raise ValueError("method 'reference' goes with inputs other than 'all', and no other method does")
        return self


def make_config(preset: str = "paper", **overrides: Any) -> TrainConfig:
    """Return the settings of `preset` with `overrides`, of which None means: as the preset has it.

    What a preset says of the chosen backbone goes before what it says of all. `options` are laid over the preset's
    options of the method. Inputs other than "all" choose the method "reference".
    Raises `UserError` naming the setting and its value where one is unknown or out of range.
    """
    if preset not in PRESETS:
        raise UserError(f"preset {preset!r} is unknown: choose one of {', '.join(PRESETS)}")
    given = {name: value for name, value in overrides.items() if value is not None}
    if given.get("inputs", "all") != "all":
        given["method"] = "reference"
    chosen = PRESETS[preset]
    backbone = given.get("backbone", chosen.settings.get("backbone", TrainConfig.model_fields["backbone"].default))
    settings = {"preset": preset, **chosen.settings, **chosen.backbones.get(backbone, {}), **given}
    method = settings.get("method", TrainConfig.model_fields["method"].default)
    reference = {"inputs": settings["inputs"]} if method == "reference" and "inputs" in settings else {}
    settings["options"] = {**chosen.options.get(method, {}), **reference, **given.get("options", {})}
    try:
        return TrainConfig(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        raise UserError(f"{name} = {first['input']!r}: {first['msg']}") from None

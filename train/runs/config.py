"""The configuration of a run: every training setting, validated. Loads no torch.

The values published by each paper are in `train.runs.presets`.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UserError, describe_invalid, did_you_mean, unknown_name
from pipeline.files import check_file_name
from train.backbones.sizes import ModelSizes
from train.data.scenarios import check_rates
from train.runs.presets import PRESETS

Inputs = Literal["all", "question", "audio,question", "visual,question"]
INPUTS: tuple[str, ...] = get_args(Inputs)
Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


# The largest integer of TOML, in which settings are written; torch takes it as a seed.
LARGEST_SEED = 2**63 - 1
# The text for "no value" where a file or an assignment has no other way to say it.
NONE = "none"


def read_none(value: Any) -> Any:
    """Return None for the text `NONE`, also as an entry of a table, and any other value as it is."""
    if isinstance(value, dict):
        return {name: read_none(entry) for name, entry in value.items()}
    return None if value == NONE else value


class TrainConfig(BaseModel):
    """All settings of one run; together with the store and the manifest they determine the weights.

    The descriptions of the fields say what they are. `sizes`: filled in when the run starts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    objective: Literal["answer", "grounding"] = Field(
        "answer", description='"answer", or "grounding": pre-train the backbone on audio-visual matching'
    )
    backbone: str = Field("avst", description="model")
    method: str = Field("rmm-avr", description="missing-modality method")
    variant: str = Field(
        "recommended",
        description='version of both, if they have several; "recommended" is the backbone\'s paper and the corrected '
        "method",
    )
    backbone_variant: str = Field(
        "", description="version of the backbone if it has several and it is to be another than `variant`"
    )
    inputs: Inputs = Field("all", description='other than "all": train a reference model restricted to these inputs')
    preset: str = Field("paper", description="preset that the other settings replace")
    manifest: str = Field("", description="manifest folder")
    store: str = Field("", description="feature store")
    seed: int = Field(1, ge=0, le=LARGEST_SEED, description="random seed")
    device: str = Field("auto", description="cpu, cuda, or auto: a GPU if available")
    precision: Precision = Field(
        "float32",
        description='"float32"; "tf32" or "bfloat16" for matrix products and convolutions ("tf32": on a GPU)',
    )
    epochs: int = Field(20, ge=1, description="number of training epochs")
    batch_size: int = Field(64, ge=1, description="questions per batch")
    accumulate: int = Field(1, ge=1, description="batches per training step, which takes the mean loss over them")
    learning_rate: float = Field(1e-4, gt=0, description="learning rate of the first epoch of a stage")
    decay_epochs: int = Field(
        8, ge=1, description="number of epochs of a stage after which the learning rate is multiplied by decay_factor"
    )
    decay_factor: float = Field(0.1, gt=0, le=1, description="factor of the learning rate after every decay_epochs")
    warmup_epochs: float = Field(
        0.0, ge=0, description="epochs at the start of a stage in which the learning rate rises linearly from 0"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (AdamW), of all parameters")
    clip_norm: Annotated[float | None, BeforeValidator(read_none)] = Field(
        None, gt=0, description="largest norm of the gradient, which is scaled down to it; none: no limit"
    )
    training: Literal["joint", "staged"] = Field(
        "joint",
        description='"staged": train the stages of a method that has them one after the other; "joint": train all '
        "parameters from the first epoch",
    )
    channels: int = Field(512, ge=1, description="width of the backbone, unless its paper fixes it")
    heads: int = Field(4, ge=1, description="attention heads of the backbone, except those that its paper fixes")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate of the backbone")
    time_steps: int = Field(10, ge=1, description="time steps read per video, spread evenly over the stored seconds")
    map_size: Annotated[int | None, BeforeValidator(read_none)] = Field(
        None, ge=1, description="pool feature maps to this many cells per side; none: no pooling"
    )
    whiten: bool = Field(
        False,
        description="scale the stored channels over the training videos to mean 0, variance at most 1 and little "
        "correlation; seeded features need it, pretrained ones do not",
    )
    start_from: str = Field(
        "", description="name of a run in the same folder whose trained backbone initialises this one"
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of the moving average of the weights, which is then validated and saved; 0: none",
    )
    missing_rates: dict[str, float] = Field(
        default_factory=dict, description="share of the training questions that lose a modality, sampled from the seed"
    )
    unit: Literal["video", "question"] = Field("question", description="what missing_rates sample")
    options: Annotated[dict[str, Any], BeforeValidator(read_none)] = Field(
        default_factory=dict, description="options of the method"
    )
    backbone_options: Annotated[dict[str, Any], BeforeValidator(read_none)] = Field(
        default_factory=dict, description="options of the backbone"
    )
    sizes: ModelSizes | None = None

    @model_validator(mode="after")
    def _check_method_fits_inputs(self) -> "TrainConfig":
        if (self.inputs == "all") == (self.method == "reference"):
            raise ValueError("method 'reference' requires inputs other than 'all', every other method requires 'all'")
        if self.method == "reference" and self.options.get("inputs", "question") != self.inputs:
            raise ValueError(f"inputs {self.inputs!r} need the same inputs in the options, not {self.options}")
        return self


# What `make_config` can set.
SETTINGS = [name for name in TrainConfig.model_fields if name != "sizes"]


def make_config(preset: str = "paper", **overrides: Any) -> TrainConfig:
    """Return the settings of `preset` with `overrides`; None keeps the preset's value.

    The preset's settings for the chosen backbone take precedence over its general ones. `options` and
    `backbone_options` are merged into the preset's. Inputs other than "all" select the method "reference".
    Raises `UserError` with the setting and its value if it is unknown or out of range, or if another setting would
    replace it.
    """
    overrides = {name: value for name, value in overrides.items() if value is not None}
    _check_settings({"preset": preset, **overrides})
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    base = PRESETS[preset]
    _check_replaced(overrides, overrides.get("objective", base.settings.get("objective", "answer")))
    if overrides.get("inputs", "all") != "all":
        overrides["method"] = "reference"
    backbone = overrides.get("backbone", base.settings.get("backbone", TrainConfig.model_fields["backbone"].default))
    settings = {"preset": preset, **base.settings, **base.backbones.get(backbone, {}), **overrides}
    method = settings.get("method", TrainConfig.model_fields["method"].default)
    reference_options = {"inputs": settings["inputs"]} if method == "reference" and "inputs" in settings else {}
    if method == "reference" and settings.get("inputs", "all") == "all":
        raise UserError(
            "method 'reference' only trains models restricted to some inputs: instead of the method, set the inputs "
            f"(--inputs) to {' or '.join(map(repr, INPUTS[1:]))}"
        )
    settings["options"] = {**base.options.get(method, {}), **reference_options, **overrides.get("options", {})}
    of_preset = {**base.settings, **base.backbones.get(backbone, {})}.get("backbone_options", {})
    settings["backbone_options"] = {**of_preset, **overrides.get("backbone_options", {})}
    try:
        return TrainConfig(**settings)
    except ValidationError as error:
        raise UserError(describe_invalid(error)) from None


def check_names(settings: Mapping[str, Any], known: Collection[str] = SETTINGS) -> None:
    """Raise `UserError` if one of `settings` is not `known`, with the nearest name, or if a text has another type.

    Texts are names of plug-ins, presets, runs and places: they are looked up before the configuration is validated.
    """
    for name, value in settings.items():
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(f"setting {name} = {value!r} is unknown{hint}: choose one of {', '.join(known)}")
        if name in SETTINGS and TrainConfig.model_fields[name].annotation is str and not isinstance(value, str):
            raise UserError(f"{name} = {value!r}: Input should be a valid string")


def _check_settings(settings: dict[str, Any]) -> None:
    """Raise `UserError` if a name is unknown, or if options, missing rates or the run to start from are invalid."""
    check_names(settings)
    for name in ("options", "backbone_options", "missing_rates"):
        if not isinstance(settings.get(name, {}), dict):
            raise UserError(f"{name} = {settings[name]!r}: pass a table of names and values")
    check_rates(settings.get("missing_rates", {}))
    if start := settings.get("start_from"):
        check_file_name("start_from (--start-from)", start, "pass the name of a run in the same folder")


def _check_replaced(settings: dict[str, Any], objective: str) -> None:
    """Raise `UserError` if one of the explicit `settings` would have no effect, because another one replaces it."""
    method, inputs = settings.get("method", "reference"), settings.get("inputs", "all")
    if inputs in INPUTS[1:] and method != "reference":
        raise UserError(
            f"--method {method} and --inputs {inputs} exclude each other: --inputs trains a reference model, without a "
            "method"
        )
    unread = [name for name in ("method", "options", "inputs") if settings.get(name) not in (None, {}, "all")]
    if objective == "grounding" and unread:
        name, value = unread[0], settings[unread[0]]
        raise UserError(
            f"objective 'grounding' pre-trains the backbone without a method: remove {name} = {value!r}, or set "
            "--objective answer"
        )

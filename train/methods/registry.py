"""The missing-modality methods by name. A new one is one file and one line here, imported when asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from pipeline.errors import UserError
from train.interfaces import Backbone, MissingModalityMethod


@dataclass(frozen=True)
class MethodEntry:
    """Where a method lives ("module:Class"), whom to cite for it, the variants it knows, keywords that make it.

    `sees`: what it sees of missing modalities in training. "nothing"; "thirds", each complete question whole, without
    sound or without picture, drawn anew; "replaced", each complete question with either modality replaced.
    """

    path: str
    citation: str
    sees: str
    variants: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


_PAPER = "Park et al., ECCV 2024, Learning Trimodal Relation for AVQA with Missing Modality"
_VARIANTS = ("recommended", "paper", "released")

METHODS = {
    "zero-fill": MethodEntry(
        "train.methods.zero_fill:ZeroFill", "the plain backbone, zeros where one lacks", "nothing"
    ),
    "modality-dropout": MethodEntry(
        "train.methods.modality_dropout:ModalityDropout", "Neverova et al., TPAMI 2016, ModDrop", "thirds"
    ),
    "mean-fill": MethodEntry(
        "train.methods.zero_fill:ZeroFill",
        "the plain backbone, the training mean where one lacks",
        "nothing",
        options={"missing_fill": "mean"},
    ),
    "constant-fill": MethodEntry(
        "train.methods.constant_fill:ConstantFill", "a learned constant where a generator would stand", "replaced"
    ),
    "prompts": MethodEntry(
        "train.methods.prompts:MissingAwarePrompts",
        "Lee et al., CVPR 2023, Multimodal Prompting with Missing Modalities",
        "thirds",
    ),
    "shaspec": MethodEntry("train.methods.shaspec:ShaSpec", "Wang et al., CVPR 2023, ShaSpec", "thirds"),
    "actionmae": MethodEntry(
        "train.methods.actionmae:ActionMae",
        "Woo et al., AAAI 2023, Towards Good Practices for Missing Modality Robust Action Recognition",
        "thirds",
    ),
    "drfuse": MethodEntry("train.methods.drfuse:DrFuse", "Yao et al., AAAI 2024, DrFuse", "thirds"),
    "retrieval-fill": MethodEntry(
        "train.methods.retrieval_fill:RetrievalFill", "the nearest training videos lend what is missing", "thirds"
    ),
    "reference": MethodEntry("train.methods.reference:Reference", "the plain backbone on fewer inputs", "nothing"),
    "rmm": MethodEntry("train.methods.rmm:Rmm", _PAPER, "replaced", _VARIANTS),
    "avr": MethodEntry("train.methods.avr:Avr", _PAPER, "replaced", _VARIANTS),
    "rmm-avr": MethodEntry("train.methods.rmm_avr:RmmAvr", _PAPER, "replaced", _VARIANTS),
}


def make_method(name: str, backbone: Backbone, variant: str = "recommended", **options: Any) -> MissingModalityMethod:
    """Build the method `name` around `backbone`; `options` are its own keywords.

    A method that knows variants is given `variant`.
    Raises `UserError` naming the known methods or variants where the name is not one of them, and where the method
    cannot be built on the backbone.
    """
    entry = find_method(name)
    if entry.variants and variant not in entry.variants:
        raise UserError(f"method {name!r} has no variant {variant!r}: it knows {', '.join(entry.variants)}")
    if entry.variants:
        options["variant"] = variant
    module, _, class_name = entry.path.partition(":")
    build = getattr(import_module(module), class_name)
    try:
        method: MissingModalityMethod = build(backbone, **{**entry.options, **options})
    except ValueError as error:
        raise UserError(f"method {name!r} cannot be built: {error}") from None
    return method


def find_method(name: str) -> MethodEntry:
    """Return the table's entry, or raise `UserError` naming the known methods."""
    if name not in METHODS:
        raise UserError(f"method {name!r} is unknown: choose one of {', '.join(METHODS)}")
    return METHODS[name]

"""The backbones by name. A new one is one file and one line here; each is imported only when asked for."""

from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any

from pipeline.errors import UserError
from train.backbones.sizes import ModelSizes
from train.interfaces import Backbone


@dataclass(frozen=True)
class BackboneEntry:
    """Where a backbone lives ("module:Class"), whom to cite for it, and the readings of it that it knows (if several).

    "paper" is the first reading and the default; "released" is what the authors' code computes where that differs.
    """

    path: str
    citation: str
    variants: tuple[str, ...] = ()


BACKBONES = {
    "avst": BackboneEntry(
        "train.backbones.avst:Avst",
        "Li et al., CVPR 2022, Learning to Answer Questions in Dynamic AV Scenarios",
    ),
    "pano": BackboneEntry(
        "train.backbones.pano:Pano",
        "Yun et al., ICCV 2021, Pano-AVQA: Grounded AVQA on 360 degree Videos",
    ),
    "pstp": BackboneEntry(
        "train.backbones.pstp:Pstp",
        "Li et al., ACM MM 2023, Progressive Spatio-temporal Perception for AVQA",
        variants=("paper", "released"),
    ),
    "avsd": BackboneEntry(
        "train.backbones.avsd:Avsd",
        "Schwartz et al., CVPR 2019, A Simple Baseline for Audio-Visual Scene-Aware Dialog",
        ("paper", "released"),
    ),
    "baseline": BackboneEntry(
        "train.backbones.baseline:Baseline",
        "Li et al., CVPR 2022, AVST without its spatial grounding (the released net_grd_baseline)",
    ),
}


def make_backbone(name: str, sizes: ModelSizes, variant: str = "paper", **options: Any) -> Backbone:
    """Build the backbone `name`, with fresh weights from torch's seeded state; `options` are its own keywords.

    A backbone that knows variants is given `variant`, any other is its paper's.
    Raises `UserError` naming the known ones where a name or an option is unknown, and where the sizes do not fit it.
    """
    entry = find_backbone(name)
    if entry.variants:
        options["variant"] = variant if variant in entry.variants else entry.variants[0]
    build = _load(name)
    unknown = sorted(options.keys() - signature(build).parameters.keys())
    if unknown:
        known = ", ".join(list(signature(build).parameters)[1:]) or "none"
        raise UserError(f"backbone {name!r} has no option {unknown[0]!r}: it knows {known}")
    try:
        backbone: Backbone = build(sizes, **options)
    except ValueError as error:
        raise UserError(f"backbone {name!r} cannot be built: {error}") from None
    return backbone


def find_backbone(name: str) -> BackboneEntry:
    """Return the table's entry, or raise `UserError` naming the known backbones."""
    if name not in BACKBONES:
        raise UserError(f"backbone {name!r} is unknown: choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def needs_of(name: str) -> dict[str, tuple[str, ...]]:
    """Return {"question" | "audio" | "visual": stored feature names} that the backbone `name` reads."""
    needs: dict[str, tuple[str, ...]] = _load(name).needs
    return needs


def _load(name: str) -> Any:
    module, _, class_name = find_backbone(name).path.partition(":")
    return getattr(import_module(module), class_name)

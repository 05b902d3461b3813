"""The backbones by name. A new one is one file and one line here; each is imported only when asked for."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pipeline.failure import UserError
from train.config import ModelSizes
from train.interfaces import Backbone


@dataclass(frozen=True)
class BackboneEntry:
    """Where a backbone lives ("module:Class") and whom to cite for it."""

    path: str
    citation: str


BACKBONES = {
    "avst": BackboneEntry(
        "train.backbones.avst:Avst",
        "Li et al., CVPR 2022, Learning to Answer Questions in Dynamic AV Scenarios",
    ),
}


def make_backbone(name: str, sizes: ModelSizes) -> Backbone:
    """Build the backbone `name`, with fresh weights from torch's seeded state.

    Raises `UserError` naming the known backbones where `name` is not one of them.
    """
    backbone: Backbone = _load(name)(sizes)
    return backbone


def needs_of(name: str) -> dict[str, tuple[str, ...]]:
    """Return {"question" | "audio" | "visual": stored feature names} that the backbone `name` reads."""
    needs: dict[str, tuple[str, ...]] = _load(name).needs
    return needs


def _load(name: str) -> Any:
    if name not in BACKBONES:
        raise UserError(f"backbone {name!r} is unknown: choose one of {', '.join(BACKBONES)}")
    module, _, class_name = BACKBONES[name].path.partition(":")
    return getattr(import_module(module), class_name)

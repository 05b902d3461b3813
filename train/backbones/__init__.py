"""The backbones by name. A new one is one file and one line here; each is imported only when asked for."""

from dataclasses import dataclass
from importlib import import_module

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
    if name not in BACKBONES:
        raise UserError(f"backbone {name!r} is unknown: choose one of {', '.join(BACKBONES)}")
    module, _, class_name = BACKBONES[name].path.partition(":")
    backbone: Backbone = getattr(import_module(module), class_name)(sizes)
    return backbone

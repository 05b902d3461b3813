"""The backbones by name. A new one is one file and one line here, or an entry point `mavqa.backbones`."""

from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.plugins import check_options, load_plugin, with_installed

if TYPE_CHECKING:
    from train.backbones.sizes import ModelSizes
    from train.interfaces import Backbone

BACKBONES = with_installed(
    "mavqa.backbones",
    {
        # Li et al., CVPR 2022, Learning to Answer Questions in Dynamic AV Scenarios.
        "avst": "train.backbones.avst:Avst",
        # Yun et al., ICCV 2021, Pano-AVQA: Grounded AVQA on 360 degree Videos.
        "pano": "train.backbones.pano:Pano",
        # Li et al., ACM MM 2023, Progressive Spatio-temporal Perception for AVQA.
        "pstp": "train.backbones.pstp:Pstp",
        # Schwartz et al., CVPR 2019, A Simple Baseline for Audio-Visual Scene-Aware Dialog.
        "avsd": "train.backbones.avsd:Avsd",
        # Li et al., CVPR 2022, AVST without its spatial grounding (the released net_grd_baseline).
        "baseline": "train.backbones.baseline:Baseline",
    },
)


def make_backbone(name: str, sizes: "ModelSizes", variant: str = "paper", **options: Any) -> "Backbone":
    """Build the backbone `name`, with fresh weights from torch's seeded state; `options` are its own keywords.

    A backbone that knows variants is given `variant`, or its first one where it does not know that.
    Raises `UserError` naming the known ones where a name or an option is unknown, and where the sizes do not fit it.
    """
    build = load_plugin("backbone", BACKBONES, name)
    if variants := backbone_variants(name):
        options["variant"] = variant if variant in variants else variants[0]
    check_options("backbone", name, build, options)
    try:
        backbone: Backbone = build(sizes, **options)
    except ValueError as error:
        raise UserError(f"backbone {name!r} cannot be built: {error}") from None
    return backbone


def backbone_variants(name: str) -> tuple[str, ...]:
    """Return the variants that the backbone `name` knows, () where it has one alone.

    "paper" is the first and the default; "released" is what the authors' code computes where that differs.
    """
    variants: tuple[str, ...] = getattr(load_plugin("backbone", BACKBONES, name), "variants", ())
    return variants


def needs_of(name: str) -> dict[str, tuple[str, ...]]:
    """Return {"question" | "audio" | "visual": stored feature names} that the backbone `name` reads."""
    needs: dict[str, tuple[str, ...]] = load_plugin("backbone", BACKBONES, name).needs
    return needs

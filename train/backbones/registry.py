"""The backbones by name. To add one, write one file and add one line here, or use an entry point `mavqa.backbones`."""

from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.plugins import check_options, choose_variant, load_plugin, with_installed

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


def make_backbone(name: str, sizes: "ModelSizes", variant: str | None = None, /, **options: Any) -> "Backbone":
    """Build the backbone `name`, with weights initialised from torch's default generator.

    `options` are keyword arguments of the backbone. `variant`: one of its variants; None builds the first, or the
    backbone itself if it has none.
    Raises `UserError` if the name, the variant or an option is unknown, or if the sizes or options do not fit.
    """
    build = load_plugin("backbone", BACKBONES, name)
    check_options("backbone", name, build, options)
    options |= choose_variant("backbone", name, backbone_variants(name), variant)
    try:
        backbone: Backbone = build(sizes, **options)
    except (ValueError, AssertionError) as error:
        raise UserError(f"backbone {name!r} cannot be built: {error}") from None
    return backbone


def backbone_variants(name: str) -> tuple[str, ...]:
    """Return the variants of the backbone `name`, () if it has only one.

    The first is the default. "paper" follows the paper; "released" computes what the authors' code does.
    """
    variants: tuple[str, ...] = getattr(load_plugin("backbone", BACKBONES, name), "variants", ())
    return variants


def needs_of(name: str) -> dict[str, tuple[str, ...]]:
    """Return {"question" | "audio" | "visual": names of stored features} that the backbone `name` reads."""
    needs: dict[str, tuple[str, ...]] = load_plugin("backbone", BACKBONES, name).needs
    return needs

"""The missing-modality methods by name. A new one is one file and one line here, or an entry point `mavqa.methods`."""

from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.plugins import check_options, choose_variant, load_plugin, with_installed

if TYPE_CHECKING:
    from train.interfaces import Backbone, MissingModalityMethod

METHODS = with_installed(
    "mavqa.methods",
    {
        # The plain backbone, zeros for a missing modality.
        "zero-fill": "train.methods.zero_fill:ZeroFill",
        # Neverova et al., TPAMI 2016, ModDrop.
        "modality-dropout": "train.methods.modality_dropout:ModalityDropout",
        # The plain backbone, the training mean for a missing modality.
        "mean-fill": "train.methods.zero_fill:mean_fill",
        # A learned constant as imputed features.
        "constant-fill": "train.methods.constant_fill:ConstantFill",
        # Lee et al., CVPR 2023, Multimodal Prompting with Missing Modalities.
        "prompts": "train.methods.prompts:MissingAwarePrompts",
        # Wang et al., CVPR 2023, ShaSpec.
        "shaspec": "train.methods.shaspec:ShaSpec",
        # Woo et al., AAAI 2023, Towards Good Practices for Missing Modality Robust Action Recognition.
        "actionmae": "train.methods.actionmae:ActionMae",
        # Yao et al., AAAI 2024, DrFuse.
        "drfuse": "train.methods.drfuse:DrFuse",
        # Features of the nearest training videos.
        "retrieval-fill": "train.methods.retrieval_fill:RetrievalFill",
        # The plain backbone on fewer inputs.
        "reference": "train.methods.reference:Reference",
        # Park et al., ECCV 2024, Learning Trimodal Relation for AVQA with Missing Modality.
        "rmm": "train.methods.rmm:Rmm",
        "avr": "train.methods.avr:Avr",
        "rmm-avr": "train.methods.rmm_avr:RmmAvr",
    },
)


def make_method(
    name: str, backbone: "Backbone", variant: str | None = None, /, **options: Any
) -> "MissingModalityMethod":
    """Return the method `name` on `backbone`; `options` are its own keywords.

    `variant`: one of its variants; None builds the first, or the method itself if it has none.
    Raises `UserError` if the method, the variant or an option is unknown, naming the known ones, or if the method
    cannot be built on the backbone.
    """
    build = load_plugin("method", METHODS, name)
    check_options("method", name, build, options)
    options |= choose_variant("method", name, method_variants(name), variant)
    try:
        method: MissingModalityMethod = build(backbone, **options)
    except (ValueError, AssertionError) as error:
        raise UserError(f"method {name!r} cannot be built: {error}") from None
    return method


def method_variants(name: str) -> tuple[str, ...]:
    """Return the variants of the method `name`, the default first; () if it has none."""
    variants: tuple[str, ...] = getattr(load_plugin("method", METHODS, name), "variants", ())
    return variants

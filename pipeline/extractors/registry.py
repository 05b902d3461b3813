"""The frozen feature extractors by name. To add one, add a file and a line here, or install an entry point.

The groups of entry points are `mavqa.extractors` and `mavqa.question_extractors`.
"""

from itertools import product
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.plugins import load_plugin, with_installed

if TYPE_CHECKING:
    from pipeline.extractors.interface import AudioChoice, FeatureExtractor, NormalisationChoice, QuestionExtractor
    from pipeline.manifests.manifest import Vocabulary
    from pipeline.store.schema import FeatureSpec

EXTRACTORS = with_installed(
    "mavqa.extractors",
    {
        # He et al., Deep Residual Learning, CVPR 2016; maps as in Li et al., MUSIC-AVQA, CVPR 2022.
        "resnet18-map": "pipeline.extractors.resnet18:ResNet18Map",
        "resnet18-pooled": "pipeline.extractors.resnet18:ResNet18Pooled",
        # Radford et al., Learning Transferable Visual Models, ICML 2021; tokens as in Li et al., PSTP-Net, ACM MM 2023.
        "clip-vit-b32": "pipeline.extractors.clip_vit:CLIPTokens",
        # Tran et al., A Closer Look at Spatiotemporal Convolutions, CVPR 2018.
        "r2plus1d": "pipeline.extractors.r2plus1d:R2Plus1D",
        # Hershey et al., CNN Architectures for Large-Scale Audio Classification, ICASSP 2017.
        "vggish": "pipeline.extractors.vggish:VGGishExtractor",
    },
)

QUESTION_EXTRACTORS = with_installed(
    "mavqa.question_extractors",
    {
        # Li et al., MUSIC-AVQA, CVPR 2022: indices into the frozen vocabulary.
        "tokens": "pipeline.extractors.question_tokens:QuestionTokens",
        # Radford et al., ICML 2021; the end-of-text position and every position, as in PSTP-Net, ACM MM 2023.
        "clip-vit-b32-sentence": "pipeline.extractors.clip_vit:CLIPSentence",
        "clip-vit-b32-words": "pipeline.extractors.clip_vit:CLIPWords",
    },
)


# The features of AVST and of the other backbones that read its maps.
DEFAULT_FEATURES = ("resnet18-map", "vggish", "tokens")


def make_extractor(
    name: str, normalisation: "NormalisationChoice" = "published", audio: "AudioChoice" = "resampled"
) -> "FeatureExtractor":
    """Return the video extractor `name`, not yet loaded.

    `normalisation`: which preprocessing constants to use, those of the published features or those of the network's
    training; only extractors with an attribute `normalisations` have the choice. `audio`: the waveform to read; only
    extractors with an attribute `audio_choices` have the choice.
    Raises `UserError`, naming the known extractors, if `name` is unknown, or if the extractor has another name.
    """
    factory = load_plugin("feature", EXTRACTORS, name)
    choices: dict[str, Any] = {}
    if offered := getattr(factory, "normalisations", None):
        choices["normalisation"] = offered[normalisation]
    if hasattr(factory, "audio_choices"):
        choices["audio"] = audio
    extractor: FeatureExtractor = factory(**choices)
    if extractor.name != name:
        raise UserError(f"feature {name!r}: its extractor has the name {extractor.name!r}: register it as that")
    return extractor


def find_choices(spec: "FeatureSpec") -> dict[str, str]:
    """Return {option: choice} of the choices with which the extractor of `spec` has its constants; {} if it has none.

    The options are `normalisation` and `audio`.
    """
    factory = load_plugin("feature", EXTRACTORS, spec.name)
    offered = {
        option: tuple(getattr(factory, attribute))
        for option, attribute in (("normalisation", "normalisations"), ("audio", "audio_choices"))
        if hasattr(factory, attribute)
    }
    for chosen in product(*offered.values()):
        choices = dict(zip(offered, chosen, strict=True))
        if make_extractor(spec.name, **choices).constants() == spec.constants.get("extractor"):
            return choices
    return {}


def make_question_extractor(name: str, vocabulary: "Vocabulary") -> "QuestionExtractor":
    """Return the question extractor `name`, not yet loaded, for `vocabulary` if it uses one.

    Raises `UserError`, naming the known extractors, if `name` is unknown, or if the extractor has another name.
    """
    if name == "text":
        raise UserError("feature 'text': a store keeps the texts of questions under this name: choose another name")
    factory = load_plugin("feature", QUESTION_EXTRACTORS, name)
    extractor: QuestionExtractor = factory(vocabulary) if factory.uses_vocabulary else factory()
    if extractor.name != name and not (factory.uses_vocabulary and extractor.name.startswith(f"{name}-")):
        raise UserError(f"feature {name!r}: its extractor has the name {extractor.name!r}: register it as that")
    return extractor

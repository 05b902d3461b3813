"""The frozen feature extractors by name. One file per network; a new one is its file and a line here."""

from importlib import import_module
from typing import Any

from pipeline.failure import UserError
from pipeline.interfaces import FeatureExtractor, QuestionExtractor
from pipeline.manifest import Vocabulary

EXTRACTORS = {
    # He et al., Deep Residual Learning, CVPR 2016; maps as in Li et al., MUSIC-AVQA, CVPR 2022.
    "resnet18-map": "pipeline.extractors.resnet18:ResNet18Map",
    "resnet18-pooled": "pipeline.extractors.resnet18:ResNet18Pooled",
    # Hershey et al., CNN Architectures for Large-Scale Audio Classification, ICASSP 2017.
    "vggish": "pipeline.extractors.vggish:VGGishExtractor",
}

QUESTION_EXTRACTORS = {
    # Li et al., MUSIC-AVQA, CVPR 2022: indices into the frozen vocabulary.
    "tokens": "pipeline.extractors.question_tokens:QuestionTokens",
}


def make_extractor(name: str) -> FeatureExtractor:
    """Return the extractor of videos called `name`, not yet loaded.

    Raises `UserError` naming the known ones where there is none of that name.
    """
    return _resolve(EXTRACTORS, name)()


def make_question_extractor(name: str, vocabulary: Vocabulary) -> QuestionExtractor:
    """Return the extractor of questions called `name` for the frozen `vocabulary`, not yet loaded.

    Raises `UserError` naming the known ones where there is none of that name.
    """
    return _resolve(QUESTION_EXTRACTORS, name)(vocabulary)


def _resolve(table: dict[str, str], name: str) -> Any:
    if name not in table:
        raise UserError(f"feature {name!r} is unknown: choose from {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)

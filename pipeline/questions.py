"""Question texts to stored features: which texts lack one, and its values. Texts are the key, not questions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.extraction import ExtractionPlan, describe
from pipeline.extractors import make_question_extractor
from pipeline.manifest import Manifest
from pipeline.store.schema import FeatureSpec
from pipeline.store.writer import StoreWriter


@dataclass(frozen=True)
class PendingQuestions:
    """Values of one question feature to be written: `values` [question, ...], a row for each of `texts`."""

    spec: FeatureSpec
    texts: list[str]
    values: np.ndarray


def pending_questions(writer: StoreWriter, manifest: Manifest, plan: ExtractionPlan) -> Iterator[PendingQuestions]:
    """Yield, for each question feature, its values for the manifest's texts that lack them; nothing is written yet.

    Raises `UserError` where a text holds words that the manifest's vocabulary does not know.
    """
    texts = manifest.texts()
    for name in plan.question_features if texts else ():
        extractor = make_question_extractor(name, manifest.vocabulary)
        sha256 = extractor.load(plan.weights, plan.device)
        done = writer.question_texts(extractor.name)
        lacking = [text for text in texts if text not in done]
        yield PendingQuestions(describe(extractor, plan, sha256), lacking, extractor.extract(lacking))

"""The stored features that a backbone reads, of videos and of questions, by content: their specs, hashes of their rows.

Tokens are not among them: the vocabulary determines their values.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipeline.manifests.manifest import Question
from pipeline.store.schema import IMPORTED, MODALITIES, FeatureSpec
from train.backbones.registry import needs_of

if TYPE_CHECKING:
    from pipeline.store.reader import FeatureStore


def read_specs(backbone: str, store: "FeatureStore") -> dict[str, FeatureSpec]:
    """Return {stored feature: its spec}."""
    of_videos, of_questions = _names(backbone)
    specs = {name: store.spec(name) for name in of_videos}
    return specs | {name: store.question_spec(name) for name in of_questions}


def read_digests(backbone: str, store: "FeatureStore", questions: Iterable[Question]) -> dict[str, str]:
    """Return {stored feature: one SHA-256 over its rows of `questions`, or of their videos}, without missing rows."""
    questions = list(questions)
    of_videos, of_questions = _names(backbone)
    videos, texts = {q.video_id for q in questions} & store.rows.keys(), {q.text for q in questions}
    digests = {name: store.digest_of(name, videos) for name in of_videos}
    return digests | {name: store.question_digest_of(name, texts) for name in of_questions}


def weights_hash(spec: FeatureSpec) -> str:
    """Return the SHA-256 of the extractor's weights; "" if it has none, "imported" if they are not known."""
    return IMPORTED if spec.is_imported else str(spec.constants.get("weights", {}).get("sha256", ""))


def _names(backbone: str) -> tuple[list[str], list[str]]:
    """Return the names of the features of videos, and of questions."""
    needs = needs_of(backbone)
    return [name for m in MODALITIES for name in needs[m]], [name for name in needs["question"] if name != "tokens"]

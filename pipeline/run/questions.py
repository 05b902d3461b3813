"""Features of question texts, computed for the texts that do not have them yet. Rows are texts, not questions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pipeline.errors import UserError
from pipeline.extractors.interface import QuestionExtractor
from pipeline.extractors.registry import make_question_extractor
from pipeline.manifests.manifest import Manifest
from pipeline.run.plan import ExtractionPlan, make_spec, match_spec
from pipeline.run.worker import limit_threads
from pipeline.store.schema import FeatureSpec
from pipeline.store.writer import QUESTIONS, StoreWriter

# Texts that are encoded and written together: a few megabytes of the largest feature.
ROWS_PER_BLOCK = 64


@dataclass(frozen=True)
class _Pending:
    """One question feature, its spec, and the texts that do not have it yet."""

    extractor: QuestionExtractor
    spec: FeatureSpec
    texts: frozenset[str]


def update_questions(
    writer: StoreWriter,
    manifest: Manifest,
    plan: ExtractionPlan,
    accepted: Sequence[str] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Append the manifest's texts to the store and compute those question features of `plan` that they do not have.

    Texts are encoded once, in blocks, so that memory does not grow with their number; `on_progress` receives (texts
    done, texts in total). Raises `UserError` before anything is written if a text or the weights cannot be used, or if
    stored features were computed with other settings and `accepted` does not contain them.
    """
    texts = manifest.texts()
    pending = list(_find_pending(writer, manifest, plan)) if texts else []
    limit_threads()
    for part in pending:
        match_spec(writer, part.spec, accepted, _not_compared(part), QUESTIONS, is_idle=not part.texts)
    rows = writer.append_questions(texts)
    for part in pending:
        writer.ensure_feature(part.spec)
    missing = set().union(*(part.texts for part in pending))
    done = 0
    for block in _blocks(missing, rows):
        for part in pending:
            _write_block(writer, part, [text for text in block if text in part.texts], rows)
        done += len(block)
        on_progress(done, len(missing))


def has_pending_questions(writer: StoreWriter, manifest: Manifest, plan: ExtractionPlan) -> bool:
    """Return whether the store does not have a text of the manifest, or a question feature of `plan` for one."""
    if not set(manifest.texts()) <= {str(text) for text in writer.read_index("questions/text")}:
        return True
    return any(part.texts for part in _find_pending(writer, manifest, plan))


def _find_pending(writer: StoreWriter, manifest: Manifest, plan: ExtractionPlan) -> Iterator[_Pending]:
    """Yield each question feature of `plan`; its network is loaded only if a text does not have the feature."""
    texts = manifest.texts()
    for name in plan.question_features:
        extractor = make_question_extractor(name, manifest.vocabulary)
        done = writer.question_texts(extractor.name)
        missing = [text for text in texts if text not in done]
        extractor.check(missing)
        sha256 = extractor.load(plan.weights, plan.device) if missing else ""
        yield _Pending(extractor, make_spec(extractor, plan, sha256), frozenset(missing))


def _not_compared(part: _Pending) -> tuple[str, ...]:
    """Return the constants that do not affect the values, or that are known only after loading."""
    if not part.extractor.uses_weights:
        return ("weights", "machine")
    return () if part.texts else ("weights.sha256", "machine")


def _blocks(texts: Iterable[str], rows: dict[str, int]) -> Iterator[list[str]]:
    """Yield `texts` in the order of their rows, in blocks of aligned rows of the store."""
    ordered = sorted(texts, key=rows.__getitem__)
    for _, block in groupby(ordered, key=lambda text: rows[text] // ROWS_PER_BLOCK):
        yield list(block)


def _write_block(writer: StoreWriter, part: _Pending, texts: list[str], rows: dict[str, int]) -> None:
    if not texts:
        return
    try:
        values = part.extractor.extract(texts)
    except FloatingPointError as error:
        raise UserError(
            f"feature {part.spec.name}: {error} for questions such as {texts[0]!r}: use other --weights"
        ) from None
    writer.write_questions(part.spec.name, np.array([rows[text] for text in texts]), values)

"""Features of question texts, computed for the texts that do not have them yet. Rows are texts, not questions."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pipeline.errors import UserError
from pipeline.extractors.interface import QuestionExtractor
from pipeline.extractors.registry import make_question_extractor
from pipeline.manifests.manifest import Manifest
from pipeline.run.settings import KNOWN_WHEN_LOADED, Settings, limit_threads, make_spec, match_spec
from pipeline.store.schema import FeatureSpec
from pipeline.store.writer import QUESTIONS, StoreWriter

# Texts that are encoded and written together: a few megabytes of the largest feature.
ROWS_PER_BLOCK = 64


@dataclass(frozen=True)
class PendingQuestions:
    """A question feature, loaded, with its spec and the spec's index, and the texts that do not have it yet."""

    extractor: QuestionExtractor
    spec: FeatureSpec
    spec_index: int
    texts: frozenset[str]


def find_missing_texts(
    writer: StoreWriter, manifest: Manifest, names: Sequence[str]
) -> list[tuple[QuestionExtractor, frozenset[str]]]:
    """Return, for each of the question features `names`, its extractor and the texts that do not have it yet.

    Raises `UserError` if one of them cannot be encoded.
    """
    found, texts = [], manifest.texts()
    for name in names:
        extractor = make_question_extractor(name, manifest.vocabulary)
        done = writer.question_texts(extractor.name)
        missing = [text for text in texts if text not in done]
        extractor.check(missing)
        found.append((extractor, frozenset(missing)))
    return found


def load_questions(
    writer: StoreWriter,
    missing: Sequence[tuple[QuestionExtractor, frozenset[str]]],
    settings: Settings,
    accepted: Collection[str],
) -> tuple[PendingQuestions, ...]:
    """Load the extractors of features that some text does not have; return what is to be computed.

    Raises `UserError` if the weights cannot be used, or if stored features were computed with other settings and are
    not `accepted`.
    """
    pending = []
    for extractor, texts in missing:
        weights_sha256 = extractor.load(settings.weights, settings.device) if texts else None
        ignored: Sequence[str] = () if texts else KNOWN_WHEN_LOADED
        if not extractor.uses_weights:
            ignored = ("weights", "machine")
        spec = make_spec(extractor, settings, weights_sha256)
        index = match_spec(writer, spec, accepted, ignored, QUESTIONS)
        if texts:
            pending.append(PendingQuestions(extractor, spec, index, texts))
    return tuple(pending)


def write_questions(
    writer: StoreWriter,
    manifest: Manifest,
    pending: Sequence[PendingQuestions],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Append the manifest's texts to the store and compute the `pending` question features.

    Texts are encoded once, in blocks, so that memory does not grow with their number; `on_progress` receives (texts
    done, texts in total).
    """
    limit_threads()
    rows = writer.append_questions(manifest.texts())
    for part in pending:
        writer.add_spec(part.spec, part.spec_index)
    missing = set().union(*(part.texts for part in pending))
    done = 0
    for block in _blocks(missing, rows):
        for part in pending:
            _write_block(writer, part, [text for text in block if text in part.texts], rows)
        done += len(block)
        on_progress(done, len(missing))


def _blocks(texts: Iterable[str], rows: dict[str, int]) -> Iterator[list[str]]:
    """Yield `texts` in the order of their rows, in blocks of aligned rows of the store."""
    ordered = sorted(texts, key=rows.__getitem__)
    for _, block in groupby(ordered, key=lambda text: rows[text] // ROWS_PER_BLOCK):
        yield list(block)


def _write_block(writer: StoreWriter, part: PendingQuestions, texts: list[str], rows: dict[str, int]) -> None:
    if not texts:
        return
    try:
        values = part.extractor.extract(texts)
    except FloatingPointError as error:
        raise UserError(
            f"feature {part.spec.name}: {error} for questions such as {texts[0]!r}: use other --weights"
        ) from None
    writer.write_questions(part.spec.name, np.array([rows[text] for text in texts]), values, part.spec_index)

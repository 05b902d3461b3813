"""Whether a run knows the words and answers of a split: then its own numbering of them is used, in whatever order."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest, Vocabulary
from pipeline.manifests.templates import tokenise
from train.backbones.registry import needs_of
from train.runs.config import TrainConfig
from train.runs.folder import read_vocabulary

SHOWN = 3


def match_vocabulary(run: Path, config: TrainConfig, manifest: Manifest, split: str) -> Vocabulary:
    """Return the vocabulary of `run`, which has every word and answer that the questions of `split` have in their own.

    What is unknown to the manifest too does not matter: such words are `<unk>` to both, such answers count as wrong.
    Raises `UserError` with the words or answers that the run does not know, and how to build the manifest.
    """
    vocabulary = read_vocabulary(run)
    if vocabulary == manifest.vocabulary:
        return vocabulary
    questions = manifest.questions.get(split, ())
    words_here, answers_here = set(manifest.vocabulary.tokens), set(manifest.vocabulary.answers)
    where = f"of split {split!r} of manifest {manifest.name!r}"
    trained_on = f"evaluate it on the --manifest that it was trained on ({config.manifest or 'not recorded'})"
    if "tokens" in needs_of(config.backbone)["question"]:
        asked = dict.fromkeys(word for question in questions for word in tokenise(question.text))
        known = set(vocabulary.tokens)
        unknown = [w for w in asked if w not in known and not (vocabulary.is_open and w not in words_here)]
        if unknown and not vocabulary.is_open:
            raise UserError(
                f"run {run} has no {_list('word', unknown)} {where}: remove their questions, or train a run on a "
                f"manifest built with --unknown-words map; or {trained_on}"
            )
        if unknown:
            raise UserError(
                f"run {run} has no {_list('word', unknown)} {where}: to read such words as <unk>, build the manifest "
                f"again with --vocabulary {run / 'vocabulary.json'}; or {trained_on}"
            )
        longest = max((len(tokenise(question.text)) for question in questions), default=0)
        if longest > vocabulary.question_length:
            raise UserError(
                f"run {run} reads questions of at most {vocabulary.question_length} words, a question {where} has "
                f"{longest}: shorten it; or {trained_on}"
            )
    given = dict.fromkeys(question.answer for question in questions)
    if unknown := [answer for answer in given if answer in answers_here - set(vocabulary.answers)]:
        raise UserError(
            f"run {run} has no {_list('answer', unknown)} {where}: to count them as wrong, build the manifest again "
            f"with --vocabulary {run / 'vocabulary.json'}; or {trained_on}"
        )
    return vocabulary


def _list(kind: str, unknown: Iterable[str]) -> str:
    """Return text such as "word 'lute'" or "4 words ('lute', 'lyre', 'oud', ...)"."""
    names = list(map(repr, unknown))
    if len(names) == 1:
        return f"{kind} {names[0]}"
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} {kind}s ({shown})"

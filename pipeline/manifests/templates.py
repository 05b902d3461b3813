"""Questions, for both stages: templates and their slots, question types and result columns, tokens and their indices.

Source: Li et al., "Learning to Answer Questions in Dynamic Audio-Visual Scenarios", CVPR 2022 (MUSIC-AVQA), its
answers in the order published with a derivative, QA-TIGER; Yang et al., "AVQA: A Dataset for Audio-Visual Question
Answering on Videos", ACM MM 2022, its types named and ordered as in Table 2 of the ECCV 2024 missing-modality paper.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.manifests.manifest import PADDING_TOKEN, QUESTION_LENGTH, SPLITS, UNKNOWN_TOKEN, Question, Vocabulary

QUESTION_MARKS = ("?", "？")

INSTRUMENTS = (
    *("accordion", "acoustic_guitar", "bagpipe", "banjo", "bassoon", "cello", "clarinet", "congas", "drum"),
    *("electric_bass", "erhu", "flute", "guzheng", "piano", "pipa", "saxophone", "suona", "trumpet", "tuba"),
    *("ukulele", "violin", "xylophone"),
)

SLOTS: dict[str, tuple[str, ...]] = {
    "<Object>": INSTRUMENTS,
    "<LR>": ("left", "middle", "right"),
    "<LRer>": ("leftest", "rightest"),
    "<FL>": ("first", "last"),
    "<TH>": ("first", "second", "third", "fourth", "fifth"),
    "<LL>": ("loudest", "lowest"),
    "<BA>": ("before", "after"),
}

ANSWERS = (
    *("two", "cello", "congas", "zero", "no", "pipa", "six", "yes", "one", "four", "three", "seven", "five"),
    *("ukulele", "right", "piano", "left", "accordion", "clarinet", "guzheng", "more than ten", "nine"),
    *("indoor", "saxophone", "drum", "violin", "middle", "outdoor", "bagpipe", "bassoon", "acoustic_guitar"),
    *("banjo", "electric_bass", "ten", "eight", "flute", "simultaneously", "trumpet", "erhu", "xylophone"),
    *("tuba", "suona"),
)

GROUPS = ("Audio", "Visual", "Audio-Visual")

TYPES = (
    "Audio Counting",
    "Audio Comparative",
    "Visual Counting",
    "Visual Location",
    "Audio-Visual Existential",
    "Audio-Visual Counting",
    "Audio-Visual Location",
    "Audio-Visual Comparative",
    "Audio-Visual Temporal",
)

AVQA_TYPES = ("Used for", "When", "Before/Next", "Why", "Where", "Happening", "Come from", "Which")


@dataclass(frozen=True)
class Column:
    """One column of a results table: its heading and the question types pooled in it (empty: all types)."""

    label: str
    types: tuple[str, ...]


COLUMNS = (
    Column("A-Cnt", TYPES[0:1]),
    Column("A-Comp", TYPES[1:2]),
    Column("A", TYPES[0:2]),
    Column("V-Cnt", TYPES[2:3]),
    Column("V-Loc", TYPES[3:4]),
    Column("V", TYPES[2:4]),
    Column("AV-Exist", TYPES[4:5]),
    Column("AV-Cnt", TYPES[5:6]),
    Column("AV-Loc", TYPES[6:7]),
    Column("AV-Comp", TYPES[7:8]),
    Column("AV-Temp", TYPES[8:9]),
    Column("AV", TYPES[4:9]),
    Column("All", ()),
)

AVQA_COLUMNS = (*(Column(name, (name,)) for name in AVQA_TYPES), COLUMNS[-1])


def group_of(question_type: str) -> str:
    """Return the group (`Audio`, `Visual`, `Audio-Visual`) of one of `TYPES`; raise KeyError for other types."""
    return _GROUP_OF[question_type]


def fill(template: str, values: Sequence[str]) -> str:
    """Return `template` with each space-separated token that contains a `<` replaced by the next of `values`.

    White space becomes single spaces and a final full-width question mark becomes `?`. Raises `UserError` if the
    numbers of slots and values differ.
    """
    stem, has_mark = _split_mark(template)
    tokens = stem.split()
    slots = sum("<" in token for token in tokens)
    if slots != len(values):
        raise UserError(f"template {template!r} has {slots} slots but {len(values)} values {list(values)!r}: fix it")
    rest = iter(values)
    filled = " ".join(next(rest) if "<" in token else token for token in tokens)
    return filled + "?" * has_mark


def normalise(text: str) -> str:
    """Return `text` with single spaces; a final question mark, also a full-width one, becomes `?`."""
    stem, has_mark = _split_mark(text)
    return " ".join(stem.split()) + "?" * has_mark


def find_template(text: str, templates: Iterable[str]) -> str | None:
    """Return the template that fills to `text`, of several the one with the fewest slots; None if there is none.

    A slot of `SLOTS` is filled with one of its values, another one with any word.
    """
    words = tokenise(text)
    fitting = [template for template in templates if _fits(tokenise(template), words)]
    return min(fitting, key=lambda template: template.count("<"), default=None)


def _fits(parts: Sequence[str], words: Sequence[str]) -> bool:
    if len(parts) != len(words):
        return False
    pairs = zip(parts, words, strict=True)
    return all(part == word or ("<" in part and word in SLOTS.get(part, (word,))) for part, word in pairs)


def tokenise(text: str) -> list[str]:
    """Return the words of a filled question without its final question mark; case is preserved.

    Source: the released loader strips, splits on single spaces and deletes the last character, which is a question
    mark in every published record. Differs from the released code: any other last character is kept.
    """
    return _split_mark(text)[0].split()


def build_vocabulary(texts: Iterable[str], answers: Iterable[str]) -> Vocabulary:
    """Return the vocabulary of `texts` (filled questions) and `answers`: `<pad>` first, then by first appearance."""
    words = dict.fromkeys(word for text in texts for word in tokenise(text))
    words = dict.fromkeys(word for word in words if word not in (PADDING_TOKEN, UNKNOWN_TOKEN))
    return Vocabulary((PADDING_TOKEN, *words), tuple(dict.fromkeys(answers)))


def freeze_vocabulary(questions: Mapping[str, Sequence[Question]], is_open: bool = False) -> Vocabulary:
    """Return the vocabulary of the training split of {split: questions}, or of all splits if there is none.

    `question_length` is that of the longest question of any split, at least 14. An open vocabulary excludes words that
    occur in one question only: they become `<unk>`, as unknown words of other splits do, so that it is trained too.
    """
    splits = ["train"] if "train" in questions else [split for split in SPLITS if split in questions]
    included = [question for split in splits for question in questions[split]]
    closed = build_vocabulary((question.text for question in included), (question.answer for question in included))
    tokens = closed.tokens
    if is_open:
        counts = Counter(word for question in included for word in set(tokenise(question.text)))
        tokens = (PADDING_TOKEN, UNKNOWN_TOKEN, *(word for word in tokens[1:] if counts[word] > 1))
    longest = max((len(tokenise(q.text)) for members in questions.values() for q in members), default=0)
    return Vocabulary(tokens, closed.answers, max(QUESTION_LENGTH, longest))


def order_answers(answers: Iterable[str]) -> tuple[str, ...]:
    """Return MUSIC-AVQA's 42 answers in published order if no other occurs, else `answers` by first appearance.

    The classes of MUSIC-AVQA then do not depend on which of its split files are available.
    """
    found = tuple(dict.fromkeys(answers))
    return ANSWERS if set(found) <= set(ANSWERS) else found


def index_tokens(vocabulary: Vocabulary) -> dict[str, int]:
    """Return {token: index} of a frozen vocabulary, for `encode`."""
    return {token: index for index, token in enumerate(vocabulary.tokens)}


def encode(text: str, tokens_index: Mapping[str, int], length: int) -> list[int]:
    """Return the `length` token indices of a filled question, padded at the end with `<pad>`.

    Words outside `tokens_index` become `<unk>`. Raises `UserError` with these words if the index has no `<unk>`, and
    for questions of more than `length` words.
    """
    words = tokenise(text)
    if UNKNOWN_TOKEN in tokens_index:
        words = [word if word in tokens_index else UNKNOWN_TOKEN for word in words]
    unknown = list(dict.fromkeys(word for word in words if word not in tokens_index))
    if unknown:
        raise UserError(
            f"question {text!r} has words outside the vocabulary: {', '.join(unknown)}; use other words, build the "
            f"manifest again with --unknown-words map, or add {UNKNOWN_TOKEN!r} to the tokens of its vocabulary.json"
        )
    if len(words) > length:
        raise UserError(f"question {text!r} has {len(words)} words, at most {length} are allowed: shorten it")
    return [tokens_index[word] for word in words] + [tokens_index[PADDING_TOKEN]] * (length - len(words))


def _split_mark(text: str) -> tuple[str, bool]:
    text = text.strip()
    has_mark = text.endswith(QUESTION_MARKS)
    return (text[:-1].rstrip() if has_mark else text), has_mark


_GROUP_OF = {name: name.rpartition(" ")[0] for name in TYPES}

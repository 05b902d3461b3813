"""Question texts as indices into the frozen vocabulary (`tokens-<8 hex>`).

Source: MUSIC-AVQA's data loaders (Li et al., CVPR 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.extractors.weights import WeightsSource
from pipeline.manifests.manifest import Vocabulary
from pipeline.manifests.templates import encode, index_tokens
from pipeline.store.schema import tokens_name


@dataclass
class QuestionTokens:
    """The tokens of a question, padded with index 0: int32 [question, token], 14 tokens in MUSIC-AVQA.

    `vocabulary`: the frozen vocabulary, `<pad>` first; the hash of its tokens is part of the feature's name.
    Source: MUSIC-AVQA's `dataloader_avst`.
    Differs from the released code: the vocabulary is frozen with the manifest, not rebuilt at each start.
    """

    vocabulary: Vocabulary
    modality = "question"
    uses_vocabulary = True
    uses_weights = False
    dims = ("token",)
    dtype = "int32"

    @property
    def shape(self) -> tuple[int, ...]:
        """The greatest number of words in a question of this vocabulary."""
        return (self.vocabulary.question_length,)

    @property
    def name(self) -> str:
        """The name of the feature in a store, which depends on the vocabulary."""
        return tokens_name(self.vocabulary.tokens, self.vocabulary.question_length)

    def constants(self) -> dict[str, Any]:
        """Return the settings that the values depend on, as JSON values."""
        return {"version": 1, "vocabulary": list(self.vocabulary.tokens), "length": self.vocabulary.question_length}

    def check(self, texts: Sequence[str]) -> None:
        """Raise `UserError`, naming the word and the question, if a word is missing from the vocabulary."""
        self.extract(texts)

    def load(self, weights: WeightsSource, device: str) -> str:
        """Return "": there are no weights."""
        return ""

    def extract(self, texts: Sequence[str]) -> np.ndarray:
        """Return int32 [question, token], one row per text.

        Raises `UserError`, naming the word and the question, if a word is missing from a closed vocabulary.
        """
        index, length = index_tokens(self.vocabulary), self.vocabulary.question_length
        rows = [encode(text, index, length) for text in texts]
        return np.array(rows, np.int32).reshape(len(texts), length)

"""Question texts as indices into the frozen vocabulary (`tokens-<8 hex>`). It builds no vocabulary.

Source: MUSIC-AVQA's data loaders (Li et al., CVPR 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.manifest import QUESTION_LENGTH
from pipeline.store.schema import tokens_name
from pipeline.templates import encode
from pipeline.weights import WeightsSource


@dataclass
class QuestionTokens:
    """The tokens of a question, padded with index 0: int32 [question, token 14].

    `tokens`: the frozen vocabulary, `<pad>` first; its hash is part of the feature's name.
    Source: MUSIC-AVQA's `dataloader_avst`.
    Differs from the released code: the vocabulary is frozen with the manifest, not rebuilt at each start.
    """

    tokens: tuple[str, ...]
    modality = "question"
    dims = ("token",)
    shape = (QUESTION_LENGTH,)
    dtype = "int32"

    @property
    def name(self) -> str:
        """The store's name of these tokens: other vocabularies have other names."""
        return tokens_name(self.tokens)

    def constants(self) -> dict[str, Any]:
        """Return what the numbers depend on, as JSON values."""
        return {"version": 1, "vocabulary": list(self.tokens), "length": QUESTION_LENGTH}

    def load(self, weights: WeightsSource, device: str) -> str:
        """Return "": there are no weights."""
        return ""

    def extract(self, texts: Sequence[str]) -> np.ndarray:
        """Return int32 [question, 14], one row per text.

        Raises `UserError` naming the word and the question where the vocabulary lacks the word.
        """
        index = {token: number for number, token in enumerate(self.tokens)}
        rows = [encode(text, index, QUESTION_LENGTH) for text in texts]
        return np.array(rows, np.int32).reshape(len(texts), QUESTION_LENGTH)

"""The sizes that a backbone is built from, as data (importing it does not import torch)."""

from pydantic import BaseModel, ConfigDict, Field

from pipeline.store.schema import QUESTION_LENGTH


class ModelSizes(BaseModel):
    """The sizes that a backbone is built from.

    - `words`, `answers`: the numbers of tokens and answers in the frozen vocabulary.
    - `input_shapes` {stored feature: shape of one time step}, for example {"vggish": (128,), "resnet18-map": (512, 14,
      14)}.
    - `question_shapes` {stored feature: shape of one question}, of all question features except tokens.
    - `channels`: the width of steps and pooled vectors, unless the backbone's paper fixes it.
    - `heads`: attention heads.
    - `dropout`: dropout rate.
    - `time_steps`: the number of steps to read per video.
    - `question_length`: the number of tokens per question, padding included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: int
    answers: int
    input_shapes: dict[str, tuple[int, ...]]
    question_shapes: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    channels: int = 512
    heads: int = 4
    dropout: float = 0.1
    time_steps: int = 10
    question_length: int = QUESTION_LENGTH

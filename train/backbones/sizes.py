"""The sizes that a backbone is built from, as data; it loads no torch."""

from pydantic import BaseModel, ConfigDict, Field

from pipeline.store.schema import QUESTION_LENGTH


class ModelSizes(BaseModel):
    """The sizes that a backbone is built from.

    `words` and `answers` count the frozen vocabulary. `input_shapes`: {stored feature: shape of one time step}, for
    example {"vggish": (128,), "resnet18-map": (512, 14, 14)}; `question_shapes`: {stored feature: shape of one
    question}, for features of questions other than tokens; tokens are `question_length` long. `channels` is the width
    of steps and pooled vectors where the backbone's paper does not fix it.
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

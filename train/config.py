"""What a run is made of, as data: sizes, presets, every setting of training. It loads no torch.

Source: the AVST release's training script and the ECCV 2024 missing-modality paper, preset by preset.
"""

from pydantic import BaseModel, ConfigDict


class ModelSizes(BaseModel):
    """The sizes that a backbone is built from.

    `words` and `answers` count the frozen vocabulary. `input_shapes`: {stored feature: one time step},
    for example {"vggish": (128,), "resnet18-map": (512, 14, 14)}. `channels` is the width of steps and pooled
    vectors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: int
    answers: int
    input_shapes: dict[str, tuple[int, ...]]
    channels: int = 512
    heads: int = 4
    dropout: float = 0.1
    time_steps: int = 10

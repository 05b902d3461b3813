"""A small backbone and small batches for tests of methods."""

import torch
from torch import Tensor

from train.backbones.registry import make_backbone
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch
from train.interfaces import Backbone

CHANNELS, SIDE, TIME, ANSWERS, WORDS = 16, 3, 4, 5, 12


def small_backbone() -> Backbone:
    """Return AVST with 16 channels on 3 x 3 maps and no dropout."""
    torch.manual_seed(0)
    shapes = {"vggish": (8,), "resnet18-map": (CHANNELS, SIDE, SIDE)}
    return make_backbone(
        "avst",
        ModelSizes(words=WORDS, answers=ANSWERS, input_shapes=shapes, channels=CHANNELS, dropout=0.0, time_steps=TIME),
    )


def small_batch(size: int = 6, *, audio_steps: Tensor | None = None, visual_steps: Tensor | None = None) -> Batch:
    """Return a complete batch of `size` questions; `*_steps` int [batch]: numbers of available steps (default: all)."""
    generator = torch.Generator().manual_seed(5)

    def sample(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def mask(steps: Tensor | None) -> Tensor:
        return torch.arange(TIME) < (torch.full((size,), TIME) if steps is None else steps)[:, None]

    masks = {"audio": mask(audio_steps), "visual": mask(visual_steps)}
    audio, visual = sample(size, TIME, 8), sample(size, TIME, CHANNELS, SIDE, SIDE)
    audio[~masks["audio"]] = torch.nan
    visual[~masks["visual"]] = torch.nan
    return Batch(
        question={"tokens": torch.randint(0, WORDS, (size, 6), generator=generator)},
        audio={"vggish": audio},
        visual={"resnet18-map": visual},
        audio_mask=masks["audio"],
        visual_mask=masks["visual"],
        answer=torch.randint(0, ANSWERS, (size,), generator=generator),
        type=("Audio Counting",) * size,
        question_id=tuple(map(str, range(size))),
        video_id=tuple(f"video{i}" for i in range(size)),
        negatives={"resnet18-map": sample(size, TIME, CHANNELS, SIDE, SIDE)},
    )

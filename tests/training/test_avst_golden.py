"""AVST against the released network: what it gave under weights and inputs by formula (golden/avst.json)."""

import json
from pathlib import Path

import torch
from torch import nn

from train.backbones.registry import make_backbone
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "avst.json").read_text())
SIZES = ModelSizes(words=93, answers=42, input_shapes={"vggish": (128,), "resnet18-map": (512, 14, 14)})


def scatter(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return numbers in [-1, 1) that look random and need no generator: an integer hash of each position."""
    mixed = (torch.arange(torch.Size(shape).numel()) + seed * 7_919 + 1) * 2_654_435_761 % 2**32
    mixed = (mixed ^ mixed >> 16) * 73_244_475 % 2**32
    return ((mixed ^ mixed >> 16).double() / 2**31 - 1).float().reshape(shape)


def formula_weights(module: nn.Module) -> None:
    weights = {name: values for name, values in module.state_dict().items() if "input_whitening" not in name}
    for position, (name, values) in enumerate(sorted(weights.items())):
        spread = 1.0 if "embedding" in name else (3 / values.shape[-1]) ** 0.5
        values.copy_(spread * scatter(tuple(values.shape), position))


def formula_batch() -> Batch:
    maps = scatter((4, 10, 512, 14, 14), 101).relu()
    tokens = torch.arange(28).reshape(2, 14) * 7 % 93
    everywhere = torch.ones(2, 10, dtype=torch.bool)
    return Batch(
        question={"tokens": tokens},
        audio={"vggish": scatter((2, 10, 128), 102).relu()},
        visual={"resnet18-map": maps[:2]},
        audio_mask=everywhere,
        visual_mask=everywhere,
        answer=torch.tensor([0, 1]),
        type=("Audio Counting", "Visual Location"),
        question_id=("1", "2"),
        video_id=("a", "b"),
        negatives={"resnet18-map": maps[2:]},
    )


def test_equals_the_released_network_under_the_same_weights():
    backbone = make_backbone("avst", SIZES).eval()
    formula_weights(backbone)
    with torch.no_grad():
        entered = backbone.encode(formula_batch())
        answer = backbone.answer(entered)
        audio, right = entered.features["audio"], backbone.steps(entered)["visual"]
        wrong = backbone.spatial_grounding(entered.negatives, audio)
        matching, mismatching = (backbone.match_head(audio, v).flatten(0, 1)[::5] for v in (right, wrong))
    for found, name in (
        (answer.logits[:, :8], "logits"),
        (matching, "match_positive"),
        (mismatching, "match_negative"),
    ):
        expected = torch.tensor(GOLDEN[name])
        assert (found - expected).norm() <= 1e-4 * expected.norm(), name
    assert abs(float(answer.losses["match"]) - GOLDEN["match_loss"]) <= 1e-4 * GOLDEN["match_loss"]

"""Our blocks of grounding pre-training against the released network on stored maps (golden/grounding.json)."""

import json

import paths
import torch
from recipe import formula_weights, scatter
from torch import nn

from train.networks.layers import AudioStem, MatchHead, SpatialGrounding

GOLDEN = json.loads((paths.GOLDEN / "grounding.json").read_text())


def formula_blocks() -> nn.ModuleDict:
    blocks = nn.ModuleDict(
        {"audio_stem": AudioStem(128, 512), "spatial_grounding": SpatialGrounding(512), "match_head": MatchHead(512)}
    )
    formula_weights(blocks)
    return blocks


@torch.no_grad()
def formula_pairs(blocks: nn.ModuleDict) -> tuple[torch.Tensor, torch.Tensor]:
    """Return audio [batch, time, input] and maps of small values [batch, time, channel, height, width].

    A third of the cells resemble the audio, so that the grounding weights matter: for unrelated vectors they hardly do.
    """
    audio, maps = scatter((2, 3, 128), 301).relu(), scatter((2, 3, 512, 14, 14), 302).relu()
    likeness = blocks["audio_stem"](audio).relu()
    maps[..., :5, :] = 0.1 * maps[..., :5, :] + likeness[..., None, None]
    return audio, maps / 50


@torch.no_grad()
def test_equals_the_released_network_under_the_same_weights():
    blocks = formula_blocks()
    audio, maps = formula_pairs(blocks)
    lifted = blocks["audio_stem"](audio)
    visual = blocks["spatial_grounding"](maps, lifted)
    logits = blocks["match_head"](lifted, visual)
    for values, name in ((visual[..., :6], "grounded"), (logits, "match")):
        expected = torch.tensor(GOLDEN[name])
        assert (values - expected).norm() <= 1e-4 * expected.norm(), name

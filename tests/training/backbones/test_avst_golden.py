"""AVST against the released network: what it gave under weights and inputs by formula (golden/avst.json)."""

import json

import paths
import torch
from recipe import AVST_SIZES, avst_batch, formula_weights

from train.backbones.registry import make_backbone

GOLDEN = json.loads((paths.GOLDEN / "avst.json").read_text())


def test_equals_the_released_network_under_the_same_weights():
    backbone = make_backbone("avst", AVST_SIZES).eval()
    formula_weights(backbone)
    with torch.no_grad():
        entered = backbone.encode(avst_batch())
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

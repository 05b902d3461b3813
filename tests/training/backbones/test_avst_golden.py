"""AVST against the released network, with weights and inputs from formulas (golden/avst.json)."""

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
        encoded = backbone.encode(avst_batch())
        answer = backbone.answer(encoded)
        matches = backbone.match(encoded)
        positive, negative = (logits.flatten(0, 1)[::5] for logits in (matches.positive, matches.negative))
    for found, name in (
        (answer.logits[:, :8], "logits"),
        (positive, "match_positive"),
        (negative, "match_negative"),
    ):
        expected = torch.tensor(GOLDEN[name])
        assert (found - expected).norm() <= 1e-4 * expected.norm(), name
    assert abs(float(answer.losses["match"]) - GOLDEN["match_loss"]) <= 1e-4 * GOLDEN["match_loss"]

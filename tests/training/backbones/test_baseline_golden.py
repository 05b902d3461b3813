"""The baseline against the released network, with weights and inputs from formulas (golden/baseline.json)."""

import json

import paths
import torch
from recipe import AVST_SIZES, avst_batch, formula_weights

from train.backbones.registry import make_backbone

GOLDEN = json.loads((paths.GOLDEN / "baseline.json").read_text())


@torch.no_grad()
def test_equals_the_released_network_under_the_same_weights():
    backbone = make_backbone("baseline", AVST_SIZES).eval()
    formula_weights(backbone)
    encoded = backbone.encode(avst_batch())
    pooled = backbone.pool(encoded)
    found = {"logits": backbone.answer(encoded).logits, "audio": pooled["audio"], "visual": pooled["visual"]}
    for name, values in found.items():
        expected = torch.tensor(GOLDEN[name])
        assert (values[:, :12] - expected).norm() <= 1e-4 * expected.norm(), name


def test_has_the_documented_number_of_parameters():
    backbone = make_backbone("baseline", AVST_SIZES)
    assert sum(p.numel() for p in backbone.parameters()) == 6_702_634

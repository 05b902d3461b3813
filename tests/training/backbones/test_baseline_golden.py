"""The baseline against the released network under weights and inputs by formula (golden/baseline.json)."""

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
    entered = backbone.encode(avst_batch())
    pooled = backbone.pool(entered)
    found = {"logits": backbone.answer(entered).logits, "audio": pooled["audio"], "visual": pooled["visual"]}
    for name, values in found.items():
        expected = torch.tensor(GOLDEN[name])
        assert (values[:, :12] - expected).norm() <= 1e-4 * expected.norm(), name


def test_parameter_count_on_the_papers_shapes():
    backbone = make_backbone("baseline", AVST_SIZES)
    assert sum(p.numel() for p in backbone.parameters()) == 6_702_634

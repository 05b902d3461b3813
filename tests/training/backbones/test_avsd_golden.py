"""Factor-graph attention against the released unit, with weights and inputs from formulas (golden/avsd.json)."""

import json

import paths
import pytest
import torch
from recipe import formula_weights, scatter

from train.networks.factor_graph_attention import FactorGraphAttention, Utility

GOLDEN = json.loads((paths.GOLDEN / "avsd.json").read_text())
ROWS, LAST_WORDS, SHARPENING = 2, (13, 6), 20
FRAMES = {f"frame{i}": (49, Utility(256)) for i in range(4)}
SETTINGS = {
    "released": {"question": (14, Utility(256, has_prior=True)), **FRAMES, "audio": (10, Utility(256))},
    "group": {
        "question": (14, Utility(24, has_prior=True)),
        "visual": (9, Utility(32, members=3, connected=("audio", "question"))),
        "history": (5, Utility(20)),
        "audio": (10, Utility(16)),
    },
}


@torch.no_grad()
def formula_attention(setting: str) -> FactorGraphAttention:
    """Return the unit of a setting, with a larger mixture, so that no attention is nearly uniform."""
    unit = FactorGraphAttention({name: utility for name, (_, utility) in SETTINGS[setting].items()}).eval()
    formula_weights(unit)
    for mixture in unit.mixture.values():
        mixture.weight.mul_(SHARPENING)
    return unit


def formula_values(setting: str) -> dict[str, torch.Tensor]:
    values = {}
    for seed, (name, (elements, utility)) in enumerate(SETTINGS[setting].items(), start=201):
        members = () if utility.members is None else (utility.members,)
        values[name] = scatter((ROWS, *members, elements, utility.channels), seed)
    return values


def formula_prior() -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(LAST_WORDS), 14).float()


@torch.no_grad()
@pytest.mark.parametrize("setting", SETTINGS)
def test_equals_the_released_unit_under_the_same_weights(setting):
    values = formula_values(setting)
    masks = {name: torch.ones(v.shape[:-1], dtype=torch.bool) for name, v in values.items()}
    attended = formula_attention(setting)(values, masks, {"question": formula_prior()})
    assert attended.keys() == GOLDEN[setting].keys()
    for name, expected in GOLDEN[setting].items():
        found, expected = attended[name][..., :6], torch.tensor(expected)
        assert found.shape == expected.shape
        assert (found - expected).norm() <= 1e-4 * expected.norm(), name

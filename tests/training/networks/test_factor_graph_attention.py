"""Factor-graph attention: missing elements, members and utilities have no effect."""

import pytest
import torch

from train.networks.factor_graph_attention import FactorGraphAttention, Utility

UTILITIES = {
    "question": Utility(6, has_prior=True),
    "visual": Utility(8, members=4, connected=("question", "audio")),
    "audio": Utility(5),
}
PRIOR = {"question": torch.eye(7)[[2, 4]]}


def make_unit() -> FactorGraphAttention:
    torch.manual_seed(0)
    unit = FactorGraphAttention(UTILITIES).eval()
    with torch.no_grad():
        for mixture in unit.mixture.values():
            mixture.weight.mul_(10)
    return unit


def make_values(members: int = 4) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    values = {"question": torch.randn(2, 7, 6), "visual": torch.randn(2, 4, 9, 8), "audio": torch.randn(2, 5, 5)}
    values["visual"] = values["visual"][:, :members]
    return values, {name: torch.ones(v.shape[:-1], dtype=torch.bool) for name, v in values.items()}


@torch.no_grad()
def attend(values, masks, prior=PRIOR) -> dict[str, torch.Tensor]:
    return make_unit()(values, masks, prior)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values)


@pytest.mark.parametrize("name", ["question", "audio", "visual"])
@pytest.mark.parametrize("fill", [torch.nan, 9.0])
def test_masking_an_element_equals_removing_it(name, fill):
    values, masks = make_values()
    values[name][..., -2:, :] = fill
    masks[name][..., -2:] = False
    shorter = {n: v[..., :-2, :] if n == name else v for n, v in values.items()}
    shorter_masks = {n: m[..., :-2] if n == name else m for n, m in masks.items()}
    prior = {"question": PRIOR["question"][:, :-2]} if name == "question" else PRIOR
    assert_same(attend(values, masks), attend(shorter, shorter_masks, prior))


def test_masking_the_last_members_equals_removing_them():
    values, masks = make_values()
    masks["visual"][:, 2:] = False
    attended = attend(values, masks)
    assert not attended["visual"][:, 2:].any()
    expected = attend(*make_values(members=2))
    assert_same({**attended, "visual": attended["visual"][:, :2]}, expected)


def test_a_missing_member_between_others_is_not_read():
    values, masks = make_values()
    complete = attend(values, masks)
    masks["visual"][0, 1] = False
    expected = attend(values, masks)
    values["visual"][0, 1] = torch.nan
    assert_same(attend(values, masks), expected)
    assert not torch.allclose(expected["question"][0], complete["question"][0])
    torch.testing.assert_close(expected["question"][1], complete["question"][1])


@pytest.mark.parametrize("name", ["visual", "audio"])
def test_a_missing_utility_equals_one_without_elements(name):
    values, masks = make_values()
    masks[name] = torch.zeros_like(masks[name])
    without_elements = attend(values, masks)
    assert not without_elements.pop(name).any()
    found = attend(*({n: v for n, v in inputs.items() if n != name} for inputs in (values, masks)))
    assert_same(found, without_elements)


def test_the_attention_is_the_softmax_of_the_mixed_mean_cosines():
    unit, (values, masks) = make_unit(), make_values()
    expected = attend(values, masks)["audio"]

    def cosines(pair, first, second):
        first, second = (torch.nn.functional.normalize(v, dim=-1) for v in (pair.first(first), pair.second(second)))
        return first @ second.mT

    audio = values["audio"]
    frames = [cosines(unit.pairwise["visual-audio"], values["visual"][:, i], audio).mean(1) for i in range(4)]
    own = [unit.unary["audio"](audio).squeeze(-1), cosines(unit.own["audio"], audio, audio).mean(2)]
    words = cosines(unit.pairwise["question-audio"], values["question"], audio).mean(1)
    weights = (torch.stack([*frames, *own, words], -1) @ unit.mixture["audio"].weight[0]).softmax(-1)
    torch.testing.assert_close((weights.unsqueeze(-1) * audio).sum(1), expected)


def test_more_members_than_weights_are_refused():
    values, masks = make_values()
    values["visual"], masks["visual"] = values["visual"].repeat(1, 2, 1, 1), masks["visual"].repeat(1, 2, 1)
    with pytest.raises(ValueError, match="8 members, more than the 4 it was built for"):
        attend(values, masks)


@pytest.mark.parametrize(
    "utilities",
    [
        {"a": Utility(4, members=2, connected=("b",)), "b": Utility(4, members=2)},
        {"a": Utility(4, members=2, connected=("c",))},
        {"a": Utility(4, connected=("b",)), "b": Utility(4)},
    ],
)
def test_only_groups_are_connected_and_only_to_plain_utilities(utilities):
    with pytest.raises(ValueError, match="only groups connect, to plain utilities"):
        FactorGraphAttention(utilities)

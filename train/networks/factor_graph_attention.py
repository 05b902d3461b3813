"""Factor-graph attention: every utility (words, places, seconds) is attended to in the light of all the others.

It knows no question, sound or picture. `train.backbones.avsd` gives it those.
Source: Schwartz et al., "Factor Graph Attention", CVPR 2019, and the attention unit of the released simple AVSD.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNARY, SELF, PRIOR = "(unary)", "(self)", "(prior)"


@dataclass(frozen=True)
class Utility:
    """Something with elements to attend to, vectors of `channels`.

    `members` makes it a higher-order group: that many replicas at most, each with elements and an attention of its
    own, all with the same weights. A group meets only the plain utilities in `connected`; plain ones meet one another.
    `has_prior`: a prior per element is given with it.
    """

    channels: int
    has_prior: bool = False
    members: int | None = None
    connected: tuple[str, ...] = ()


class FactorGraphAttention(nn.Module):
    """Attend to the elements of each utility by the softmax of a learned mixture of potentials.

    The potentials of an element: its own (unary), its mean cosine with the elements of the same utility (self) and of
    each other utility that it meets, and its prior. A plain utility has one from every member of a group that meets it,
    by the member's position; a member of a group has one from each utility that the group meets.

    Source: the released unit where sizes are not fixed (`size_flag` false). Differs from the released code: elements
    that are not there have no attention and enter no mean; a utility or member that is not there adds nothing; there
    are no weights without an effect (a prior of zeros, a bias before a softmax, pairs that are never met); the
    mean of the cosines is computed as the product with the mean direction, so that no matrix of pairs is made.
    """

    def __init__(self, utilities: Mapping[str, Utility], dropout: float = 0.5) -> None:
        """Build the weights of `utilities` {name: utility}; `dropout` acts inside the unary potentials.

        Raises ValueError where a group is connected to what is not a plain utility.
        """
        super().__init__()
        for name, utility in utilities.items():
            wrong = [o for o in utility.connected if o not in utilities or utilities[o].members is not None]
            if wrong or (utility.connected and utility.members is None):
                raise ValueError(f"utility {name!r} is connected to {utility.connected}: groups meet plain utilities")
        self.utilities = dict(utilities)
        self.sources = {name: _sources(name, self.utilities) for name in utilities}
        names = list(utilities)
        self.pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if b in self.sources[a]]
        widths = {name: utility.channels for name, utility in utilities.items()}
        self.unary = nn.ModuleDict({name: _unary(width, dropout) for name, width in widths.items()})
        self.own = nn.ModuleDict({name: Directions(width, width) for name, width in widths.items()})
        self.pairwise = nn.ModuleDict({f"{a}-{b}": Directions(widths[a], widths[b]) for a, b in self.pairs})
        self.mixture = nn.ModuleDict(
            {name: nn.Linear(sum(sources.values()), 1, bias=False) for name, sources in self.sources.items()}
        )

    def forward(
        self, values: Mapping[str, Tensor], masks: Mapping[str, Tensor], priors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return {utility: [batch, channel], of a group [batch, member, channel]}, zero where no element is there.

        `values`: {utility: [batch, element, channel], of a group [batch, member, element, channel]}; a utility that is
        not among them is not there. `masks`: the same without the channel, bool, True where an element is there.
        `priors`: like `masks`, floats, of the utilities that have one.
        Raises ValueError where a group has more members than it has weights for.
        """
        masks = {name: self._laid_out(name, masks[name]) for name in values}
        values = {name: self._laid_out(name, v).masked_fill(~masks[name][..., None], 0) for name, v in values.items()}
        potentials = {name: self._alone(name, v, masks[name]) for name, v in values.items()}
        for name in values:
            if self.utilities[name].has_prior:
                potentials[name][PRIOR] = self._laid_out(name, priors[name]).unsqueeze(2)
        for first, second in self.pairs:
            if first in values and second in values:
                toward_first, toward_second = self.pairwise[f"{first}-{second}"](values[first], values[second])
                to_first, to_second = _mean(toward_first, masks[first]), _mean(toward_second, masks[second])
                potentials[first][second] = torch.einsum("bmec,bkc->bmke", toward_first, to_second)
                potentials[second][first] = torch.einsum("bmec,bkc->bmke", toward_second, to_first)
        attended = {name: self._attend(name, v, masks[name], potentials[name]) for name, v in values.items()}
        return {name: v if self.utilities[name].members is not None else v.squeeze(1) for name, v in attended.items()}

    def _laid_out(self, name: str, values: Tensor) -> Tensor:
        """Return [batch, member, element, ...]: a plain utility has one member."""
        members = self.utilities[name].members
        if members is None:
            return values.unsqueeze(1)
        if values.shape[1] > members:
            raise ValueError(f"group {name!r} was given {values.shape[1]} members: it has weights for {members}")
        return values

    def _alone(self, name: str, values: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the potentials [batch, member, 1, element] that need no other utility."""
        first, second = self.own[name](values, values)
        cosines = torch.einsum("bmec,bmc->bme", first, _mean(second, mask))
        return {UNARY: self.unary[name](values).squeeze(-1).unsqueeze(2), SELF: cosines.unsqueeze(2)}

    def _attend(self, name: str, values: Tensor, mask: Tensor, potentials: Mapping[str, Tensor]) -> Tensor:
        """Mix `potentials` {source: [batch, member, potential, element]} and return [batch, member, channel]."""
        weights = dict(zip(self.sources[name], self._weights(name), strict=True))
        mixed = torch.stack(
            [torch.einsum("bmke,k->bme", p, weights[source][: p.shape[2]]) for source, p in potentials.items()]
        ).sum(0)
        # Not minus infinity: where no element is there, an even attention to zeros must stay free of NaN.
        attention = mixed.masked_fill(~mask, torch.finfo(mixed.dtype).min).softmax(-1)
        return torch.einsum("bmec,bme->bmc", values, attention)

    def _weights(self, name: str) -> tuple[Tensor, ...]:
        """Return the mixture's weights, one piece for each source."""
        weights = self.mixture[name].weight
        assert isinstance(weights, Tensor)
        return weights[0].split(list(self.sources[name].values()))


class Directions(nn.Module):
    """Bring two utilities to the width of the wider one and every element to length one."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        width = max(first, second)
        self.first, self.second = nn.Linear(first, width), nn.Linear(second, width)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the directions [..., channel] of both."""
        return F.normalize(self.first(first), dim=-1), F.normalize(self.second(second), dim=-1)


def _unary(channels: int, dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Linear(channels, channels), nn.ReLU(), nn.Dropout(dropout), nn.Linear(channels, 1, bias=False)
    )


def _sources(name: str, utilities: Mapping[str, Utility]) -> dict[str, int]:
    """Return {what gives the utility a potential: how many}, in the order of the released reduction's weights."""
    utility = utilities[name]
    if utility.members is None:
        groups = {other: u.members for other, u in utilities.items() if u.members is not None and name in u.connected}
        others = [other for other, u in utilities.items() if other != name and u.members is None]
    else:
        groups, others = {}, list(utility.connected)
    return groups | {UNARY: 1, SELF: 1} | dict.fromkeys(others, 1) | ({PRIOR: 1} if utility.has_prior else {})


def _mean(directions: Tensor, mask: Tensor) -> Tensor:
    """Return [batch, member, channel]: the mean over the elements that are there, zero where none is."""
    weights = mask.to(directions.dtype)
    return torch.einsum("bmec,bme->bmc", directions, weights) / weights.sum(-1, keepdim=True).clamp_min(1)

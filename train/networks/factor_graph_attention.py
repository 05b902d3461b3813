"""Factor-graph attention of AVSD: joint attention over several sequences (words, time steps, map locations).

`train.backbones.avsd` builds these sequences, called utilities, from a question and a video.
Source: Schwartz et al., "Factor Graph Attention", CVPR 2019, and the attention unit of the released simple AVSD.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNARY, SELF, PRIOR = "(unary)", "(self)", "(prior)"
UNARY_DROPOUT = 0.5


@dataclass(frozen=True)
class Utility:
    """The configuration of one utility, a sequence of elements to attend to.

    - `channels`: width of the elements.
    - `has_prior`: whether the inputs include a prior per element.
    - `members`: makes the utility a higher-order group of at most this many sequences, which share their weights and
      have one attention each; None: a plain utility.
    - `connected`: names of the plain utilities that a group interacts with. Plain utilities interact with all other
      plain ones.
    """

    channels: int
    has_prior: bool = False
    members: int | None = None
    connected: tuple[str, ...] = ()


class FactorGraphAttention(nn.Module):
    """Attend to the elements of each utility with the softmax of a learned mixture of potentials.

    The potentials of an element are: a function of the element (unary), its mean cosine similarity to the elements of
    its own utility (self) and of each utility that it interacts with (pairwise), and its prior. A plain utility has one
    pairwise potential from each member of a group, by the member's position; a member of a group has one from each
    connected utility.

    Source: the released unit with sizes that are not fixed (`size_flag` false). Differs from the released code:
    missing elements are masked out of attention and means; a missing utility or member contributes no potential;
    parameters without effect do not exist (a prior of zeros, a bias before a softmax, pairs that do not interact); the
    mean cosine is computed as the product with the mean direction, without the matrix of all pairs.
    """

    def __init__(self, utilities: Mapping[str, Utility]) -> None:
        """Build the weights for `utilities` {name: utility}.

        Raises ValueError if anything but a group is connected, or if it is connected to anything but plain utilities.
        """
        super().__init__()
        for name, utility in utilities.items():
            not_plain = [o for o in utility.connected if o not in utilities or utilities[o].members is not None]
            if not_plain or (utility.connected and utility.members is None):
                raise ValueError(
                    f"utility {name!r} is connected to {utility.connected}: only groups connect, to plain utilities"
                )
        self.utilities = dict(utilities)
        self.sources = {name: _sources(name, self.utilities) for name in utilities}
        names = list(utilities)
        self.pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if b in self.sources[a]]
        widths = {name: utility.channels for name, utility in utilities.items()}
        self.unary = nn.ModuleDict({name: _unary(width) for name, width in widths.items()})
        self.own = nn.ModuleDict({name: PairEmbedding(width, width) for name, width in widths.items()})
        self.pairwise = nn.ModuleDict({f"{a}-{b}": PairEmbedding(widths[a], widths[b]) for a, b in self.pairs})
        self.mixture = nn.ModuleDict(
            {name: nn.Linear(sum(sources.values()), 1, bias=False) for name, sources in self.sources.items()}
        )

    def forward(
        self, values: Mapping[str, Tensor], masks: Mapping[str, Tensor], priors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return {utility: [batch, channel]}, for a group [batch, member, channel]; zero if no element is available.

        - `values` {utility: [batch, element, channel]}, for a group [batch, member, element, channel]; no entry if the
          utility is missing.
        - `masks` {utility: bool [batch, element]}, for a group [batch, member, element]: True for available elements.
        - `priors` {utility: float, shaped like its mask}, for the utilities with a prior.

        Raises ValueError if a group has more members than it was built for.
        """
        masks = {name: self._add_member_axis(name, masks[name]) for name in values}
        values = {
            name: self._add_member_axis(name, v).masked_fill(~masks[name][..., None], 0) for name, v in values.items()
        }
        potentials = {name: self._own_potentials(name, v, masks[name]) for name, v in values.items()}
        for name in values:
            if self.utilities[name].has_prior:
                potentials[name][PRIOR] = self._add_member_axis(name, priors[name]).unsqueeze(2)
        for a, b in self.pairs:
            if a in values and b in values:
                directions_a, directions_b = self.pairwise[f"{a}-{b}"](values[a], values[b])
                mean_a, mean_b = _mean(directions_a, masks[a]), _mean(directions_b, masks[b])
                potentials[a][b] = torch.einsum("bmec,bkc->bmke", directions_a, mean_b)
                potentials[b][a] = torch.einsum("bmec,bkc->bmke", directions_b, mean_a)
        attended = {name: self._attend(name, v, masks[name], potentials[name]) for name, v in values.items()}
        return {name: v if self.utilities[name].members is not None else v.squeeze(1) for name, v in attended.items()}

    def _add_member_axis(self, name: str, values: Tensor) -> Tensor:
        """Return `values` as [batch, member, element, ...]; a plain utility has one member."""
        members = self.utilities[name].members
        if members is None:
            return values.unsqueeze(1)
        if values.shape[1] > members:
            raise ValueError(f"group {name!r} has {values.shape[1]} members, more than the {members} it was built for")
        return values

    def _own_potentials(self, name: str, values: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the unary and the self potential, [batch, member, 1, element] each."""
        first, second = self.own[name](values, values)
        cosines = torch.einsum("bmec,bmc->bme", first, _mean(second, mask))
        return {UNARY: self.unary[name](values).squeeze(-1).unsqueeze(2), SELF: cosines.unsqueeze(2)}

    def _attend(self, name: str, values: Tensor, mask: Tensor, potentials: Mapping[str, Tensor]) -> Tensor:
        """Mix `potentials` {source: [batch, member, potential, element]} and return [batch, member, channel]."""
        weight = self.mixture[name].weight
        assert isinstance(weight, Tensor)
        weights = dict(zip(self.sources[name], weight[0].split(list(self.sources[name].values())), strict=True))
        mixed = torch.stack(
            [torch.einsum("bmke,k->bme", p, weights[source][: p.shape[2]]) for source, p in potentials.items()]
        ).sum(0)
        # Not minus infinity, which gives NaN if no element is available; this gives uniform attention to zeros.
        attention = mixed.masked_fill(~mask, torch.finfo(mixed.dtype).min).softmax(-1)
        return torch.einsum("bmec,bme->bmc", values, attention)


class PairEmbedding(nn.Module):
    """Embed the elements of two utilities in the width of the wider one, normalised to length 1."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        width = max(first, second)
        self.first, self.second = nn.Linear(first, width), nn.Linear(second, width)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings [..., channel] of both."""
        return F.normalize(self.first(first), dim=-1), F.normalize(self.second(second), dim=-1)


def _unary(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(channels, channels), nn.ReLU(), nn.Dropout(UNARY_DROPOUT), nn.Linear(channels, 1, bias=False)
    )


def _sources(name: str, utilities: Mapping[str, Utility]) -> dict[str, int]:
    """Return {source of potentials: their number} for a utility, in the order of the released reduction's weights."""
    utility = utilities[name]
    if utility.members is None:
        groups = {other: u.members for other, u in utilities.items() if u.members is not None and name in u.connected}
        others = [other for other, u in utilities.items() if other != name and u.members is None]
    else:
        groups, others = {}, list(utility.connected)
    return groups | {UNARY: 1, SELF: 1} | dict.fromkeys(others, 1) | ({PRIOR: 1} if utility.has_prior else {})


def _mean(directions: Tensor, mask: Tensor) -> Tensor:
    """Return [batch, member, channel]: the mean over the available elements, zero if there are none."""
    weights = mask.to(directions.dtype)
    return torch.einsum("bmec,bme->bmc", directions, weights) / weights.sum(-1, keepdim=True).clamp_min(1)

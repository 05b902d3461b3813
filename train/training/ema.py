"""The running average of a model's weights over the steps of its training. It decides nothing about their use."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """Keep a copy of `module` whose weights are an exponential moving average of those that the steps left behind.

    Each step keeps `decay` of the average; buffers (moments, counters) are copied as they are. The first step's
    weights begin it, so that what the module started from does not weigh on it; a stage of training that frees other
    parameters needs an average of its own.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._trained = module
        self._averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @property
    def module(self) -> nn.Module:
        """The copy with the averaged weights; before the first step, those of the module at its making."""
        averaged: nn.Module = self._averaged.module
        return averaged

    def update(self) -> None:
        """Take in the weights as they are after one more step."""
        self._averaged.update_parameters(self._trained)

    def state(self) -> dict[str, Tensor]:
        """Return everything that `restore` needs, by name."""
        return dict(self._averaged.state_dict())

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        with torch.no_grad():
            self._averaged.load_state_dict(state)

"""The exponential moving average of a model's weights over its training steps."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """A copy of `module` whose weights are the exponential moving average of the trained weights.

    Each step keeps the share `decay` of the average; buffers (moments, counters) are copied. The average starts from
    the weights after the first step, so that the initial weights have no influence. Create a new average for each
    training stage, because stages train different parameters.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._trained = module
        self._averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @property
    def module(self) -> nn.Module:
        """The copy with the averaged weights; before the first step, with the module's initial ones."""
        averaged: nn.Module = self._averaged.module
        return averaged

    def update(self) -> None:
        """Update the average with the weights after a training step."""
        self._averaged.update_parameters(self._trained)

    def state(self) -> dict[str, Tensor]:
        """Return the named tensors that `restore` needs."""
        return dict(self._averaged.state_dict())

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore a state returned by `state`."""
        with torch.no_grad():
            self._averaged.load_state_dict(state)

"""What the extractors of pictures share: a frozen network over normalised frames, in batches of one size.

It holds no network and resizes nothing: extractors bring the one, the decoder has done the other.
"""

from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from pipeline.extractors.preprocessing import Normalisation
from pipeline.extractors.weights import Network, WeightsSource, hash_state_dict, load_state


def load_frozen(
    module: nn.Module, network: Network, weights: WeightsSource, device: str, memory_format: torch.memory_format
) -> str:
    """Give `module`, which may lie on the meta device, its weights; freeze it on `device`; return their hash.

    Batch norms' counters of batches are no weights: they are 0.
    """
    names = module.state_dict()
    wanted = {name: value for name, value in names.items() if not name.endswith("num_batches_tracked")}
    state = load_state(weights, network, wanted)
    weights_hash = hash_state_dict(state)
    counters = {name: torch.tensor(0) for name in names.keys() - wanted.keys()}
    module.load_state_dict(state | counters, assign=True)
    module.eval().requires_grad_(False).to(device)
    module.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch declares it for tensors only
    return weights_hash


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Return `module`, loaded and frozen, with each batch norm folded into the convolution before it.

    The numbers differ by float32's rounding (2e-6 of a ResNet-18 map); up to a tenth of a pass's time is saved.
    """
    return fuse(module)


def run_frozen(
    module: nn.Module,
    frames: np.ndarray,
    normalisation: Normalisation,
    batch_rows: int,
    dtype: torch.dtype,
) -> np.ndarray:
    """Return [time, ...] of uint8 [time, ..., height, width, 3], in batches of one size, the last padded.

    A row never depends on how many rows its video has.
    Raises `FloatingPointError` where a value is not finite in `dtype`.
    """
    device = next(module.parameters()).device
    everything = torch.tensor(frames, device=device)
    precision = torch.autocast("cuda", torch.float16) if device.type == "cuda" else nullcontext()
    parts = []
    with torch.inference_mode(), precision:
        for rows in everything.split(batch_rows):
            batch = pad_rows(rows, batch_rows)
            parts.append(module(_normalise(batch, normalisation))[: len(rows)].to(dtype))
        features = torch.cat(parts).contiguous().cpu()
    broken = ~features.flatten(1).isfinite().all(1)
    if broken.any():
        raise FloatingPointError(
            f"the network gave values that are not finite in {dtype} at step {int(broken.int().argmax())}"
        )
    return features.numpy()


def pad_rows(values: Tensor, rows: int) -> Tensor:
    """Return [rows, ...] of `values` [row, ...], zeros behind them: products are summed by the number of rows."""
    return nn.functional.pad(values, (0, 0) * (values.dim() - 1) + (0, rows - len(values)))


def _normalise(frames: Tensor, normalisation: Normalisation) -> Tensor:
    """Return float32 [row, 3, ..., height, width], a channels-last view, of uint8 [row, ..., height, width, 3]."""
    mean = torch.tensor(normalisation.mean, device=frames.device)
    std = torch.tensor(normalisation.std, device=frames.device)
    return ((frames / 255 - mean) / std).movedim(-1, 1)

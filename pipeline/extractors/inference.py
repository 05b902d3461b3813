"""Shared by the visual extractors: load a frozen network and run it on normalised frames in batches of a fixed size.

Frames arrive already resized: the decoder does that.
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
    """Load `weights` into `module`, freeze it and move it to `device`; return the SHA-256 of the weights.

    `module` may be on the meta device. Its parameters and buffers become float32 in `memory_format`, in evaluation mode
    and without gradients. The batch counters of batch norms are not weights: they are set to 0 and not hashed.
    Raises `UserError` if the file of `network` is missing, is not the published one, cannot be read, or has other
    tensors than the module.
    """
    own = module.state_dict()
    wanted = {name: value for name, value in own.items() if not name.endswith("num_batches_tracked")}
    state = load_state(weights, network, wanted)
    weights_hash = hash_state_dict(state)
    counters = {name: torch.tensor(0) for name in own.keys() - wanted.keys()}
    module.load_state_dict(state | counters, assign=True)
    module.eval().requires_grad_(False).to(device)
    module.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch declares it for tensors only
    return weights_hash


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Return the frozen `module` with each batch norm folded into the preceding convolution.

    Outputs differ by float32 rounding (2e-6 of a ResNet-18 map); a forward pass takes up to a tenth less time.
    """
    return fuse(module)


def run_frozen(
    module: nn.Module,
    frames: np.ndarray,
    normalisation: Normalisation,
    batch_rows: int,
    dtype: torch.dtype,
) -> np.ndarray:
    """Return [time, ...] for uint8 [time, ..., height, width, 3], computed in batches of a fixed size, the last padded.

    The values of a row are independent of the number of rows.
    Raises `FloatingPointError` if a value is not finite in `dtype`.
    """
    device = next(module.parameters()).device
    images = torch.tensor(frames, device=device)
    precision = torch.autocast("cuda", torch.float16) if device.type == "cuda" else nullcontext()
    parts = []
    with torch.inference_mode(), precision:
        for rows in images.split(batch_rows):
            batch = pad_rows(rows, batch_rows)
            parts.append(module(_normalise(batch, normalisation))[: len(rows)].to(dtype))
        features = torch.cat(parts).contiguous().cpu()
    is_invalid = ~features.flatten(1).isfinite().all(1)
    if is_invalid.any():
        raise FloatingPointError(
            f"the network returned values that are not finite in {dtype} at step {int(is_invalid.int().argmax())}"
        )
    return features.numpy()


def pad_rows(values: Tensor, rows: int) -> Tensor:
    """Return `values` [row, ...] padded with zeros to `rows` rows: matrix products round differently by batch size."""
    return nn.functional.pad(values, (0, 0) * (values.dim() - 1) + (0, rows - len(values)))


def _normalise(frames: Tensor, normalisation: Normalisation) -> Tensor:
    """Return float32 [row, 3, ..., height, width], a channels-last view, for uint8 [row, ..., height, width, 3]."""
    mean = torch.tensor(normalisation.mean, device=frames.device)
    std = torch.tensor(normalisation.std, device=frames.device)
    return ((frames / 255 - mean) / std).movedim(-1, 1)

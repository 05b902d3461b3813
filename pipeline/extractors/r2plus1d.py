"""R(2+1)D-18 features of one clip per second (`r2plus1d`).

Frames arrive already resized and sampled: the decoder does that. Source: Tran et al., CVPR 2018; the recipe of
MUSIC-AVQA's feature scripts (Li et al., CVPR 2022).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.extractors.interface import require_loaded
from pipeline.extractors.preprocessing import KINETICS, PRECISION
from pipeline.extractors.weights import Network, PublishedFile, WeightsSource
from pipeline.media.timeline import FrameSize, Media

if TYPE_CHECKING:
    from torch import nn

FRAMES_PER_CLIP = 16
CLIPS_PER_BATCH = 2

NETWORK = Network(
    name="r2plus1d",
    published=(
        # torchvision publishes only the first digits of the hash, in the file name.
        PublishedFile(
            "r2plus1d_18-91a641e6.pth",
            "https://download.pytorch.org/models/r2plus1d_18-91a641e6.pth",
            "91a641e6",
        ),
    ),
    unused=("fc.weight", "fc.bias", "*.num_batches_tracked"),
    # torchvision's initialisation: features in the range of trained ones; with "in" they are 13 times as large.
    seeded_fan="out",
)


@dataclass
class R2Plus1D:
    """R(2+1)D-18 without its last layer, on one clip per second: float32 [time, channel 512], >= 0.

    A clip is 16 frames spread evenly over its second, those shown at t0 + k + (j + 0.5) / 16, stretched to 112x112.
    The Kinetics constants are both the published recipe's and those of the weights' training.
    Source: MUSIC-AVQA's `extract_3D_feat`.
    Differs from the released code: BUG-1.1, its clips have one frame each, so that its features contain no motion;
    no JPEG compression; batches of 2 clips, the last one padded.
    """

    name = "r2plus1d"
    modality = "visual"
    dims = ("channel",)
    shape = (512,)
    dtype = "float32"
    frame_size = FrameSize("stretch", 112, per_second=FRAMES_PER_CLIP)
    networks = (NETWORK,)
    _network: "nn.Module | None" = field(default=None, init=False, repr=False)

    def constants(self) -> dict[str, Any]:
        """Return the settings that the values depend on, other than weights and machine, as JSON values."""
        return {
            "network": "r2plus1d_18, global average pool",
            "version": 1,
            "frames": self.frame_size.constants(),
            "normalisation": KINETICS.constants(),
            "sampling": f"frames shown at t0 + step + (j + 0.5) / {FRAMES_PER_CLIP} s, j < {FRAMES_PER_CLIP}",
            "frames_per_clip": FRAMES_PER_CLIP,
            "batch_size": CLIPS_PER_BATCH,
            "precision": PRECISION,
            "memory_format": "channels_last_3d",
        }

    def load(self, weights: WeightsSource, device: str) -> str:
        """Load the network with `weights` on `device`; return the hash of the weights."""
        import torch
        from torch import nn
        from torchvision.models.video import r2plus1d_18

        from pipeline.extractors.inference import fold_batch_norms, load_frozen

        with torch.device("meta"):
            network = r2plus1d_18(weights=None)
        network.fc = nn.Identity()
        weights_hash = load_frozen(network, NETWORK, weights, device, torch.channels_last_3d)
        self._network = fold_batch_norms(network)
        return weights_hash

    def extract(self, media: Media) -> np.ndarray:
        """Return float32 [time, 512] for `media.frames[frame_size]`, uint8 [time x 16, 112, 112, 3].

        Raises `FloatingPointError` if a value is not finite.
        """
        import torch

        from pipeline.extractors.inference import run_frozen

        network = require_loaded(self._network, self.name)
        frames = media.frames[self.frame_size]
        clips = frames.reshape(-1, FRAMES_PER_CLIP, *frames.shape[1:])
        return run_frozen(network, clips, KINETICS, CLIPS_PER_BATCH, torch.float32)

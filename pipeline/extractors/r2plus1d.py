"""R(2+1)D-18 features of one clip a second (`r2plus1d`).

It decodes and resizes nothing: the decoder hands frames over at the size and rate asked for. Source: Tran et al.,
CVPR 2018; the recipe of MUSIC-AVQA's feature scripts (Li et al., CVPR 2022).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.extractors.preprocessing import KINETICS, PRECISION, require_loaded
from pipeline.extractors.weights import Network, PublishedFile, WeightsSource
from pipeline.media.timeline import FrameSize, Media

if TYPE_CHECKING:
    from torch import nn

FRAMES_PER_CLIP = 16
CLIPS_PER_BATCH = 2

NETWORK = Network(
    name="r2plus1d",
    published=(
        # torchvision publishes the first digits of its hash only, in the name.
        PublishedFile(
            "r2plus1d_18-91a641e6.pth",
            "https://download.pytorch.org/models/r2plus1d_18-91a641e6.pth",
            "91a641e6",
        ),
    ),
    unused=("fc.weight", "fc.bias", "*.num_batches_tracked"),
    # As torchvision initialises it: features in the range of trained ones, where fan-in gives 13 times that.
    seeded_fan="out",
)


@dataclass
class R2Plus1D:
    """R(2+1)D-18 without its last layer over the clip of every second: float32 [time, channel 512], >= 0.

    A clip is 16 frames spread evenly inside its second, those shown at t0 + k + (j + 0.5) / 16, stretched to
    112x112. The Kinetics constants are both the published recipe's and those that the weights were trained with.
    Source: MUSIC-AVQA's `extract_3D_feat`.
    Differs from the released code: BUG-1.1, its clips are one frame long, which makes the feature one of still
    pictures; frames never went through JPEG; batches of 2 clips, the last one padded.
    """

    name = "r2plus1d"
    modality = "visual"
    dims = ("channel",)
    shape = (512,)
    dtype = "float32"
    frame_size = FrameSize("stretch", 112, per_second=FRAMES_PER_CLIP)
    _network: "nn.Module | None" = field(default=None, init=False, repr=False)

    def constants(self) -> dict[str, Any]:
        """Return what the numbers depend on besides weights and machine, as JSON values."""
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
        """Build the network with `weights` on `device`; return the hash of the weights used."""
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
        """Return float32 [time, 512] of `media.frames[frame_size]`, uint8 [time x 16, 112, 112, 3].

        Raises `FloatingPointError` where a value is not finite.
        """
        import torch

        from pipeline.extractors.inference import run_frozen

        network = require_loaded(self._network, self.name)
        frames = media.frames[self.frame_size]
        clips = frames.reshape(-1, FRAMES_PER_CLIP, *frames.shape[1:])
        return run_frozen(network, clips, KINETICS, CLIPS_PER_BATCH, torch.float32)

"""ResNet-18 features of one frame per second: maps (`resnet18-map`) and pooled vectors (`resnet18-pooled`).

Frames arrive already resized: the decoder does that. Source: He et al., CVPR 2016; the recipe of MUSIC-AVQA's feature
scripts (Li et al., CVPR 2022).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.extractors.interface import require_loaded
from pipeline.extractors.preprocessing import IMAGENET, KINETICS, PRECISION, Normalisation, convolutions
from pipeline.extractors.weights import Network, PublishedFile, WeightsSource
from pipeline.media.timeline import FrameSize, Media

if TYPE_CHECKING:
    from torch import nn

FRAMES_PER_BATCH = 5
# 3x3 tiles of 5x5 outputs cover a map of 14x14, 6x6 tiles one of 28x28.
WINOGRAD_OUTPUTS = 5

NETWORK = Network(
    name="resnet18",
    published=(
        PublishedFile(
            "resnet18-f37072fd.pth",
            "https://download.pytorch.org/models/resnet18-f37072fd.pth",
            "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
        ),
        PublishedFile(
            "resnet18-5c106cde.pth",
            "https://download.pytorch.org/models/resnet18-5c106cde.pth",
            "5c106cde386e87d4033832f2996f5493238eda96ccf559d1d62760c4de0613f8",
        ),
    ),
    unused=("fc.weight", "fc.bias", "*.num_batches_tracked"),
    # torchvision's initialisation: maps in the range of trained ones; with "in" they are 13 times as large.
    seeded_fan="out",
)


@dataclass
class ResNet18Map:
    """ResNet-18's last residual stage with stride 1: float16 [time, channel 512, height 14, width 14].

    Frames are stretched to 224x224; the values follow a ReLU, so they are >= 0. The published recipe normalises with
    the Kinetics constants, although the weights were trained with ImageNet's: `normalisations` has both.
    Source: MUSIC-AVQA's `extract_visual_feat_14x14`.
    Differs from the released code: each frame is the one shown in the middle of its second, without JPEG compression;
    float16 instead of float32; batches of 5 frames, the last one padded; Winograd convolutions on the CPU.
    """

    normalisations: ClassVar[dict[str, Normalisation]] = {"published": KINETICS, "trained": IMAGENET}
    normalisation: Normalisation = KINETICS
    name = "resnet18-map"
    modality = "visual"
    dims = ("channel", "height", "width")
    shape = (512, 14, 14)
    dtype = "float16"
    frame_size = FrameSize("stretch", 224)
    networks = (NETWORK,)
    _network: "nn.Module | None" = field(default=None, init=False, repr=False)

    def constants(self) -> dict[str, Any]:
        """Return the settings that the values depend on, other than weights and machine, as JSON values."""
        return {
            "network": "resnet18, layer4 stride 1, no pooling",
            **_constants(self.normalisation, self.frame_size),
        }

    def load(self, weights: WeightsSource, device: str) -> str:
        """Load the network with `weights` on `device`; return the hash of the weights."""
        import torch

        from pipeline.extractors.inference import fold_batch_norms, load_frozen
        from pipeline.extractors.networks.winograd import replace_convolutions

        trunk = build_trunk(last_stride=1)
        weights_hash = load_frozen(trunk, NETWORK, weights, device, torch.channels_last)
        self._network = replace_convolutions(fold_batch_norms(trunk), WINOGRAD_OUTPUTS)
        return weights_hash

    def extract(self, media: Media) -> np.ndarray:
        """Return float16 [time, 512, 14, 14] for `media.frames[frame_size]`, uint8 [time, 224, 224, 3].

        Raises `FloatingPointError` if a value is not finite in float16.
        """
        import torch

        from pipeline.extractors.inference import run_frozen

        network = require_loaded(self._network, self.name)
        frames = media.frames[self.frame_size]
        return run_frozen(network, frames, self.normalisation, FRAMES_PER_BATCH, torch.float16)


@dataclass
class ResNet18Pooled:
    """Globally average-pooled ResNet-18 features: float32 [time, channel 512].

    The shorter side is resized to 256, then the centre 224x224 is cropped.
    Source: MUSIC-AVQA's `extract_visual_feat`.
    Differs from the released code: each frame is the one shown in the middle of its second, without JPEG compression;
    torchvision's weights instead of Cadene's copy of them.
    """

    normalisation: Normalisation = IMAGENET
    name = "resnet18-pooled"
    modality = "visual"
    dims = ("channel",)
    shape = (512,)
    dtype = "float32"
    frame_size = FrameSize("crop", 224, shorter_side=256)
    networks = (NETWORK,)
    _network: "nn.Module | None" = field(default=None, init=False, repr=False)

    def constants(self) -> dict[str, Any]:
        """Return the settings that the values depend on, other than weights and machine, as JSON values."""
        return {"network": "resnet18, global average pool", **_constants(self.normalisation, self.frame_size)}

    def load(self, weights: WeightsSource, device: str) -> str:
        """Load the network with `weights` on `device`; return the hash of the weights."""
        import torch
        from torch import nn

        from pipeline.extractors.inference import fold_batch_norms, load_frozen
        from pipeline.extractors.networks.winograd import replace_convolutions

        trunk = build_trunk(last_stride=2)
        weights_hash = load_frozen(trunk, NETWORK, weights, device, torch.channels_last)
        self._network = nn.Sequential(
            replace_convolutions(fold_batch_norms(trunk), WINOGRAD_OUTPUTS), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        return weights_hash

    def extract(self, media: Media) -> np.ndarray:
        """Return float32 [time, 512] for `media.frames[frame_size]`, uint8 [time, 224, 224, 3].

        Raises `FloatingPointError` if a value is not finite.
        """
        import torch

        from pipeline.extractors.inference import run_frozen

        network = require_loaded(self._network, self.name)
        frames = media.frames[self.frame_size]
        return run_frozen(network, frames, self.normalisation, FRAMES_PER_BATCH, torch.float32)


def _constants(normalisation: Normalisation, frame_size: FrameSize) -> dict[str, Any]:
    return {
        "version": 1,
        "frames": frame_size.constants(),
        "normalisation": normalisation.constants(),
        "sampling": "frame shown at t0 + step + 0.5 s",
        "batch_size": FRAMES_PER_BATCH,
        "convolutions": convolutions(WINOGRAD_OUTPUTS),
        "precision": PRECISION,
        "memory_format": "channels_last",
    }


def build_trunk(last_stride: int) -> "nn.Sequential":
    """Return ResNet-18 up to its last residual stage, on the meta device, without weights."""
    import torch
    from torch import nn
    from torchvision.models import resnet18

    with torch.device("meta"):
        network = resnet18(weights=None)
    first_block = network.layer4[0]
    first_block.conv1.stride = first_block.downsample[0].stride = (last_stride, last_stride)
    stages = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    trunk = nn.Sequential()
    for stage in stages:
        trunk.add_module(stage, getattr(network, stage))
    return trunk

"""The VGGish network, and embeddings computed in batches of fixed sizes.

Source: Hershey et al., ICASSP 2017; the recipe of MUSIC-AVQA's feature scripts (Li et al., CVPR 2022).
"""

import torch
from torch import Tensor, nn

from pipeline.extractors.inference import pad_rows
from pipeline.extractors.networks.vggish_constants import (
    EXAMPLES_PER_BATCH,
    ROWS_PER_EMBEDDING,
)


class VGGish(nn.Module):
    """VGGish with the tensor names of torchvggish's published file: 72,141,184 parameters.

    The output of the convolutions is flattened as (time, mel, channel).
    Source: Hershey et al. 2017 and its TF-slim release.
    Equals the released code of MUSIC-AVQA's feature scripts, which has a ReLU after the last layer; later VGGish
    releases do not.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for stage in ((64,), (128,), (256, 256), (512, 512)):
            for width in stage:
                layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(6 * 4 * 512, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 128),
            nn.ReLU(inplace=True),
        )

    def forward(self, examples: Tensor) -> Tensor:
        """Return [example, 128], >= 0, for log-mel examples [example, 96, 64]."""
        return self.embeddings(self.convolve(examples))

    def convolve(self, examples: Tensor) -> Tensor:
        """Return the input of the embedding layers, [example, time x mel x channel], for examples [example, 96, 64]."""
        maps = self.features(examples.unsqueeze(1).contiguous(memory_format=torch.channels_last))
        return maps.permute(0, 2, 3, 1).flatten(1)


def embed(network: VGGish, examples: Tensor) -> Tensor:
    """Return [example, 128] on the CPU for log-mel examples; the last batch is padded with zeros."""
    with torch.inference_mode():
        batches = examples.split(EXAMPLES_PER_BATCH)
        maps = [network.convolve(pad_rows(batch, EXAMPLES_PER_BATCH))[: len(batch)] for batch in batches]
        rows = torch.cat(maps).split(ROWS_PER_EMBEDDING)
        parts = [_apply_dense(network.embeddings, pad_rows(part, ROWS_PER_EMBEDDING))[: len(part)] for part in rows]
        return torch.cat(parts).cpu()


def _apply_dense(layers: nn.Sequential, rows: Tensor) -> Tensor:
    """Return [row, 128] for [row, time x mel x channel], computed on columns, which avoids copying the weights."""
    columns = rows.t()
    for layer in layers:
        if isinstance(layer, nn.Linear):
            columns = torch.addmm(layer.bias[:, None], layer.weight, columns)
        else:
            columns = layer(columns)
    return columns.t()

"""CLIP's image and text encoders, returning all tokens.

The network is open_clip's. Source: Radford et al., ICML 2021.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from open_clip import CLIP


class ImageTower(nn.Module):
    """CLIP's image encoder: all tokens, after the last layer norm and the projection.

    Source: Radford et al. 2021, section 2.4.
    Token 0 equals the output of open_clip's `encode_image`.
    Differs from the released code: PSTP-Net's copy of CLIP returns token 0 only, unless it is edited (BUG-5.5).
    """

    def __init__(self, clip: "CLIP") -> None:
        super().__init__()
        self.visual = clip.visual

    def forward(self, images: Tensor) -> Tensor:
        """Return [frame, token 50, 512] for [frame, 3, 224, 224]: the class token, then patches in raster order."""
        tokens = self.visual.forward_intermediates(
            images,
            indices=1,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        last = torch.cat([tokens["image_intermediates_prefix"][0], tokens["image_intermediates"][0]], dim=1)
        return last @ self.visual.proj


class TextTower(nn.Module):
    """CLIP's text encoder: all positions, after the last layer norm and the projection.

    Source: Radford et al. 2021, section 2.4.
    """

    def __init__(self, clip: "CLIP") -> None:
        super().__init__()
        self.token_embedding = clip.token_embedding
        self.positional_embedding = clip.positional_embedding
        self.transformer = clip.transformer
        self.ln_final = clip.ln_final
        self.text_projection = clip.text_projection
        mask = torch.full((clip.context_length, clip.context_length), -torch.inf).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, indices: Tensor) -> Tensor:
        """Return [text, 77, 512] for token indices [text, 77]; attention is causal."""
        embedded = self.token_embedding(indices) + self.positional_embedding
        return self.ln_final(self.transformer(embedded, attn_mask=self.mask)) @ self.text_projection


def build_clip(architecture: str) -> "CLIP":
    """Return open_clip's network on the meta device, without weights."""
    from open_clip import CLIP, get_model_config

    with torch.device("meta"):
        return CLIP(**get_model_config(architecture))

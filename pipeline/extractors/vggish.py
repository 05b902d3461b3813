"""VGGish embeddings of each second of audio (`vggish`).

VGGish's PCA, whitening and 8-bit quantisation are not applied, as in MUSIC-AVQA.
Source: Hershey et al., ICASSP 2017; the recipe of MUSIC-AVQA's feature scripts (Li et al., CVPR 2022).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.errors import UserError
from pipeline.extractors.interface import AudioChoice, require_loaded
from pipeline.extractors.networks.vggish_constants import (
    BANDS,
    EXAMPLES_PER_BATCH,
    FFT_SAMPLES,
    HIGHEST_HZ,
    HOP_SAMPLES,
    KAISER_BEST,
    LARGEST_DENOMINATOR,
    LOG_OFFSET,
    LOWEST_HZ,
    ROWS_PER_EMBEDDING,
    SAMPLE_RATE_HZ,
    WINDOW_SAMPLES,
)
from pipeline.extractors.preprocessing import convolutions
from pipeline.extractors.weights import Network, PublishedFile, WeightsSource
from pipeline.media.released_audio import DECODED_HZ, RELEASED_HZ
from pipeline.media.timeline import Media

if TYPE_CHECKING:
    from pipeline.extractors.networks.vggish import VGGish

# Tiles of 4x4 outputs cover maps of 48x32, 24x16 and 12x8.
WINOGRAD_OUTPUTS = 4

NETWORK = Network(
    name="vggish",
    published=(
        PublishedFile(
            "vggish-10086976.pth",
            "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
            "10086976245803799d9194e9a73d9b6c1549c71d1b80106f5cade5608a561f4b",
        ),
    ),
)


@dataclass
class VGGishExtractor:
    """VGGish's embedding of each second, before PCA: float32 [time, channel 128], >= 0.

    The embedding of silence is a constant vector that is not 0.
    `audio`: "resampled" reads the decoded audio, resampled with a low-pass filter; "released" the WAV file that the
    official features were computed from (`pipeline.media.released_audio`).
    Source: MUSIC-AVQA's `extract_audio_feat`.
    Differs from the released code: a partial last second is padded with zeros, whereas the release drops it; batches of
    fixed sizes, the last one padded; Winograd convolutions on the CPU. With "resampled" also: audio starts at the
    video's t0, and is neither aliased nor rounded to 16 bits nor, if it is mono, 3 dB quieter. The log-mel of 20 real
    clips then differs by 0.21 to 1.66 in the sixteen highest bands of stereo audio (mean 0.63), by 0.33 in all bands of
    mono audio, and the cosine of embeddings (random weights) is 0.967 to 0.9996; with "released" the log-mel differs by
    0.016 at most, and the cosine is 0.9995 to 1.
    """

    audio_choices: ClassVar[tuple[AudioChoice, ...]] = ("resampled", "released")
    audio: AudioChoice = "resampled"
    name = "vggish"
    modality = "audio"
    dims = ("channel",)
    shape = (128,)
    dtype = "float32"
    frame_size = None
    networks = (NETWORK,)
    _network: "VGGish | None" = field(default=None, init=False, repr=False)

    def constants(self) -> dict[str, Any]:
        """Return the settings that the values depend on, other than weights and machine, as JSON values."""
        constants = {
            "network": "vggish, final relu, before PCA",
            "version": 1,
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "resampling": {**KAISER_BEST, "per": "second", "largest_denominator": LARGEST_DENOMINATOR},
            "window_samples": WINDOW_SAMPLES,
            "hop_samples": HOP_SAMPLES,
            "fft_samples": FFT_SAMPLES,
            "mel_bands": BANDS,
            "mel_range_hz": [LOWEST_HZ, HIGHEST_HZ],
            "log_offset": LOG_OFFSET,
            "sampling": "first 0.975 s of [t0 + step, t0 + step + 1)",
            "batch_size": {"convolutions": EXAMPLES_PER_BATCH, "embeddings": ROWS_PER_EMBEDDING},
            "convolutions": convolutions(WINOGRAD_OUTPUTS),
            "precision": {"cpu": "float32", "cuda": "float32"},
            "memory_format": "channels_last",
        }
        if self.audio == "released":
            constants |= {
                "audio": "released",
                "resampling": f"as moviepy 1.0.1: nearest sample of 16-bit stereo at {DECODED_HZ} Hz",
                "sampling": "first 0.975 s of [step, step + 1) of the file's audio",
            }
        return constants

    def load(self, weights: WeightsSource, device: str) -> str:
        """Load the network with `weights` on `device`; return the hash of the weights."""
        import torch

        from pipeline.extractors.inference import load_frozen
        from pipeline.extractors.networks.vggish import VGGish
        from pipeline.extractors.networks.winograd import replace_convolutions

        with torch.device("meta"):
            network = VGGish()
        weights_hash = load_frozen(network, NETWORK, weights, device, torch.channels_last)
        replace_convolutions(network.features, WINOGRAD_OUTPUTS)
        self._network = network
        return weights_hash

    def extract(self, media: Media) -> np.ndarray:
        """Return float32 [time, 128] for the chosen waveform of `media`, one row per second.

        Raises `FloatingPointError` if the waveform or an embedding is not finite, `UserError` if the decoder does not
        supply the released audio.
        """
        from pipeline.extractors.networks.log_mel import log_mel
        from pipeline.extractors.networks.vggish import embed

        network = require_loaded(self._network, self.name)
        device = next(network.parameters()).device
        embeddings = embed(network, log_mel(*self._waveform(media), device))
        if not embeddings.isfinite().all():
            raise FloatingPointError("VGGish returned values that are not finite: check that the waveform is finite")
        return embeddings.numpy()

    def _waveform(self, media: Media) -> tuple[np.ndarray, int]:
        """Return the waveform to read and its sample rate in Hz."""
        if self.audio == "resampled":
            return media.waveform, media.sample_rate_hz
        if not len(media.released_waveform):
            raise UserError("--audio released: the decoder supplies no released audio: pass --decoder pyav")
        return media.released_waveform, RELEASED_HZ

"""VGGish embeddings of one second of sound each (`vggish`), and the log-mel examples they are made of.

It decodes nothing, and stops before VGGish's PCA, whitening and 8-bit quantisation, as MUSIC-AVQA does.
Source: Hershey et al., ICASSP 2017; the recipe of MUSIC-AVQA's feature scripts (Li et al., CVPR 2022).
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.frozen import last_batch_rows
from pipeline.timeline import Media
from pipeline.weights import Network, PublishedFile, WeightsSource, hash_state_dict, load_state

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
FFT_SAMPLES = 512
FRAMES = 96
CPU = torch.device("cpu")
BANDS = 64
LOWEST_HZ = 125.0
HIGHEST_HZ = 7500.0
LOG_OFFSET = 0.01
# The convolutions stay in the processor's caches with five examples; the embedding layers read 288 MB of weights for
# every batch, so theirs is larger: a minute takes a third of the time that batches of five do.
EXAMPLES_PER_BATCH = 5
ROWS_PER_EMBEDDING = 20

# The filter that resampy calls `kaiser_best`: a sinc of 64 zero crossings under a Kaiser window.
KAISER_BEST = {
    "resampling_method": "sinc_interp_kaiser",
    "lowpass_filter_width": 64,
    "rolloff": 0.9475937167399596,
    "beta": 14.769656459379492,
}
# 11,025 Hz needs 441/640, the largest denominator of a usual rate. Odd rates (44,101 Hz) are rounded to such
# a ratio, by less than 0.08 %: their exact filter bank would take gigabytes.
LARGEST_DENOMINATOR = 640

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


class VGGish(nn.Module):
    """The network, with the tensor names of torchvggish's published file: 72,141,184 parameters.

    The convolutions' output is flattened as (time, mel, channel).
    Source: Hershey et al. 2017 and its TF-slim release.
    Differs from the released code: none; later upstream releases drop the last ReLU, MUSIC-AVQA's has it.
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
        """Return [example, 128], >= 0, of log-mel examples [example, 96, 64]."""
        return self.embeddings(self.convolve(examples))

    def convolve(self, examples: Tensor) -> Tensor:
        """Return what the embedding layers read, [example, time x mel x channel], of examples [example, 96, 64]."""
        maps = self.features(examples.unsqueeze(1).contiguous(memory_format=torch.channels_last))
        return maps.permute(0, 2, 3, 1).flatten(1)


@dataclass
class VGGishExtractor:
    """VGGish's embedding of every second, before PCA: float32 [time, channel 128], >= 0.

    Silence has an embedding too: a constant vector that is not 0.
    Source: MUSIC-AVQA's `extract_audio_feat`.
    Differs from the released code: sound shorter than a whole second is padded with zeros, where the release
    fails; it starts at the video's own t0; samples are not rounded to 16 bit; batches of fixed
    sizes, the last one padded.
    """

    name = "vggish"
    modality = "audio"
    dims = ("channel",)
    shape = (128,)
    dtype = "float32"
    frame_size = None
    _network: VGGish | None = field(default=None, init=False, repr=False)

    def constants(self) -> dict[str, Any]:
        """Return what the numbers depend on besides weights and machine, as JSON values."""
        return {
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
            "precision": {"cpu": "float32", "cuda": "float32"},
            "memory_format": "channels_last",
        }

    def load(self, weights: WeightsSource, device: str) -> str:
        """Build the network with `weights` on `device`; return the hash of the weights used."""
        with torch.device("meta"):
            network = VGGish()
        state = load_state(weights, NETWORK, network.state_dict())
        weights_hash = hash_state_dict(state)
        network.load_state_dict(state, assign=True)
        network.eval().requires_grad_(False).to(device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares it for tensors only
        self._network = network
        return weights_hash

    def extract(self, media: Media) -> np.ndarray:
        """Return float32 [time, 128] of `media.waveform`, one row per second.

        Raises `FloatingPointError` where the waveform or an embedding is not finite.
        """
        if self._network is None:
            raise RuntimeError(f"{self.name} extracts before load was called")
        device = next(self._network.parameters()).device
        embeddings = _embed(self._network, log_mel(media.waveform, media.sample_rate_hz, device))
        if not embeddings.isfinite().all():
            raise FloatingPointError("VGGish gave values that are not finite: is the waveform?")
        return embeddings.numpy()


def log_mel(waveform: np.ndarray | Tensor, sample_rate_hz: int, device: torch.device = CPU) -> Tensor:
    """Return VGGish's log-mel examples, float32 [example, frame 96, band 64] on `device`: one per second of `waveform`.

    `waveform`: mono [sample] in [-1, 1]; a last, partial second is padded with zeros. Each second is
    resampled to 16 kHz by itself. An example is the first 96 of a second's 98 frames of 25 ms every 10 ms.
    Raises ValueError where the waveform is not one-dimensional or the rate not positive.
    Source: MUSIC-AVQA's `vggish_input`; Hershey et al. 2017, section 3.1.
    Differs from the released code: resampling evaluates the filter `kaiser_best` exactly. resampy steps
    through a table by a truncated integer (185 for 185.76 at 44.1 kHz), which lifts the quiet bands of a pure
    tone by 0.8; MUSIC-AVQA's own sound is stored at 16 kHz, where neither resamples.
    """
    samples = torch.tensor(np.asarray(waveform), dtype=torch.float64, device=device)
    if samples.ndim != 1 or sample_rate_hz <= 0:
        raise ValueError(
            f"log_mel takes mono [sample] at a positive rate, not {list(samples.shape)} at {sample_rate_hz}"
        )
    padding = -len(samples) % sample_rate_hz
    seconds = functional.pad(samples, (0, padding)).reshape(-1, sample_rate_hz)
    with torch.inference_mode():
        frames = _resample(seconds, sample_rate_hz).unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)[:, :FRAMES]
        window = torch.hann_window(WINDOW_SAMPLES, periodic=True, dtype=torch.float64, device=device)
        magnitudes = torch.fft.rfft(frames * window, n=FFT_SAMPLES).abs()
        return torch.log(magnitudes @ mel_matrix().to(device) + LOG_OFFSET).float()


def mel_matrix() -> Tensor:
    """Return float64 [bin 257, band 64]: HTK-mel triangles, linear in mel, not normalised; DC row 0."""
    bins = _hertz_to_mel(torch.linspace(0, SAMPLE_RATE_HZ / 2, FFT_SAMPLES // 2 + 1, dtype=torch.float64))
    lowest, highest = _hertz_to_mel(torch.tensor([LOWEST_HZ, HIGHEST_HZ], dtype=torch.float64)).tolist()
    edges = torch.linspace(lowest, highest, BANDS + 2, dtype=torch.float64)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - lower) / (centre - lower)
    falling = (upper - bins[:, None]) / (upper - centre)
    matrix = torch.minimum(rising, falling).clamp(min=0)
    matrix[0] = 0
    return matrix


def _hertz_to_mel(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hertz / 700.0)


def _resample(seconds: Tensor, sample_rate_hz: int) -> Tensor:
    """Return [example, 16,000] of [example, sample_rate_hz]."""
    if sample_rate_hz == SAMPLE_RATE_HZ:
        return seconds
    from torchaudio.functional import resample

    ratio = Fraction(sample_rate_hz, SAMPLE_RATE_HZ).limit_denominator(LARGEST_DENOMINATOR)
    resampled = resample(seconds, ratio.numerator, ratio.denominator, **KAISER_BEST)[:, :SAMPLE_RATE_HZ]
    return functional.pad(resampled, (0, SAMPLE_RATE_HZ - resampled.shape[1]))


def _embed(network: VGGish, examples: Tensor) -> Tensor:
    """Return [example, 128] on the CPU, in batches of fixed sizes; the last is padded with zeros where that matters."""
    with torch.inference_mode():
        maps = [_convolve(network, batch) for batch in examples.split(EXAMPLES_PER_BATCH)]
        rows = torch.cat(maps).split(ROWS_PER_EMBEDDING)
        parts = [network.embeddings(_pad_rows(part, ROWS_PER_EMBEDDING))[: len(part)] for part in rows]
        return torch.cat(parts).cpu()


def _convolve(network: VGGish, batch: Tensor) -> Tensor:
    """Return [example, time x mel x channel] of examples [example, 96, 64]."""
    size = last_batch_rows(len(batch), EXAMPLES_PER_BATCH, batch.device)
    return network.convolve(_pad_rows(batch, size))[: len(batch)]


def _pad_rows(values: Tensor, rows: int) -> Tensor:
    return functional.pad(values, (0, 0) * (values.dim() - 1) + (0, rows - len(values)))

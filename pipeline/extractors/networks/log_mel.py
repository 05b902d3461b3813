"""VGGish's input: log-mel examples of a waveform.

Source: Hershey et al., ICASSP 2017; the recipe of MUSIC-AVQA's feature scripts (Li et al., CVPR 2022).
"""

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.extractors.networks.vggish_constants import (
    BANDS,
    FFT_SAMPLES,
    FRAMES,
    HIGHEST_HZ,
    HOP_SAMPLES,
    KAISER_BEST,
    LARGEST_DENOMINATOR,
    LOG_OFFSET,
    LOWEST_HZ,
    SAMPLE_RATE_HZ,
    WINDOW_SAMPLES,
)

CPU = torch.device("cpu")


def log_mel(waveform: np.ndarray | Tensor, sample_rate_hz: int, device: torch.device = CPU) -> Tensor:
    """Return VGGish's log-mel examples, float32 [example, frame 96, band 64] on `device`: one per second of `waveform`.

    `waveform`: mono [sample] in [-1, 1]; a partial last second is padded with zeros. Each second is resampled to
    16 kHz separately. An example is the first 96 of the 98 windows of a second (25 ms, every 10 ms).
    Raises `ValueError` if the waveform is not one-dimensional or the rate is not positive.
    Source: MUSIC-AVQA's `vggish_input`; Hershey et al. 2017, section 3.1.
    Differs from the released code: resampling evaluates the filter `kaiser_best` exactly. resampy steps through a
    table by a truncated integer (185 for 185.76 at 44.1 kHz), which raises the quiet bands of a pure tone by 0.8;
    MUSIC-AVQA's own audio is stored at 16 kHz and is not resampled by either.
    """
    samples = torch.tensor(np.asarray(waveform), dtype=torch.float64, device=device)
    if samples.ndim != 1 or sample_rate_hz <= 0:
        raise ValueError(
            f"log_mel expects mono [sample] at a positive rate, not {list(samples.shape)} at {sample_rate_hz} Hz"
        )
    padding = -len(samples) % sample_rate_hz
    seconds = functional.pad(samples, (0, padding)).reshape(-1, sample_rate_hz)
    with torch.inference_mode():
        frames = _resample(seconds, sample_rate_hz).unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)[:, :FRAMES]
        window = torch.hann_window(WINDOW_SAMPLES, periodic=True, dtype=torch.float64, device=device)
        magnitudes = torch.fft.rfft(frames * window, n=FFT_SAMPLES).abs()
        return torch.log(magnitudes @ mel_matrix().to(device) + LOG_OFFSET).float()


def mel_matrix() -> Tensor:
    """Return float64 [bin 257, band 64]: HTK mel triangles, linear in mel, not normalised; row 0 (DC) is 0."""
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
    """Return [example, 16,000] for [example, sample_rate_hz]."""
    if sample_rate_hz == SAMPLE_RATE_HZ:
        return seconds
    from torchaudio.functional import resample

    ratio = Fraction(sample_rate_hz, SAMPLE_RATE_HZ).limit_denominator(LARGEST_DENOMINATOR)
    resampled = resample(seconds, ratio.numerator, ratio.denominator, **KAISER_BEST)[:, :SAMPLE_RATE_HZ]
    return functional.pad(resampled, (0, SAMPLE_RATE_HZ - resampled.shape[1]))

"""The audio that MUSIC-AVQA's features were computed from: the WAV file that moviepy 1.0.1 writes at 16 kHz.

moviepy decodes 16-bit stereo at 44.1 kHz and takes the sample nearest to each time, without a low-pass filter. It reads
through a buffer of 200,000 samples whose refills are off by one: from each refill on, about every 2.3 seconds, its
audio is one sample later than before. Audio that is shorter than the file continues with samples of the buffer.
Source: moviepy 1.0.1, `FFMPEG_AudioReader.get_frame` and `AudioClip.iter_chunks`; MUSIC-AVQA, `extract_audio.py`.
"""

import numpy as np

DECODED_HZ = 44_100
RELEASED_HZ = 16_000
BUFFER_SAMPLES = 200_000
_CHUNK_SAMPLES = 2_000
# moviepy limits samples to 0.99 of full scale.
_LARGEST = 32_440


class _Buffer:
    """moviepy's buffer of consecutive samples, int16 [sample, channel 2], which is refilled around a sample."""

    def __init__(self, decoded: np.ndarray, size: int) -> None:
        self._decoded = decoded
        self._size = size
        self._start = self._position = 0
        self._samples = self._read(size)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the samples that moviepy returns for `indices`, which increase: [index, channel 2].

        Where moviepy fails, because the audio is shorter than a quarter of the buffer, the first sample is returned.
        """
        if not self._contains(indices[0]):
            self._refill(indices[0])
        elif not self._contains(indices[-1]):
            self._refill(indices[-1])
        length = len(self._samples)
        within = indices - self._start
        if length < self._size // 2:
            within = within - (self._size // 2 - length + 1)
        return self._samples[np.clip(within, -length, length - 1)]

    def _contains(self, index: int) -> bool:
        return 0 <= index - self._start < len(self._samples)

    def _refill(self, index: int) -> None:
        start = max(0, index - self._size // 2)
        end = self._start + self._size
        if start < end < start + self._size:
            kept = end - start + 1
            self._samples = np.concatenate([self._samples[-kept:], self._read(self._size - kept)])
        else:
            self._position = start
            self._samples = self._read(self._size)
        self._start = start

    def _read(self, count: int) -> np.ndarray:
        first = self._position
        self._position += count
        return self._decoded[first : self._position]


def release_audio(decoded: np.ndarray, duration_microseconds: int, seconds: int) -> np.ndarray:
    """Return the first `seconds` of moviepy's audio at 16 kHz, the mean of its channels: float32 [sample] in [-1, 1].

    `decoded`: int16 [sample, channel 2], not empty, at 44.1 kHz, in the order of the file and without gaps; of a longer
    file at least `BUFFER_SAMPLES` more than the requested seconds. The result ends with the duration that the file
    states.
    """
    whole, hundredths = divmod((duration_microseconds + 5_000) // 10_000, 100)
    duration_seconds = whole + hundredths / 100
    buffer = _Buffer(decoded, min(int(DECODED_HZ * duration_seconds) + 1, BUFFER_SAMPLES))
    total = int(RELEASED_HZ * duration_seconds)
    chunks = total // _CHUNK_SAMPLES + 1
    released = []
    first = 0
    for chunk in range(1, chunks + 1):
        stop = total if chunk == chunks else int(chunk * (total / chunks))
        if first < stop:
            moments = (1 / RELEASED_HZ) * np.arange(first, stop)
            released.append(buffer.take(np.round(DECODED_HZ * moments).astype(int)))
        first = stop
        if first >= RELEASED_HZ * seconds:
            break
    samples = np.concatenate([np.zeros((0, 2), np.int16), *released])[: RELEASED_HZ * seconds]
    limited = np.clip(samples, -_LARGEST, _LARGEST)
    return (limited.sum(axis=1, dtype=np.int32) / 65_536).astype(np.float32)

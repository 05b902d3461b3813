"""The audio of a scene: one timbre per instrument, 1, 2 or 4 notes per second, one mono waveform.

The spectra and envelopes are chosen to be distinguishable; they do not model real instruments.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.synthetic.scene import Performer, Scene

SAMPLE_RATE_HZ = 16_000
LEVEL_GAIN = {1: 0.06, 2: 0.12, 3: 0.24}
VOICE_GAIN = 0.05
SCALE_SEMITONES = (0, 2, 4, 5, 7)
FADE_SECONDS = 0.008
HIGHEST_HZ = 7_600.0


@dataclass(frozen=True)
class Timbre:
    """The timbre of an instrument.

    `lowest_hz`: fundamental of its lowest note. `harmonics`: amplitude of each partial. `ratio`: spacing of the
    partials in multiples of the fundamental (1 for harmonic tones). `decay_seconds`: time constant of a struck note,
    None for a sustained one. `noise`: share of noise in [0, 1], in the band `noise_hz`. `tremolo_hz`, `vibrato_hz`: 0
    for none.
    """

    lowest_hz: float
    harmonics: tuple[float, ...]
    ratio: float = 1.0
    decay_seconds: float | None = None
    attack_seconds: float = 0.01
    noise: float = 0.0
    noise_hz: tuple[float, float] = (0.0, HIGHEST_HZ)
    tremolo_hz: float = 0.0
    vibrato_hz: float = 0.0


# Each instrument has its own range, a fifth wide, between the lowest and the highest frequency of VGGish's input.
TIMBRES = {
    "drum": Timbre(75, (1, 0.3), decay_seconds=0.25, noise=0.5, noise_hz=(60, 230)),
    "saxophone": Timbre(260, (1, 0.15, 0.6, 0.1, 0.3), attack_seconds=0.03, noise=0.08, noise_hz=(250, 1200)),
    "accordion": Timbre(500, (1, 0.7, 0.5, 0.2), attack_seconds=0.04, tremolo_hz=7),
    "violin": Timbre(950, (1, 0.6, 0.45, 0.3, 0.2), attack_seconds=0.08, vibrato_hz=6.5),
    "flute": Timbre(1800, (1, 0.05), attack_seconds=0.06, noise=0.04, noise_hz=(1800, 5000), vibrato_hz=5),
    "xylophone": Timbre(3200, (1, 0.4), ratio=0.83, decay_seconds=0.18),
}


def synthesize_waveform(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return the scene's waveform: float32 [sample], mono, in [-1, 1], `seconds` long at `SAMPLE_RATE_HZ`.

    Without noise, a second in which nothing plays is exactly zero. The melodies and the noise are sampled from `rng`.
    """
    waveform = np.zeros(scene.seconds * SAMPLE_RATE_HZ, np.float32)
    for performer in scene.audible:
        _add_performer(waveform, performer, rng)
    if scene.has_voiceover:
        _add_voice(waveform, scene.seconds, rng)
    if scene.noise_gain:
        waveform += scene.noise_gain * synthesize_noise(len(waveform), rng)
    return np.clip(waveform, -1.0, 1.0)


def _add_performer(waveform: np.ndarray, performer: Performer, rng: np.random.Generator) -> None:
    length = SAMPLE_RATE_HZ // performer.tempo
    base = int(performer.pitch * len(SCALE_SEMITONES))
    for index in range(performer.duration_seconds * performer.tempo):
        step = base if performer.holds_note else (base + int(rng.integers(0, 3))) % len(SCALE_SEMITONES)
        begin = performer.start * SAMPLE_RATE_HZ + index * length
        note = synthesize_note(performer.instrument, step, performer.tempo)
        waveform[begin : begin + length] += LEVEL_GAIN[performer.level] * note


def _add_voice(waveform: np.ndarray, seconds: int, rng: np.random.Generator) -> None:
    length = SAMPLE_RATE_HZ // 4
    for index in range(seconds * 4):
        begin = index * length
        waveform[begin : begin + length] += VOICE_GAIN * synthesize_syllable(int(rng.integers(0, 3)))


def synthesize_noise(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return pink noise (equal power per octave): float32 [sample], mean 0, standard deviation 1."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum[0] = 0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    noise = np.fft.irfft(spectrum, samples)
    return (noise / noise.std()).astype(np.float32)


@lru_cache(maxsize=512)
def synthesize_note(instrument: str, step: int, tempo: int) -> np.ndarray:
    """Return the note at `step` of the scale: float32 [sample], peak 1, 1 / `tempo` seconds long."""
    timbre = TIMBRES[instrument]
    time = np.arange(SAMPLE_RATE_HZ // tempo) / SAMPLE_RATE_HZ
    fundamental_hz = timbre.lowest_hz * 2 ** (SCALE_SEMITONES[step] / 12)
    note = _tone(timbre, fundamental_hz, time)
    if timbre.noise:
        note = (1 - timbre.noise) * note + timbre.noise * _noise(timbre.noise_hz, len(time), seed=step)
    note *= 1 - np.exp(-time / timbre.attack_seconds * 3)
    if timbre.decay_seconds is not None:
        note *= np.exp(-time / timbre.decay_seconds)
    if timbre.tremolo_hz:
        note *= 0.7 + 0.3 * np.sin(2 * np.pi * timbre.tremolo_hz * time)
    return _fade_out(note)


@lru_cache(maxsize=8)
def synthesize_syllable(vowel: int) -> np.ndarray:
    """Return a quarter of a second of a voice-like tone: float32 [sample], peak 1; `vowel` in 0..2."""
    first_hz, second_hz = ((700, 1200), (350, 2100), (450, 900))[vowel]
    time = np.arange(SAMPLE_RATE_HZ // 4) / SAMPLE_RATE_HZ
    multiples = np.arange(1, 25)[:, None] * 120.0
    formants = np.exp(-(((multiples - first_hz) / 120) ** 2)) + 0.6 * np.exp(-(((multiples - second_hz) / 160) ** 2))
    glide = 1 + 0.08 * np.sin(2 * np.pi * 2 * time)
    phase = 2 * np.pi * np.cumsum(glide) / SAMPLE_RATE_HZ
    return _fade_out((formants * np.sin(multiples * phase)).sum(0) * np.sin(np.pi * time * 4) ** 0.7)


def _tone(timbre: Timbre, fundamental_hz: float, time: np.ndarray) -> np.ndarray:
    phase = 2 * np.pi * fundamental_hz * time
    if timbre.vibrato_hz:
        phase += 0.012 * fundamental_hz / timbre.vibrato_hz * np.sin(2 * np.pi * timbre.vibrato_hz * time)
    tone = np.zeros_like(time)
    for index, amplitude in enumerate(timbre.harmonics):
        multiple = 1 + index * timbre.ratio
        if fundamental_hz * multiple < HIGHEST_HZ:
            tone += amplitude * np.sin(multiple * phase)
    return tone / np.abs(tone).max()


def _noise(band_hz: tuple[float, float], samples: int, seed: int) -> np.ndarray:
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(samples))
    frequency_hz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ)
    spectrum[(frequency_hz < band_hz[0]) | (frequency_hz > band_hz[1])] = 0
    noise = np.fft.irfft(spectrum, samples)
    return noise / np.abs(noise).max()


def _fade_out(note: np.ndarray) -> np.ndarray:
    """Return the note with its last milliseconds faded to zero and peak 1; read-only, because it is cached."""
    fade = int(FADE_SECONDS * SAMPLE_RATE_HZ)
    note[-fade:] *= np.linspace(1, 0, fade)
    faded = (note / np.abs(note).max()).astype(np.float32)
    faded.setflags(write=False)
    return faded

"""Compare extraction of one clip by MUSIC-AVQA's official recipe and by mavqa, on one core, with seeded weights.

The official recipe is reimplemented from its description: decode every frame, write one per second as JPEG, resize
with PIL, run all frames in one float32 batch; write the audio as 16-bit WAV at 16 kHz, compute log-mel, run VGGish;
`np.save`. mavqa runs what a worker does with a partition (decoder process, networks, store). The lower bound is the
bare forward pass of both networks on prepared tensors, with torch's own convolutions, folded batch norms, channels
last and the best batch size. All of them run once per round (`--rounds`); times are medians, ratios are medians of the
ratios per round. Seconds are processor time including child processes, because the machine may be shared; with one
thread they equal wall time on an idle core. All use the large memory pages that mavqa requests.
`--cores` also measures wall time on that many cores, which should be idle: one process with that many threads for the
official recipe, one worker per core for mavqa.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
import wave
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import torch
from PIL import Image

from pipeline.extractors import resnet18, vggish
from pipeline.extractors.inference import fold_batch_norms, load_frozen
from pipeline.extractors.networks.log_mel import log_mel, mel_matrix
from pipeline.extractors.networks.vggish import VGGish
from pipeline.extractors.networks.vggish_constants import (
    FFT_SAMPLES,
    FRAMES,
    HOP_SAMPLES,
    LOG_OFFSET,
    SAMPLE_RATE_HZ,
    WINDOW_SAMPLES,
)
from pipeline.extractors.preprocessing import KINETICS
from pipeline.extractors.weights import WeightsSource
from pipeline.media.decoder_process import DecoderProcess
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.image import fit
from pipeline.media.timeline import DecodeRequest, FrameSize
from pipeline.run.partitions import Partition, VideoTask
from pipeline.run.settings import Settings
from pipeline.run.worker import extract_partition, load_specs, request_large_pages
from pipeline.store.reader import open_store
from pipeline.store.writer import StoreWriter, write_rows

WIDTH, HEIGHT, FRAMES_PER_SECOND, RATE_HZ = 640, 360, 25, 44_100
SEEDED = WeightsSource("seeded")
NAMES = ("resnet18-map", "vggish")
BATCHES = (5, 10, 20)
STRETCHED = FrameSize("stretch", 224)
_BARRIER: Any = None


def main() -> int:
    """Measure and print the tables; return 1 if a promise is broken, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, help="clip to extract (default: a synthetic clip of --seconds)")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=0, help="also measure wall time on this many cores")
    options = parser.parse_args()
    torch.set_num_threads(1)
    request_large_pages()
    with tempfile.TemporaryDirectory(prefix="mavqa-extraction-") as name:
        folder = Path(name)
        clip = options.clip or make_clip(folder / "clip.mp4", options.seconds)
        print(f"{clip.name}, {options.seconds} s, one core, seeded weights; processor seconds\n")
        found = measure(clip, folder, options.seconds, options.rounds)
        if options.cores:
            found |= measure_wall_time(clip, folder, options.seconds, options.cores, options.rounds)
    print_parts(found)
    return 0 if print_promises(found) else 1


def make_clip(path: Path, seconds: int) -> Path:
    """Write an H.264 video of a moving random pattern, 640x360 at 25 frames per second, with noise as audio (AAC)."""
    generator = np.random.default_rng(0)
    scene = generator.integers(0, 256, (HEIGHT // 20, WIDTH // 10, 3)).astype(np.uint8).repeat(20, 0).repeat(20, 1)
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.options = {"preset": "veryfast", "crf": "23"}
        audio: Any = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for number in range(seconds * FRAMES_PER_SECOND):
            image = scene[:, number % WIDTH : number % WIDTH + WIDTH]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(video.encode(frame))
        waveform = (0.3 * generator.standard_normal(seconds * RATE_HZ)).clip(-1, 1).astype(np.float32)
        for start in range(0, len(waveform), 1024):
            block = av.AudioFrame.from_ndarray(waveform[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = RATE_HZ, start, Fraction(1, RATE_HZ)
            container.mux(audio.encode(block))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return path


def cpu_seconds() -> float:
    """Return the processor seconds of this process and its running and finished child processes.

    Those of this process are exact; those of child processes are counted in ticks, usually of 10 ms.
    """
    own = psutil.Process().cpu_times()
    children = sum(sum(process.cpu_times()[:4]) for process in psutil.Process().children(recursive=True))
    return time.process_time() + own.children_user + own.children_system + children


def time_each(tasks: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Return the processor seconds [round] of each task; each round runs all tasks, so that load affects all alike."""
    seconds = {name: np.zeros(rounds) for name in tasks}
    for number in range(rounds):
        for name, task in tasks.items():
            started = cpu_seconds()
            task()
            seconds[name][number] = cpu_seconds() - started
    return seconds


def measure(clip: Path, folder: Path, seconds: int, rounds: int) -> dict[str, float]:
    """Return, by name, the processor seconds of each recipe and of mavqa's parts, sizes in bytes, and the error."""
    extractors = {"resnet18-map": resnet18.ResNet18Map(), "vggish": vggish.VGGishExtractor()}
    for extractor in extractors.values():
        extractor.load(SEEDED, "cpu")
    request = DecodeRequest(seconds=seconds, frame_sizes=(STRETCHED,))
    media = open_decoder("pyav").decode(clip, request)
    frames, examples = media.frames[STRETCHED], log_mel(media.waveform, media.sample_rate_hz)
    images = normalise(frames).contiguous(memory_format=torch.channels_last)
    bare_networks = plain_networks(torch.channels_last)
    bare_networks["resnet18-map"] = fold_batch_norms(bare_networks["resnet18-map"])
    values = {name: extractor.extract(media) for name, extractor in extractors.items()}
    official, mavqa = OfficialRecipe(seconds), MavqaRecipe(clip, folder / "mavqa.zarr", seconds)
    full_frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    tasks: dict[str, Callable[[], Any]] = {
        "official": lambda: official.run(clip, folder),
        "mavqa": mavqa.run,
        "resize": lambda: [fit(full_frame, STRETCHED) for _ in frames],
        "decode": lambda: open_decoder("pyav").decode(clip, request),
        "log-mel": lambda: log_mel(media.waveform, media.sample_rate_hz),
        **{name: partial(extractor.extract, media) for name, extractor in extractors.items()},
        "compress and write": lambda: [write_rows(mavqa.store, name, 0, {0: v}) for name, v in values.items()],
    }
    for name, tensor in (("resnet18-map", images), ("vggish", examples)):
        tasks |= {f"bare {name} {batch}": partial(forward, bare_networks[name], tensor, batch) for batch in BATCHES}
    with mavqa:
        times = time_each(tasks, rounds)
    bare = sum(min((times.pop(f"bare {name} {b}") for b in BATCHES), key=np.median) for name in extractors)
    found = {name: float(np.median(seconds)) for name, seconds in (*times.items(), ("bare networks", bare))}
    found["mavqa / bare networks"] = float(np.median(times["mavqa"] / bare))
    found["official / mavqa"] = float(np.median(times["official"] / times["mavqa"]))
    found["decode"] -= found["resize"]
    found["vggish"] -= found["log-mel"]
    found["mavqa networks"] = sum(found[name] for name in extractors)
    found["opened"] = mavqa.opened / mavqa.runs
    chunks = list((mavqa.store / "features" / "resnet18-map" / "values").glob("c.*"))
    found["bytes stored"] = sum(path.stat().st_size for path in chunks) / len(chunks)
    exact = forward(bare_networks["resnet18-map"], images, BATCHES[0]).numpy()
    found["bytes of float32"] = exact.nbytes
    stored = np.asarray(open_store(mavqa.store).values("resnet18-map")[0])[: len(exact)].astype(np.float64)
    found["relative error"] = float(np.linalg.norm(stored - exact) / np.linalg.norm(exact.astype(np.float64)))
    return found


def measure_wall_time(clip: Path, folder: Path, seconds: int, cores: int, rounds: int) -> dict[str, float]:
    """Return the wall seconds per video on all cores, of the official recipe (minimum of `rounds`) and of mavqa."""
    torch.set_num_threads(cores)
    official, times = OfficialRecipe(seconds), []
    for _ in range(rounds):
        started = time.monotonic()
        official.run(clip, folder)
        times.append(time.monotonic() - started)
    stores = [folder / f"worker-{worker}.zarr" for worker in range(cores)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, spawn, _init_worker, (spawn.Barrier(cores),)) as workers:
        spans = list(workers.map(_time_worker, [(clip, store, seconds, rounds) for store in stores]))
    mavqa = (max(end for _, end in spans) - min(start for start, _ in spans)) / (cores * rounds)
    return {"official, wall time": min(times), "mavqa, wall time": mavqa}


def _init_worker(barrier: Any) -> None:
    global _BARRIER
    _BARRIER = barrier
    torch.set_num_threads(1)


def _time_worker(task: tuple[Path, Path, int, int]) -> tuple[float, float]:
    """Extract a clip `rounds` times, once all workers are ready; return the start and end times."""
    clip, store, seconds, rounds = task
    with MavqaRecipe(clip, store, seconds) as mavqa:
        _BARRIER.wait()
        started = time.monotonic()
        for _ in range(rounds):
            mavqa.run()
        return started, time.monotonic()


def plain_networks(memory_format: torch.memory_format) -> dict[str, torch.nn.Module]:
    """Return both networks with seeded weights, without mavqa's optimisations."""
    with torch.device("meta"):
        networks = {"resnet18-map": resnet18.build_trunk(last_stride=1), "vggish": VGGish()}
    for network, source in zip(networks.values(), (resnet18.NETWORK, vggish.NETWORK), strict=True):
        load_frozen(network, source, SEEDED, "cpu", memory_format)
    return networks


@torch.inference_mode()
def forward(network: Any, rows: torch.Tensor, batch: int) -> torch.Tensor:
    """Return the outputs of `network` for `rows`, in batches of `batch` rows."""
    return torch.cat([network(part) for part in rows.split(batch)])


def normalise(frames: np.ndarray) -> torch.Tensor:
    """Return float32 [row, 3, height, width] for uint8 [row, height, width, 3], with the published constants."""
    mean, std = torch.tensor(KINETICS.mean), torch.tensor(KINETICS.std)
    return ((torch.from_numpy(frames).float() / 255 - mean) / std).permute(0, 3, 1, 2)


class MavqaRecipe:
    """What a worker does with a clip, writing to its own store; inside a `with` block decoded files are counted."""

    def __init__(self, clip: Path, store: Path, seconds: int) -> None:
        """Create the store and the settings."""
        self.store, self.opened, self.runs = store, 0, 0
        self._settings = Settings(str(store), NAMES, SEEDED, "pyav", "cpu", seconds, "pad")
        with StoreWriter(store, "benchmark") as writer:
            writer.create(seconds)
            writer.append_videos(["clip"])
            for spec in load_specs(self._settings).values():
                writer.add_spec(spec)
        self._partition = Partition(0, (VideoTask(0, "clip", str(clip), "", NAMES),))
        self._decode = DecoderProcess.decode

    def __enter__(self) -> "MavqaRecipe":
        """Start counting decoded files, and start the decoder process."""

        def decode_and_count(decoder: DecoderProcess, path: Path, request: DecodeRequest) -> Any:
            self.opened += 1
            return self._decode(decoder, path, request)

        DecoderProcess.decode = decode_and_count  # type: ignore[method-assign]
        self.run()
        return self

    def __exit__(self, *details: object) -> None:
        DecoderProcess.decode = self._decode  # type: ignore[method-assign]

    def run(self) -> None:
        """Extract the clip."""
        self.runs += 1
        extract_partition(self._settings, {}, self._partition)


class OfficialRecipe:
    """One clip by MUSIC-AVQA's feature scripts: adaptive frames, 14x14 maps, audio extraction, VGGish."""

    def __init__(self, seconds: int) -> None:
        """Load both networks with seeded weights, contiguous, without folded batch norms."""
        self._seconds = seconds
        self._resnet18, self._vggish = plain_networks(torch.contiguous_format).values()

    @torch.inference_mode()
    def run(self, clip: Path, folder: Path) -> None:
        """Extract `clip`; write JPEGs, audio and arrays to `folder`."""
        jpegs = self._write_frames(clip, folder)
        frames = np.stack([np.asarray(Image.open(p).convert("RGB").resize((224, 224), Image.BILINEAR)) for p in jpegs])
        np.save(folder / "maps.npy", self._resnet18(normalise(frames).contiguous()).numpy())
        samples = self._write_audio(clip, folder / "audio.wav")
        examples = np.stack([_log_mel(second) for second in samples.reshape(self._seconds, -1)]).astype(np.float32)
        np.save(folder / "audio.npy", self._vggish(torch.from_numpy(examples)).numpy())

    def _write_frames(self, clip: Path, folder: Path) -> list[Path]:
        """Decode all frames and write the middle one of each second as JPEG."""
        with av.open(str(clip)) as container:
            container.streams.video[0].thread_type = "AUTO"
            rate = float(container.streams.video[0].average_rate or FRAMES_PER_SECOND)
            wanted = {max(1, round((second + 0.5) * rate)) for second in range(self._seconds)}
            paths = []
            for number, frame in enumerate(container.decode(video=0), start=1):
                if number in wanted:
                    paths.append(folder / f"{len(paths) + 1:08d}.jpg")
                    frame.to_image().save(paths[-1])
        return paths

    def _write_audio(self, clip: Path, path: Path) -> np.ndarray:
        """Write the audio as 16-bit stereo at 16 kHz and read it back: float64 [sample], mono, cut or padded."""
        resampler = av.AudioResampler("s16", "stereo", SAMPLE_RATE_HZ)
        with av.open(str(clip)) as container, wave.open(str(path), "wb") as file:
            file.setparams((2, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
            for frame in container.decode(audio=0):
                for block in resampler.resample(frame):
                    file.writeframes(block.to_ndarray().tobytes())
        with wave.open(str(path), "rb") as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, 2).mean(1) / 32768
        length = self._seconds * SAMPLE_RATE_HZ
        return np.pad(samples[:length], (0, max(0, length - len(samples))))


def _log_mel(second: np.ndarray) -> np.ndarray:
    """Return log-mel [96, 64] of one second at 16 kHz, computed in numpy like the release."""
    frames = np.lib.stride_tricks.sliding_window_view(second, WINDOW_SAMPLES)[::HOP_SAMPLES]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW_SAMPLES) / WINDOW_SAMPLES)
    magnitudes = np.abs(np.fft.rfft(frames * window, FFT_SAMPLES))
    return np.log(magnitudes @ mel_matrix().numpy() + LOG_OFFSET)[:FRAMES]


def print_parts(found: dict[str, float]) -> None:
    """Print the seconds of each part of mavqa's extraction."""
    print(f"{'part of mavqa':<24}{'seconds':>9}{'share':>8}")
    parts = ("decode", "resize", "resnet18-map", "log-mel", "vggish", "compress and write")
    for part in parts:
        print(f"{part:<24}{found[part]:>9.2f}{found[part] / found['mavqa']:>8.0%}")
    rest = found["mavqa"] - sum(found[part] for part in parts)
    print(f"{'hash, pipe, rest':<24}{rest:>9.2f}{rest / found['mavqa']:>8.0%}")
    print(f"{'mavqa':<24}{found['mavqa']:>9.2f}\n{'official recipe':<24}{found['official']:>9.2f}")
    print(f"{'bare networks':<24}{found['bare networks']:>9.2f}\n{'mavqa networks':<24}{found['mavqa networks']:>9.2f}")
    for name in ("official, wall time", "mavqa, wall time"):
        if name in found:
            print(f"{name:<24}{found[name]:>9.2f} per video, all cores")
    print()


def print_promises(found: dict[str, float]) -> bool:
    """Print the promises with the measured values; return whether all measured ones hold."""
    size = found["bytes stored"] / found["bytes of float32"]
    promises = [
        ("mavqa / bare networks", found["mavqa / bare networks"], "<= 1.25", found["mavqa / bare networks"] <= 1.25),
        ("official / mavqa", found["official / mavqa"], ">= 2", found["official / mavqa"] >= 2),
        ("decoding passes per video", found["opened"], "1", found["opened"] == 1),
        ("maps on disk / float32", size, "<= 1/3", size <= 1 / 3),
        ("relative L2 error of maps", found["relative error"], "<= 1e-3", found["relative error"] <= 1e-3),
    ]
    if "mavqa, wall time" in found:
        ratio = found["official, wall time"] / found["mavqa, wall time"]
        promises.insert(2, ("official / mavqa, wall time", ratio, ">= 2", ratio >= 2))
    for name, value, promise, holds in promises:
        print(f"{name:<28}{value:>12.3g}   promised {promise:<9}{'held' if holds else 'BROKEN'}")
    return all(holds for *_, holds in promises)


if __name__ == "__main__":
    sys.exit(main())

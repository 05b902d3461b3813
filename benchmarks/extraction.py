"""Extract one clip by MUSIC-AVQA's official recipe and by ours, on one core, with the same seeded weights.

The official recipe, written anew from its description: every frame decoded, one a second to JPEG; PIL; all frames in
one float32 batch; sound to a 16-bit WAV at 16 kHz, log-mel, VGGish; `np.save`. Ours is what a worker does with a
partition (decoding child, networks, store). The floor is the bare forward of both networks on tensors that are ready,
by torch's own convolutions, batch norms folded, channels last, in their best batch size. All are done once in each of
`--rounds`; times are medians, ratios medians of the rounds' ratios. Seconds are of the processor, children included,
because others may use the machine; with one thread they are those of the wall on an idle core. All of it gets the
large pages of memory that ours asks for.
`--cores` also takes the wall clock of both on so many cores, which should be idle then: the official recipe is one
process with so many threads, ours as many workers as a run has on them.
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
from pipeline.run.plan import ExtractionPlan
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
    """Parse the options, measure, print the tables; exit code 1 where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, help="clip to extract (default: a made-up one of --seconds)")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=0, help="also measure on the wall, with so many cores")
    options = parser.parse_args()
    torch.set_num_threads(1)
    request_large_pages()
    with tempfile.TemporaryDirectory(prefix="mavqa-extraction-") as name:
        folder = Path(name)
        clip = options.clip or make_clip(folder / "clip.mp4", options.seconds)
        print(f"{clip.name}, {options.seconds} s, one core, seeded weights; processor seconds\n")
        found = measure(clip, folder, options.seconds, options.rounds)
        if options.cores:
            found |= on_the_wall(clip, folder, options.seconds, options.cores, options.rounds)
    print_parts(found)
    return 0 if print_promises(found) else 1


def make_clip(path: Path, seconds: int) -> Path:
    """Write an H.264 film of a moving picture with noise, 640x360 at 25 frames a second, and its sound (AAC)."""
    draw = np.random.default_rng(0)
    scene = draw.integers(0, 256, (HEIGHT // 20, WIDTH // 10, 3)).astype(np.uint8).repeat(20, 0).repeat(20, 1)
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.options = {"preset": "veryfast", "crf": "23"}
        audio: Any = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for number in range(seconds * FRAMES_PER_SECOND):
            picture = scene[:, number % WIDTH : number % WIDTH + WIDTH]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(video.encode(frame))
        sound = (0.3 * draw.standard_normal(seconds * RATE_HZ)).clip(-1, 1).astype(np.float32)
        for at in range(0, len(sound), 1024):
            block = av.AudioFrame.from_ndarray(sound[None, at : at + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = RATE_HZ, at, Fraction(1, RATE_HZ)
            container.mux(audio.encode(block))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return path


def cpu_seconds() -> float:
    """Return the processor seconds of this process and of its children, those that ended and those that live."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(member.cpu_times()[:4]) for member in family)


def time_each(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Return the processor seconds of each, [round]; all are done once a round, so that a slow spell meets them all."""
    taken = {name: np.zeros(rounds) for name in works}
    for number in range(rounds):
        for name, work in works.items():
            started = cpu_seconds()
            work()
            taken[name][number] = cpu_seconds() - started
    return taken


def measure(clip: Path, folder: Path, seconds: int, rounds: int) -> dict[str, float]:
    """Return processor seconds of each recipe and of the parts of ours, sizes in bytes, and the error, by name."""
    extractors = {"resnet18-map": resnet18.ResNet18Map(), "vggish": vggish.VGGishExtractor()}
    for extractor in extractors.values():
        extractor.load(SEEDED, "cpu")
    request = DecodeRequest(seconds=seconds, frame_sizes=(STRETCHED,))
    media = open_decoder("pyav").decode(clip, request)
    pictures, examples = media.frames[STRETCHED], log_mel(media.waveform, media.sample_rate_hz)
    images = normalise(pictures).contiguous(memory_format=torch.channels_last)
    bare_networks = plain_networks(torch.channels_last)
    bare_networks["resnet18-map"] = fold_batch_norms(bare_networks["resnet18-map"])
    values = {name: extractor.extract(media) for name, extractor in extractors.items()}
    official, ours = Official(seconds), Ours(clip, folder / "ours.zarr", seconds)
    full = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    works: dict[str, Callable[[], Any]] = {
        "official": lambda: official.run(clip, folder),
        "ours": ours.run,
        "resize": lambda: [fit(full, STRETCHED) for _ in pictures],
        "decode": lambda: open_decoder("pyav").decode(clip, request),
        "log-mel": lambda: log_mel(media.waveform, media.sample_rate_hz),
        **{name: partial(extractor.extract, media) for name, extractor in extractors.items()},
        "compress and write": lambda: [write_rows(ours.store, name, 0, {0: v}) for name, v in values.items()],
    }
    for name, tensor in (("resnet18-map", images), ("vggish", examples)):
        works |= {f"bare {name} {batch}": partial(forward, bare_networks[name], tensor, batch) for batch in BATCHES}
    with ours:
        taken = time_each(works, rounds)
    bare = sum(min((taken.pop(f"bare {name} {b}") for b in BATCHES), key=np.median) for name in extractors)
    found = {name: float(np.median(seconds)) for name, seconds in (*taken.items(), ("bare networks", bare))}
    found["ours / bare networks"] = float(np.median(taken["ours"] / bare))
    found["official / ours"] = float(np.median(taken["official"] / taken["ours"]))
    found["decode"] -= found["resize"]
    found["vggish"] -= found["log-mel"]
    found["our networks"] = sum(found[name] for name in extractors)
    found["opened"] = ours.opened / ours.runs
    stored = list((ours.store / "features" / "resnet18-map" / "values").glob("c.*"))
    found["bytes stored"] = sum(path.stat().st_size for path in stored) / len(stored)
    exact = forward(bare_networks["resnet18-map"], images, BATCHES[0]).numpy()
    found["bytes of float32"] = exact.nbytes
    kept = np.asarray(open_store(ours.store).values("resnet18-map")[0])[: len(exact)].astype(np.float64)
    found["relative error"] = float(np.linalg.norm(kept - exact) / np.linalg.norm(exact.astype(np.float64)))
    return found


def on_the_wall(clip: Path, folder: Path, seconds: int, cores: int, rounds: int) -> dict[str, float]:
    """Return seconds of the wall clock a video, the least of `rounds`: the official recipe, and ours on all cores."""
    torch.set_num_threads(cores)
    official, taken = Official(seconds), []
    for _ in range(rounds):
        started = time.monotonic()
        official.run(clip, folder)
        taken.append(time.monotonic() - started)
    stores = [folder / f"worker-{worker}.zarr" for worker in range(cores)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, spawn, _begin_worker, (spawn.Barrier(cores),)) as workers:
        spans = list(workers.map(_work, [(clip, store, seconds, rounds) for store in stores]))
    ours = (max(end for _, end in spans) - min(start for start, _ in spans)) / (cores * rounds)
    return {"official on the wall": min(taken), "ours on the wall": ours}


def _begin_worker(barrier: Any) -> None:
    global _BARRIER
    _BARRIER = barrier
    torch.set_num_threads(1)


def _work(task: tuple[Path, Path, int, int]) -> tuple[float, float]:
    """Extract a clip several times, once all workers are ready; return when it began and when it ended."""
    clip, store, seconds, times = task
    with Ours(clip, store, seconds) as ours:
        _BARRIER.wait()
        started = time.monotonic()
        for _ in range(times):
            ours.run()
        return started, time.monotonic()


def plain_networks(memory_format: torch.memory_format) -> dict[str, torch.nn.Module]:
    """Return both networks with the seeded weights, as torch runs them."""
    with torch.device("meta"):
        networks = {"resnet18-map": resnet18._build_trunk(last_stride=1), "vggish": VGGish()}
    for network, source in zip(networks.values(), (resnet18.NETWORK, vggish.NETWORK), strict=True):
        load_frozen(network, source, SEEDED, "cpu", memory_format)
    return networks


@torch.inference_mode()
def forward(network: Any, rows: torch.Tensor, batch: int) -> torch.Tensor:
    """Return the outputs of `network` over `rows`, `batch` at a time."""
    return torch.cat([network(part) for part in rows.split(batch)])


def normalise(pictures: np.ndarray) -> torch.Tensor:
    """Return float32 [row, 3, height, width] of uint8 [row, height, width, 3], by the published constants."""
    mean, std = torch.tensor(KINETICS.mean), torch.tensor(KINETICS.std)
    return ((torch.from_numpy(pictures).float() / 255 - mean) / std).permute(0, 3, 1, 2)


class Ours:
    """What a worker does with a clip, into a store of its own; while it is entered, its decoder's files are counted."""

    def __init__(self, clip: Path, store: Path, seconds: int) -> None:
        """Make the store and the plan."""
        self.store, self.opened, self.runs = store, 0, 0
        self._plan = ExtractionPlan(str(store), NAMES, (), SEEDED, "pyav", "cpu", seconds, "pad")
        with StoreWriter(store, seconds, "benchmark") as writer:
            writer.append_videos(["clip"])
            for spec in load_specs(self._plan).values():
                writer.ensure_feature(spec)
        self._partition = Partition(0, (VideoTask(0, "clip", str(clip), "", NAMES),))
        self._decode = DecoderProcess.decode

    def __enter__(self) -> "Ours":
        """Watch the decoding child, and start it."""

        def watched(child: DecoderProcess, path: Path, request: DecodeRequest) -> Any:
            self.opened += 1
            return self._decode(child, path, request)

        DecoderProcess.decode = watched  # type: ignore[method-assign]
        self.run()
        return self

    def __exit__(self, *details: object) -> None:
        DecoderProcess.decode = self._decode  # type: ignore[method-assign]

    def run(self) -> None:
        """Extract the clip."""
        self.runs += 1
        extract_partition(self._plan, {}, self._partition)


class Official:
    """One clip by MUSIC-AVQA's feature scripts: adaptive frames, 14x14 maps, sound cues, VGGish."""

    def __init__(self, seconds: int) -> None:
        """Build both networks with the seeded weights, contiguous and not folded."""
        self._seconds = seconds
        self._trunk, self._sound = plain_networks(torch.contiguous_format).values()

    @torch.inference_mode()
    def run(self, clip: Path, folder: Path) -> None:
        """Extract `clip`; pictures, sound and arrays go to `folder`."""
        jpegs = self._write_pictures(clip, folder)
        pictures = np.stack(
            [np.asarray(Image.open(p).convert("RGB").resize((224, 224), Image.BILINEAR)) for p in jpegs]
        )
        np.save(folder / "maps.npy", self._trunk(normalise(pictures).contiguous()).numpy())
        samples = self._write_sound(clip, folder / "sound.wav")
        examples = np.stack([_log_mel(second) for second in samples.reshape(self._seconds, -1)]).astype(np.float32)
        np.save(folder / "sound.npy", self._sound(torch.from_numpy(examples)).numpy())

    def _write_pictures(self, clip: Path, folder: Path) -> list[Path]:
        """Decode every frame and write the one in the middle of each second as JPEG."""
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

    def _write_sound(self, clip: Path, path: Path) -> np.ndarray:
        """Write the sound as 16-bit stereo at 16 kHz, read it again: float64 [sample], mono, cut or padded."""
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
    """Return [96, 64] of one second at 16 kHz, in numpy as the release does it."""
    frames = np.lib.stride_tricks.sliding_window_view(second, WINDOW_SAMPLES)[::HOP_SAMPLES]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW_SAMPLES) / WINDOW_SAMPLES)
    magnitudes = np.abs(np.fft.rfft(frames * window, FFT_SAMPLES))
    return np.log(magnitudes @ mel_matrix().numpy() + LOG_OFFSET)[:FRAMES]


def print_parts(found: dict[str, float]) -> None:
    """Print where the time of ours goes."""
    print(f"{'part of ours':<24}{'seconds':>9}{'share':>8}")
    parts = ("decode", "resize", "resnet18-map", "log-mel", "vggish", "compress and write")
    for part in parts:
        print(f"{part:<24}{found[part]:>9.2f}{found[part] / found['ours']:>8.0%}")
    rest = found["ours"] - sum(found[part] for part in parts)
    print(f"{'hash, pipe, the rest':<24}{rest:>9.2f}{rest / found['ours']:>8.0%}")
    print(f"{'ours':<24}{found['ours']:>9.2f}\n{'official recipe':<24}{found['official']:>9.2f}")
    print(f"{'bare networks':<24}{found['bare networks']:>9.2f}\n{'our networks':<24}{found['our networks']:>9.2f}")
    for name in ("official on the wall", "ours on the wall"):
        if name in found:
            print(f"{name:<24}{found[name]:>9.2f} a video, all cores")
    print()


def print_promises(found: dict[str, float]) -> bool:
    """Print the promises with what was found; return whether all that was measured hold."""
    size = found["bytes stored"] / found["bytes of float32"]
    promises = [
        ("ours / bare networks", found["ours / bare networks"], "<= 1.25", found["ours / bare networks"] <= 1.25),
        ("official / ours", found["official / ours"], ">= 2", found["official / ours"] >= 2),
        ("decoding passes a video", found["opened"], "1", found["opened"] == 1),
        ("maps on disk / float32", size, "<= 1/3", size <= 1 / 3),
        ("relative L2 error of maps", found["relative error"], "<= 1e-3", found["relative error"] <= 1e-3),
    ]
    if "ours on the wall" in found:
        ratio = found["official on the wall"] / found["ours on the wall"]
        promises.insert(2, ("official / ours, on the wall", ratio, ">= 2", ratio >= 2))
    for name, value, promise, holds in promises:
        print(f"{name:<28}{value:>12.3g}   promised {promise:<9}{'held' if holds else 'BROKEN'}")
    return all(holds for *_, holds in promises)


if __name__ == "__main__":
    sys.exit(main())

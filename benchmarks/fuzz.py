"""Extract mutated copies of real clips: no run may crash, no file hang, no decoding child bloat, no outcome be lost.

Each copy has bytes flipped, its end cut off, or the boxes of its MP4 tree shuffled; its name is the seed from which it
can be made again with `--only`. The run is the real one (planning, decoding child, store) with two light extractors, in
this process, so that its child can be watched: seconds a file, peak memory. Exit code 1 where a promise is broken.
"""

import argparse
import random
import re
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from pipeline.errors import UserError
from pipeline.manifests.manifest import save_manifest
from pipeline.manifests.media_files import list_media
from pipeline.manifests.sources.folder import build
from pipeline.media.decoder_process import DecoderProcess, Limits
from pipeline.media.decoders.registry import DECODERS
from pipeline.media.timeline import DecodeRequest, FrameSize, Media

PROMISED_SECONDS = 30.0
PROMISED_BYTES = 1_500_000_000
LARGEST_CLIP_BYTES = 20_000_000
SECONDS = 10
CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"moof", b"traf", b"mvex"})
MEGABYTE = 1024**2


class LightPicture:
    """The mean colour of each second's frame: float32 [time, channel 3]."""

    name, modality, dims, shape, dtype = "light-picture", "visual", ("channel",), (3,), "float32"
    frame_size = FrameSize("stretch", 224)

    def constants(self) -> dict[str, Any]:
        """Return what the numbers depend on."""
        return {"version": 1}

    def load(self, weights: Any, device: str) -> str:
        """Return the hash of no weights."""
        return ""

    def extract(self, media: Media) -> np.ndarray:
        """Return the means over each frame."""
        return media.frames[self.frame_size].mean(axis=(1, 2), dtype=np.float32)


class LightSound(LightPicture):
    """The loudness of each second of sound: float32 [time, channel 1]."""

    name, modality, shape, frame_size = "light-sound", "audio", (1,), None

    def extract(self, media: Media) -> np.ndarray:
        """Return the root mean square of each second."""
        return np.sqrt((media.waveform.reshape(media.audio.steps, -1) ** 2).mean(axis=1, keepdims=True))


@dataclass
class Watch:
    """What decoding took: seconds of each file, the largest memory of a child and the file that it had then."""

    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)

    def child(self, decoder_name: str, limits: Limits) -> "WatchedChild":
        """Return a decoding child that this watches."""
        return WatchedChild(self, decoder_name, limits)


class WatchedChild(DecoderProcess):
    """A decoding child whose time and memory are noted file by file."""

    def __init__(self, watch: Watch, decoder_name: str, limits: Limits) -> None:
        super().__init__(decoder_name, limits)
        self._watch = watch
        self._own_seconds = 0.0

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Decode `path` and note what it took; memory is that of a child that lived through it."""
        if self._lives():
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        self._own_seconds = 0.0
        media = super().decode(path, request)
        self._watch.seconds[path.stem] = self._own_seconds
        if self._lives():
            self._watch.peak_bytes[path.stem] = _peak_bytes(Path(f"/proc/{self.pid}/status"))
        return media

    def _lives(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _receive(self, request: DecodeRequest) -> Media:
        """Count the time from when the child has begun with the file: loading libraries is not the file's fault."""
        started = time.monotonic()
        try:
            return super()._receive(request)
        finally:
            self._own_seconds += time.monotonic() - started


def main() -> int:
    """Parse the options, mutate, extract, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, default=Path("build/demo/data/videos"), help="folder of clips to mutate")
    parser.add_argument("--copies", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the first copy; the others count on")
    parser.add_argument("--only", type=int, help="make and extract the one copy of this seed")
    parser.add_argument("--decoder", default="pyav", choices=list(DECODERS))
    parser.add_argument("--keep", type=Path, help="folder to keep the copies and the store in")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.copies) if options.only is None else [options.only]
    with tempfile.TemporaryDirectory(prefix="mavqa-fuzz-") as scratch:
        folder = options.keep or Path(scratch)
        try:
            write_copies(options.clips, folder / "videos", seeds)
        except UserError as error:
            parser.exit(2, f"{error}\n")
        watch = Watch()
        summary = extract_copies(folder, watch, options.decoder)
        return 0 if print_outcomes(summary, watch) else 1


def write_copies(clips: Path, folder: Path, seeds: Any) -> None:
    """Write one mutated copy a seed, named `<seed>-<mutation>-<clip>`; raise UserError where there is no clip."""
    paths = [clips / path for path in list_media(clips)]
    paths = [path for path in paths if 0 < path.stat().st_size <= LARGEST_CLIP_BYTES]
    if not paths:
        raise UserError(f"{clips} holds no clip of at most {LARGEST_CLIP_BYTES / 1e6:g} MB: give --clips another")
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        draw = random.Random(seed)
        path = paths[draw.randrange(len(paths))]
        name = draw.choice(list(MUTATIONS))
        stem = re.sub(r"[^A-Za-z0-9]+", "_", path.stem)
        (folder / f"{seed:06d}-{name}-{stem}{path.suffix}").write_bytes(MUTATIONS[name](path.read_bytes(), draw))


def flip_bytes(data: bytes, draw: random.Random) -> bytes:
    """Return `data` with up to one in a hundred bytes changed, at least one."""
    changed = bytearray(data)
    for _ in range(max(1, int(len(data) * 10 ** draw.uniform(-6, -2)))):
        changed[draw.randrange(len(data))] ^= draw.randrange(1, 256)
    return bytes(changed)


def flip_header(data: bytes, draw: random.Random) -> bytes:
    """Return `data` with up to 64 bytes changed among what no codec guards: the MP4 tree, or the first kilobytes."""
    places = [at for at, kind, size in boxes(data) if kind not in (b"mdat", b"free")]
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 65)):
        start = draw.choice(places) if places else 0
        changed[min(len(data) - 1, start + draw.randrange(256 if places else 4096))] ^= draw.randrange(1, 256)
    return bytes(changed)


def truncate(data: bytes, draw: random.Random) -> bytes:
    """Return the first part of `data`."""
    return data[: draw.randrange(len(data))]


def shuffle_boxes(data: bytes, draw: random.Random) -> bytes:
    """Return an MP4 file with the boxes of one level of its tree in another order; other files by blocks of 4 kB."""
    levels = [(0, len(data)), *((at + 8, at + size) for at, kind, size in boxes(data) if kind in CONTAINERS)]
    start, stop = draw.choice(levels)
    parts = [data[at : at + size] for at, _, size in _level(data, start, stop)]
    if len(parts) < 2:
        start, stop = 0, len(data)
        parts = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    draw.shuffle(parts)
    return data[:start] + b"".join(parts) + data[start + sum(map(len, parts)) :]


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip": flip_bytes,
    "header": flip_header,
    "truncate": truncate,
    "shuffle": shuffle_boxes,
}


def boxes(data: bytes) -> list[tuple[int, bytes, int]]:
    """Return (offset, kind, bytes) of every box of an MP4 file's tree; [] of another file."""
    found: list[tuple[int, bytes, int]] = []
    waiting = [(0, len(data))] if data[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide") else []
    while waiting:
        for at, kind, size in _level(data, *waiting.pop()):
            found.append((at, kind, size))
            if kind in CONTAINERS:
                waiting.append((at + 8, at + size))
    return found


def _level(data: bytes, start: int, stop: int) -> list[tuple[int, bytes, int]]:
    found = []
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        if size < 8 or start + size > stop:
            break
        found.append((start, kind, size))
        start += size
    return found


def extract_copies(folder: Path, watch: Watch, decoder: str = "pyav") -> Any:
    """Run the real extraction over the copies, its decoding child watched; return its summary."""
    import pipeline.extractors.registry
    import pipeline.run.coordinator
    import pipeline.run.worker
    from pipeline.extractors.weights import WeightsSource
    from pipeline.run.coordinator import RunOptions, extract
    from pipeline.run.plan import ExtractionPlan

    manifest = build("fuzz", folder / "videos").manifest
    save_manifest(manifest, folder)
    lights = (LightPicture, LightSound)
    plan = ExtractionPlan(
        store=str(folder / "store.zarr"),
        features=tuple(light.name for light in lights),
        question_features=(),
        weights=WeightsSource("seeded"),
        decoder=decoder,
        device="cpu",
        seconds=SECONDS,
        padding="pad",
    )
    table = {light.name: f"{__name__}:{light.__name__}" for light in lights}
    with (
        patch.dict(pipeline.extractors.registry.EXTRACTORS, table),
        patch.object(pipeline.run.worker, "DecoderProcess", watch.child),
        patch.multiple(
            pipeline.run.coordinator,
            connect=_work_here,
            query_workers=lambda client, question: question(),
            stream=_stream,
        ),
    ):
        return extract(manifest, folder / "videos", plan, RunOptions(), _show_progress)


@contextmanager
def _work_here(options: Any) -> Iterator[None]:
    yield


def _stream(client: None, task: Callable[[Any], Any], items: Iterator[Any]) -> Iterator[Any]:
    return map(task, items)


def _show_progress(progress: Any) -> None:
    print(f"{progress.done} of {progress.total or '?'} copies", file=sys.stderr)


def print_outcomes(summary: Any, watch: Watch) -> bool:
    """Print what became of the copies and whether the promises held; return whether they did."""
    print(f"{summary.videos} copies, {SECONDS} steps each\n")
    for name, counts in summary.states.items():
        print(f"{name:<16}" + "".join(f"{state} {counts[state]:<8}" for state in counts))
    kinds = Counter((entry["feature"], kind_of(entry["reason"])) for entry in summary.failures)
    print("\nfailed because")
    for (feature, kind), count in kinds.most_common():
        print(f"  {count:>4}  {feature:<15} {kind}")
    slowest = max(watch.seconds, key=watch.seconds.__getitem__)
    largest = max(watch.peak_bytes, key=watch.peak_bytes.__getitem__, default=slowest)
    seconds, peak = watch.seconds[slowest], watch.peak_bytes.get(largest, 0)
    pending = sum(counts["pending"] for counts in summary.states.values())
    print(f"\nslowest file  {seconds:>8.2f} s   {slowest}")
    print(f"largest child {peak / MEGABYTE:>8.0f} MB  {largest}")
    promises = {
        f"no file takes more than {PROMISED_SECONDS:g} s": seconds <= PROMISED_SECONDS,
        f"no child takes more than {PROMISED_BYTES / 1e9:g} GB": peak <= PROMISED_BYTES,
        "every outcome is recorded": not pending and len(watch.seconds) == summary.videos,
    }
    for promise, holds in promises.items():
        print(f"{'held' if holds else 'BROKEN':<8}{promise}")
    return all(promises.values())


def kind_of(reason: str) -> str:
    """Return `reason` without its numbers, so that like ones count together."""
    return re.sub(r"\d+(\.\d+)?", "N", reason)[:100]


def _peak_bytes(status: Path) -> int:
    lines = status.read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0) * 1024


if __name__ == "__main__":
    sys.exit(main())

"""Extract corrupted copies of real clips: nothing may crash, hang or use too much memory, and no outcome may be lost.

Each copy has flipped bytes, is truncated, or has the boxes of its MP4 tree shuffled; its name starts with the seed that
`--only` reproduces it from. The run is a real one (planning, decoder process, store) with two cheap extractors, in this
process, so that time per file and peak memory of the decoder process can be measured. Exit code 1 if a promise is
broken.
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


class MeanColour:
    """The mean colour of the frame of each second: float32 [time, channel 3]."""

    name, modality, dims, shape, dtype = "light-picture", "visual", ("channel",), (3,), "float32"
    frame_size = FrameSize("stretch", 224)

    def constants(self) -> dict[str, Any]:
        """Return the constants that the values depend on."""
        return {"version": 1}

    def load(self, weights: Any, device: str) -> str:
        """Return an empty hash: there are no weights."""
        return ""

    def extract(self, media: Media) -> np.ndarray:
        """Return the mean over the pixels of each frame."""
        return media.frames[self.frame_size].mean(axis=(1, 2), dtype=np.float32)


class Loudness(MeanColour):
    """The loudness of each second of audio: float32 [time, channel 1]."""

    name, modality, shape, frame_size = "light-sound", "audio", (1,), None

    def extract(self, media: Media) -> np.ndarray:
        """Return the root mean square of the samples of each second."""
        return np.sqrt((media.waveform.reshape(media.audio.steps, -1) ** 2).mean(axis=1, keepdims=True))


@dataclass
class Measurements:
    """Decoding time in seconds and peak memory of the decoder process in bytes, by file stem."""

    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)

    def create_process(self, decoder_name: str, limits: Limits) -> "MeasuredProcess":
        """Return a decoder process that is measured here."""
        return MeasuredProcess(self, decoder_name, limits)


class MeasuredProcess(DecoderProcess):
    """A decoder process whose time and memory are measured for each file."""

    def __init__(self, measured: Measurements, decoder_name: str, limits: Limits) -> None:
        super().__init__(decoder_name, limits)
        self._measured = measured
        self._decoding_seconds = 0.0

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Decode `path` and measure it; memory is measured only if the process survives."""
        if self._is_alive():
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        self._decoding_seconds = 0.0
        media = super().decode(path, request)
        self._measured.seconds[path.stem] = self._decoding_seconds
        if self._is_alive():
            self._measured.peak_bytes[path.stem] = _peak_bytes(Path(f"/proc/{self.pid}/status"))
        return media

    def _is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _receive(self) -> Media:
        """Measure the time from the start of decoding: the loading of libraries does not count."""
        started = time.monotonic()
        try:
            return super()._receive()
        finally:
            self._decoding_seconds += time.monotonic() - started


def main() -> int:
    """Parse the options, corrupt the clips, extract them and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, default=Path("build/demo/data/videos"), help="folder of clips to corrupt")
    parser.add_argument("--copies", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first copy; the others follow")
    parser.add_argument("--only", type=int, help="create and extract only the copy of this seed")
    parser.add_argument("--decoder", default="pyav", choices=list(DECODERS))
    parser.add_argument("--keep", type=Path, help="folder for the copies and the store, which is kept")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.copies) if options.only is None else [options.only]
    with tempfile.TemporaryDirectory(prefix="mavqa-fuzz-") as scratch:
        folder = options.keep or Path(scratch)
        try:
            write_copies(options.clips, folder / "videos", seeds)
        except UserError as error:
            parser.exit(2, f"{error}\n")
        measured = Measurements()
        summary = extract_copies(folder, measured, options.decoder)
        return 0 if print_outcomes(summary, measured) else 1


def write_copies(clips: Path, folder: Path, seeds: Any) -> None:
    """Write one corrupted copy per seed, named `<seed>-<mutation>-<clip>`; raise `UserError` if there is no clip."""
    paths = [clips / path for path in list_media(clips).paths]
    paths = [path for path in paths if 0 < path.stat().st_size <= LARGEST_CLIP_BYTES]
    if not paths:
        raise UserError(f"{clips} contains no clip of at most {LARGEST_CLIP_BYTES / 1e6:g} MB: pass another --clips")
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        rng = random.Random(seed)
        path = paths[rng.randrange(len(paths))]
        name = rng.choice(list(MUTATIONS))
        stem = re.sub(r"[^A-Za-z0-9]+", "_", path.stem)
        (folder / f"{seed:06d}-{name}-{stem}{path.suffix}").write_bytes(MUTATIONS[name](path.read_bytes(), rng))


def flip_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with at least one and up to 1 % of its bytes changed."""
    changed = bytearray(data)
    for _ in range(max(1, int(len(data) * 10 ** rng.uniform(-6, -2)))):
        changed[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    return bytes(changed)


def flip_header(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with up to 64 bytes changed in its header: the MP4 boxes, or the first 4 kB of other files."""
    offsets = [offset for offset, kind, size in boxes(data) if kind not in (b"mdat", b"free")]
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 65)):
        start = rng.choice(offsets) if offsets else 0
        changed[min(len(data) - 1, start + rng.randrange(256 if offsets else 4096))] ^= rng.randrange(1, 256)
    return bytes(changed)


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Return `data` without its end, at a random length."""
    return data[: rng.randrange(len(data))]


def shuffle_boxes(data: bytes, rng: random.Random) -> bytes:
    """Return an MP4 file with the boxes of one level of its tree shuffled; other files with blocks of 4 kB shuffled."""
    inner = ((offset + 8, offset + size) for offset, kind, size in boxes(data) if kind in CONTAINERS)
    start, stop = rng.choice([(0, len(data)), *inner])
    parts = [data[offset : offset + size] for offset, _, size in _boxes_of_level(data, start, stop)]
    if len(parts) < 2:
        start, stop = 0, len(data)
        parts = [data[offset : offset + 4096] for offset in range(0, len(data), 4096)]
    rng.shuffle(parts)
    return data[:start] + b"".join(parts) + data[start + sum(map(len, parts)) :]


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip": flip_bytes,
    "header": flip_header,
    "truncate": truncate,
    "shuffle": shuffle_boxes,
}


def boxes(data: bytes) -> list[tuple[int, bytes, int]]:
    """Return (offset, kind, size in bytes) of every box of an MP4 file's tree; [] for other files."""
    found: list[tuple[int, bytes, int]] = []
    waiting = [(0, len(data))] if data[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide") else []
    while waiting:
        for offset, kind, size in _boxes_of_level(data, *waiting.pop()):
            found.append((offset, kind, size))
            if kind in CONTAINERS:
                waiting.append((offset + 8, offset + size))
    return found


def _boxes_of_level(data: bytes, start: int, stop: int) -> list[tuple[int, bytes, int]]:
    found = []
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        if size < 8 or start + size > stop:
            break
        found.append((start, kind, size))
        start += size
    return found


def extract_copies(folder: Path, measured: Measurements, decoder: str = "pyav") -> Any:
    """Run the real extraction over the copies with a measured decoder process; return its summary."""
    import pipeline.extractors.registry
    import pipeline.run.coordinator
    import pipeline.run.worker
    from pipeline.run.coordinator import extract
    from pipeline.run.request import Request

    manifest = build("fuzz", folder / "videos").manifest
    save_manifest(manifest, folder)
    extractors = (MeanColour, Loudness)
    request = Request(
        features=[extractor.name for extractor in extractors],
        weights="seeded",
        decoder=decoder,
        device="cpu",
        seconds=SECONDS,
    )
    registry = {extractor.name: f"{__name__}:{extractor.__name__}" for extractor in extractors}
    with (
        patch.dict(pipeline.extractors.registry.EXTRACTORS, registry),
        patch.object(pipeline.run.worker, "DecoderProcess", measured.create_process),
        patch.multiple(
            pipeline.run.coordinator,
            connect=_no_cluster,
            query_workers=lambda client, task: task(),
            stream=_stream,
        ),
    ):
        return extract(manifest, folder / "videos", str(folder / "store.zarr"), request, _show_progress)


@contextmanager
def _no_cluster(options: Any) -> Iterator[None]:
    yield


def _stream(client: None, task: Callable[[Any], Any], items: Iterator[Any]) -> Iterator[Any]:
    return map(task, items)


def _show_progress(progress: Any) -> None:
    print(f"{progress.done} of {progress.total or '?'} copies", file=sys.stderr)


def print_outcomes(summary: Any, measured: Measurements) -> bool:
    """Print the outcomes of the copies and whether the promises were kept; return whether all were."""
    print(f"{summary.videos} copies, {SECONDS} steps each\n")
    for name, counts in summary.states.items():
        print(f"{name:<16}" + "".join(f"{state} {counts[state]:<8}" for state in counts))
    kinds = Counter((entry["feature"], kind_of(entry["reason"])) for entry in summary.failures)
    print("\nreasons of failures")
    for (feature, kind), count in kinds.most_common():
        print(f"  {count:>4}  {feature:<15} {kind}")
    slowest = max(measured.seconds, key=measured.seconds.__getitem__)
    largest = max(measured.peak_bytes, key=measured.peak_bytes.__getitem__, default=slowest)
    seconds, peak = measured.seconds[slowest], measured.peak_bytes.get(largest, 0)
    pending = sum(counts["pending"] for counts in summary.states.values())
    print(f"\nslowest file  {seconds:>8.2f} s   {slowest}")
    print(f"peak memory   {peak / MEGABYTE:>8.0f} MB  {largest}")
    promises = {
        f"no file takes more than {PROMISED_SECONDS:g} s": seconds <= PROMISED_SECONDS,
        f"no decoder process uses more than {PROMISED_BYTES / 1e9:g} GB": peak <= PROMISED_BYTES,
        "every outcome is recorded": not pending and len(measured.seconds) == summary.videos,
    }
    for promise, is_kept in promises.items():
        print(f"{'kept' if is_kept else 'BROKEN':<8}{promise}")
    return all(promises.values())


def kind_of(reason: str) -> str:
    """Return `reason` with each number replaced by N, so that similar reasons are counted together."""
    return re.sub(r"\d+(\.\d+)?", "N", reason)[:100]


def _peak_bytes(status: Path) -> int:
    lines = status.read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0) * 1024


if __name__ == "__main__":
    sys.exit(main())

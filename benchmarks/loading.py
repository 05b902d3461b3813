"""Measure the loading of training batches for AVST: 10 maps of the question's video and 10 of other videos a sample.

Stand-ins of full length (60 seconds, maps [512, 14, 14], three quarters zeros) become a store, and the arrays that the
AVST release loads. The ways to read them take turns in random order, in batches; reported are the medians and
their ratios:

- official: the release's loader, which loads whole arrays. With `--official` its own module, a folder with
  net_grd_avst/dataloader_avst.py; else its reads alone.
- mapped arrays: the same reads of the same float32 arrays, mapped into memory.
- store, disk, memory, device: this project's, by where the decoded features are kept (`--cache` of mavqa-train).
  With `--device cuda` until the batch is on the GPU.
- floor: the same float16 rows, gathered from one mapped array by one thread.
"""

import argparse
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import stand_ins
import torch
from stand_ins import SECONDS, VIDEOS, StoredFeature, make_manifest, random_values, write_store

from pipeline.manifests.manifest import Vocabulary, load_manifest, save_manifest
from pipeline.store.reader import open_store
from train.backbones.registry import needs_of
from train.data.dataset import ModelInputs, QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.loading import LoadingSettings
from train.data.rows import MappedRows

STEPS, MAP = 10, stand_ins.FEATURES["resnet18-map"].shape
FEATURES = {name: stand_ins.FEATURES[name] for name in ("vggish", "resnet18-map")}
QUESTIONS_PER_VIDEO = 5
WORDS = ("<pad>", "What", "sounds")
PROMISES = {"official": ("disk", 30.0), "floor": ("disk", 1.3)}
# Slow ways load one batch a turn, the others several, as training does.
BATCHES_PER_TURN, SLOW_WAYS = 10, ("official", "mapped arrays", "store")
WAYS = ("official", "mapped arrays", "store", "disk", "memory", "floor")

# {backbone: (shape of the rows of a video, maps of other videos per row)}
FULL_SIZES = {"avst": ((STEPS, *MAP), 1), "pstp": ((60, 50, 512), 0)}

# A function that loads the batch with a number.
Load = Callable[[int], Any]


def main() -> int:
    """Parse the options, write the stand-ins, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/loading"), help="folder of the stand-ins (about 6 GB)")
    parser.add_argument("--videos", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=12, help="turns of each way")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=(4, 32))
    parser.add_argument("--workers", type=int, default=0, help="threads that gather ahead in this project's ways")
    parser.add_argument("--device", default="cpu", help="cuda: time until a batch of this project is on the GPU")
    parser.add_argument("--official", type=Path, help="folder of the AVST release")
    parser.add_argument("--full-size", choices=FULL_SIZES, help="instead: the disk cache of 9,288 videos, 19 or 29 GB")
    parser.add_argument("--memory", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.full_size:
        print_full_size(options.out, options.full_size, options.rounds)
        return 0
    if not (options.out / "store.zarr").exists():
        write_stand_ins(options.out, options.videos)
    if options.memory:
        print(measure_memory(options))
        return 0
    found = len(open_store(options.out / "store.zarr").video_ids)
    if options.rounds < 2 or found != options.videos:
        parser.error(f"pass --rounds of 2 or more, and --videos {found}, or another --out")
    build_cache(options.out)
    for batch_size in options.batch_sizes:
        print_times(options, batch_size)
    print_cold(options)
    print_growth(options)
    print_memory(options)
    return 0


def write_stand_ins(out: Path, videos: int) -> None:
    """Write the manifest, the store and the float32 arrays of distinct stand-ins; the store last."""
    print(f"writing {videos} stand-ins of {SECONDS} s to {out}", flush=True)
    vocabulary = Vocabulary(WORDS, ("yes",), len(WORDS))
    manifest = make_manifest(videos, {"train": videos * QUESTIONS_PER_VIDEO}, vocabulary)
    save_manifest(manifest, out / "manifest")
    for name in FEATURES:
        (out / name).mkdir(exist_ok=True)

    def values_of(name: str, feature: StoredFeature, row: int) -> np.ndarray:
        values = random_values(name, feature, row)
        np.save(out / name / f"{manifest.videos[row].video_id}.npy", values.astype(np.float32))
        return values

    write_store(out / "store.zarr", manifest, FEATURES, {}, values_of, distinct=None)


def build_cache(out: Path) -> None:
    """Build the files of the disk cache, and print how long that took."""
    started, store = time.perf_counter(), open_store(out / "store.zarr")
    size = sum(path.stat().st_size for path in (out / "store.zarr").rglob("*") if path.is_file())
    dataset(out, "disk")
    files = list((out / "store.zarr.cache").glob("*.npy"))
    cached = sum(path.stat().st_size for path in files)
    taken = time.perf_counter() - started
    print(f"{len(store.video_ids)} videos: store {size / 1e9:.2f} GB, cache {cached / 1e9:.2f} GB in {taken:.1f} s\n")


def dataset(out: Path, cache: Any, workers: int = 0, videos: int | None = None, device: str = "cpu") -> QuestionDataset:
    """Return the training questions, of the first `videos` videos, with features kept in `cache`."""
    manifest, needs = load_manifest(out / "manifest"), needs_of("avst")
    if videos is not None:
        manifest.questions["train"] = manifest.questions["train"][: videos * QUESTIONS_PER_VIDEO]
    bank = FeatureBank(open_store(out / "store.zarr"), LoadingSettings(cache, 10**12, workers=workers), device)
    return QuestionDataset(bank, manifest, "train", ModelInputs(needs, STEPS, uses_negatives=True))


def ways_of(options: argparse.Namespace, batch_size: int) -> dict[str, Load]:
    """Return {way: a function that loads its next batch}."""
    videos = sorted(path.stem for path in (options.out / "vggish").glob("*.npy"))
    official = official_loader(options, videos) if options.official else whole_arrays(options.out, videos)
    mapped = whole_arrays(options.out, videos, mmap_mode="r")
    random.seed(0)
    loads: dict[str, Load] = {
        "official": lambda number: [official(random.randrange(len(videos))) for _ in range(batch_size)],
        "mapped arrays": lambda number: [mapped(random.randrange(len(videos))) for _ in range(batch_size)],
    }
    caches = {"store": "none", "disk": "disk", "memory": "memory"}
    for way, cache in (caches | ({"device": "device"} if options.device != "cpu" else {})).items():
        batches = endless(dataset(options.out, cache, options.workers, device=options.device), batch_size)
        loads[way] = lambda number, batches=batches: move(next(batches), options.device)  # type: ignore[misc]
    (path,) = (options.out / "store.zarr.cache").glob("resnet18-map-*.npy")
    rows, generator = np.load(path, mmap_mode="r").reshape(-1, *MAP), np.random.default_rng(0)
    loads["floor"] = lambda number: rows.take(generator.integers(len(rows), size=2 * STEPS * batch_size), axis=0)
    return loads


def move(batch: Any, device: str) -> Any:
    """Return the batch on `device`, when its copies are done."""
    moved = batch.to(device)
    if device != "cpu":
        torch.cuda.synchronize()
    return moved


def endless(questions: QuestionDataset, batch_size: int) -> Iterator[Any]:
    """Yield the whole training batches of epoch after epoch."""
    assert len(questions) >= batch_size
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from (batch for batch in questions.batches(batch_size, generator) if len(batch) == batch_size)


def whole_arrays(out: Path, videos: list[str], mmap_mode: Any = None) -> Callable[[int], Any]:
    """Return a function that loads one sample with the reads of the release's loader, a whole array each."""

    def load(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        audio = np.load(out / "vggish" / f"{videos[number]}.npy", mmap_mode)[:: SECONDS // STEPS]
        maps = np.load(out / "resnet18-map" / f"{videos[number]}.npy", mmap_mode)[:: SECONDS // STEPS]
        negatives = []
        for _ in range(STEPS):
            other = random.choice([n for n in (random.randrange(len(videos)) for _ in range(9)) if n != number])
            values = np.load(out / "resnet18-map" / f"{videos[other]}.npy", mmap_mode)
            negatives.append(values[random.randrange(SECONDS)])
        return np.array(audio), np.array(maps), np.stack(negatives)

    return load


def official_loader(options: argparse.Namespace, videos: list[str]) -> Callable[[int], Any]:
    """Return the `__getitem__` of the release's dataset over the stand-ins."""
    folder = options.out / "official"
    label = folder / "data" / "json" / "avqa-train.json"
    label.parent.mkdir(parents=True, exist_ok=True)
    samples = [
        {"video_id": video, "question_id": n, "question_content": "What sounds?", "templ_values": "[]", "anser": "yes"}
        for n, video in enumerate(videos)
    ]
    label.write_text(json.dumps(samples))
    for unused in ("pandas", "munch"):
        if unused not in sys.modules and importlib.util.find_spec(unused) is None:
            sys.modules[unused] = ModuleType(unused)
            sys.modules[unused].munchify = None  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("official", options.official / "net_grd_avst" / "dataloader_avst.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = Path.cwd()
    paths = [str(path.absolute()) for path in (label, options.out / "vggish", options.out / "resnet18-map")]
    os.chdir(folder)  # it reads its vocabulary from here
    try:
        questions = module.AVQA_dataset(*paths, transform=module.ToTensor())
    finally:
        os.chdir(before)
    return lambda number: questions[number]


def print_times(options: argparse.Namespace, batch_size: int) -> None:
    """Let the ways take turns; print milliseconds a sample and the promised ratios."""
    loads = ways_of(options, batch_size)
    for load in loads.values():
        load(0)
    times: dict[str, list[float]] = {way: [] for way in loads}
    for number in range(options.rounds):
        for way, load in random.sample(list(loads.items()), len(loads)):
            batches = 1 if way in SLOW_WAYS else BATCHES_PER_TURN
            started = time.perf_counter()
            for turn in range(batches):
                held = load(number * batches + turn)  # while the next one is loaded, as in training
            times[way].append(1000 * (time.perf_counter() - started) / batch_size / batches)
            del held
    print(f"batch {batch_size}, milliseconds a sample, warm, medians of {options.rounds} turns (quartiles)")
    for way, taken in times.items():
        low, _, high = statistics.quantiles(taken, n=4)
        print(f"  {way:<16}{statistics.median(taken):>9.2f}   ({low:.2f} to {high:.2f})")
    rows = np.zeros((2 * STEPS * batch_size, *MAP), np.float16)
    started = time.perf_counter()
    torch.from_numpy(rows).float()
    converted = 1000 * (time.perf_counter() - started) / batch_size
    print(f"  conversion of these rows to float32, in no time above: {converted:.2f}")
    for other, (way, promised) in PROMISES.items():
        ratios = [a / b for a, b in zip(times[other], times[way], strict=True)]
        ratio = statistics.median(ratios) if other == "official" else 1 / statistics.median(ratios)
        is_held = ratio >= promised if other == "official" else ratio <= promised
        relation = f"{ratio:.1f} times as fast as official" if other == "official" else f"{ratio:.2f} times the floor"
        bound = f">= {promised:g}" if other == "official" else f"<= {promised:g}"
        print(f"  {way}: {relation} ({bound}: {'held' if is_held else 'BROKEN'})")
    print()


def print_cold(options: argparse.Namespace) -> None:
    """Print the time of an epoch's first batches from the disk cache after its file left the page cache."""
    for path in (options.out / "store.zarr.cache").glob("*.npy"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    batches = endless(dataset(options.out, "disk", options.workers), 4)
    taken = []
    for _ in range(options.rounds):
        started = time.perf_counter()
        next(batches)
        taken.append(1000 * (time.perf_counter() - started) / 4)
    print(f"disk cache, cold, batch 4: {statistics.median(taken):.2f} ms a sample (median of the first {len(taken)})\n")


def print_growth(options: argparse.Namespace) -> None:
    """Print the time a sample from the disk cache by number of videos."""
    total = len(open_store(options.out / "store.zarr").video_ids)
    print("disk cache, warm, batch 32, by number of videos")
    for videos in (total // 4, total // 2, total):
        size = min(32, videos * QUESTIONS_PER_VIDEO)
        batches = endless(dataset(options.out, "disk", options.workers, videos), size)
        next(batches)
        taken = []
        for _ in range(options.rounds):
            started = time.perf_counter()
            next(batches)
            taken.append(1000 * (time.perf_counter() - started) / size)
        print(f"  {videos:>5}: {statistics.median(taken):.2f} ms a sample")
    print()


def print_full_size(out: Path, backbone: str, rounds: int) -> None:
    """Print the time a sample from a file of the dataset's size: first after it left the page cache, then again.

    Its rows are random numbers, repeated: only where they are matters.
    """
    shape, negatives = FULL_SIZES[backbone]
    path = out / f"{backbone}.npy"
    out.mkdir(parents=True, exist_ok=True)
    block = np.random.default_rng(0).standard_normal((8, *shape), dtype=np.float32).astype(np.float16)
    if not path.exists():
        with path.with_suffix(".partial").open("wb") as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": (VIDEOS, *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(VIDEOS // len(block)):
                file.write(block.data)
        path.with_suffix(".partial").rename(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    rows = MappedRows(np.load(path, mmap_mode="r"), np.arange(VIDEOS))
    print(f"{backbone}: {path.stat().st_size / 1e9:.1f} GB for {VIDEOS:,} videos, batch 4")
    for name in ("not in the page cache", "the same batches again"):
        generator, taken = np.random.default_rng(1), []
        for _ in range(rounds):
            videos = np.repeat(generator.integers(VIDEOS, size=4), shape[0])
            others = generator.integers(VIDEOS, size=negatives * len(videos))
            positions = np.tile(np.arange(shape[0]), 4)
            started = time.perf_counter()
            rows.gather(videos, positions)
            if negatives:
                rows.gather(others, generator.integers(shape[0], size=len(others)))
            taken.append(1000 * (time.perf_counter() - started) / 4)
        print(f"  {name:<26}{statistics.median(taken):>9.2f} ms a sample, median of {rounds}")


def print_memory(options: argparse.Namespace) -> None:
    """Print the peak memory of a process that loads batches in each way."""
    print("peak memory of a process that loads 40 batches of 4 (without mapped files), GB")
    for way in WAYS[:-1]:
        arguments = [sys.executable, __file__, "--out", str(options.out), "--memory", way]
        if options.official:
            arguments += ["--official", str(options.official)]
        print(f"  {way:<16}{float(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout):>8.2f}")


def measure_memory(options: argparse.Namespace) -> float:
    """Return the largest resident memory, in GB, without mapped files, while batches of 4 are loaded in one way."""
    if options.memory in ("official", "mapped arrays"):
        videos = sorted(path.stem for path in (options.out / "vggish").glob("*.npy"))
        mode = "r" if options.memory == "mapped arrays" else None
        is_module = options.official and mode is None
        one = official_loader(options, videos) if is_module else whole_arrays(options.out, videos, mode)
        loads: Iterator[Any] = ([one(random.randrange(len(videos))) for _ in range(4)] for _ in range(40))
    else:
        cache = {"store": "none"}.get(options.memory, options.memory)
        loads = endless(dataset(options.out, cache, options.workers), 4)
    peak = 0.0
    for _, _ in zip(range(40), loads, strict=False):
        status = Path("/proc/self/status").read_text()
        peak = max(peak, next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1e6)
    return peak


if __name__ == "__main__":
    sys.exit(main())

"""Measure the cost of many videos without decoding or training, on a store of MUSIC-AVQA's size and larger plans.

The store has the names, shapes and files of real features; the files of all videos are hard links to that of one.
Commands are timed from the start of their interpreter, the minimum of `--repeats`; processor seconds are reported next
to wall-clock seconds, because other programs may use the machine. Plans use the code of a real run (manifest, store,
tasks, partitions) with a dummy extractor and without workers, so that only planning is measured. Of a training
everything is timed that it does with that store before and between its steps, except reading values.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from stand_ins import TEXTS, VIDEOS, link_others, make_manifest

from pipeline.errors import UserError
from pipeline.manifests.manifest import PADDING_TOKEN, Manifest, Vocabulary, load_manifest, save_manifest
from pipeline.store.schema import VIDEOS_PER_PARTITION, State

QUESTIONS_PER_VIDEO = 4
FEATURES = ("resnet18-map", "vggish")
PROMISED_SECONDS = 2.0
SIZES = (10_000, 100_000, 1_000_000)
MEGABYTE = 1024**2


@dataclass(frozen=True)
class Cost:
    """The cost of a command: wall-clock and processor seconds."""

    wall_seconds: float
    cpu_seconds: float


class DummyExtractor:
    """An extractor of vectors that never runs; the plan needs its spec."""

    name, modality, dims, shape, dtype, frame_size = "dummy", "audio", ("channel",), (8,), "float32", None

    def constants(self) -> dict[str, Any]:
        """Return the settings that the values would depend on."""
        return {"version": 1}

    def load(self, weights: Any, device: str) -> str:
        """Return an empty hash: there are no weights."""
        return ""


def main() -> int:
    """Parse the options, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=VIDEOS, help="videos in the store (default: MUSIC-AVQA's 9,288)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="videos in each planned manifest")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--training", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan is not None:
        print(json.dumps(measure_plan(options.plan)))
        return 0
    if options.training is not None:
        print(json.dumps(measure_training(options.training)))
        return 0
    with tempfile.TemporaryDirectory(prefix="mavqa-scale-") as name:
        folder = Path(name)
        print(f"a store of {options.videos:,} videos, commands from the start of their interpreter\n")
        manifest, store = folder / "manifest", folder / "store.zarr"
        save_manifest(make_dummies(options.videos, QUESTIONS_PER_VIDEO), manifest)
        write_store(manifest, store)
        print_commands(manifest, store, options.repeats)
        print_training(folder, options.repeats)
        print_files(store, options.videos)
        print_plans(folder, options.sizes)
    return 0


def make_dummies(videos: int, questions_per_video: int) -> Manifest:
    """Return a manifest of dummy videos, whose questions extraction can encode."""
    tokens = (PADDING_TOKEN, "Is", "there", "question", *map(str, range(TEXTS)))
    questions = {"train": videos * questions_per_video} if questions_per_video else {}
    return make_manifest(videos, questions, Vocabulary(tokens, ("yes",)))


def write_store(manifest: Path, path: Path) -> None:
    """Write the store that an extraction of `manifest` would write, with the values of one video for all."""
    from pipeline.extractors.registry import make_extractor
    from pipeline.extractors.weights import WeightsSource
    from pipeline.run.questions import find_missing_texts, load_questions, write_questions
    from pipeline.run.settings import Settings, make_spec
    from pipeline.store.writer import FeatureRecord, StoreWriter, VideoRecord, write_rows

    loaded = load_manifest(manifest)
    videos = loaded.videos
    settings = Settings(str(path), FEATURES, WeightsSource("seeded"), "pyav", "cpu", 60, "pad")
    both = ("visual", "audio")
    with StoreWriter(path, "scale") as writer:
        writer.create(settings.seconds)
        writer.append_videos([video.video_id for video in videos])
        for name in FEATURES:
            spec = make_spec(make_extractor(name), settings, "")
            writer.add_spec(spec)
            rows = {row: np.ones((settings.seconds, *spec.shape), spec.dtype) for row in range(VIDEOS_PER_PARTITION)}
            write_rows(path, name, 0, {row: rows[row] for row in range(min(len(videos), VIDEOS_PER_PARTITION))})
            link_others(path / "features" / name / "values", len(videos))
        writer.record_videos(
            [
                VideoRecord(
                    row, v.sha256, dict.fromkeys(both, State.COMPLETE), dict.fromkeys(both, 60), dict.fromkeys(both, "")
                )
                for row, v in enumerate(videos)
            ]
        )
        for name in FEATURES:
            writer.record_features([FeatureRecord(row, name, State.COMPLETE) for row in range(len(videos))])
        missing = find_missing_texts(writer, loaded, ["tokens"])
        write_questions(writer, loaded, load_questions(writer, missing, settings, ()))


def print_commands(manifest: Path, store: Path, repeats: int) -> None:
    """Time the commands that use a store without extracting; raise UserError if one fails."""
    scripts = Path(sys.executable).parent
    opening = f"from pipeline.store.reader import open_store; s = open_store({str(store)!r}); s.state('vggish')"
    options = ["--manifest", manifest, "--store", store, "--weights", "seeded", "--device", "cpu"]
    commands: dict[str, list[Any]] = {
        "the interpreter alone": [sys.executable, "-c", "pass"],
        "importing zarr": [sys.executable, "-c", "import zarr"],
        "opening a store, reading states": [sys.executable, "-c", opening],
        "importing torch": [sys.executable, "-c", "import torch"],
        "mavqa-inspect": [scripts / "mavqa-inspect", store],
        "mavqa-extract, nothing to do": [scripts / "mavqa-extract", *options],
    }
    print(f"{'command':<32}{'seconds':>10}{'processor':>12}   promise")
    for name, command in commands.items():
        # The fastest of several: other programs on the machine only add time.
        cost = min((run(command) for _ in range(repeats)), key=lambda cost: cost.wall_seconds)
        has_promise = command[0] != sys.executable or "open" in name
        verdict = f"< {PROMISED_SECONDS:g} s: {'held' if cost.wall_seconds < PROMISED_SECONDS else 'BROKEN'}"
        print(f"{name:<32}{cost.wall_seconds:>10.2f}{cost.cpu_seconds:>12.2f}   {verdict if has_promise else ''}")


def run(command: list[Any]) -> Cost:
    """Run `command` without output and return its cost; raise UserError with the end of its stderr if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{Path(str(command[0])).name} ended with exit code {process.returncode}: {errors[-500:]}")
    return Cost(time.perf_counter() - started, used.ru_utime + used.ru_stime)


def print_training(folder: Path, repeats: int) -> None:
    """Print the seconds that a training of AVST takes before and between its steps, each the least of `repeats`."""
    command = [sys.executable, str(Path(__file__).resolve()), "--training", str(folder)]
    runs = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(repeats)
    ]
    print("\ntraining of AVST on that store, seconds without reading values")
    for name in runs[0]:
        print(f"  {name:<44}{min(run[name] for run in runs):>8.2f}")


def measure_training(folder: Path) -> dict[str, float]:
    """Return {part: seconds} of what a training on the manifest and store in `folder` does beside its steps."""
    import torch

    from pipeline.store.reader import open_store
    from train.backbones.registry import needs_of
    from train.data.dataset import ModelInputs, QuestionDataset
    from train.data.feature_bank import FeatureBank
    from train.data.loading import LoadingSettings
    from train.data.selected_feature import SelectedFeature

    seconds, started = {}, time.perf_counter()

    def finish(name: str) -> None:
        nonlocal started
        seconds[name] = time.perf_counter() - started
        started = time.perf_counter()

    manifest, store = load_manifest(folder / "manifest"), open_store(folder / "store.zarr")
    finish("opening manifest and store")
    bank = FeatureBank(store, LoadingSettings("none", workers=0))
    questions = QuestionDataset(bank, manifest, "train", ModelInputs(needs_of("avst"), 10, uses_negatives=True))
    finish(f"{len(questions):,} questions, their videos and features")
    assert SelectedFeature(store, FEATURES[0], questions.steps, None).key
    finish("the name of the maps' file in the cache")
    parts = questions.partition(4, torch.Generator().manual_seed(1))
    finish("the batches of an epoch, of 4 questions")
    with patch.object(questions, "_gather", lambda draw: None):
        drawn = sum(1 for _ in questions.load(parts, torch.Generator().manual_seed(1)))
    finish(f"their masks and negatives, {drawn:,} batches")
    return seconds


def print_files(store: Path, videos: int) -> None:
    """Print the number of files of the store, by content."""
    counts: dict[str, int] = {}
    for path in store.rglob("*"):
        if path.is_file():
            parts = path.relative_to(store).parts
            content = "/".join(parts[:2]) if parts[0] == "features" and "values" in parts else "everything else"
            counts[content] = counts.get(content, 0) + 1
    print(f"\nfiles of that store: {sum(counts.values()):,} ({sum(counts.values()) / videos:.3f} per video)")
    for content, count in sorted(counts.items()):
        print(f"  {content:<28}{count:>8,}")
    print("  maps: one file per video, written by one task, all in one folder;")
    print(f"  vectors: one file per partition of {VIDEOS_PER_PARTITION} videos")


def print_plans(folder: Path, sizes: tuple[int, ...]) -> None:
    """Plan a manifest of each size in its own process; print the cost, in total and per video."""
    print("\nplanning, each in its own process (processor seconds; memory in addition to that of the imports)\n")
    head = f"{'videos':>10}{'partitions':>12}{'load':>9}{'plan':>9}{'us/video':>12}{'ratio':>7}"
    print(f"{head}{'peak MB':>9}{'bytes/video':>15}")
    first = None
    for size in sizes:
        manifest = folder / f"plan-{size}"
        save_manifest(make_dummies(size, 0), manifest)
        command = [sys.executable, str(Path(__file__).resolve()), "--plan", str(manifest)]
        cost = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        per_video = (cost["load_seconds"] + cost["plan_seconds"]) / size
        first = first or per_video
        print(
            f"{size:>10,}{cost['partitions']:>12,}{cost['load_seconds']:>9.2f}{cost['plan_seconds']:>9.2f}"
            f"{per_video * 1e6:>12.1f}{per_video / first:>7.2f}{cost['peak_bytes'] / MEGABYTE:>9.0f}"
            f"{cost['peak_bytes'] / size:>15.0f}"
        )


def measure_plan(manifest: Path) -> dict[str, Any]:
    """Plan the extraction of `manifest` into a new store in its folder; return processor seconds and peak memory."""
    import pipeline.extractors.registry
    import pipeline.run.coordinator
    from pipeline.media.decoders.registry import open_decoder
    from pipeline.run.request import Request

    open_decoder("pyav").version()
    initial = _peak_bytes()
    started = time.process_time()
    dataset = load_manifest(manifest)
    loaded_at = time.process_time()
    videos = manifest / "videos"
    videos.mkdir()
    (videos / dataset.videos[0].path).touch()
    partitions = 0

    def count(client: None, task: Any, items: Iterator[Any]) -> Iterator[Any]:
        nonlocal partitions
        partitions += sum(1 for _ in items)
        return iter(())

    table = {DummyExtractor.name: f"{__name__}:DummyExtractor"}
    with (
        patch.dict(pipeline.extractors.registry.EXTRACTORS, table),
        patch.multiple(
            pipeline.run.coordinator,
            connect=_no_workers,
            query_workers=lambda client, task: task(),
            stream=count,
        ),
    ):
        request = Request(features=[DummyExtractor.name], weights="seeded", device="cpu")
        pipeline.run.coordinator.extract(dataset, videos, str(manifest / "store.zarr"), request)
    return {
        "partitions": partitions,
        "load_seconds": loaded_at - started,
        "plan_seconds": time.process_time() - loaded_at,
        "peak_bytes": _peak_bytes() - initial,
    }


@contextmanager
def _no_workers(options: Any) -> Iterator[None]:
    yield


def _peak_bytes() -> int:
    """Return the peak memory of this process; the maximum of `getrusage` would include that of its parent."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024


if __name__ == "__main__":
    sys.exit(main())

"""Measure what many videos cost where no media is decoded: a store of MUSIC-AVQA's size, and plans of up to a million.

The store has the real features' names, shapes and files; their values are stand-ins: one video's file stands for all
others, as hard links. Commands are timed from the start of their interpreter, least of `--repeats`; processor seconds
stand beside the seconds on the wall, because others may use the machine. Plans go through the real run (manifest,
store, tasks, partitions) with a stand-in extractor; workers are left out, so that what is measured is planning.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from pipeline.errors import UserError
from pipeline.manifests.manifest import (
    PADDING_TOKEN,
    Manifest,
    Question,
    Video,
    Vocabulary,
    load_manifest,
    save_manifest,
)
from pipeline.store.schema import VIDEOS_PER_PARTITION, State

VIDEOS, QUESTIONS_PER_VIDEO, TEXTS = 9_288, 4, 2_655
FEATURES = ("resnet18-map", "vggish")
PROMISED_SECONDS = 2.0
SIZES = (10_000, 100_000, 1_000_000)
MEGABYTE = 1024**2


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds on the wall and of the processor."""

    wall_seconds: float
    cpu_seconds: float


class StandIn:
    """An extractor of vectors that is never asked for any; the plan needs its description."""

    name, modality, dims, shape, dtype, frame_size = "stand-in", "audio", ("channel",), (8,), "float32", None

    def constants(self) -> dict[str, Any]:
        """Return what the numbers would depend on."""
        return {"version": 1}

    def load(self, weights: Any, device: str) -> str:
        """Return the hash of no weights."""
        return ""


def main() -> int:
    """Parse the options, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=VIDEOS, help="of the store (default: MUSIC-AVQA's 9,288)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of the manifests that are planned")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan is not None:
        print(json.dumps(plan(options.plan)))
        return 0
    with tempfile.TemporaryDirectory(prefix="mavqa-scale-") as name:
        folder = Path(name)
        print(f"a store of {options.videos:,} videos, commands from the start of their interpreter\n")
        manifest, store = folder / "manifest", folder / "store.zarr"
        save_manifest(make_manifest(options.videos, QUESTIONS_PER_VIDEO), manifest)
        make_store(manifest, store)
        print_commands(manifest, store, options.repeats)
        print_files(store, options.videos)
        print_plans(folder, options.sizes)
    return 0


def make_manifest(videos: int, questions_per_video: int) -> Manifest:
    """Return a manifest of stand-ins with ids, paths and hashes as long as real ones."""
    made = tuple(Video(f"{row:08d}", f"{row:08d}.mp4", f"{row:064x}") for row in range(videos))
    texts = [f"Is there question {number}?" for number in range(TEXTS)]
    numbers = range(videos * questions_per_video)
    questions = tuple(
        Question(
            str(n), made[n % videos].video_id, texts[n % TEXTS], texts[n % TEXTS], "yes", "Audio Counting", "Audio"
        )
        for n in numbers
    )
    tokens = (PADDING_TOKEN, "Is", "there", "question", *map(str, range(TEXTS)))
    return Manifest(
        "stand-ins", "scale", "none", made, {"train": questions} if questions else {}, Vocabulary(tokens, ("yes",))
    )


def make_store(manifest: Path, path: Path) -> None:
    """Write the store that extracting every video of `manifest` would leave, with one video's values for all."""
    from pipeline.extractors.registry import make_extractor
    from pipeline.run.plan import make_spec
    from pipeline.run.questions import update_questions
    from pipeline.store.writer import FeatureRecord, StoreWriter, VideoRecord, write_rows

    videos, settings = load_manifest(manifest).videos, _plan(path, FEATURES, ("tokens",))
    both = ("visual", "audio")
    with StoreWriter(path, settings.seconds, "scale") as writer:
        writer.append_videos([video.video_id for video in videos])
        for name in FEATURES:
            spec = make_spec(make_extractor(name), settings, "")
            writer.ensure_feature(spec)
            rows = {row: np.ones((settings.seconds, *spec.shape), spec.dtype) for row in range(VIDEOS_PER_PARTITION)}
            write_rows(path, name, 0, {row: rows[row] for row in range(min(len(videos), VIDEOS_PER_PARTITION))})
            _link_others(path / "features" / name / "values", len(videos))
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
        update_questions(writer, load_manifest(manifest), settings)


def _link_others(values: Path, videos: int) -> None:
    """Give every row its file: that of row 0 under another name."""
    first = next(values.glob("c.0.*"))
    rows_per_file = 1 if (values / first.name.replace("c.0.", "c.1.", 1)).exists() else VIDEOS_PER_PARTITION
    for number in range(-(-videos // rows_per_file)):
        target = values / first.name.replace("c.0.", f"c.{number}.", 1)
        if not target.exists():
            os.link(first, target)


def _plan(store: Path, features: tuple[str, ...], question_features: tuple[str, ...] = ()) -> Any:
    from pipeline.extractors.weights import WeightsSource
    from pipeline.run.plan import ExtractionPlan

    return ExtractionPlan(str(store), features, question_features, WeightsSource("seeded"), "pyav", "cpu", 60, "pad")


def print_commands(manifest: Path, store: Path, repeats: int) -> None:
    """Time the commands that touch a store without extracting; raise UserError where one fails."""
    scripts = Path(sys.executable).parent
    opening = f"from pipeline.store.reader import open_store; s = open_store({str(store)!r}); s.state('vggish')"
    given = ["--manifest", manifest, "--store", store, "--weights", "seeded", "--device", "cpu"]
    commands: dict[str, list[Any]] = {
        "the interpreter alone": [sys.executable, "-c", "pass"],
        "its import of zarr": [sys.executable, "-c", "import zarr"],
        "opening, states read": [sys.executable, "-c", opening],
        "its import of torch": [sys.executable, "-c", "import torch"],
        "mavqa-inspect": [scripts / "mavqa-inspect", store],
        "mavqa-extract, nothing to do": [scripts / "mavqa-extract", *given],
    }
    print(f"{'command':<32}{'seconds':>10}{'processor':>12}   promise")
    for name, command in commands.items():
        cost = least(lambda command=command: run(command), repeats)
        held = "" if command[0] == sys.executable and "open" not in name else _judge(cost.wall_seconds)
        print(f"{name:<32}{cost.wall_seconds:>10.2f}{cost.cpu_seconds:>12.2f}   {held}")


def _judge(seconds: float) -> str:
    return f"< {PROMISED_SECONDS:g} s: {'held' if seconds < PROMISED_SECONDS else 'BROKEN'}"


def run(command: list[Any]) -> Cost:
    """Run `command` quietly and return what it cost; raise UserError with its last words where it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{Path(str(command[0])).name} ended with exit code {process.returncode}: {said[-500:]}")
    return Cost(time.perf_counter() - started, used.ru_utime + used.ru_stime)


def least(measure: Callable[[], Cost], repeats: int) -> Cost:
    """Return the quickest of several costs: what others do on the machine only ever adds."""
    return min((measure() for _ in range(repeats)), key=lambda cost: cost.wall_seconds)


def print_files(store: Path, videos: int) -> None:
    """Print how many files the store has, by what they hold."""
    counts: dict[str, int] = {}
    for path in store.rglob("*"):
        if path.is_file():
            parts = path.relative_to(store).parts
            what = "/".join(parts[:2]) if parts[0] == "features" and "values" in parts else "everything else"
            counts[what] = counts.get(what, 0) + 1
    print(f"\nfiles of that store: {sum(counts.values()):,} ({sum(counts.values()) / videos:.3f} a video)")
    for what, count in sorted(counts.items()):
        print(f"  {what:<28}{count:>8,}")
    print("  a map is one file a video, which one task writes whole, beside the others in one folder;")
    print(f"  vectors share one file a partition of {VIDEOS_PER_PARTITION} videos")


def print_plans(folder: Path, sizes: tuple[int, ...]) -> None:
    """Plan a manifest of each size in a process of its own and print what it took, in all and per video."""
    print("\nplanning, each in a process of its own (seconds of the processor; memory above the bare process)\n")
    head = f"{'videos':>10}{'partitions':>12}{'load':>9}{'plan':>9}{'us a video':>12}{'ratio':>7}"
    print(f"{head}{'peak MB':>9}{'bytes a video':>15}")
    first = None
    for size in sizes:
        manifest = folder / f"plan-{size}"
        save_manifest(make_manifest(size, 0), manifest)
        command = [sys.executable, str(Path(__file__).resolve()), "--plan", str(manifest)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        each = (found["load_seconds"] + found["plan_seconds"]) / size
        first = first or each
        print(
            f"{size:>10,}{found['partitions']:>12,}{found['load_seconds']:>9.2f}{found['plan_seconds']:>9.2f}"
            f"{each * 1e6:>12.1f}{each / first:>7.2f}{found['peak_bytes'] / MEGABYTE:>9.0f}"
            f"{found['peak_bytes'] / size:>15.0f}"
        )


def plan(manifest: Path) -> dict[str, Any]:
    """Plan the extraction of `manifest` into a new store beside it; return seconds of the processor and peak memory."""
    import pipeline.extractors.registry
    import pipeline.run.coordinator
    from pipeline.media.decoders.registry import open_decoder

    open_decoder("pyav").version()
    bare = _peak_bytes()
    started = time.process_time()
    loaded = load_manifest(manifest)
    read = time.process_time()
    videos = manifest / "videos"
    videos.mkdir()
    (videos / loaded.videos[0].path).touch()
    partitions = 0

    def count(client: None, task: Any, items: Iterator[Any]) -> Iterator[Any]:
        nonlocal partitions
        partitions += sum(1 for _ in items)
        return iter(())

    table = {StandIn.name: f"{__name__}:StandIn"}
    with (
        patch.dict(pipeline.extractors.registry.EXTRACTORS, table),
        patch.multiple(
            pipeline.run.coordinator, connect=_no_workers, ask_workers=lambda client, question: question(), stream=count
        ),
    ):
        settings = _plan(manifest / "store.zarr", (StandIn.name,))
        pipeline.run.coordinator.extract(loaded, videos, settings, pipeline.run.coordinator.RunOptions())
    return {
        "partitions": partitions,
        "load_seconds": read - started,
        "plan_seconds": time.process_time() - read,
        "peak_bytes": _peak_bytes() - bare,
    }


@contextmanager
def _no_workers(options: Any) -> Iterator[None]:
    yield


def _peak_bytes() -> int:
    """Return the peak of this process alone: what `getrusage` calls its maximum begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024


if __name__ == "__main__":
    sys.exit(main())

"""Measure how many videos per second a machine extracts, the load of its cores and GPU, and the bottleneck.

One run of `mavqa-extract` (`resnet18-map` and `vggish`, seeded weights, this machine's default workers) on copies of
one clip. A video counts as done when its map is in the store, where clips of at least six seconds have one file each.
The rate is measured from one fifth to nine tenths of the videos, which excludes startup and the last partitions. The
promise is for one GPU and 16 cores; on other machines the numbers are printed without it.

    python benchmarks/throughput.py --device cuda --videos 320
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from extraction import make_clip
from memory import create_dataset

PROMISED_RATE, PROMISED_CORES = 15.0, 16
DATASET_VIDEOS = 9_288
BUSY_PERCENT = 85.0
BEGIN, END = 0.2, 0.9


@dataclass(frozen=True)
class Snapshot:
    """The state at one time: videos done, and the load of cores and GPU since the previous snapshot."""

    seconds: float
    videos: int
    cores_percent: float
    gpu_percent: float
    gpu_bytes: float


def main() -> int:
    """Run the extraction and print the rate; return 1 if the promise is broken, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--videos", type=int, help="copies of the clip (default: 320 with a GPU, 10 without)")
    parser.add_argument("--clip", type=Path, help="clip to copy (default: a synthetic clip of --seconds, 640x360)")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("extract", nargs="*", help="more options of mavqa-extract, after --")
    options = parser.parse_args()
    videos = options.videos or (320 if options.device == "cuda" else 10)
    with tempfile.TemporaryDirectory(prefix="mavqa-throughput-") as name:
        clip = options.clip or make_clip(Path(name) / "clip.mp4", options.seconds)
        create_dataset(clip, Path(name) / "dataset", videos)
        snapshots = monitor_extraction(Path(name) / "dataset", options.device, options.seconds, options.extract)
    return 0 if print_rate(snapshots, videos, options.device) else 1


def monitor_extraction(dataset: Path, device: str, seconds: int, options: list[str]) -> list[Snapshot]:
    """Extract the videos of `dataset` and return snapshots taken every half second."""
    store = dataset / "store.zarr"
    command = [Path(sys.executable).with_name("mavqa-extract"), "--manifest", dataset / "manifest"]
    command += ["--videos", dataset / "videos", "--store", store, "--seconds", seconds, "--weights", "seeded"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*map(str, command), "--device", device, *options], **quiet)  # type: ignore[call-overload]
    maps, started, snapshots = store / "features" / "resnet18-map" / "values", time.monotonic(), []
    psutil.cpu_percent()
    is_running = True
    while is_running:
        time.sleep(0.5)
        is_running = process.poll() is None
        done = sum(1 for _ in maps.glob("c.*")) if maps.is_dir() else 0
        gpu = query_gpu() if device == "cuda" else (0.0, 0.0)
        snapshots.append(Snapshot(time.monotonic() - started, done, psutil.cpu_percent(), *gpu))
    if process.returncode:
        raise RuntimeError(f"mavqa-extract ended with exit code {process.returncode}")
    return snapshots


def query_gpu() -> tuple[float, float]:
    """Return the utilisation of the first GPU in percent, and the bytes of its memory in use."""
    fields = "utilization.gpu,memory.used"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "--id=0"]
    percent, mebibytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(",")
    return float(percent), float(mebibytes) * 2**20


def print_rate(snapshots: list[Snapshot], videos: int, device: str) -> bool:
    """Print the rate, the load and the bottleneck; return whether the promise holds or does not apply to the device."""
    steady = [snapshot for snapshot in snapshots if BEGIN * videos <= snapshot.videos <= END * videos]
    if len(steady) < 2:
        raise RuntimeError(f"{videos} videos are too few to measure a steady rate: pass more --videos")
    rate = (steady[-1].videos - steady[0].videos) / (steady[-1].seconds - steady[0].seconds)
    cores, gpu, gpu_bytes = (
        float(np.mean([getattr(snapshot, name) for snapshot in steady[1:]]))
        for name in ("cores_percent", "gpu_percent", "gpu_bytes")
    )
    first = next(snapshot.seconds for snapshot in snapshots if snapshot.videos)
    print(f"{videos} videos, {device}, {os.cpu_count()} cores\n")
    print(f"{'first video after':<24}{first:>8.1f} s")
    print(f"{'steady rate':<24}{rate:>8.2f} videos per second")
    print(f"{f'{DATASET_VIDEOS:,} videos':<24}{DATASET_VIDEOS / rate / 60:>8.1f} minutes")
    print(f"{'cores busy':<24}{cores:>8.0f} %")
    if device == "cuda":
        print(f"{'GPU busy':<24}{gpu:>8.0f} %, {gpu_bytes / 1e9:.1f} GB of its memory")
    busy = {"the GPU": gpu, "the cores": cores}
    busiest = max(busy, key=lambda part: busy[part])
    print(f"{'bottleneck':<24}{busiest if busy[busiest] >= BUSY_PERCENT else 'neither is busy: waiting'}")
    if device != "cuda":
        return True
    holds = rate >= PROMISED_RATE
    print(f"\npromised >= {PROMISED_RATE:g} per second with {PROMISED_CORES} cores: {'held' if holds else 'BROKEN'}")
    return holds


if __name__ == "__main__":
    sys.exit(main())

"""Measure how many videos a second a whole machine extracts, how busy its cores and its GPU are, and what limits it.

One run of `mavqa-extract` (`resnet18-map` and `vggish`, seeded weights, this machine's default workers) over so many
copies of one clip. A video counts when its map lies in the store, a file of its own from six seconds on. The rate is
that of the run's middle, from a fifth of the videos to nine tenths, so that neither the start nor the last partitions
are in it. The promise is for one GPU and 16 cores; elsewhere the figures stand without it.

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
from memory import lay_out

PROMISED_RATE, PROMISED_CORES = 15.0, 16
DATASET_VIDEOS = 9_288
BUSY_PERCENT = 85.0
BEGIN, END = 0.2, 0.9


@dataclass(frozen=True)
class Moment:
    """What was seen at one moment: videos done, and how busy the cores and the GPU were since the one before."""

    seconds: float
    videos: int
    cores_percent: float
    gpu_percent: float
    gpu_bytes: float


def main() -> int:
    """Parse the options, run, print; exit code 1 where the promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--videos", type=int, help="copies of the clip (default: 320 on a GPU, 10 without)")
    parser.add_argument("--clip", type=Path, help="clip to copy (default: a made-up one of --seconds, 640x360)")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("extract", nargs="*", help="further options of mavqa-extract, after --")
    options = parser.parse_args()
    videos = options.videos or (320 if options.device == "cuda" else 10)
    with tempfile.TemporaryDirectory(prefix="mavqa-throughput-") as name:
        clip = options.clip or make_clip(Path(name) / "clip.mp4", options.seconds)
        lay_out(clip, Path(name) / "dataset", videos)
        moments = watch(Path(name) / "dataset", options.device, options.seconds, options.extract)
    return 0 if judge(moments, videos, options.device) else 1


def watch(dataset: Path, device: str, seconds: int, further: list[str]) -> list[Moment]:
    """Extract the videos of `dataset` and return what was seen meanwhile, twice a second."""
    store = dataset / "store.zarr"
    command = [Path(sys.executable).with_name("mavqa-extract"), "--manifest", dataset / "manifest"]
    command += ["--videos", dataset / "videos", "--store", store, "--seconds", seconds, "--weights", "seeded"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*map(str, command), "--device", device, *further], **quiet)  # type: ignore[call-overload]
    maps, started, moments = store / "features" / "resnet18-map" / "values", time.monotonic(), []
    psutil.cpu_percent()
    is_running = True
    while is_running:
        time.sleep(0.5)
        is_running = process.poll() is None
        done = sum(1 for _ in maps.glob("c.*")) if maps.is_dir() else 0
        gpu = ask_gpu() if device == "cuda" else (0.0, 0.0)
        moments.append(Moment(time.monotonic() - started, done, psutil.cpu_percent(), *gpu))
    if process.returncode:
        raise RuntimeError(f"mavqa-extract ended with exit code {process.returncode}")
    return moments


def ask_gpu() -> tuple[float, float]:
    """Return how busy the first GPU is, in percent, and the bytes of its memory in use."""
    asked = "utilization.gpu,memory.used"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits", "--id=0"]
    percent, mebibytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(",")
    return float(percent), float(mebibytes) * 2**20


def judge(moments: list[Moment], videos: int, device: str) -> bool:
    """Print the rate, what was busy and what limits; return whether the promise holds or is not for this machine."""
    steady = [moment for moment in moments if BEGIN * videos <= moment.videos <= END * videos]
    if len(steady) < 2:
        raise RuntimeError(f"{videos} videos are too few to see a steady rate: give more --videos")
    rate = (steady[-1].videos - steady[0].videos) / (steady[-1].seconds - steady[0].seconds)
    cores, gpu, held = (
        float(np.mean([getattr(moment, name) for moment in steady[1:]]))
        for name in ("cores_percent", "gpu_percent", "gpu_bytes")
    )
    first = next(moment.seconds for moment in moments if moment.videos)
    print(f"{videos} videos, {device}, {os.cpu_count()} cores\n")
    print(f"{'first video after':<24}{first:>8.1f} s")
    print(f"{'steady rate':<24}{rate:>8.2f} videos a second")
    print(f"{f'{DATASET_VIDEOS:,} videos':<24}{DATASET_VIDEOS / rate / 60:>8.1f} minutes")
    print(f"{'cores busy':<24}{cores:>8.0f} %")
    if device == "cuda":
        print(f"{'GPU busy':<24}{gpu:>8.0f} %, {held / 1e9:.1f} GB of its memory")
    busy = {"the GPU": gpu, "the cores": cores}
    limit = max(busy, key=lambda part: busy[part])
    print(f"{'what limits':<24}{limit if busy[limit] >= BUSY_PERCENT else 'neither is busy: waiting'}")
    if device != "cuda":
        return True
    holds = rate >= PROMISED_RATE
    print(f"\npromised >= {PROMISED_RATE:g} a second with {PROMISED_CORES} cores: {'held' if holds else 'BROKEN'}")
    return holds


if __name__ == "__main__":
    sys.exit(main())

"""Measure how many videos per second a machine extracts, the load of its cores and GPU, and the bottleneck.

Runs of `mavqa-extract` (`resnet18-map` and `vggish`, seeded weights, this machine's default workers) on copies of one
clip, one run for each row of the table: `cores`, the processor decodes; `GPU`, the GPU decodes (`--decoder pyav-cuda`);
`both`, two runs at once, with half of the clips and of the workers each. A video counts as done when its map is in the
store, where clips of at least six seconds have one file each. The rate is measured from one fifth to nine tenths of the
videos, which excludes startup and the last partitions. A run that takes more than its share of `--minutes` is stopped,
and measured as far as it came. The promise is for one GPU and 16 cores; on other machines the numbers are printed
without it.

    python benchmarks/throughput.py --device cuda --videos 320
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from extraction import make_clip
from memory import create_dataset

from pipeline.media.decoders.interface import DecoderLoadError
from pipeline.media.decoders.registry import open_decoder
from pipeline.run.plan import CORES_PER_GPU_WORKER

PROMISED_RATE, PROMISED_CORES = 15.0, 16
DATASET_VIDEOS = 9_288
BUSY_PERCENT = 85.0
BEGIN, END = 0.2, 0.9
STOPPED = 75
# The decoders of the runs of each row.
ROWS = {"cores": ("pyav",), "GPU": ("pyav-cuda",), "both": ("pyav", "pyav-cuda")}


@dataclass(frozen=True)
class Snapshot:
    """The state at one time: videos done, and the load since the previous snapshot, `nvdec` of the video decoder."""

    seconds: float
    videos: int
    cores_percent: float
    gpu_percent: float
    nvdec_percent: float
    gpu_bytes: float


def main() -> int:
    """Run the extractions and print the table; return 1 if the promise is broken, else 0."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device of the networks")
    parser.add_argument("--videos", type=int, help="copies of the clip (default: 320 with a GPU, 10 without)")
    parser.add_argument("--clip", type=Path, help="clip to copy (default: a synthetic clip of --seconds, 640x360)")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=8, help="limit of the whole command")
    parser.add_argument("extract", nargs="*", help="more options of mavqa-extract, after --")
    options = parser.parse_args()
    videos = options.videos or (320 if options.device == "cuda" else 10)
    rows, notes = choose_rows(options.device)
    rates = []
    print(f"{videos} videos, networks on {options.device}, {os.cpu_count()} cores\n{header()}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mavqa-throughput-") as name:
        clip = options.clip or make_clip(Path(name) / "clip.mp4", options.seconds)
        for number, row in enumerate(rows):
            left = began + 60 * options.minutes - time.monotonic()
            runs = prepare(clip, Path(name) / row, ROWS[row], videos, options)
            rate, line = describe_rate(row, monitor(runs, options.device == "cuda", left / (len(rows) - number)))
            rates.append(rate)
            print(line, flush=True)
    print(*notes, sep="\n")
    return 0 if print_promise(max(rates), options.device) else 1


def choose_rows(device: str) -> tuple[list[str], list[str]]:
    """Return the rows that this machine can measure, and notes: the decoders' versions, and why others are left out."""
    try:
        version = open_decoder("pyav-cuda").version()
    except DecoderLoadError as error:
        return ["cores"], [f"GPU, both: left out: {error}"]
    if device != "cuda":
        return ["cores"], ["GPU, both: left out: pass --device cuda"]
    return list(ROWS), [f"GPU: {version}"]


def prepare(
    clip: Path, folder: Path, decoders: Sequence[str], videos: int, options: argparse.Namespace
) -> list[tuple[list[str], Path]]:
    """Create the dataset of each run in `folder`; return its command and the folder of its maps."""
    runs = []
    for decoder in decoders:
        dataset = folder / decoder
        create_dataset(clip, dataset, videos // len(decoders))
        command = [Path(sys.executable).with_name("mavqa-extract"), "--manifest", dataset / "manifest"]
        command += ["--videos", dataset / "videos", "--store", dataset / "store.zarr", "--seconds", options.seconds]
        command += ["--weights", "seeded", "--device", options.device, "--decoder", decoder]
        if len(decoders) > 1:
            workers = math.ceil((os.cpu_count() or 1) / CORES_PER_GPU_WORKER / len(decoders))
            command += ["--workers", workers]
        maps = dataset / "store.zarr" / "features" / "resnet18-map" / "values"
        runs.append(([*map(str, command), *options.extract], maps))
    return runs


def monitor(runs: list[tuple[list[str], Path]], has_gpu: bool, seconds: float) -> list[Snapshot]:
    """Run the commands at once, for at most `seconds`; return snapshots taken every half second."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(command, **quiet) for command, _ in runs]  # type: ignore[call-overload]
    started, snapshots = time.monotonic(), []
    psutil.cpu_percent()
    is_running = True
    while is_running:
        time.sleep(0.5)
        is_running = any(process.poll() is None for process in processes)
        done = sum(1 for _, maps in runs if maps.is_dir() for _ in maps.glob("c.*"))
        passed = time.monotonic() - started
        gpu = query_gpu() if has_gpu else (0.0, 0.0, 0.0)
        snapshots.append(Snapshot(passed, done, psutil.cpu_percent(), *gpu))
        if passed > seconds:
            for process in processes:
                process.terminate()
            break
    codes = {process.wait() for process in processes}
    if codes - {0, STOPPED}:
        raise RuntimeError(f"mavqa-extract ended with exit code {max(codes)}")
    return snapshots


def query_gpu() -> tuple[float, float, float]:
    """Return the utilisation of the first GPU and of its video decoder in percent, and the bytes of memory in use."""
    fields = "utilization.gpu,utilization.decoder,memory.used"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "--id=0"]
    values = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(",")
    gpu, nvdec, mebibytes = (float(value) if value.strip().isdigit() else math.nan for value in values)
    return gpu, nvdec, mebibytes * 2**20


def header() -> str:
    """Return the header of the table."""
    return (
        f"{'decoding':<10}{'videos/s':>10}{f'{DATASET_VIDEOS:,} videos':>16}{'cores':>8}{'GPU':>8}{'NVDEC':>8}"
        f"{'memory':>10}{'first after':>13}   bottleneck"
    )


def describe_rate(row: str, snapshots: list[Snapshot]) -> tuple[float, str]:
    """Return the steady rate in videos per second, and the table row with the load and the bottleneck."""
    videos = snapshots[-1].videos
    steady = [snapshot for snapshot in snapshots if BEGIN * videos <= snapshot.videos <= END * videos]
    if not videos or len(steady) < 2 or steady[-1].videos == steady[0].videos:
        raise RuntimeError(f"{videos} videos are too few to measure a steady rate: pass more --videos")
    rate = (steady[-1].videos - steady[0].videos) / (steady[-1].seconds - steady[0].seconds)
    cores, gpu, nvdec, gpu_bytes = (
        float(np.mean([getattr(snapshot, name) for snapshot in steady[1:]]))
        for name in ("cores_percent", "gpu_percent", "nvdec_percent", "gpu_bytes")
    )
    first = next(snapshot.seconds for snapshot in snapshots if snapshot.videos)
    busy = {"the cores": cores, "the GPU": gpu, "NVDEC": nvdec}
    busiest = max(busy, key=lambda part: -1 if math.isnan(busy[part]) else busy[part])
    bottleneck = busiest if busy[busiest] >= BUSY_PERCENT else "none is busy: waiting"
    return rate, (
        f"{row:<10}{rate:>10.2f}{DATASET_VIDEOS / rate / 60:>12.1f} min{cores:>6.0f} %{gpu:>6.0f} %{nvdec:>6.0f} %"
        f"{gpu_bytes / 1e9:>7.1f} GB{first:>11.1f} s   {bottleneck}"
    )


def print_promise(rate: float, device: str) -> bool:
    """Print the promise, if it applies to the device; return whether it holds or does not apply."""
    if device != "cuda":
        return True
    holds = rate >= PROMISED_RATE
    print(f"promised >= {PROMISED_RATE:g} per second with {PROMISED_CORES} cores: {'held' if holds else 'BROKEN'}")
    return holds


if __name__ == "__main__":
    sys.exit(main())

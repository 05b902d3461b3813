"""Measure whether the memory of extraction grows with the number of videos: peak of all processes, 20 and 100 clips.

Each run is a separate `mavqa-extract` (one worker, seeded weights, `resnet18-map` and `vggish`) on copies of a
synthetic clip. Memory is the total resident size of its processes (shared pages count for each), sampled every tenth
of a second; the minimum over `--repeats` runs is reported.

    python benchmarks/memory.py --clips 20 100 --seconds 5
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from extraction import make_clip

PROMISED_GROWTH = 1.10
MEGABYTE = 1024**2


def main() -> int:
    """Measure both numbers of clips and print the table; return 1 if the promise is broken, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs=2, default=(20, 100), metavar=("FEW", "MANY"))
    parser.add_argument("--seconds", type=int, default=5, help="length of the clip")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mavqa-memory-") as name:
        clip = make_clip(Path(name) / "clip.mp4", options.seconds)
        peaks = []
        for clips in options.clips:
            folder = Path(name) / str(clips)
            create_dataset(clip, folder, clips)
            runs = [measure_peak(start_extraction(folder, options.seconds, run)) for run in range(options.repeats)]
            peaks.append(min(runs))
            print(f"{clips:>5} clips of {options.seconds} s: peak {min(runs) / MEGABYTE:8.0f} MB in all processes")
    return 0 if print_promise(*peaks) else 1


def create_dataset(clip: Path, folder: Path, clips: int) -> None:
    """Create a folder of videos, hard links to one clip with distinct names, and its manifest."""
    (folder / "videos").mkdir(parents=True)
    for number in range(clips):
        os.link(clip, folder / "videos" / f"clip-{number:04d}.mp4")
    build = [Path(sys.executable).with_name("mavqa-manifest"), "build", "folder"]
    subprocess.run(
        [*build, "--videos", folder / "videos", "--out", folder / "manifest"], check=True, capture_output=True
    )


def start_extraction(folder: Path, seconds: int, run: int) -> "subprocess.Popen[bytes]":
    """Start an extraction into a new store."""
    command = [Path(sys.executable).with_name("mavqa-extract"), "--manifest", folder / "manifest"]
    paths = ["--videos", folder / "videos", "--store", folder / f"store-{run}.zarr"]
    settings = ["--seconds", seconds, "--weights", "seeded", "--workers", 1, "--device", "cpu", "--decoder", "pyav"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(list(map(str, [*command, *paths, *settings])), **quiet)  # type: ignore[call-overload, no-any-return]


def measure_peak(process: "subprocess.Popen[bytes]") -> int:
    """Return the peak of the resident bytes of the process and its descendants; raise RuntimeError if it fails."""
    root, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        resident = 0
        try:
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for member in processes:
            try:
                resident += member.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, resident)
        time.sleep(0.1)
    if process.wait():
        raise RuntimeError(f"mavqa-extract ended with exit code {process.returncode}")
    return peak


def print_promise(few: int, many: int) -> bool:
    """Print the ratio of the peaks of many and few clips with the promise; return whether it holds."""
    holds = many <= PROMISED_GROWTH * few
    print(f"{'many / few':<28}{many / few:>8.3f}   promised <= {PROMISED_GROWTH:g}   {'held' if holds else 'BROKEN'}")
    return holds


if __name__ == "__main__":
    sys.exit(main())

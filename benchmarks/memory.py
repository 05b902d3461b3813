"""Measure whether extraction needs more memory for more videos: the peak of all its processes, 20 clips against 100.

Each run is `mavqa-extract` in processes of its own (one worker, seeded weights, `resnet18-map` and `vggish`) over so
many copies of a made-up clip; memory is what its processes hold together (resident, pages that they share counted for
each), looked at every tenth of a second, the least of `--repeats` runs.

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
    """Parse the options, run both, print the table; exit code 1 where the promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs=2, default=(20, 100), metavar=("FEW", "MANY"))
    parser.add_argument("--seconds", type=int, default=5, help="of a clip")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mavqa-memory-") as name:
        clip = make_clip(Path(name) / "clip.mp4", options.seconds)
        peaks = []
        for clips in options.clips:
            folder = Path(name) / str(clips)
            lay_out(clip, folder, clips)
            runs = [peak_of(extract(folder, options.seconds, run)) for run in range(options.repeats)]
            peaks.append(min(runs))
            print(f"{clips:>5} clips of {options.seconds} s: peak {min(runs) / MEGABYTE:8.0f} MB in all processes")
    return 0 if judge(*peaks) else 1


def lay_out(clip: Path, folder: Path, clips: int) -> None:
    """Make a folder of videos, hard links of one clip under names of their own, and its manifest."""
    (folder / "videos").mkdir(parents=True)
    for number in range(clips):
        os.link(clip, folder / "videos" / f"clip-{number:04d}.mp4")
    build = [Path(sys.executable).with_name("mavqa-manifest"), "build", "folder"]
    subprocess.run(
        [*build, "--videos", folder / "videos", "--out", folder / "manifest"], check=True, capture_output=True
    )


def extract(folder: Path, seconds: int, run: int) -> "subprocess.Popen[bytes]":
    """Start an extraction into a new store."""
    command = [Path(sys.executable).with_name("mavqa-extract"), "--manifest", folder / "manifest"]
    places = ["--videos", folder / "videos", "--store", folder / f"store-{run}.zarr"]
    how = ["--seconds", seconds, "--weights", "seeded", "--workers", 1, "--device", "cpu", "--decoder", "pyav"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(list(map(str, [*command, *places, *how])), **quiet)  # type: ignore[call-overload, no-any-return]


def peak_of(process: "subprocess.Popen[bytes]") -> int:
    """Return the most bytes that the process and those below it held together; raise where it failed."""
    root, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        held = 0
        try:
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for member in family:
            try:
                held += member.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, held)
        time.sleep(0.1)
    if process.wait():
        raise RuntimeError(f"mavqa-extract ended with exit code {process.returncode}")
    return peak


def judge(few: int, many: int) -> bool:
    """Print what many clips need of what few do, beside the promise; return whether it holds."""
    holds = many <= PROMISED_GROWTH * few
    print(f"{'many / few':<28}{many / few:>8.3f}   promised <= {PROMISED_GROWTH:g}   {'held' if holds else 'BROKEN'}")
    return holds


if __name__ == "__main__":
    sys.exit(main())

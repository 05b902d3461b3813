"""Measure the training of one model by several processes: samples a second by their number, and the ratio to one.

The loop of `mavqa-train` trains on stand-ins of the real shapes (those of `rehearsal.py`), with the same batch for any
number of processes. On a CPU they share the cores, so that a ratio of 1 is all that can be expected; on GPUs each has
its own.

    python benchmarks/processes.py --counts 1 2 --backbone avst --method rmm-avr --batch-size 8
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import stand_ins
from timed_training import Meter, time_training

from pipeline.machine import available_cores
from pipeline.store.reader import open_store
from train import processes
from train.data.feature_bank import FeatureBank
from train.data.loading import LoadingSettings
from train.runs.config import PRECISIONS, make_config
from train.runs.device import choose_device


def main() -> int:
    """Parse the options, start the processes of each count in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=(1, 2), help="numbers of processes, 1 first")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each number")
    parser.add_argument("--backbone", default="avst")
    parser.add_argument("--method", default="rmm-avr")
    parser.add_argument("--batch-size", type=int, default=8, help="of all processes together")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--videos", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("build/rehearsal"), help="folder of the stand-ins")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    store = options.out / f"{options.videos}-videos.zarr"
    if options.worker:
        with processes.joined():
            seconds = time_step(options, store)
            if processes.is_first():
                print(seconds)
        return 0
    if not store.exists():
        options.out.mkdir(parents=True, exist_ok=True)
        stand_ins.write_store(store, stand_ins.music_avqa(options.videos))
    rates: dict[int, list[float]] = {count: [] for count in options.counts}
    for _ in range(options.rounds):
        for count in options.counts:
            rates[count].append(options.batch_size / start(count))
    print(f"{options.backbone}, {options.method}, batch {options.batch_size}, {options.precision}, samples a second")
    for count, found in rates.items():
        ratios = sorted(rate / one for rate, one in zip(found, rates[options.counts[0]], strict=True))
        print(f"{count} processes: {sorted(found)[len(found) // 2]:.3g}, {ratios[len(ratios) // 2]:.2f} times one")
    return 0


def start(count: int) -> float:
    """Return the seconds a step of `count` processes, which share the cores."""
    threads = {"OMP_NUM_THREADS": str(max(1, available_cores() // count))}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    done = subprocess.run(
        [*command, *sys.argv, "--worker"], env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout)


def time_step(options: argparse.Namespace, store: Path) -> float:
    """Return the mean seconds a step of this number of processes."""
    device = choose_device(options.device)
    bank = FeatureBank(open_store(store), LoadingSettings("disk"), str(device))
    names = {"backbone": options.backbone, "method": options.method, "precision": options.precision}
    config = make_config("paper", **names, batch_size=options.batch_size, store=str(store), training="joint", epochs=1)
    meter = Meter(options.steps, device)
    time_training(config, stand_ins.music_avqa(options.videos), bank, meter)
    return meter.seconds[0]


if __name__ == "__main__":
    sys.exit(main())

"""Rehearse the training of MUSIC-AVQA: what an epoch and a run cost on this machine, from a few timed steps.

The questions, words and answers are as many as those of the dataset (31,927 training questions), and the features have
the real shapes and zeros; a batch and the number of steps are therefore real. Each row (backbone, method, batch size)
is measured in a process of its own, with the training loop of `mavqa-train`:

- loader: batches are loaded and moved to the device, and nothing else is done;
- step: the loop trains on one batch that is already on the device;
- both: the loop as it is.

Times are means over `--steps`, after some to warm up: an epoch takes their sum, and steps on a GPU end asynchronously,
so that the time of a single one says little. The step alone, which the time of an epoch does not follow from, is timed
in a sixth of them. A method with stages is timed in each; the tables have the last one. The peak memory has neither
mapped files nor, on a GPU, cached features. An epoch is the training alone. A run has all epochs of the preset and
their validations, which are timed on some of the 4,568 questions. Operations are those of the forward and backward
pass, without Fourier transforms, and compared with the speed of a large matrix product. No row is started after
`--max-minutes`, and none whose smaller batch says that the memory does not suffice. Of an epoch with fewer steps all
are timed.

    python benchmarks/rehearsal.py --backbones avst --batch-sizes 4 64 --device cuda
"""

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import stand_ins
import torch
from cost import (
    Memory,
    count_operations,
    free_bytes,
    measured_memory,
    peak_speed,
    scaled_bytes,
)
from pydantic import BaseModel, ConfigDict
from timed_training import PROFILED_STEPS, WARM_UP, Meter, time_loading, time_training, time_validation

import train
from pipeline.errors import UserError
from pipeline.store.reader import open_store
from train.data.batch import Batch
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.loading import CACHES, LoadingSettings
from train.interfaces import inputs_of
from train.runs.config import PRECISIONS, make_config
from train.runs.device import choose_device
from train.runs.folder import build_method
from train.training.fit import measure_sizes
from train.training.loop import plan_stages
from train.training.sweep import read_grid

BACKBONES, METHODS = ("avsd", "pano", "avst", "pstp"), ("zero-fill", "rmm-avr")
# By the type of the device.
STEPS, VIDEOS = {"cpu": 5, "cuda": 300}, {"cpu": 256, "cuda": stand_ins.VIDEOS}
# What a cache for all videos would be: few machines have the memory of so many maps.
CACHE = {"cpu": "disk", "cuda": "auto"}
# Batches are gathered and sampled ahead: fewer would mostly be ready when the clock starts.
LOADED_BATCHES = 100
# A weight, its gradient and the two moments of Adam: memory that does not grow with the batch.
BYTES_PER_PARAMETER = 16
LARGEST_VALIDATION = 1024
DEFAULTS = (None, "recommended")
TABLE_1 = Path(train.__file__).parent / "grids" / "table1.toml"


class Row(BaseModel):
    """What is rehearsed in one process."""

    model_config = ConfigDict(frozen=True)

    backbone: str
    method: str
    batch_size: int


class StageCost(BaseModel):
    """A stage of a training: its name, its epochs in a whole run, and the seconds a step without and with loading."""

    name: str
    epochs: int
    step_seconds: float
    loop_seconds: float


class Cost(BaseModel):
    """What a row costs.

    - `stages`: one, or those of a staged training in their order; the last one trains the whole method.
    - `loader_seconds`, `batch_bytes`: the time to load a batch, and its size on the device.
    - `steps_per_epoch`: of all training questions. `validation_seconds`: of all validation questions, after each epoch.
    - `parameters`: their number. `operations`: of a step of the last stage.
    - `peak_speed`: operations per second of a large matrix product.
    - `busy_share`: of a step's time, the share in which the GPU has kernels; None on a CPU.
    """

    row: Row
    stages: list[StageCost]
    loader_seconds: float
    batch_bytes: int
    steps_per_epoch: int
    validation_seconds: float
    memory: Memory
    parameters: int
    operations: int
    peak_speed: float
    busy_share: float | None

    @property
    def epoch_seconds(self) -> float:
        """The training of an epoch of the last stage."""
        return self.steps_per_epoch * self.stages[-1].loop_seconds

    @property
    def run_seconds(self) -> float:
        """All epochs of all stages, with their validations."""
        return sum(
            stage.epochs * (self.steps_per_epoch * stage.loop_seconds + self.validation_seconds)
            for stage in self.stages
        )


def main() -> int:
    """Parse the options, measure each row, print the tables; return 0 unless no row was measured, then 3."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=(4, 64), help="4 is the paper's")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--variant", default="recommended")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, help="timed steps; default: 5, on a GPU 300")
    parser.add_argument("--videos", type=int, help="videos with the questions; default: 256, on a GPU 9,288 (19 GB)")
    parser.add_argument("--cache", choices=CACHES, help="as of mavqa-train; default: disk, on a GPU auto")
    parser.add_argument("--max-minutes", type=float, default=8, help="rows that do not fit are left out")
    parser.add_argument("--out", type=Path, default=Path("build/rehearsal"), help="folder of the stand-ins")
    parser.add_argument("--json", type=Path, help="file for all that was measured, written after each row")
    parser.add_argument("--row", type=Row.model_validate_json, help=argparse.SUPPRESS)
    options = parser.parse_args()
    started = time.monotonic()
    try:
        device = choose_device(options.device)
        if options.row:
            print(measure(with_defaults(options, device), options.row, device).model_dump_json())
            return 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    options = with_defaults(options, device)
    if not store_path(options).exists():
        options.out.mkdir(parents=True, exist_ok=True)
        stand_ins.write_store(store_path(options), stand_ins.music_avqa(options.videos))
    costs: dict[Row, Cost] = {}
    left_out: dict[Row, str] = {}
    for row in plan_rows(options.backbones, options.methods, options.batch_sizes):
        seconds_left = started + 60 * options.max_minutes - time.monotonic()
        outcome = find_obstacle(row, costs, free_bytes(device), seconds_left) or run_row(row, seconds_left)
        if isinstance(outcome, Cost):
            costs[row] = outcome
            outcome = f"{describe(outcome.epoch_seconds)} an epoch, {describe(outcome.run_seconds)} a run"
            if options.json:
                options.json.write_text("[" + ",\n".join(cost.model_dump_json() for cost in costs.values()) + "]\n")
        else:
            left_out[row] = outcome
        print(f"{row.backbone}, {row.method}, batch {row.batch_size}: {outcome}", file=sys.stderr, flush=True)
    print_tables(options, device, costs, left_out)
    return 0 if costs else 3


def with_defaults(options: argparse.Namespace, device: torch.device) -> argparse.Namespace:
    """Return the options, with the defaults for the device where there is no value."""
    options.device = device.type
    for name, defaults in (("steps", STEPS), ("videos", VIDEOS), ("cache", CACHE)):
        if getattr(options, name) is None:
            setattr(options, name, defaults[device.type])
    return options


def store_path(options: argparse.Namespace) -> Path:
    """Return the store of the stand-ins."""
    return options.out / f"{options.videos}-videos.zarr"


def plan_rows(backbones: Sequence[str], methods: Sequence[str], batch_sizes: Sequence[int]) -> list[Row]:
    """Return the rows in the order in which they are measured: cheap ones first, so that as many as possible fit."""
    return [
        Row(backbone=backbone, method=method, batch_size=size)
        for method in methods
        for size in sorted(batch_sizes)
        for backbone in backbones
    ]


def find_obstacle(row: Row, costs: dict[Row, Cost], free: int, seconds_left: float) -> str:
    """Return why `row` cannot be measured, judged by the memory of its smaller batches in `costs`; "" if it can be."""
    if seconds_left <= 0:
        return "no time was left"
    pair = (row.backbone, row.method)
    smaller = [cost for other, cost in costs.items() if (other.backbone, other.method) == pair]
    if smaller:
        largest = max(smaller, key=lambda cost: cost.row.batch_size)
        memory = replace(largest.memory, before=largest.memory.before + BYTES_PER_PARAMETER * largest.parameters)
        needed = scaled_bytes(memory, row.batch_size / largest.row.batch_size)
        if needed > free:
            return f"needs about {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"
    return ""


def run_row(row: Row, seconds: float) -> Cost | str:
    """Measure `row` in a process of its own, with the options of this one; return why it failed if it does."""
    command = [sys.executable, __file__, *sys.argv[1:], "--row", row.model_dump_json()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"took longer than the {seconds / 60:.1f} minutes that were left"
    if done.returncode:
        return (done.stderr.splitlines() or [f"its process ended with {done.returncode}"])[-1]
    return Cost.model_validate_json(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace, row: Row, device: torch.device) -> Cost:
    """Measure `row` in this process."""
    speed = peak_speed(device, options.precision)
    manifest, store = stand_ins.music_avqa(options.videos), store_path(options)
    bank = FeatureBank(open_store(store), LoadingSettings(options.cache), options.device)
    names = {"preset": options.preset, "variant": options.variant, "precision": options.precision}
    places = {"store": str(store), "device": options.device}
    config = make_config(**names, **places, **row.model_dump())
    config = config.model_copy(update={"sizes": measure_sizes(config, manifest, bank)})
    stages = plan_stages(build_method(config), config.training, config.epochs)
    short = config.model_copy(update={"epochs": len(stages)})  # an epoch of each
    inputs = inputs_of(build_method(config).backbone, config.map_size)
    loader_seconds, batch, steps_per_epoch = time_loading(
        QuestionDataset(bank, manifest, "train", inputs), row.batch_size, max(options.steps, LOADED_BATCHES), device
    )
    steps = min(options.steps, steps_per_epoch - WARM_UP[device.type] - PROFILED_STEPS)
    with measured_memory(device) as memory:
        both, method = time_training(short, manifest, bank, Meter(steps, device))
    meter = Meter(steps_alone(steps), device, is_profiled=True)
    alone, _ = time_training(short, manifest, bank, meter, repeats_batch=True)
    validation = QuestionDataset(bank, manifest, "val", inputs)
    validated = min(len(validation), LARGEST_VALIDATION, steps * row.batch_size)
    validation_seconds = time_validation(method, validation, validated, device) * len(validation) / validated
    return Cost(
        row=row,
        stages=[
            StageCost(name=stage.name, epochs=len(epochs), step_seconds=step, loop_seconds=loop)
            for (stage, epochs), step, loop in zip(stages, alone.seconds, both.seconds, strict=True)
        ],
        loader_seconds=loader_seconds,
        batch_bytes=count_bytes(batch),
        steps_per_epoch=steps_per_epoch,
        validation_seconds=validation_seconds,
        memory=memory,
        parameters=sum(parameter.numel() for parameter in method.parameters()),
        operations=count_batch_operations(method.train(), batch),
        peak_speed=speed,
        busy_share=alone.kernel_seconds / alone.seconds[-1] if device.type == "cuda" else None,
    )


def steps_alone(steps: int) -> int:
    """Return how many steps without loading are timed: a sixth of those with it, which matter more, but a few."""
    return min(steps, max(steps // 6, 5))


def count_batch_operations(method: Any, batch: Batch) -> int:
    """Return the operations of the loss of `batch` and its gradient, counted on one of its questions."""
    one = batch.select(torch.arange(1))
    # Without them LSTMs are counted too, and convolutions are slow.
    with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
        operations = count_operations(lambda: method.training_loss(one)["total"].backward())
    return operations * len(batch)


def count_bytes(batch: Batch) -> int:
    """Return the bytes of the features of `batch`, negatives included."""
    groups = (batch.question, batch.audio, batch.visual, batch.negatives)
    return sum(values.nbytes for group in groups for values in (group or {}).values())


def describe(seconds: float) -> str:
    """Return a duration in seconds, minutes, hours or days, to two digits at least."""
    units = {"s": (1, 90), "min": (60, 90), "h": (3600, 72), "days": (86_400, math.inf)}
    unit, value = next((unit, seconds / length) for unit, (length, limit) in units.items() if seconds < limit * length)
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


def print_tables(
    options: argparse.Namespace, device: torch.device, costs: dict[Row, Cost], left_out: dict[Row, str]
) -> None:
    """Print what was measured as two tables in Markdown, what was left out, and the cost of Table 1."""
    config = make_config(options.preset, variant=options.variant)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(
        f"{name}, torch {torch.__version__}, {options.precision}, variant {options.variant}, preset {options.preset} "
        f"({config.epochs} epochs), {options.steps} timed steps, {options.videos:,} videos, cache {options.cache}\n"
    )
    ordered = [cost for pair in _pairs(costs) for cost in costs.values() if _pair(cost.row) == pair]
    print("Samples a second, peak memory, times\n")
    print("| backbone | method | batch | loader | step | both | GB | epoch | validation | run |")
    print("|---|---|" + "---:|" * 8)
    for cost in ordered:
        print(format_cost(cost, device))
    print("\nArithmetic of a step, and what the loader delivers\n")
    print("| backbone | method | batch | TFLOP | of the peak | MB a batch | GB/s | GPU busy |")
    print("|---|---|" + "---:|" * 6)
    for cost in ordered:
        print(format_arithmetic(cost))
    for row, reason in left_out.items():
        print(f"\nLeft out: {row.backbone}, {row.method}, batch {row.batch_size}: {reason}")
    for size in sorted({row.batch_size for row in costs}):
        print(f"\n{describe_table_1([cost for cost in ordered if cost.row.batch_size == size])}")


def _pair(row: Row) -> tuple[str, str]:
    return row.backbone, row.method


def _pairs(costs: dict[Row, Cost]) -> list[tuple[str, str]]:
    """Return the backbones and methods of `costs`, by backbone."""
    backbones = list(dict.fromkeys(row.backbone for row in costs))
    return sorted(dict.fromkeys(map(_pair, costs)), key=lambda pair: backbones.index(pair[0]))


def format_cost(cost: Cost, device: torch.device) -> str:
    """Return the row of the first table."""
    row, last = cost.row, cost.stages[-1]
    rates = [row.batch_size / seconds for seconds in (cost.loader_seconds, last.step_seconds, last.loop_seconds)]
    taken = cost.memory.peak - (cost.memory.before if device.type == "cuda" else 0)
    times = [describe(seconds) for seconds in (cost.epoch_seconds, cost.validation_seconds, cost.run_seconds)]
    cells = [f"`{row.backbone}`", f"`{row.method}`", row.batch_size, *(format_rate(rate) for rate in rates)]
    return "| " + " | ".join(map(str, [*cells, f"{taken / 1e9:.1f}", *times])) + " |"


def format_rate(rate: float) -> str:
    """Return samples a second to three digits."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def format_arithmetic(cost: Cost) -> str:
    """Return the row of the second table."""
    row, seconds = cost.row, cost.stages[-1].step_seconds
    reached = cost.operations / seconds / cost.peak_speed
    busy = "" if cost.busy_share is None else f"{cost.busy_share:.0%}"
    delivered = cost.batch_bytes / cost.loader_seconds / 1e9
    cells = [f"{cost.operations / 1e12:.3g}", f"{reached:.0%}", f"{cost.batch_bytes / 1e6:.0f}", f"{delivered:.1f}"]
    return "| " + " | ".join([f"`{row.backbone}`", f"`{row.method}`", str(row.batch_size), *cells, busy]) + " |"


def describe_table_1(costs: Sequence[Cost]) -> str:
    """Return the time of those runs of Table 1 whose rows are `costs`, which have one batch size."""
    grid = read_grid(TABLE_1)
    # Timed are the methods as they are by default, here the variant "recommended".
    methods = {entry.settings.get("method") for entry in grid.methods if entry.settings.get("variant") in DEFAULTS}
    entries = [(backbone, entry.name) for backbone in grid.backbones or () for entry in grid.methods]
    timed = [cost for cost in costs if cost.row.backbone in (grid.backbones or ()) and cost.row.method in methods]
    seconds = len(grid.seeds) * sum(cost.run_seconds for cost in timed)
    return (
        f"Table 1 at batch {costs[0].row.batch_size}: {len(grid.seeds) * len(timed)} of the "
        f"{len(grid.seeds) * len(entries)} runs of the grid `table1` are timed above ({len(grid.seeds)} seeds); "
        f"one after the other they take {describe(seconds)}."
    )


if __name__ == "__main__":
    sys.exit(main())

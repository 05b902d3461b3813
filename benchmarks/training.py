"""Time the training step of AVST with RMM and AVR at the paper's shapes, beside that of the released code.

A step is the loss, its gradient and Adam, on random maps [10, 512, 14, 14] and audio [10, 128] with T = 10 diffusion
steps. The released modules are those of `--official`, a folder with net_grd_avst/ and denoising_diffusion_pytorch/;
they need `einops`, and their image network, which a training step does not use, is left out. Both have the same
weights. First losses and gradients are compared, with dropout and noise off, and one question repeated, because the
released code mixes the questions of a batch; with `--precision` our loss is compared with the released one in float32.
Then the steps take turns in random order, all in that precision. Reported are medians, the ratios of neighbouring
turns, the operations of a step and the time that these take at the speed of a large matrix product, the peak memory of
a process for each way (on a GPU: of a step), and where the time of our step goes. A way that would not fit into the
memory, judged by its smaller batches, is left out.

    python benchmarks/training.py --official Missing-AVQA --batch-sizes 1 2 4 16
"""

import argparse
import importlib
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from cost import (
    Memory,
    computing_in,
    count_operations,
    free_bytes,
    kernel_seconds,
    measured_memory,
    peak_speed,
    process_bytes,
    scaled_bytes,
    synchronize,
)
from torch import Tensor, nn
from torch.nn import functional as F

from train.backbones.sizes import ModelSizes
from train.checkpoints.release_names import RELEASES
from train.data.batch import Batch
from train.runs.config import PRECISIONS, make_config
from train.runs.folder import build_method

WORDS, ANSWERS, TOKENS, STEPS, SLOTS = 93, 42, 14, 10, 75
RELEASE = RELEASES["missing-avqa"]
# How many times as fast as the released step ours is, by the type of the device: promised and hoped for.
PROMISED, AIM = {"cpu": 1.15, "cuda": 4.0}, {"cpu": 1.4, "cuda": 4.0}
# The relative difference of the loss that equal outputs have at most, by precision; on a CPU in float32 less.
LARGEST_DIFFERENCE = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 1e-2}
LARGEST_DIFFERENCE_ON_CPU, LARGEST_GRADIENT_DIFFERENCE = 1e-5, 1e-3
# What the released modules import and a training step does not use: {module: names}.
UNUSED = {
    "ema_pytorch": ("EMA",),
    "accelerate": ("Accelerator",),
    "pytorch_fid": (),
    "pytorch_fid.fid_score": ("calculate_frechet_distance",),
    "pytorch_fid.inception": ("InceptionV3",),
}

# Takes one training step, in a precision, and waits until it is done.
Step = Callable[[], None]


def main() -> int:
    """Parse the options, compare, measure, print the tables; return 1 if a promise is broken, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="folder of the Missing-AVQA release; without it ours alone")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=(1, 2, 4, 16))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way, after one to warm up")
    parser.add_argument("--max-minutes", type=float, default=8, help="afterwards there are no more turns")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of all ways")
    parser.add_argument("--variants", nargs="+", default=("released", "paper", "recommended"), help="ours")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.batch_sizes = sorted(options.batch_sizes)
    device = torch.device(options.device)
    if options.memory:
        before = process_bytes("VmHWM")
        take_two_steps(options, options.memory, options.batch_sizes[0], device)
        print(before, process_bytes("VmHWM"))
        return 0
    deadline = time.monotonic() + 60 * options.max_minutes
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, {options.precision}\n")
    is_held = True
    if options.official:
        is_held = print_differences(options.official, options.precision, device)
    memories: dict[str, tuple[int, Memory]] = {}
    for number, batch_size in enumerate(options.batch_sizes):
        seconds = (deadline - time.monotonic()) / (len(options.batch_sizes) - number)
        is_held &= print_times(options, batch_size, device, memories, seconds)
    variant = options.variants[0]
    print_profile(variant, memories[variant][0], options.precision, device)
    return 0 if is_held else 1


def make_method(variant: str, device: torch.device) -> nn.Module:
    """Return the method in training mode, with random weights."""
    config = make_config(preset="released", backbone="avst", method="rmm-avr", variant=variant)
    sizes = ModelSizes(words=WORDS, answers=ANSWERS, **RELEASE.sizes)
    config = config.model_copy(update={"sizes": sizes, "options": {"slots": SLOTS, "steps": STEPS}})
    torch.manual_seed(1)
    method = build_method(config)
    assert isinstance(method, nn.Module)
    return method.to(device).train()


def load_released(folder: Path, device: torch.device) -> nn.Module:
    """Return the released network in training mode, with random weights."""
    for name, attributes in UNUSED.items():
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__dict__.update(dict.fromkeys(attributes))
    images: Any = ModuleType("visual_net")
    images.resnet18 = lambda pretrained: nn.Identity()
    sys.modules["visual_net"] = images
    sys.path[:0] = [str(folder), str(folder / "net_grd_avst")]
    module: Any = importlib.import_module("net_avst")
    torch.manual_seed(1)
    network: nn.Module = module.AVQA_Fusion_Net(
        SimpleNamespace(time_step=STEPS, memory_size=SLOTS, missing_situation="audio")
    )
    return network.to(device).train()


def copy_weights(method: nn.Module, released: nn.Module) -> None:
    """Give `method` the weights of the released network."""
    state = method.state_dict()
    for name, values in released.state_dict().items():
        if (ours := RELEASE.rename(name)) in state:
            state[ours] = values
    method.load_state_dict(state)


def make_batch(batch_size: int, device: torch.device) -> Batch:
    """Return random inputs, one question repeated."""
    generator = torch.Generator().manual_seed(batch_size)

    def maps() -> Tensor:
        return torch.randn(batch_size, STEPS, 512, 14, 14, generator=generator).relu()

    names = tuple(map(str, range(batch_size)))
    all_steps = torch.ones(batch_size, STEPS, dtype=torch.bool)
    return Batch(
        question={"tokens": torch.randint(1, WORDS, (1, TOKENS), generator=generator).expand(batch_size, -1)},
        audio={"vggish": torch.rand(batch_size, STEPS, 128, generator=generator)},
        visual={"resnet18-map": maps()},
        audio_mask=all_steps,
        visual_mask=all_steps,
        answer=torch.arange(batch_size) % ANSWERS,
        type=("Audio Counting",) * batch_size,
        question_id=names,
        video_id=names,
        negatives={"resnet18-map": maps()},
    ).to(device)


def our_loss(method: Any, batch: Batch) -> Tensor:
    """Return the loss that the released code has: the total without that of the constants for both missing."""
    losses = method.training_loss(batch)
    total: Tensor = losses["total"] - losses["unseen"]
    return total


def released_loss(network: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of the release's training script."""
    assert batch.audio
    assert batch.visual
    assert batch.negatives
    inputs = batch.audio["vggish"], batch.visual["resnet18-map"], batch.negatives["resnet18-map"]
    outputs, diffusion, recall, tied = network(*inputs, batch.question["tokens"])
    total = diffusion + recall + tied
    kinds = {"out_qa": "out_match_{}", "out_qa_ap": "visual_match_{}_ap", "out_qa_vp": "visual_match_{}_vp"}
    for answers, matches in kinds.items():
        pairs = torch.stack([outputs[matches.format(sign)] for sign in ("posi", "nega")], 1).flatten(0, 1)
        labels = torch.tensor([1, 0], device=pairs.device).repeat(len(pairs) // 2)
        total = total + F.cross_entropy(outputs[answers], batch.answer) + 0.5 * F.cross_entropy(pairs, labels)
    return total


def make_step(
    model: nn.Module, loss_of: Callable[[Any, Batch], Tensor], batch: Batch, precision: str, device: torch.device
) -> Step:
    """Return a function that takes one step of `model` on `batch`."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=loss_of is our_loss)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with computing_in(precision, device):
            loss = loss_of(model, batch)
        loss.backward()
        optimiser.step()
        synchronize(device)

    return step


@contextmanager
def without_noise() -> Iterator[None]:
    """Make the noise of diffusion zero, and its sampled step the third."""

    def zeros(*shape: Any, **options: Any) -> Tensor:
        options.pop("generator", None)
        return torch.zeros(*shape, **options)

    def third(low: int, high: int, size: Any, **options: Any) -> Tensor:
        options.pop("generator", None)
        return torch.full(tuple(size), 2, **options)

    with patch.multiple(torch, randn=zeros, randn_like=torch.zeros_like, randint=third):
        yield


def print_differences(folder: Path, precision: str, device: torch.device) -> bool:
    """Print how much loss and gradients differ from the released ones, in relation to their size; return if little."""
    released, ours = load_released(folder, device), make_method("released", device)
    copy_weights(ours, released)
    batch = make_batch(2, device)
    losses = []
    for model, loss_of, of_model in ((ours, our_loss, precision), (released, released_loss, "float32")):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        with without_noise(), computing_in(of_model, device):
            loss = loss_of(model, batch)
            loss.backward()
        losses.append(float(loss.detach()))
    gradients = {name: weights.grad for name, weights in ours.named_parameters()}
    worst = 0.0
    for name, weights in released.named_parameters():
        gradient = gradients.get(RELEASE.rename(name) or "")
        if weights.grad is not None and gradient is not None:
            largest = weights.grad.abs().max().clamp_min(1e-12)
            worst = max(worst, float((gradient - weights.grad).abs().max() / largest))
    is_strict = device.type == "cpu" and precision == "float32"
    bound = LARGEST_DIFFERENCE_ON_CPU if is_strict else LARGEST_DIFFERENCE[precision]
    difference = abs(losses[0] - losses[1]) / losses[1]
    is_equal = difference <= bound and (precision != "float32" or worst <= LARGEST_GRADIENT_DIFFERENCE)
    of_gradients = f" (<= {LARGEST_GRADIENT_DIFFERENCE:g})" if precision == "float32" else ""
    print(f"loss {losses[0]:.6f}, released {losses[1]:.6f}: relative difference {difference:.1e} (<= {bound:g})")
    print(f"gradients differ by at most {worst:.1e} of their tensor's largest value{of_gradients}")
    print(f"equal outputs: {'held' if is_equal else 'BROKEN'}\n")
    return is_equal


def print_times(
    options: argparse.Namespace,
    batch_size: int,
    device: torch.device,
    memories: dict[str, tuple[int, Memory]],
    seconds: float,
) -> bool:
    """Let the ways take turns; print seconds, ratios, bounds and memory. Return whether the promise is held.

    `memories` {way: (batch size, memory)}: of smaller batches, and then of this one; `seconds`: the time for the turns.
    """
    deadline, steps = time.monotonic() + seconds, {}
    for way in (*options.variants, *(("official",) if options.official else ())):
        if needed := find_excess(memories.get(way), batch_size, free_bytes(device)):
            print(f"batch {batch_size}: {way} is left out, it needs about {needed / 1e9:.0f} GB of memory")
            continue
        memories[way] = batch_size, peak_memory(options, way, batch_size, device)
        steps[way] = make_way(options, way, batch_size, device)
        steps[way]()
    times = take_turns(steps, options.rounds, deadline)
    if not steps:
        return True
    speed = peak_speed(device, options.precision)
    rounds = len(next(iter(times.values())))
    print(f"batch {batch_size}, medians of {rounds} turns; large matrix product: {speed / 1e9:.0f} GFLOP/s")
    print(f"  {'':<14}{'seconds':>9}{'TFLOP':>8}{'bound':>9}{'share':>7}{'GB':>7}")
    for way, taken in times.items():
        operations = count_operations(steps[way])
        median = statistics.median(taken)
        print(
            f"  {way:<14}{median:>9.3f}{operations / 1e12:>8.2f}{operations / speed:>9.4f}"
            f"{100 * operations / speed / median:>6.0f}%{memories[way][1].peak / 1e9:>7.1f}",
            flush=True,
        )
    if not {"official", "released"} <= times.keys():
        print()
        return True
    ratio = statistics.median(a / b for a, b in zip(times["official"], times["released"], strict=True))
    promised, aim = PROMISED[device.type], AIM[device.type]
    verdict = "held" if ratio >= promised else "BROKEN"
    print(f"  released: {ratio:.2f} times as fast as official (>= {promised:g}: {verdict}; aim {aim:g})\n")
    return ratio >= promised


def take_turns(steps: dict[str, Step], rounds: int, deadline: float) -> dict[str, list[float]]:
    """Return the seconds of the steps of each way: `rounds` turns, or fewer, at least one, if the deadline passes."""
    times: dict[str, list[float]] = {way: [] for way in steps}
    for number in range(rounds):
        if number and time.monotonic() > deadline:
            break
        for way, step in random.sample(list(steps.items()), len(steps)):
            started = time.perf_counter()
            step()
            times[way].append(time.perf_counter() - started)
    return times


def make_way(options: argparse.Namespace, way: str, batch_size: int, device: torch.device) -> Step:
    """Return a function that takes a step in one way."""
    batch = make_batch(batch_size, device)
    if way == "official":
        return make_step(load_released(options.official, device), released_loss, batch, options.precision, device)
    return make_step(make_method(way, device), our_loss, batch, options.precision, device)


def find_excess(smaller: tuple[int, Memory] | None, batch_size: int, free: int) -> int:
    """Return the bytes that `batch_size` needs if they exceed the `free` ones, judged by a smaller batch; else 0."""
    if smaller is None:
        return 0
    needed = scaled_bytes(smaller[1], batch_size / smaller[0])
    return needed if needed > free else 0


def peak_memory(options: argparse.Namespace, way: str, batch_size: int, device: torch.device) -> Memory:
    """Return the memory of a process that takes two steps in one way; of a GPU, what the steps take."""
    if device.type == "cuda":
        with measured_memory(device) as memory:
            take_two_steps(options, way, batch_size, device)
        return Memory(0, memory.peak - memory.before)
    command = [sys.executable, __file__, "--memory", way, "--batch-sizes", str(batch_size)]
    command += ["--precision", options.precision]
    if way == "official":
        command += ["--official", str(options.official)]
    before, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()
    return Memory(int(before), int(peak))


def take_two_steps(options: argparse.Namespace, way: str, batch_size: int, device: torch.device) -> None:
    """Take two steps in one way."""
    step = make_way(options, way, batch_size, device)
    step()
    step()


def print_profile(variant: str, batch_size: int, precision: str, device: torch.device) -> None:
    """Print the operators that take most of a step's time, on a GPU by that of their kernels."""
    step = make_step(make_method(variant, device), our_loss, make_batch(batch_size, device), precision, device)
    step()
    with torch.profiler.profile() as profile:
        step()
    is_on_gpu = device.type == "cuda"

    def time_of(row: Any) -> float:
        taken: float = row.self_device_time_total if is_on_gpu else row.self_cpu_time_total
        return taken

    # A kernel has a row of its own besides that of the operator that launched it.
    operators = [row for row in profile.key_averages() if row.device_type == torch.autograd.DeviceType.CPU]
    rows, total = sorted(operators, key=time_of, reverse=True), sum(map(time_of, operators))
    print(f"where the time of a step goes ({variant}, batch {batch_size})")
    for row in rows[:14]:
        print(f"  {row.key:<44}{row.count:>7}{100 * time_of(row) / total:>7.1f}%")
    if is_on_gpu:
        started = time.perf_counter()
        step()
        taken = time.perf_counter() - started
        print(f"the GPU has kernels in {kernel_seconds(profile) / taken:.0%} of the time of a step")


if __name__ == "__main__":
    sys.exit(main())

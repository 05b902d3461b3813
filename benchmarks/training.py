"""Time the training step of AVST with RMM and AVR at the paper's shapes, beside that of the released code.

A step is the loss, its gradient and Adam, on random maps [10, 512, 14, 14] and audio [10, 128] with T = 10 diffusion
steps. The released modules are those of `--official`, a folder with net_grd_avst/ and denoising_diffusion_pytorch/;
they need `einops`, and their image network, which a training step does not use, is left out. Both have the same
weights. First losses and gradients are compared, with dropout and noise off, and one question repeated, because the
released code mixes the questions of a batch. Then the steps take turns in random order. Reported are medians, the
ratios of neighbouring turns, the operations of a step and the time that these take at the speed of a large matrix
product, the peak memory of a process for each way, and where the time of our step goes.

    python benchmarks/training.py --official Missing-AVQA --batch-sizes 1 2 4
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
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from train.backbones.sizes import ModelSizes
from train.checkpoints.release_names import RELEASES
from train.data.batch import Batch
from train.runs.config import make_config
from train.runs.folder import build_method

WORDS, ANSWERS, TOKENS, STEPS, SLOTS = 93, 42, 14, 10, 75
RELEASE = RELEASES["missing-avqa"]
PROMISED, AIM = 1.15, 1.4
# What the released modules import and a training step does not use: {module: names}.
UNUSED = {
    "ema_pytorch": ("EMA",),
    "accelerate": ("Accelerator",),
    "pytorch_fid": (),
    "pytorch_fid.fid_score": ("calculate_frechet_distance",),
    "pytorch_fid.inception": ("InceptionV3",),
}

# Takes one training step and returns its total loss.
Step = Callable[[], float]


def main() -> int:
    """Parse the options, compare, measure, print the tables; return 1 if a promise is broken, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="folder of the Missing-AVQA release; without it ours alone")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=(1, 2, 4))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way, after one to warm up")
    parser.add_argument("--variants", nargs="+", default=("released", "paper", "recommended"), help="ours")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.memory:
        print(measure_memory(options, device))
        return 0
    print(f"{options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    is_held = True
    if options.official:
        is_held = print_differences(options.official, device)
    for batch_size in options.batch_sizes:
        is_held &= print_times(options, batch_size, device)
    print_profile(options.variants[0], max(options.batch_sizes), device)
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


def make_step(model: nn.Module, loss_of: Callable[[Any, Batch], Tensor], batch: Batch) -> Step:
    """Return a function that takes one step of `model` on `batch`."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=loss_of is our_loss)

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = loss_of(model, batch)
        loss.backward()
        optimiser.step()
        return float(loss.detach())

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


def print_differences(folder: Path, device: torch.device) -> bool:
    """Print how much loss and gradients differ from the released ones, in relation to their size; return if little."""
    released, ours = load_released(folder, device), make_method("released", device)
    copy_weights(ours, released)
    batch = make_batch(2, device)
    losses = {}
    for model, loss_of in ((ours, our_loss), (released, released_loss)):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        with without_noise():
            losses[loss_of] = loss_of(model, batch)
        losses[loss_of].backward()
    gradients = {name: weights.grad for name, weights in ours.named_parameters()}
    worst = 0.0
    for name, weights in released.named_parameters():
        gradient = gradients.get(RELEASE.rename(name) or "")
        if weights.grad is not None and gradient is not None:
            largest = weights.grad.abs().max().clamp_min(1e-12)
            worst = max(worst, float((gradient - weights.grad).abs().max() / largest))
    ours_value, released_value = (float(losses[loss_of].detach()) for loss_of in (our_loss, released_loss))
    difference = abs(ours_value - released_value) / released_value
    is_equal = difference <= 1e-5 and worst <= 1e-3
    print(f"loss {ours_value:.6f}, released {released_value:.6f}: relative difference {difference:.1e} (<= 1e-5)")
    print(f"gradients differ by at most {worst:.1e} of their tensor's largest value (<= 1e-3)")
    print(f"equal outputs: {'held' if is_equal else 'BROKEN'}\n")
    return is_equal


def print_times(options: argparse.Namespace, batch_size: int, device: torch.device) -> bool:
    """Let the ways take turns; print seconds, ratios, bounds and memory. Return whether the promise is held."""
    steps = ways(options, batch_size, device)
    times: dict[str, list[float]] = {way: [] for way in steps}
    for step in steps.values():
        step()
    for _ in range(options.rounds):
        for way, step in random.sample(list(steps.items()), len(steps)):
            started = time.perf_counter()
            step()
            times[way].append(time.perf_counter() - started)
    speed = peak_speed(device)
    print(f"batch {batch_size}, medians of {options.rounds} turns; large matrix product: {speed / 1e9:.0f} GFLOP/s")
    print(f"  {'':<14}{'seconds':>9}{'TFLOP':>8}{'bound':>8}{'share':>7}{'GB':>7}")
    for way, taken in times.items():
        operations = count_operations(steps[way])
        median = statistics.median(taken)
        print(
            f"  {way:<14}{median:>9.2f}{operations / 1e12:>8.2f}{operations / speed:>8.2f}"
            f"{100 * operations / speed / median:>6.0f}%{peak_memory(options, way, batch_size):>7.1f}",
            flush=True,
        )
    if "official" not in times:
        print()
        return True
    ratios = [a / b for a, b in zip(times["official"], times["released"], strict=True)]
    ratio = statistics.median(ratios)
    verdict = "held" if ratio >= PROMISED else "BROKEN"
    print(f"  released: {ratio:.2f} times as fast as official (>= {PROMISED:g}: {verdict}; aim {AIM:g})\n")
    return ratio >= PROMISED


def ways(options: argparse.Namespace, batch_size: int, device: torch.device) -> dict[str, Step]:
    """Return {way: a function that takes a step}."""
    batch = make_batch(batch_size, device)
    steps = {variant: make_step(make_method(variant, device), our_loss, batch) for variant in options.variants}
    if options.official:
        steps["official"] = make_step(load_released(options.official, device), released_loss, batch)
    return steps


def count_operations(step: Step) -> int:
    """Return the floating-point operations of a step; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def peak_speed(device: torch.device, size: int = 2048) -> float:
    """Return the floating-point operations per second of a large matrix product, the best of ten."""
    matrix = torch.randn(size, size, device=device)
    taken = []
    for _ in range(10):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        taken.append(time.perf_counter() - started)
    return 2 * size**3 / min(taken)


def peak_memory(options: argparse.Namespace, way: str, batch_size: int) -> float:
    """Return the peak memory, in GB, of a process that takes two steps in one way."""
    command = [sys.executable, __file__, "--memory", way, "--batch-sizes", str(batch_size), "--device", options.device]
    if way == "official":
        command += ["--official", str(options.official)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def measure_memory(options: argparse.Namespace, device: torch.device) -> float:
    """Return the peak memory of this process, or of the GPU, in GB, after two steps."""
    options.variants = () if options.official else (options.memory,)
    for step in ways(options, options.batch_sizes[0], device).values():
        step()
        step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    # The maximum of `getrusage` would include that of the parent.
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024 / 1e9


def print_profile(variant: str, batch_size: int, device: torch.device) -> None:
    """Print the operators that take most of a step's time."""
    step = make_step(make_method(variant, device), our_loss, make_batch(batch_size, device))
    step()
    with torch.profiler.profile() as profile:
        step()
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    print(f"where the time of a step goes ({variant}, batch {batch_size})")
    for row in rows[:14]:
        print(f"  {row.key:<44}{row.count:>7}{100 * row.self_cpu_time_total / total:>7.1f}%")


if __name__ == "__main__":
    sys.exit(main())

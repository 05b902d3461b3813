"""Cost of each backbone at its paper's shapes: parameters, operations per question, milliseconds per training step.

Inputs and weights are random; no store or checkpoint is read. Operations are counted by torch (a multiply-add is two)
for one question in evaluation. A training step is forward, backward and Adam on `--batch` questions; reported is the
median of `--steps` steps after one warm-up step. Compare backbones within one run on one machine only.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from train.backbones.registry import BACKBONES, backbone_variants, make_backbone
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch
from train.runs.presets import PRESETS

STORED = {"vggish": (128,), "resnet18-map": (512, 14, 14), "clip-vit-b32": (50, 512)}
QUESTIONS = {"clip-vit-b32-sentence": (512,), "clip-vit-b32-words": (77, 512)}
WORDS, ANSWERS, TOKENS = 93, 42, 14


@dataclass(frozen=True)
class Cost:
    """The cost of one backbone: floating-point `operations` per question, `milliseconds` per training step."""

    name: str
    time_steps: int
    parameters: int
    operations: int
    milliseconds: float


def main() -> int:
    """Print the table; return 0."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--steps", type=int, default=5)
    options.add_argument("--device", default="cpu")
    chosen = options.parse_args()
    print(f"{chosen.device}, {torch.get_num_threads()} threads, batch {chosen.batch}, torch {torch.__version__}\n")
    print("| backbone | time steps | parameters | GFLOP per question | ms per training step |")
    print("|---|---|---|---|---|")
    for name in BACKBONES:
        for variant in backbone_variants(name) or ("paper",):
            cost = measure(name, variant, chosen.batch, chosen.steps, torch.device(chosen.device))
            print(
                f"| {cost.name} | {cost.time_steps} | {cost.parameters:,} | {cost.operations / 1e9:.2f} "
                f"| {cost.milliseconds:.0f} |",
                flush=True,
            )
    return 0


def measure(name: str, variant: str, batch_size: int, steps: int, device: torch.device) -> Cost:
    """Measure the cost of the `variant` of the backbone `name` at its paper's shapes."""
    torch.manual_seed(0)
    time_steps = PRESETS["paper"].backbones.get(name, {}).get("time_steps", 10)
    sizes = ModelSizes(
        words=WORDS, answers=ANSWERS, input_shapes=STORED, question_shapes=QUESTIONS, time_steps=time_steps
    )
    backbone = make_backbone(name, sizes, variant)
    assert isinstance(backbone, torch.nn.Module)
    backbone.to(device)
    batch = make_batch(batch_size, time_steps, backbone.uses_negatives).to(device)
    label = name if len(backbone_variants(name)) < 2 else f"{name} ({variant})"
    return Cost(
        label,
        time_steps,
        sum(parameter.numel() for parameter in backbone.parameters()),
        count_operations(backbone, batch.select(torch.tensor([0]))),
        time_step(backbone, batch, steps),
    )


def make_batch(rows: int, time_steps: int, negatives: bool) -> Batch:
    """Return a complete batch of random values with every stored feature that a backbone may read."""
    visual = {name: torch.rand(rows, time_steps, *STORED[name]) for name in ("resnet18-map", "clip-vit-b32")}
    mask = torch.ones(rows, time_steps, dtype=torch.bool)
    return Batch(
        question={
            "tokens": torch.randint(1, WORDS, (rows, TOKENS)),
            **{name: torch.randn(rows, *shape) for name, shape in QUESTIONS.items()},
        },
        audio={"vggish": torch.rand(rows, time_steps, *STORED["vggish"])},
        visual=visual,
        audio_mask=mask,
        visual_mask=mask,
        answer=torch.randint(0, ANSWERS, (rows,)),
        type=("",) * rows,
        question_id=tuple(map(str, range(rows))),
        video_id=tuple(map(str, range(rows))),
        negatives={name: values.flip(0) for name, values in visual.items()} if negatives else None,
    )


@torch.no_grad()
def count_operations(backbone: torch.nn.Module, batch: Batch) -> int:
    """Return the floating-point operations of answering `batch`, with the match loss if it has negatives."""
    backbone.eval()
    # The counter misses an LSTM that oneDNN runs as one operation.
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        backbone.answer(backbone.encode(batch))
    backbone.train()
    return int(counter.get_total_flops())


def time_step(backbone: torch.nn.Module, batch: Batch, steps: int) -> float:
    """Return the median milliseconds of a training step."""
    optimiser = torch.optim.Adam(backbone.parameters(), fused=True)
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        answer = backbone.answer(backbone.encode(batch))
        loss = F.cross_entropy(answer.logits, batch.answer) + sum(answer.losses.values())
        loss.backward()
        optimiser.step()
        if batch.answer.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[1:])


if __name__ == "__main__":
    sys.exit(main())

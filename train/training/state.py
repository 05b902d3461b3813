"""What a stopped training needs to go on: weights, moments of the optimiser, averages, and its place in an epoch.

It is one file, `last.safetensors`. Resumed from it, a training computes the same numbers as one that never stopped.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError, one_line
from train import processes
from train.runs.folder import LAST, check_settings, describe_settings, read_tensors, write_tensors
from train.runs.identity import run_id
from train.training.ema import WeightAverage

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class Place:
    """How far an epoch is: training `steps` of a `total` of them, and {name: sum over `questions`} of their losses.

    `seconds`: time taken so far, without validation.
    """

    steps: int = 0
    total: int = 0
    questions: float = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def is_inside(self) -> bool:
        """Whether some steps have been taken and some have not."""
        return 0 < self.steps < self.total

    def add(self, losses: dict[str, float], questions: float) -> None:
        """Add the mean losses of a batch."""
        self.questions += questions
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + loss * questions

    def means(self) -> dict[str, float]:
        """Return {name: mean loss}; a loss that a batch does not have counts as zero there."""
        return {name: value / self.questions for name, value in self.sums.items()}


@dataclass
class History:
    """What a training has done: the metrics of its epochs, and the names of the parameters that got a gradient.

    `place`: in the epoch after those of the metrics; None if it has not begun.
    """

    metrics: list[dict[str, Any]] = field(default_factory=list)
    trained: set[str] = field(default_factory=set)
    place: Place | None = None


def write_state(
    run: Path,
    history: History,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: WeightAverage | None,
    random: dict[str, Tensor],
) -> None:
    """Replace the state of `run`. `random`: of `collect_random` inside an epoch; else torch is seeded again."""
    tensors = {f"model/{name}": values for name, values in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for key, values in optimiser.state.get(parameter, {}).items():
            tensors[f"adam/{name}/{key}"] = values
    if average:
        tensors |= {f"average/{name}": values for name, values in average.state().items()}
    facts: dict[str, Any] = {"run": run_id(run), "metrics": history.metrics, "trained": sorted(history.trained)}
    facts["settings"] = describe_settings(module)
    if history.place is not None:
        facts["place"] = asdict(history.place)
    write_tensors(run / LAST, tensors | random, facts)


def read_state(run: Path, module: nn.Module, variant: str) -> tuple[History, dict[str, Tensor]]:
    """Load the weights of the state of `run` into `module`; return its history and its named tensors.

    Both are empty if the run has no state. Raises `UserError` if it is corrupt or does not fit, or was trained with
    other settings of the `variant`.
    """
    if not (run / LAST).exists():
        return History(), {}
    tensors, facts = read_tensors(run / LAST)
    check_settings(facts, module, variant, run / LAST)
    try:
        module.load_state_dict(select("model/", tensors))
        place = Place(**facts["place"]) if "place" in facts else None
        return History(facts["metrics"], set(facts.get("trained", ())), place), tensors
    except (RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{run / LAST} does not fit the run ({one_line(error)}): train it again") from None


def restore_moments(module: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give a new optimiser of `module` the moments among the `tensors` of a state."""
    moments = select("adam/", tensors)
    for name, parameter in module.named_parameters():
        for key in MOMENTS:
            if f"{name}/{key}" in moments:
                optimiser.state[parameter][key] = moments[f"{name}/{key}"].to(parameter.device)


def collect_random(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators in each process, by name."""
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    of_all = enumerate(processes.collect(own))
    return {f"random/{number}/{kind}": state for number, states in of_all for kind, state in states.items()}


def restore_random(states: dict[str, Tensor], device: torch.device) -> None:
    """Set torch's generators to their `states`, those of `collect_random` without the prefix "random/".

    A state is missing if the run had fewer processes, or was on another kind of device: the generator stays as it is.
    """
    own = select(f"{processes.rank()}/", states)
    if "cpu" in own:
        torch.set_rng_state(own["cpu"])
    if device.type == "cuda" and "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"], device)


def select(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}

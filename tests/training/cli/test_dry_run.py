"""`mavqa-sweep --dry-run`: every model takes one step and answers one batch, and nothing is written."""

import json
from pathlib import Path

import pytest
import torch
from workplace import invoke

from train.methods.drfuse import DrFuse
from train.training import dry_run

PATHS = ("--manifest", "data", "--store", "store.zarr", "--dry-run")
GRID = """
preset = "demo"
backbones = ["avst"]
seeds = [0, 1]
settings = { epochs = 4, batch_size = 8, training = "staged" }
[[methods]]
name = "drfuse"
[[methods]]
name = "retrieval-fill"
[[methods]]
name = "rmm"
options = { slots = 4 }
[[methods]]
name = "prompts"
[[methods]]
name = "pre-training"
objective = "grounding"
"""


@pytest.fixture
def steps(monkeypatch) -> list[str]:
    """The methods that took a step."""
    taken = []
    take_step = dry_run.take_step

    def noted(method, *arguments):
        taken.append(type(method).__name__)
        return take_step(method, *arguments)

    monkeypatch.setattr(dry_run, "take_step", noted)
    return taken


def test_each_model_of_the_first_seed_takes_one_step_and_nothing_is_written(workplace: Path, steps) -> None:
    (workplace / "tiny.toml").write_text(GRID)
    before = sorted(workplace.rglob("*"))
    result = invoke("sweep", "tiny.toml", *PATHS)
    assert result.exit_code == 0, result.output
    assert len(steps) == 5
    names = ["drfuse-seed0", "retrieval-fill-seed0", "rmm-seed0", "prompts-seed0", "pre-training-seed0"]
    assert [line.split()[0] for line in result.stdout.splitlines()] == names
    assert "5 runs for each of 2 seeds" in result.stderr
    assert sorted(workplace.rglob("*")) == before


def test_a_model_that_fails_is_named_and_does_not_stop_the_others(workplace: Path, steps, monkeypatch) -> None:
    def fail(self, batch):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(DrFuse, "predict", fail)
    (workplace / "tiny.toml").write_text(GRID)
    result = invoke("sweep", "tiny.toml", *PATHS, "--json")
    assert result.exit_code == 3
    assert "failed: drfuse-seed0: out of memory" in result.stderr
    found = json.loads(result.stdout)
    assert [bool(tried["failure"]) for tried in found] == [True, False, False, False, False]
    assert len(steps) == 5
    rmm = found[2]
    assert (rmm["sees"], rmm["epochs"]) == ("all", 4)
    assert rmm["steps_per_epoch"] >= rmm["questions"] / 8


@pytest.mark.parametrize("option", [("--out", "runs"), ("--jobs", "2"), ("--tracker", "csv")])
def test_options_that_a_dry_run_does_not_use_are_refused(workplace: Path, option: tuple[str, str]) -> None:
    result = invoke("sweep", "tiny.toml", *PATHS, *option)
    assert result.exit_code == 2
    assert f"--dry-run trains and writes nothing: remove {option[0]}" in result.output

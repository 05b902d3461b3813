"""The commands of stage two, run in this process on small stores."""

from pathlib import Path

from click.testing import CliRunner, Result

from train.cli.evaluate import evaluate
from train.cli.import_ import import_
from train.cli.report import report
from train.cli.sweep import sweep
from train.cli.train import train

COMMANDS = {"train": train, "evaluate": evaluate, "report": report, "sweep": sweep, "import_": import_}
GRID = """
preset = "demo"
settings = {epochs = 1}
[[methods]]
name = "question-only"
inputs = "question"
[[methods]]
name = "zero-fill"
method = "zero-fill"
"""
ON_TINY_DATA = ("--manifest", "data", "--store", "store.zarr", "--device", "cpu")


def invoke(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(COMMANDS[command], [str(argument) for argument in arguments])


def run_tiny_sweep(*options: str) -> Result:
    result = invoke("sweep", "tiny.toml", *ON_TINY_DATA, "--out", "b/runs", *options)
    assert result.exit_code == 0, result.output
    return result


def run_tiny_train(out: Path | str, *options: object, method: str = "zero-fill") -> Result:
    """Train one epoch on the tiny data, unless the options say otherwise, and evaluate the run."""
    settings = ("--preset", "demo", "--method", method, "--epochs", 1)
    return invoke("train", *ON_TINY_DATA, *settings, "--out", out, *options)

"""`mavqa-train` that SIGTERM stops, and with more epochs than the run had."""

import os
import signal
from pathlib import Path

from workplace import ON_TINY_DATA, invoke, run_tiny_train

from train.runs.log import read_metrics


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_command_that_sigterm_stops_exits_with_75_and_says_how_to_go_on(workplace, monkeypatch):
    with monkeypatch.context() as changed:
        changed.setattr("train.training.loop.Loop._validate", lambda training: sigterm())
        result = run_tiny_train("r")
    assert result.exit_code == 75
    assert result.stderr.splitlines()[-1].startswith("stopped: run it with --resume")
    assert invoke("train", "--resume", "--out", "r").exit_code == 0
    monkeypatch.setattr("train.evaluation.evaluate_run.evaluate", lambda *arguments, **settings: sigterm())
    assert run_tiny_train("evaluating").exit_code == 75


def test_epochs_are_raised_by_the_command_and_never_lowered(workplace):
    assert run_tiny_train("r", "--keep-state").exit_code == 0
    raised = invoke("train", "--resume", "--out", "r", "--epochs", 2, "--json")
    assert raised.exit_code == 0, raised.output
    assert [row["epoch"] for row in read_metrics(Path("r"))] == [1, 2]
    for epochs, message in ((1, "was started with epochs 2, not 1"), (3, "without --keep-state")):
        refused = invoke("train", "--resume", "--out", "r", "--epochs", epochs)
        assert refused.exit_code == 2
        assert message in refused.stderr
    assert run_tiny_train("s", "--keep-state", "--set", "training=staged", "--epochs", 2, method="rmm").exit_code == 0
    refused = invoke("train", *ON_TINY_DATA, "--resume", "--out", "s", "--epochs", 4)
    assert "its stages are shares of them" in refused.stderr

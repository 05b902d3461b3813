"""A training that is stopped inside an epoch, by a signal, a full disk or a lost device, and one with more epochs."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import paths
import pytest
import torch
from tiny_run import Killed, train

from pipeline.errors import Stopped, UserError
from train.data.dataset import QuestionDataset
from train.methods.registry import METHODS
from train.runs.folder import read_config, read_tensors, write_tensors
from train.runs.identity import run_id
from train.runs.log import read_metrics
from train.training import loop
from train.training.stopping import StopSignal

OFTEN = 1e-9  # minutes: after every step
FILES = ("checkpoint.safetensors", "last.safetensors", "metrics.jsonl", "config.json")


def settings_of(method: str) -> dict:
    named = {"inputs": "question"} if method == "reference" else {"method": method}
    return {**named, "training": "staged", "ema_decay": 0.5, "batch_size": 8, "accumulate": 3}


def at_step(epoch: int, step: int, action):
    def report(progress):
        if (progress.epoch, progress.step) == (epoch, step) and progress.validation is None:
            action()

    return report


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


def kill():
    raise Killed


def assert_equal_runs(first: Path, second: Path) -> None:
    for file in FILES:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_sigterm_stops_inside_an_epoch_resumes_to_the_same_bytes(tmp_path, method):
    settings = settings_of(method)
    train(tmp_path / "uninterrupted", **settings)
    for epoch, step in ((1, 1), (3, 1)):
        with pytest.raises(Stopped):
            train(tmp_path / "stopped", **settings, resume=True, report=at_step(epoch, step, sigterm))
        _, facts = read_tensors(tmp_path / "stopped" / "last.safetensors")
        assert (len(facts["metrics"]), facts["place"]["steps"]) == (epoch - 1, step)
    train(tmp_path / "stopped", **settings, resume=True)
    assert_equal_runs(tmp_path / "uninterrupted", tmp_path / "stopped")


def test_sigterm_before_the_first_step_of_a_resumed_epoch_loses_nothing(tmp_path, monkeypatch):
    train(tmp_path / "uninterrupted", dropout=0.5)
    with pytest.raises(Stopped):
        train(tmp_path / "stopped", dropout=0.5, report=at_step(2, 2, sigterm))
    partition = QuestionDataset.partition
    with monkeypatch.context() as changed:
        changed.setattr(QuestionDataset, "partition", lambda self, *of_epoch: sigterm() or partition(self, *of_epoch))
        with pytest.raises(Stopped):
            train(tmp_path / "stopped", dropout=0.5, resume=True)
    train(tmp_path / "stopped", dropout=0.5, resume=True)
    assert_equal_runs(tmp_path / "uninterrupted", tmp_path / "stopped")


def test_a_resumed_training_does_not_keep_the_state_in_memory(tmp_path, monkeypatch):
    kept = []
    read = loop.read_state

    def read_and_watch(*of_run):
        history, stored = read(*of_run)
        kept.extend(weakref.ref(values) for name, values in stored.items() if name.startswith("model/"))
        return history, stored

    with pytest.raises(Stopped):
        train(tmp_path / "run", report=at_step(2, 2, sigterm))
    monkeypatch.setattr("train.training.loop.read_state", read_and_watch)
    counts = []
    train(tmp_path / "run", resume=True, report=lambda progress: counts.append(sum(one() is not None for one in kept)))
    assert kept
    assert counts[0] == 0


@pytest.mark.parametrize("step", [1, 2])
def test_a_run_that_is_killed_inside_an_epoch_resumes_from_the_last_written_state(tmp_path, step):
    settings = settings_of("rmm")
    train(tmp_path / "uninterrupted", **settings)
    with pytest.raises(Killed):
        train(tmp_path / "stopped", **settings, save_minutes=OFTEN, report=at_step(2, step, kill))
    _, facts = read_tensors(tmp_path / "stopped" / "last.safetensors")
    assert facts.get("place", {"steps": 0})["steps"] == step - 1
    steps = []
    train(tmp_path / "stopped", **settings, resume=True, report=lambda progress: steps.append(progress.step))
    assert steps[0] == step
    assert_equal_runs(tmp_path / "uninterrupted", tmp_path / "stopped")


def test_the_state_is_not_written_more_often_than_asked(tmp_path, monkeypatch):
    written = []
    write = loop.write_state
    monkeypatch.setattr("train.training.loop.write_state", lambda *state: written.append(1) or write(*state))
    train(tmp_path / "run", epochs=2)
    assert len(written) == 2
    train(tmp_path / "often", epochs=2, batch_size=8, save_minutes=OFTEN, report=lambda progress: None)
    assert len(written) > 2 + 2 * 2


@pytest.mark.parametrize("when", ["validation", "between"])
def test_sigterm_outside_a_step_saves_the_steps_that_were_taken(tmp_path, monkeypatch, when):
    train(tmp_path / "uninterrupted")
    train_epoch, validate = loop.Loop._train_epoch, loop.Loop._validate

    def stop_between(self, *arguments):
        rate = train_epoch(self, *arguments)
        sigterm()
        return rate

    def stop_in_validation(self):
        sigterm()
        return validate(self)

    change = ("_train_epoch", stop_between) if when == "between" else ("_validate", stop_in_validation)
    with monkeypatch.context() as changed:
        changed.setattr(loop.Loop, *change)
        with pytest.raises(Stopped):
            train(tmp_path / "stopped")
    steps = []
    train(tmp_path / "stopped", resume=True, report=lambda progress: steps.append(progress))
    assert steps[0].validation is not None  # no step of the first epoch is trained again
    assert_equal_runs(tmp_path / "uninterrupted", tmp_path / "stopped")


def test_a_training_outside_the_main_thread_does_not_listen(tmp_path):
    failures = []

    def work():
        try:
            train(tmp_path / "run", epochs=1)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures


def test_the_handler_of_the_program_is_set_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal():
        with StopSignal(), pytest.raises(Stopped):
            sigterm()
        with pytest.raises(Stopped):
            sigterm()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_deferred_signal_lets_the_block_end():
    done = []

    def block(stop):
        with stop.deferred():
            sigterm()
            done.append(stop.is_set)

    with StopSignal() as stop, pytest.raises(Stopped):
        block(stop)
    assert done == [True]


def test_a_second_signal_does_not_interrupt_what_the_first_one_began():
    with StopSignal():
        with pytest.raises(Stopped):
            sigterm()
        sigterm()


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
import tiny_run
def stop(progress):
    if (progress.epoch, progress.step) == (2, 2):
        os.kill(os.getpid(), signal.SIGKILL)
tiny_run.train(Path({run!r}), report=stop, save_minutes=1e-9)
"""


def test_a_run_killed_with_sigkill_inside_an_epoch_resumes_to_the_same_bytes(tmp_path):
    script = KILLED_RUN.format(tests=str(paths.TRAINING), root=str(paths.ROOT), run=str(tmp_path / "stopped"))
    ended = subprocess.run([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(read_metrics(tmp_path / "stopped")) == 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(tmp_path / "stopped", resume=True)
    train(tmp_path / "uninterrupted")
    torch.set_num_threads(threads)
    assert_equal_runs(tmp_path / "uninterrupted", tmp_path / "stopped")


def test_a_full_disk_is_one_line_and_leaves_the_last_state(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run" / "last.safetensors"))

    write = loop.write_state
    written = []

    def write_once(*state):
        if written:
            full()
        written.append(write(*state))

    train(tmp_path / "uninterrupted")
    monkeypatch.setattr("train.training.loop.write_state", write_once)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path / "run")
    monkeypatch.undo()
    assert len(read_tensors(tmp_path / "run" / "last.safetensors")[1]["metrics"]) == 1
    train(tmp_path / "run", resume=True)
    assert_equal_runs(tmp_path / "uninterrupted", tmp_path / "run")


FAILURES = [
    (lambda: torch.AcceleratorError("CUDA error: unspecified launch failure", 719), "device cpu failed"),
    (lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "lower batch_size"),
]


@pytest.mark.parametrize(("failure", "message"), FAILURES)
def test_a_lost_device_is_one_line_and_leaves_the_last_state(tmp_path, failure, message):
    def fail():
        raise failure()

    train(tmp_path / "uninterrupted")
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", save_minutes=OFTEN, report=at_step(2, 2, fail))
    train(tmp_path / "run", resume=True)
    assert_equal_runs(tmp_path / "uninterrupted", tmp_path / "run")


def test_a_finished_run_whose_state_was_kept_trains_more_epochs(tmp_path):
    train(tmp_path / "long", epochs=4)
    train(tmp_path / "short", epochs=2)
    train(tmp_path / "short", epochs=4, resume=True)
    assert_equal_runs(tmp_path / "long", tmp_path / "short")


def test_more_epochs_without_a_better_one_keep_the_checkpoint(tmp_path, monkeypatch):
    accuracies = iter((50.0, 10.0, 20.0))
    monkeypatch.setattr("train.training.loop.Loop._validate", lambda training: {"audio-missing": next(accuracies)})
    train(tmp_path / "run", epochs=1)
    with monkeypatch.context() as changed:
        changed.setattr("train.training.fit._adopt_checkpoint", lambda *of_run: kill())
        # The number of epochs is written, the checkpoint does not have the run's new id yet.
        with pytest.raises(Killed):
            train(tmp_path / "run", epochs=3, resume=True)
    assert read_config(tmp_path / "run").epochs == 3
    train(tmp_path / "run", epochs=3, resume=True)
    assert read_tensors(tmp_path / "run" / "checkpoint.safetensors")[1]["epoch"] == 1


def test_epochs_raised_twice_before_the_first_step_keep_the_checkpoint(tmp_path, monkeypatch):
    accuracies = iter((50.0, 10.0, 20.0))
    monkeypatch.setattr("train.training.loop.Loop._validate", lambda training: {"audio-missing": next(accuracies)})
    train(tmp_path / "run", epochs=1)
    with pytest.raises(Killed):
        train(tmp_path / "run", epochs=2, resume=True, report=at_step(2, 1, kill))
    train(tmp_path / "run", epochs=3, resume=True)
    assert read_tensors(tmp_path / "run" / "checkpoint.safetensors")[1]["epoch"] == 1


def test_a_stopped_run_of_a_version_with_fewer_settings_keeps_its_checkpoint(tmp_path, monkeypatch):
    accuracies = iter((50.0, 10.0))
    monkeypatch.setattr("train.training.loop.Loop._validate", lambda training: {"audio-missing": next(accuracies)})
    run = tmp_path / "run"
    with pytest.raises(Killed):
        train(run, epochs=2, report=at_step(2, 1, kill))
    settings = json.loads((run / "config.json").read_text())
    del settings["precision"], settings["accumulate"]
    (run / "config.json").write_text(json.dumps(settings))
    for file in ("checkpoint.safetensors", "last.safetensors"):
        tensors, facts = read_tensors(run / file)
        of_version = {"run": run_id(run)} if file.startswith("checkpoint") else {}
        write_tensors(run / file, tensors, {name: facts[name] for name in facts if name != "run"} | of_version)
    train(run, epochs=2, resume=True)
    assert read_tensors(run / "checkpoint.safetensors")[1]["epoch"] == 1


def test_a_foreign_checkpoint_is_not_adopted(tmp_path, monkeypatch):
    accuracies = iter((50.0, 50.0, 10.0))
    monkeypatch.setattr("train.training.loop.Loop._validate", lambda training: {"audio-missing": next(accuracies)})
    train(tmp_path / "run", epochs=1)
    train(tmp_path / "other", epochs=1, seed=9)
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes((tmp_path / "other/checkpoint.safetensors").read_bytes())
    with pytest.raises(UserError, match="other settings or data"):
        train(tmp_path / "run", epochs=2, resume=True)

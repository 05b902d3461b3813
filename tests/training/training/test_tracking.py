"""Trackers: what they receive, that a resumed training's log is that of an uninterrupted one, and failures."""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_run import Killed, tiny_config, train
from tiny_store import make_store

from pipeline.errors import Stopped, UserError
from train import processes
from train.runs import steps
from train.runs.log import read_metrics
from train.runs.steps import STEPS, StepsFile, read_steps
from train.training import loop, tracking
from train.training.loop import Progress
from train.training.sweep import Grid, list_cells, run_cells
from train.training.tensorboard import FOLDER
from train.training.tracking import TRACKERS, make_tracker, tracked

# Five steps an epoch; not all of them have every loss.
SETTINGS = {"method": "shaspec", "batch_size": 8, "epochs": 2}
OF_EPOCH = 5


@pytest.fixture(scope="module")
def store():
    return make_store(videos=24)


def track(run: Path, *names: str, store, report=None, resume=False, **settings):
    settings = {**SETTINGS, **settings}
    with tracked(names, tiny_config(**settings), run, report) as record:
        train(run, store, report=record, resume=resume, **settings)


def at(step: int, end: type[BaseException] | None):
    """Return a `report` that ends the training at a step: by SIGTERM, or by an error."""

    def report(progress):
        if (progress.epoch - 1) * progress.steps + progress.step == step and progress.validation is None:
            if end is None:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                raise end

    return report


@pytest.fixture
def received(monkeypatch):
    """What the tracker "recorder" receives, [(method, arguments)]; its method `fails` raises."""

    class Received(list):
        fails = ""

        def __getattr__(self, method):
            def call(*arguments):
                if method == self.fails:
                    raise ConnectionError("no route to host")
                self.append((method, *arguments))

            return call

        def of(self, method):
            return [arguments for name, *arguments in self if name == method]

        @property
        def methods(self):
            return [name for name, *_ in self]

    calls = Received()
    monkeypatch.setattr(tracking, "make_recorder", lambda: calls, raising=False)
    monkeypatch.setitem(TRACKERS, "recorder", "train.training.tracking:make_recorder")
    return calls


def train_two_epochs(report) -> None:
    """Report as a training of two steps an epoch."""
    for epoch in (1, 2):
        for step in (1, 2):
            report(Progress(epoch, 2, step, 2, {"total": 3.0}, 0.1, None, {"total": float(step)}))
        report(Progress(epoch, 2, 2, 2, {"total": 3.0}, 0.1, {"complete": 50.0}))


def test_a_tracker_receives_the_steps_and_the_epochs_and_is_closed(tmp_path, store, received):
    track(tmp_path, "recorder", store=store)
    of_epoch = [*OF_EPOCH * ["log_step"], "log_epoch"]
    assert received.methods == ["start", *of_epoch, *of_epoch, "close"]
    ((run, settings, first),) = received.of("start")
    assert (run, settings["method"], settings["batch_size"], first) == (tmp_path, "shaspec", 8, 1)
    taken, metrics = received.of("log_step"), read_metrics(tmp_path)
    assert [(step, values["epoch"]) for step, values in taken] == [(step, step / OF_EPOCH) for step in range(1, 11)]
    assert {values["learning_rate"] for _, values in taken} == {metrics[0]["learning_rate"]}
    named = [{f"validation/{name}": score for name, score in row["validation"].items()} for row in metrics]
    assert received.of("log_epoch") == [[5, named[0]], [10, named[1]]]


def test_the_losses_of_steps_of_equal_size_average_to_those_of_their_epoch(tmp_path, store, received):
    track(tmp_path, "recorder", store=store, method="zero-fill", batch_size=1, epochs=1)
    (metrics,) = read_metrics(tmp_path)
    for name, mean in metrics["losses"].items():
        of_steps = [values[f"loss/{name}"] for _, values in received.of("log_step")]
        assert sum(of_steps) / len(of_steps) == pytest.approx(mean, rel=1e-6)
        assert len(set(of_steps)) > 1


def test_the_norm_of_the_gradient_is_that_before_clipping(tmp_path, store, received):
    for clip_norm in (1e-3, 1e3, None):
        track(tmp_path / str(clip_norm), "recorder", store=store, method="zero-fill", epochs=1, clip_norm=clip_norm)
    small, large, without = (values for step, values in received.of("log_step") if step == 1)
    assert small["gradient_norm"] == pytest.approx(large["gradient_norm"], rel=1e-6)
    assert large["gradient_norm"] == without["gradient_norm"]
    assert 1e-3 < small["gradient_norm"] < 1e3


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, store):
    run = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "PARTS_OF_EPOCH", 3)
        track(run, "csv", "tensorboard", store=store)
    return run


@pytest.mark.parametrize(("step", "end"), [(3, None), (5, None), (5, Killed), (8, Killed)])
def test_the_log_of_a_resumed_training_is_that_of_an_uninterrupted_one(
    tmp_path, store, monkeypatch, uninterrupted, step, end
):
    monkeypatch.setattr(steps, "PARTS_OF_EPOCH", 3)
    with pytest.raises(end or Stopped):
        track(tmp_path, "csv", "tensorboard", store=store, report=at(step, end))
    # A killed one goes on from the end of the epoch before, and had more steps than that.
    assert read_steps(tmp_path)[-1]["step"] == step
    # TensorBoard reads files in the order of their names: the second of their creation, and then the text of a number.
    later = SimpleNamespace(**{**vars(time), "time": lambda: time.time() + 60})
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", later)
    track(tmp_path, "csv", "tensorboard", store=store, resume=True)
    assert (tmp_path / STEPS).read_bytes() == (uninterrupted / STEPS).read_bytes()
    assert read_events(tmp_path) == read_events(uninterrupted)


def read_events(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / FOLDER)).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_every_step_and_epoch_and_the_settings(uninterrupted):
    events, metrics = read_events(uninterrupted), read_metrics(uninterrupted)
    assert [step for step, _ in events["loss/total"]] == list(range(1, 11))
    for name in metrics[0]["validation"]:
        assert events[f"validation/{name}"] == [
            (OF_EPOCH * row["epoch"], pytest.approx(row["validation"][name])) for row in metrics
        ]
    (file,) = (uninterrupted / FOLDER).iterdir()
    assert b'    method: "shaspec"\n' in file.read_bytes()


def test_tensorboard_has_every_step_that_a_killed_training_took(tmp_path):
    tracker = make_tracker("tensorboard")
    tracker.start(tmp_path, {}, 1)
    tracker.log_step(1, {"loss/total": 2.0})
    assert read_events(tmp_path) == {"loss/total": [(1, 2.0)]}
    tracker.close()


@pytest.mark.parametrize("when", ["write_time", "write_metrics"])
def test_sigterm_while_an_epoch_is_saved_loses_no_accuracies(tmp_path, store, received, monkeypatch, when):
    write = getattr(loop, when)
    monkeypatch.setattr(loop, when, lambda *arguments: os.kill(os.getpid(), signal.SIGTERM) or write(*arguments))
    with pytest.raises(Stopped):
        track(tmp_path, "recorder", store=store)
    assert received.methods[-2:] == ["log_epoch", "close"]


@pytest.mark.parametrize("failing", ["start", "log_step", "log_epoch", "close"])
def test_a_tracker_that_fails_is_logged_in_one_line_and_the_training_goes_on(tmp_path, received, caplog, failing):
    received.fails = failing
    reports = []
    with tracked(["recorder", "csv"], tiny_config(), tmp_path, reports.append) as report:
        train_two_epochs(report)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"tracker 'recorder' of {tmp_path} failed, the training goes on without it: ConnectionError: no route to host"
    )
    assert len(reports) == 6
    assert [row["step"] for row in read_steps(tmp_path)] == [1, 2, 3, 4]
    before = {"start": [], "log_step": ["start"], "log_epoch": ["start", "log_step", "log_step"]}
    assert failing == "close" or received.methods == before[failing]


@pytest.mark.parametrize("end", [None, UserError, KeyboardInterrupt], ids=["sigterm", "error", "ctrl-c"])
def test_a_tracker_is_closed_when_the_training_ends_early(tmp_path, store, received, end):
    with pytest.raises(end or Stopped):
        track(tmp_path, "recorder", store=store, report=at(3, end))
    assert received.methods == ["start", "log_step", "log_step", "log_step", "close"]


def test_only_the_first_of_several_processes_records(tmp_path, received, monkeypatch):
    monkeypatch.setattr(processes, "rank", lambda: 1)
    with tracked(["recorder"], tiny_config(), tmp_path) as report:
        train_two_epochs(report)
    assert received == []


def test_a_finished_run_starts_no_tracker(tmp_path, store, received):
    track(tmp_path, store=store, epochs=1)
    track(tmp_path, "recorder", store=store, epochs=1, resume=True)
    assert received == []


def test_an_unknown_tracker_and_one_that_is_not_installed_are_named_before_the_training(tmp_path, monkeypatch):
    hint = r"tracker 'tensorbord' is unknown \(did you mean 'tensorboard'\?\): choose one of csv, tensorboard"
    with pytest.raises(UserError, match=hint), tracked(["tensorbord"], tiny_config(), tmp_path):
        pytest.fail("trained")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"^tracker 'tensorboard' .*: pip install 'mavqa\[tensorboard\]'$"):
        make_tracker("tensorboard")
    grid = list_cells(Grid.model_validate({"methods": [{"name": "zero-fill"}]}), None, "m", "s")
    with pytest.raises(UserError, match=r"mavqa\[tensorboard\]"):
        run_cells(grid, None, None, tmp_path, trackers=["tensorboard"])
    assert list(tmp_path.iterdir()) == []


def write_steps(file: StepsFile, first: int, last: int, steps_of_epoch: int, **values: float) -> None:
    for step in range(first, last + 1):
        file.log_step(step, {"epoch": step / steps_of_epoch, "loss/total": float(step), **values})


def test_finished_epochs_have_a_row_per_hundredth(tmp_path):
    file = StepsFile()
    file.start(tmp_path, {}, 1)
    write_steps(file, 1, 250, 250)
    assert len(read_steps(tmp_path)) == 250
    file.log_epoch(250, {})
    rows = read_steps(tmp_path)
    assert len(rows) == 100
    # Of 2.5 steps; the first part has the steps 1 and 2, the second one 3, 4 and 5.
    assert [(row["step"], row["loss/total"]) for row in rows[:3]] == [(2, 1.5), (5, 4.0), (7, 6.5)]
    assert (rows[-1]["step"], rows[-1]["epoch"]) == (250, 1.0)
    write_steps(file, 251, 260, 250)
    assert [row["step"] for row in read_steps(tmp_path)[99:]] == [250, *range(251, 261)]


def test_a_loss_that_not_all_steps_have_is_the_mean_of_those_that_have_it(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "PARTS_OF_EPOCH", 2)
    file = StepsFile()
    file.start(tmp_path, {}, 1)
    write_steps(file, 1, 3, 4)
    write_steps(file, 4, 4, 4, **{"loss/late": 6.0})
    file.log_epoch(4, {})
    first, second = read_steps(tmp_path)
    assert "loss/late" not in first
    assert second["loss/late"] == 6.0


def test_a_log_that_a_full_disk_cut_is_continued_and_a_corrupt_one_is_named(tmp_path):
    file = StepsFile()
    file.start(tmp_path, {}, 1)
    write_steps(file, 1, 3, 10)
    path = tmp_path / STEPS
    path.write_text(path.read_text()[:-2])
    assert [row["step"] for row in read_steps(tmp_path)] == [1, 2]
    path.write_text("step,epoch\n1,x\n")
    with pytest.raises(UserError, match=r"steps.csv is not a log of training steps \(.*'x'\): remove it"):
        read_steps(tmp_path)
    path.write_text("epoch\n1\n")
    with pytest.raises(UserError, match="is not a log"):
        read_steps(tmp_path)

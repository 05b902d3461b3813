"""Jobs in several processes: their order, their reports, errors, dead processes and interrupts."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Stopped, UserError
from train.training.parallel import Report, run_in_turn, run_jobs

SEATS = ({"SEAT": "left"}, {"SEAT": "right"})


def report_and_touch(folder: Path, name: str, report: Report) -> None:
    """Report the process with its seat, and the finished jobs, then finish."""
    report(((os.getpid(), os.environ["SEAT"]), sorted(path.name for path in folder.iterdir())))
    time.sleep(0.05)
    (folder / name).touch()


def fail_if_bad(folder: Path, error: type[Exception], name: str, report: Report) -> None:
    """Raise in the job "bad"; the others end a second after it has begun, however slowly its process starts."""
    (folder / name).touch()
    if name == "bad":
        raise error("the bad job")
    _wait(lambda: (folder / "bad").exists())
    time.sleep(1)


def report_and_fail(folder: Path, name: str, report: Report) -> None:
    """Report often; the job "dead" is killed meanwhile, "bad" ends, with an error, after "late" has begun."""
    (folder / name).write_text(os.environ["SEAT"])
    for number in range(2000):
        report(number)
        if name == "dead" and number == 1000:
            os.kill(os.getpid(), signal.SIGKILL)
    if name == "bad":
        _wait(lambda: (folder / "late").exists())
        raise UserError("the bad job")


def report_process(name: str, report: Report) -> None:
    report(os.getpid())
    if name == "bad":
        raise UserError("the bad job")


def report_often(name: str, report: Report) -> None:
    for number in range(20_000):
        report("x" * 50 + str(number))


def run_two_at_a_time(jobs: str, work, depends_on: dict[str, str] | None = None) -> list[tuple[str, object]]:
    """Run jobs with space-separated names in two processes; return (name, report) in the order of arrival."""
    reports, failures = run_both(jobs, work, depends_on)
    assert failures == {}
    return reports


def run_both(
    jobs: str, work, depends_on: dict[str, str] | None = None
) -> tuple[list[tuple[str, object]], dict[str, str]]:
    """Return the reports and the failures; check that the end of every job is reported once."""
    reports: list[tuple[str, object]] = []
    names = jobs.split()
    failures = run_jobs(
        dict(zip(names, names, strict=True)), depends_on or {}, work, SEATS, lambda *report: reports.append(report)
    )
    assert sorted(name for name, report in reports if report is None) == sorted(names)
    return [(name, report) for name, report in reports if report is not None], failures


def test_a_job_waits_for_its_dependency_in_one_of_the_processes(tmp_path: Path) -> None:
    depends_on = {"late": "early", "early": "finished before"}
    reports = dict(run_two_at_a_time("late early other", partial(report_and_touch, tmp_path), depends_on))
    assert "early" in reports["late"][1]
    assert len(list(tmp_path.iterdir())) == 3
    processes = {process for process, _ in reports.values()}
    assert sorted(seat for _, seat in processes) == ["left", "right"]


def test_a_failed_job_or_dead_process_stops_only_the_jobs_that_depend_on_it(tmp_path: Path) -> None:
    depends_on = {"next": "after", "after": "bad"}
    reports, failures = run_both("next dead bad after late", partial(report_and_fail, tmp_path), depends_on)
    assert "died (out of memory?)" in failures.pop("dead")
    assert failures == {
        "bad": "the bad job",
        "after": "skipped, it starts from bad",
        "next": "skipped, it starts from after",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"dead", "bad", "late"}
    assert [sum(name == job for name, _ in reports) for job in ("bad", "late")] == [2000, 2000]
    assert (tmp_path / "late").read_text() == (tmp_path / "dead").read_text()  # a new process has the dead one's place


def test_a_process_runs_one_job_after_another() -> None:
    processes = dict(run_two_at_a_time("first second third", report_process, {"second": "first", "third": "second"}))
    assert len(processes) == 3
    assert len(set(processes.values())) == 1


def test_after_a_failed_job_the_next_one_has_a_new_process() -> None:
    processes: dict[str, int] = {}
    jobs = {name: name for name in ("first", "bad", "next")}
    run_jobs(jobs, {}, report_process, [{}], lambda name, process: process and processes.update({name: process}))
    assert processes["first"] == processes["bad"] != processes["next"]


@pytest.mark.parametrize("error", [UserError, PermissionError])
def test_jobs_in_turn_fail_as_in_parallel(tmp_path: Path, error: type[Exception]) -> None:
    ended: list[str] = []
    names = ["bad", "good", "after", "later"]
    work = partial(fail_if_bad, tmp_path, error)
    failures = run_in_turn(
        dict(zip(names, names, strict=True)),
        {"after": "bad", "later": "good"},
        work,
        lambda name, report: ended.append(name),
    )
    assert failures == {"bad": "the bad job", "after": "skipped, it starts from bad"}
    assert ended == names


def test_a_bug_in_a_job_is_raised_and_no_other_job_starts(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="the bad job"):
        run_both("bad parallel later last", partial(fail_if_bad, tmp_path, ZeroDivisionError))
    assert {path.name for path in tmp_path.iterdir()} <= {"bad", "parallel"}


def wait_for_sigterm(folder: Path, name: str, report: Report) -> None:
    """Wait for SIGTERM: "training" does in its first step, "stubborn" ignores it, any other job has no handler."""
    if name == "training":
        from tiny_run import train

        def wait(progress: Any) -> None:
            report("ready")
            _wait(lambda: signal.getsignal(signal.SIGTERM).__self__.is_set)  # type: ignore[union-attr]

        train(folder / name, report=wait)
    if name == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report("ready")
    time.sleep(600)


def test_sigterm_is_passed_on_and_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.runs.folder import read_tensors  # with torch, which the processes of the other tests do not import

    before, ready, ended = signal.getsignal(signal.SIGTERM), [], []

    def progress(name: str, content: object) -> None:
        (ready if content == "ready" else ended).append(name)
        if content == "ready" and len(ready) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        if name == "training" and content is None:
            monkeypatch.setattr("train.training.parallel.STOP_SECONDS", 0.0)

    jobs = {name: name for name in ("training", "plain", "stubborn", "later")}
    with pytest.raises(Stopped):
        run_jobs(jobs, {}, partial(wait_for_sigterm, tmp_path), [{}] * 3, progress)
    assert sorted(ready) == sorted(ended) == ["plain", "stubborn", "training"]
    assert ended[-1] == "stubborn"
    assert read_tensors(tmp_path / "training" / "last.safetensors")[1]["place"]["steps"] == 1
    assert signal.getsignal(signal.SIGTERM) == before
    assert multiprocessing.active_children() == []


def test_jobs_that_depend_on_each_other_are_an_error() -> None:
    with pytest.raises(ValueError, match="depend on each other: a, b"):
        run_two_at_a_time("a b", report_often, {"a": "b", "b": "a"})


def test_an_interrupt_ends_running_jobs_and_starts_no_other(tmp_path: Path) -> None:
    parent = _start_parent(tmp_path, "a b c d")
    _wait(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    os.killpg(parent.pid, signal.SIGINT)
    parent.wait(timeout=60)
    assert len(list(tmp_path.glob("*.pid"))) == 2
    for pid in tmp_path.glob("*.pid"):
        _wait(lambda pid=pid: _has_ended(pid.read_text()))


def test_no_report_is_lost_however_many_there_are() -> None:
    assert len(run_two_at_a_time("a b", report_often)) == 40_000


def write_pid_and_sleep(folder: Path, name: str, report: Report) -> None:
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    time.sleep(600)


def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    parent = _start_parent(tmp_path, "a")
    pid = tmp_path / "a.pid"
    _wait(lambda: pid.exists() and pid.read_text())
    parent.kill()
    parent.wait()
    _wait(lambda: _has_ended(pid.read_text()))


def _start_parent(folder: Path, jobs: str) -> subprocess.Popen[bytes]:
    program = (
        "import signal, sys; from functools import partial; from pathlib import Path; import test_parallel as t\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite started in the background ignores it\n"
        "work = partial(t.write_pid_and_sleep, Path(sys.argv[1]))\n"
        "if __name__ == '__main__': t.run_two_at_a_time(sys.argv[2], work)\n"
    )
    (folder / "program.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, folder / "program.py", folder, jobs]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _has_ended(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def _wait(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("the condition was not met within a minute")

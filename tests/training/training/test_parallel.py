"""Pieces of work in several processes: their order, what they say, what becomes of errors and dead processes."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import UserError
from train.training.parallel import Report, available_cores, run_jobs


def leave_a_mark(folder: Path, name: str, report: Report) -> None:
    """Say how many threads there are and which pieces are done, then be done."""
    import torch

    report((torch.get_num_threads(), sorted(path.name for path in folder.iterdir())))
    time.sleep(0.05)
    (folder / name).touch()


def refuse(folder: Path, name: str, report: Report) -> None:
    (folder / name).touch()
    if name == "bad":
        raise UserError("the bad piece")
    time.sleep(1)


def die(name: str, report: Report) -> None:
    for number in range(2000):
        report(number)
        if name == "a" and number == 1000:
            os.kill(os.getpid(), signal.SIGKILL)


def talk(name: str, report: Report) -> None:
    for number in range(20_000):
        report("x" * 50 + str(number))


def work(pieces: str, task, builds_on: dict[str, str] | None = None) -> list[tuple[str, object]]:
    heard: list[tuple[str, object]] = []
    names = pieces.split()
    run_jobs(dict(zip(names, names, strict=True)), builds_on or {}, task, 2, lambda *said: heard.append(said))
    return heard


def test_a_piece_waits_for_the_one_it_builds_on_and_cores_are_shared(tmp_path: Path) -> None:
    heard = dict(
        work("late early other", partial(leave_a_mark, tmp_path), {"late": "early", "early": "finished before"})
    )
    assert "early" in heard["late"][1]
    assert {threads for threads, _ in heard.values()} == {max(1, available_cores() // 2)}
    assert len(list(tmp_path.iterdir())) == 3


def test_the_error_of_a_piece_comes_back_and_nothing_new_begins(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the bad piece"):
        work("bad beside later last", partial(refuse, tmp_path))
    assert {path.name for path in tmp_path.iterdir()} <= {"bad", "beside"}


def test_a_process_that_dies_is_named_as_that_while_another_talks() -> None:
    with pytest.raises(UserError, match="died"):
        work("a b", die)


def test_pieces_that_wait_for_one_another_are_refused() -> None:
    with pytest.raises(ValueError, match="wait for one another: a, b"):
        work("a b", talk, {"a": "b", "b": "a"})


def test_an_interrupt_ends_what_runs_and_begins_nothing(tmp_path: Path) -> None:
    parent = _start_parent(tmp_path, "a b c d")
    _wait(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    os.killpg(parent.pid, signal.SIGINT)
    parent.wait(timeout=60)
    assert len(list(tmp_path.glob("*.pid"))) == 2
    for pid in tmp_path.glob("*.pid"):
        _wait(lambda pid=pid: _is_over(pid.read_text()))


def test_everything_said_is_heard_however_much_it_is() -> None:
    assert len(work("a b", talk)) == 40_000


def wait_for_the_end(folder: Path, name: str, report: Report) -> None:
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    time.sleep(600)


def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    parent = _start_parent(tmp_path, "a")
    pid = tmp_path / "a.pid"
    _wait(lambda: pid.exists() and pid.read_text())
    parent.kill()
    parent.wait()
    _wait(lambda: _is_over(pid.read_text()))


def _start_parent(folder: Path, pieces: str) -> subprocess.Popen[bytes]:
    program = (
        "import signal, sys; from functools import partial; from pathlib import Path; import test_parallel as t\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite started in the background ignores it\n"
        "if __name__ == '__main__': t.work(sys.argv[2], partial(t.wait_for_the_end, Path(sys.argv[1])))\n"
    )
    (folder / "program.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, folder / "program.py", folder, pieces]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _is_over(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def _wait(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it never happened")

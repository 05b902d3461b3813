"""What all commands share: warnings of libraries stay hidden; Ctrl-C and errors of the system are one line."""

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline.cli.command import Command
from pipeline.errors import is_user_error
from pipeline.manifests.manifest import Manifest, Video, save_manifest


def test_warnings_of_libraries_do_not_reach_users_nor_child_processes():
    child = [sys.executable, "-c", "import warnings; warnings.warn('from a child')"]

    def work() -> None:
        warnings.warn("from a library", stacklevel=1)
        click.echo(subprocess.run(child, capture_output=True, text=True, check=True).stderr)

    before = dict(os.environ)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        shown = CliRunner().invoke(Command("work", callback=work))
    assert shown.output.strip() == ""
    assert seen == []
    assert dict(os.environ) == before


INTERRUPTED = """
import asyncio
from pipeline.cli.command import Command

def work():
    loop = asyncio.new_event_loop()
    loop.create_task(asyncio.sleep(60))
    loop.call_soon(loop.stop)
    loop.run_forever()
    globals()["never_awaited"] = asyncio.sleep(60)
    raise KeyboardInterrupt

Command("work", callback=work, on_interrupt="add --resume").main([])
"""


def test_ctrl_c_is_one_line_that_says_how_to_go_on_whatever_is_unfinished():
    shown = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (130, "interrupted: add --resume\n")


@pytest.mark.parametrize(
    ("code", "is_one"),
    [
        *(
            (code, True)
            for code in (errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOSPC)
        ),
        *((code, True) for code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)),
        *((code, False) for code in (errno.ENOENT, errno.EBADF, errno.EINVAL, errno.EPIPE, errno.ECHILD, errno.ESPIPE)),
    ],
    ids=lambda value: errno.errorcode.get(value, value) if not isinstance(value, bool) else "",
)
def test_errors_of_the_system_that_are_no_bugs_are_one_line(code: int, is_one: bool) -> None:
    @click.command(cls=Command)
    def fail() -> None:
        raise OSError(code, os.strerror(code), "a/b")

    assert is_user_error(OSError(code, "")) == is_one
    result = CliRunner().invoke(fail)
    if is_one:
        assert (result.exit_code, result.stderr) == (2, f"Error: a/b: {os.strerror(code).lower()}\n")
    else:
        assert result.exit_code == 1


@pytest.mark.parametrize(
    "words", [["manifest", "check", "--help"], ["--version"], ["manifest", "check", "data", "--json"]]
)
def test_output_that_cannot_be_written_is_one_line(words: list[str], tmp_path: Path) -> None:
    save_manifest(Manifest("data", "1", "none", (Video("a", "a.mp4", "0" * 64),)), tmp_path / "data")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "mavqa", *words]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    line = "Error: a file or the output of the command cannot be written, no space is left: free some"
    assert (result.returncode, result.stderr) == (2, line + "\n")


def test_an_error_is_one_line_without_stdout(tmp_path: Path) -> None:
    words = f"{sys.executable} -m mavqa manifest check {tmp_path}/none >&-"
    result = subprocess.run(words, shell=True, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_closed_pipe_ends_a_command_silently() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mavqa", "manifest", "check", "--help"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")

"""What all commands share: warnings of libraries stay hidden, and Ctrl-C is one line."""

import os
import subprocess
import sys
import warnings

import click
from click.testing import CliRunner

from pipeline.cli.command import Command


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

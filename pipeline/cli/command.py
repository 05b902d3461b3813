"""Shared parts of all commands of both stages: exit codes, common options, JSON on stdout, tables, a progress bar.

Exit codes: 0 success, 1 a bug, 2 invalid usage or input, 3 finished with recorded failures.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

Decorator = Callable[[Any], Any]

# Errors of the operating system that the user can fix, such as a folder without write permission; they name the path.
SYSTEM_ERRORS = (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError)

# Columns of a console that is not a terminal, so that tables are not cut.
WIDEST_TABLE = 10_000
# The exit code of commands that ended well, with failed videos in the store.
FAILURES_RECORDED = 3


class InputError(click.ClickException):
    """An error that the user can fix: one line on stderr, exit code 2."""

    exit_code = 2


class Command(click.Command):
    """A command that reports a `UserError` or one of `SYSTEM_ERRORS` in one line on stderr, with exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (UserError, *SYSTEM_ERRORS) as error:
            raise InputError(" ".join(str(error).split())) from None


class Group(click.Group):
    """A group of commands of class `Command`."""

    command_class = Command
    group_class = type


class RenamedOption(click.Option):
    """An option whose `former` names still work.

    The help, and errors about an invalid value, show only the current names. Click's own suggestions for a misspelt
    option may still show a former one.
    """

    def __init__(self, declarations: Sequence[str], *, former: Sequence[str], **settings: Any) -> None:
        super().__init__([*declarations, *former], **settings)
        self._former = former

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option's line of the help."""
        with self._current_names():
            return super().get_help_record(ctx)

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Return the option's name for an error message."""
        with self._current_names():
            return super().get_error_hint(ctx)

    @contextmanager
    def _current_names(self) -> Iterator[None]:
        all_names = self.opts
        self.opts = [name for name in all_names if name not in self._former]
        try:
            yield
        finally:
            self.opts = all_names


def folder_option(name: str, text: str, **settings: Any) -> Decorator:
    """Return an option that takes the path of a folder, which may be missing; `text` is its help."""
    return click.option(name, type=click.Path(file_okay=False, path_type=Path), help=text, **settings)


def file_option(name: str, text: str, **settings: Any) -> Decorator:
    """Return an option that takes the path of a file, which may be missing; `text` is its help."""
    return click.option(name, type=click.Path(dir_okay=False, path_type=Path), help=text, **settings)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")


def show_json(document: Any) -> None:
    """Print `document` to stdout as JSON; bytes that are not UTF-8 are escaped."""
    text = json.dumps(document, ensure_ascii=False, indent=2)
    click.echo(text.encode(errors="backslashreplace"))


def plain_console(stderr: bool = False) -> "Console":
    """Return a console that prints text without markup, and complete tables if its output is not a terminal."""
    from rich.console import Console

    console = Console(file=sys.stderr if stderr else sys.stdout, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDEST_TABLE
    return console


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that updates a progress bar on stderr, shown until the block ends."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)

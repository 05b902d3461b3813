"""What every command of both stages shares: exit codes, the options that many take, JSON on stdout, tables, a bar.

It knows no command. Source: the exit codes of this project's contract (0 done, 1 a bug, 2 wrong use, 3 with failures).
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

# What the operating system refuses: a place that cannot be written or is no folder. The message names it.
NOT_OURS = (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError)

WIDEST_TABLE = 10_000


class InputError(click.ClickException):
    """A mistake that the user can mend: one line on stderr, exit code 2."""

    exit_code = 2


class Command(click.Command):
    """A command that a mistake of the user ends with one line on stderr and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (UserError, *NOT_OURS) as error:
            raise InputError(" ".join(str(error).split())) from None


class Group(click.Group):
    """A group of `Command`s."""

    command_class = Command
    group_class = type


class RenamedOption(click.Option):
    """An option whose `former` names still work; help and errors show its present name only."""

    def __init__(self, declarations: Sequence[str], *, former: Sequence[str], **settings: Any) -> None:
        super().__init__([*declarations, *former], **settings)
        self._former = former

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option's line of the help."""
        with self._present_names():
            return super().get_help_record(ctx)

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Return the option's name for an error message."""
        with self._present_names():
            return super().get_error_hint(ctx)

    @contextmanager
    def _present_names(self) -> Iterator[None]:
        every = self.opts
        self.opts = [name for name in every if name not in self._former]
        try:
            yield
        finally:
            self.opts = every


def folder_option(name: str, text: str, **settings: Any) -> Decorator:
    """Return an option that takes a folder, there or not."""
    return click.option(name, type=click.Path(file_okay=False, path_type=Path), help=text, **settings)


def file_option(name: str, text: str, **settings: Any) -> Decorator:
    """Return an option that takes a file, there or not."""
    return click.option(name, type=click.Path(dir_okay=False, path_type=Path), help=text, **settings)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


def show_json(document: Any) -> None:
    """Write `document` to stdout as the one JSON document of a command; bytes that are not UTF-8 as escapes."""
    text = json.dumps(document, ensure_ascii=False, indent=2)
    click.echo(text.encode(errors="backslashreplace"))


def plain_console(stderr: bool = False) -> "Console":
    """Return a console that prints ids and reasons as they are, and tables whole where no terminal shows them."""
    from rich.console import Console

    console = Console(file=sys.stderr if stderr else sys.stdout, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDEST_TABLE
    return console


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function of (done, in all) that draws a bar on stderr while the block runs."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)

"""Shared parts of all commands of both stages: exit codes, common options, JSON on stdout, tables.

Exit codes: 0 success, 1 a bug, 2 invalid usage or input, 3 finished with recorded failures, 75 stopped by SIGTERM (run
it again), 130 interrupted (Ctrl-C).
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from pipeline.errors import Stopped, UserError, describe_error, is_user_error
from pipeline.files import check_file_name

if TYPE_CHECKING:
    from rich.console import Console

Decorator = Callable[[Any], Any]
Completion = Callable[[click.Context, click.Parameter, str], list[str]]

# Columns of a console that is not a terminal, so that tables are not cut.
WIDEST_TABLE = 10_000
_VERSION = click.Option(
    ["--version"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, parameter, value: _show_version(ctx) if value else None,
    help="Show the version and exit.",
)
# The exit code of commands that ended well, with failed videos in the store or files left out of the manifest.
FAILURES_RECORDED = 3


class InputError(click.ClickException):
    """An error that the user can fix: one line on stderr, exit code 2."""

    exit_code = 2


class Interrupted(click.ClickException):
    """The user pressed Ctrl-C: one line on stderr that says how to go on, exit code 130."""

    exit_code = 130
    what = "interrupted"

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(f"{self.what}: {self.message}", file=file, err=True)


class Terminated(Interrupted):
    """SIGTERM ended the command (`Stopped`): exit code 75, the code of sysexits.h for "try again"."""

    exit_code = 75
    what = "stopped"


class _WithVersion(click.Command):
    """A command with `-h` and `--version`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.context_settings = {"help_option_names": ["-h", "--help"], **self.context_settings}

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        """Parse the command line."""
        with _one_line("run the same command again"):
            return super().make_context(*arguments, **settings)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters of the command."""
        return [*super().get_params(ctx), _VERSION]


class Command(_WithVersion):
    """A command whose expected ends are one line on stderr: errors that users can fix, and Ctrl-C.

    One that the user can fix has exit code 2, Ctrl-C has 130, SIGTERM in a training 75. `on_interrupt` says how to
    go on then.
    Warnings of libraries are not shown, in child processes neither, unless the user asks Python for them.
    """

    def __init__(self, *arguments: Any, on_interrupt: str = "run the same command again", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._on_interrupt = on_interrupt

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _one_line(self._on_interrupt), hidden_library_warnings():
            return super().invoke(ctx)


class Group(_WithVersion, click.Group):
    """A group of commands of class `Command`."""

    command_class = Command
    group_class = type

    def invoke(self, ctx: click.Context) -> Any:
        """Import and run one of the commands."""
        with _one_line("run the same command again"):
            return super().invoke(ctx)


@contextmanager
def _one_line(on_interrupt: str) -> Iterator[None]:
    """Turn the expected ends of the block into errors that Click shows in one line."""
    try:
        yield
    except (UserError, OSError) as error:
        if not is_user_error(error):
            raise
        _discard_unwritten()
        raise InputError(describe_error(error)) from None
    except KeyboardInterrupt as interrupt:
        # At exit, Python would report the unfinished tasks of Zarr's event loop.
        logging.getLogger("asyncio").disabled = True
        warnings.simplefilter("ignore")
        raise (Terminated if isinstance(interrupt, Stopped) else Interrupted)(on_interrupt) from None


def _discard_unwritten() -> None:
    """Discard what stdout could not write, such as to a full disk; the interpreter would try again at its exit."""
    try:
        if sys.stdout:  # None if it was closed
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def hidden_library_warnings() -> Iterator[None]:
    """Ignore warnings in the block and in its child processes, unless -W or PYTHONWARNINGS is given."""
    if sys.warnoptions:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["PYTHONWARNINGS"] = "ignore"
        try:
            yield
        finally:
            os.environ.pop("PYTHONWARNINGS", None)


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


def complete_names(names: Iterable[str], separator: str = "") -> Completion:
    """Return the shell completion of an option that takes one of `names`, or several joined by `separator`."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        before, found, last = incomplete.rpartition(separator) if separator else ("", "", incomplete)
        return [before + found + name for name in names if name.startswith(last)]

    return complete


def complete_folders(parent: str) -> Completion:
    """Return the shell completion of an option that takes the name of a folder in `parent`."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        return sorted(path.name for path in Path(parent).glob("*/") if path.name.startswith(incomplete))

    return complete


def plain_name(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Return the value of an option that becomes part of a path; raise `UserError` if it is not a plain name."""
    return check_file_name(parameter.opts[0], value, "pass a name, and other folders with --manifest and --store")


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


def _show_version(ctx: click.Context) -> None:
    from importlib.metadata import version

    click.echo(f"mavqa {version('mavqa')}")
    ctx.exit()

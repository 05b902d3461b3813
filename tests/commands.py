"""The commands of the project, as pyproject.toml names them."""

import tomllib

import click
import paths

from mavqa.commands import COMMANDS, load, mavqa


def project() -> dict:
    return tomllib.loads((paths.ROOT / "pyproject.toml").read_text())


def scripts() -> dict[str, click.Command]:
    """Return {name of a console script: its command}."""
    return {"mavqa": mavqa, **{f"mavqa-{name}": load(name) for name in COMMANDS}}


def all_commands() -> list[list[str]]:
    """Return every command, subcommands of groups included, as words; `mavqa`, which has all of them, only once."""
    own = {name: command for name, command in scripts().items() if name != "mavqa"}
    return [["mavqa"], *(words for name, command in own.items() for words in _with_subcommands([name], command))]


def _with_subcommands(words: list[str], command: click.Command) -> list[list[str]]:
    if not isinstance(command, click.Group):
        return [words]
    context = click.Context(command)
    children = {name: command.get_command(context, name) for name in command.list_commands(context)}
    return [found for name, child in children.items() if child for found in _with_subcommands([*words, name], child)]

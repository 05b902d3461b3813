"""The commands of the project, as pyproject.toml names them."""

import tomllib

import click
import paths


def project() -> dict:
    return tomllib.loads((paths.ROOT / "pyproject.toml").read_text())


def load(entry: str) -> click.Command:
    module, _, attribute = entry.partition(":")
    return getattr(__import__(module, fromlist=[attribute]), attribute)


def scripts() -> dict[str, click.Command]:
    """Return {name: command} of all console scripts."""
    return {name: load(entry) for name, entry in project()["project"]["scripts"].items()}


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

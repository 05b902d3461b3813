"""The README agrees with the project: its rooms, commands, options and make targets exist."""

import re
import shlex
import subprocess

import click
import commands
import paths
import pytest

README = (paths.ROOT / "README.md").read_text(encoding="utf-8")


def shown_commands() -> list[str]:
    """Return the commands of mavqa that the README shows, in code blocks and in running text."""
    flat = re.sub(r"\s+", " ", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    inline = re.findall(r"`(mavqa-[a-z]+ [^`]+)`", flat)
    blocks = "\n".join(re.findall(r"```\n(.*?)```", README, re.DOTALL))
    return inline + [line.split("#")[0].strip() for line in blocks.splitlines() if line.startswith("mavqa-")]


def parse(command: click.Command, words: list[str]) -> None:
    """Parse `words` as the command line does; raise a click exception for an unknown option or a missing value."""
    with command.make_context(command.name, words, ignore_unknown_options=False) as context:
        if isinstance(command, click.Group):
            name, child, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            assert child is not None, name
            parse(child, rest)


@pytest.mark.parametrize("line", shown_commands())
def test_shown_commands_have_the_options_that_they_use(line: str) -> None:
    name, *words = shlex.split(line)
    parse(commands.scripts()[name], words)


def test_every_command_is_listed() -> None:
    listed = re.findall(r"^\| `(mavqa-[a-z]+)` \|", README, re.MULTILINE)
    assert sorted(listed) == sorted(commands.scripts())


@pytest.mark.parametrize("package", ["pipeline", "train"])
def test_the_listed_rooms_are_those_of_the_package(package: str) -> None:
    (table,) = re.findall(rf"^\| `{package}/`, from the top \|.*?\n\n", README, re.MULTILINE | re.DOTALL)
    listed = [name for line in table.strip().splitlines()[2:] for name in re.findall(r"`([a-z]+)`", line.split("|")[1])]
    rooms = {
        path.stem for path in (paths.ROOT / package).glob("[a-z]*") if path.suffix == ".py" or list(path.glob("*.py"))
    }
    assert set(listed) == rooms
    (contract,) = (
        contract
        for contract in commands.project()["tool"]["importlinter"]["contracts"]
        if contract.get("containers") == [package]
    )
    assert listed == [name for layer in contract["layers"] for name in re.split(r" [|:] ", layer)]


def test_make_targets_that_the_readme_names_exist() -> None:
    named = set(re.findall(r"\bmake ([a-z]+)\b", README))
    shown = subprocess.run(["make", "-s", "help"], cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout
    assert named <= set(re.findall(r"make ([a-z-]+)", shown))

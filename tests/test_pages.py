"""The pages agree with the project: rooms, commands, options, make targets and links exist; they build."""

import re
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib import import_module

import click
import commands
import pages
import paths
import pytest

from pipeline.media.decoders.registry import DECODERS

README, CONTRIBUTING = (page.read_text(encoding="utf-8") for page in pages.PAGES[:2])
# The page on extending shows plug-ins, which are not installed here: its commands are run in tests/end_to_end.
WHOLE = [
    (pages.name(page), line)
    for page in pages.PAGES
    for line in dict.fromkeys(pages.block_commands(page))
    if line.startswith("mavqa") and page.name != "extending.md"
]
NAMED = [(pages.name(page), line) for page in pages.PAGES for line in dict.fromkeys(pages.inline_commands(page))]


def parse(command: click.Command, words: list[str]) -> None:
    """Parse `words` as the command line does; raise a click exception for an unknown option or a missing value."""
    with command.make_context(command.name, words, ignore_unknown_options=False) as context:
        if isinstance(command, click.Group):
            name, child, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            assert child is not None, name
            parse(child, rest)


@pytest.mark.parametrize(("page", "line"), WHOLE)
def test_shown_commands_have_the_options_that_they_use(page: str, line: str) -> None:
    name, *words = shlex.split(line.partition(" > ")[0])
    with suppress(click.exceptions.Exit):  # --help, --version
        parse(commands.scripts()[name], words)


@pytest.mark.parametrize(("page", "line"), NAMED)
def test_commands_named_in_the_text_have_these_subcommands_and_options(page: str, line: str) -> None:
    name, *words = shlex.split(line)
    command = commands.scripts()[name]
    context = click.Context(command)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words.pop(0))
        assert found is not None
        command = found
    known = {option for parameter in command.get_params(context) for option in parameter.opts} | {"-h", "--help"}
    assert {word for word in words if word.startswith("-")} <= known


def test_the_first_page_is_read_in_three_minutes() -> None:
    assert 150 <= len(README.splitlines()) <= 200


def test_every_command_is_listed() -> None:
    listed = re.findall(r"^\| `(mavqa-[a-z-]+)` \|", README, re.MULTILINE)
    assert sorted(["mavqa", *listed]) == sorted(commands.scripts())


@pytest.mark.parametrize("package", ["pipeline", "train"])
def test_the_listed_rooms_are_those_of_the_package(package: str) -> None:
    (table,) = re.findall(rf"^\| `{package}/`, from the top \|.*?\n\n", CONTRIBUTING, re.MULTILINE | re.DOTALL)
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


@pytest.mark.parametrize("name", ["pyav-cuda", "torchcodec", "decord"])
def test_the_cases_that_a_decoder_cannot_decode_are_those_of_its_table(name: str) -> None:
    page = pages.page("decoders.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^### {name}\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
    listed = dict(re.findall(r"^\| (.+?) \| (.+) \|$", section, re.MULTILINE)[1:])
    assert listed == import_module(DECODERS[name].partition(":")[0]).EXCEPTIONS


def test_make_targets_that_the_pages_name_exist() -> None:
    named = {target for page in pages.PAGES for target in re.findall(r"[`\n]make ([a-z]+)\b", page.read_text())}
    shown = subprocess.run(["make", "-s", "help"], cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout
    assert named
    assert named <= set(re.findall(r"make ([a-z-]+)", shown))


@pytest.mark.parametrize("page", pages.PAGES[:2], ids=pages.name)
def test_links_of_pages_outside_the_documentation_exist(page: pages.Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (paths.ROOT / link).exists()] == []


@pytest.mark.slow
def test_the_documentation_builds_without_warnings_and_a_broken_link_is_one(tmp_path) -> None:
    def build(source) -> subprocess.CompletedProcess[str]:
        options = ("--quiet", "--fail-on-warning", "--keep-going", "--builder", "html")
        program = [sys.executable, "-m", "sphinx", *options, source, tmp_path / "html"]
        return subprocess.run(program, cwd=paths.ROOT, capture_output=True, text=True)

    built = build(paths.ROOT / "docs")
    assert built.returncode == 0, built.stderr
    commands_page = (tmp_path / "html" / "commands.html").read_text()
    assert all(
        f">{name}</h2>" in re.sub("<a .*?</a>", "", commands_page) for name in commands.scripts() if name != "mavqa"
    )
    for page in (tmp_path / "html").glob("*.html"):
        assert not re.search(
            r"\.\. [a-z-]+::|<problematic>", re.sub("<pre>.*?</pre>", "", page.read_text(), flags=re.DOTALL)
        )
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "conf.py").write_text((paths.ROOT / "docs" / "conf.py").read_text().replace('["images"]', "[]"))
    (broken / "index.md").write_text("# Index\n\n[a link](#nowhere) and [another](nothing.md)\n")
    refused = build(broken)
    assert refused.returncode == 1
    assert "nowhere" in refused.stderr
    assert "nothing.md" in refused.stderr

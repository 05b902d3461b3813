"""`mavqa-demo`: its commands exist, stay in one folder, and stop at the first failure; nightly, that it runs."""

import json
import subprocess
import sys
from pathlib import Path

import click
import commands
import paths
import pytest
from click.testing import CliRunner

import mavqa.demo

STEPS = mavqa.demo.list_steps(Path("somewhere"), seeds=2, jobs=3)


@pytest.mark.parametrize("words", STEPS, ids=lambda words: words[0])
def test_every_command_is_one_of_mavqa_s_and_writes_to_the_folder_only(words: list[str]) -> None:
    command: click.Command = commands.scripts()[f"mavqa-{words[0]}"]
    arguments = words[1:]
    if isinstance(command, click.Group):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    context = command.make_context(words[0], list(arguments))
    given = [value for value in context.params.values() if isinstance(value, Path) and value != Path("demo")]
    assert all(path.parts[0] == "somewhere" for path in given)
    assert {name: context.params[name] for name in ("seeds", "jobs") if name in context.params} in (
        {},
        {"seeds": 2, "jobs": 3},
    )


def test_the_makefile_runs_it() -> None:
    assert "mavqa-demo --out $(DEMO) --seeds $(SEEDS) --jobs $(JOBS)" in (paths.ROOT / "Makefile").read_text()


@pytest.mark.parametrize(("code", "expected"), [(0, ["manifest", "extract", "sweep", "report"]), (3, ["manifest"])])
def test_a_command_that_fails_ends_it_with_its_exit_code(
    code: int, expected: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = []

    def load(name: str) -> click.Command:
        @click.command(context_settings={"ignore_unknown_options": True})
        @click.argument("words", nargs=-1)
        @click.pass_context
        def step(context: click.Context, words: tuple[str, ...]) -> None:
            run.append(name)
            context.exit(code)

        return step

    monkeypatch.setattr(mavqa.demo, "load", load)
    ended = CliRunner().invoke(mavqa.demo.demo, ["--out", str(tmp_path)])
    assert (ended.exit_code, run) == (code, expected)


@pytest.mark.nightly
def test_it_ends_with_a_page_and_the_evaluation_of_four_runs(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "mavqa-demo"
    subprocess.run([program, "--out", tmp_path / "demo", "--jobs", "2"], check=True, cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert len(json.loads((tmp_path / "demo" / "evaluation.json").read_text())) == 4
    assert (tmp_path / "demo" / "report" / "index.html").exists()

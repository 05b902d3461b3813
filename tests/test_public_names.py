"""The package `mavqa`: its public names and their doctests, its one command, and files that shadow its packages."""

import importlib
import importlib.metadata
import inspect
import os
import subprocess
import sys
from pathlib import Path

import commands
import paths
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

import mavqa
from mavqa.commands import COMMANDS
from mavqa.commands import mavqa as group

PUBLIC = [
    *("Batch", "FeatureStore", "LoadedRun", "Manifest", "QuestionDataset", "ResultRow", "UserError"),
    *("ask", "dataset", "evaluate", "export", "extract", "import_features", "load_manifest", "load_run", "log_mel"),
    *("open_store", "read_results", "results_frame"),
]


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder` as a user would who has installed mavqa."""
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)


def test_the_public_names_are_exactly_these():
    assert mavqa.__all__ == PUBLIC
    assert dir(mavqa) == sorted([*PUBLIC, "__version__"])
    assert mavqa.__version__ == importlib.metadata.version("mavqa")
    for name in PUBLIC:
        assert getattr(mavqa, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mavqa.nothing


def test_names_for_type_checkers_are_those_of_the_runtime():
    text = Path(mavqa.__file__).read_text()
    block = text[text.index("if TYPE_CHECKING:") : text.index("__all__")]
    for line in block.strip().splitlines()[2:]:
        _, module, _, names = line.split(maxsplit=3)
        for name in names.split(", "):
            assert getattr(importlib.import_module(module), name) is getattr(mavqa, name)
            assert mavqa._MODULES[name] == module
    assert sorted(mavqa._MODULES) == PUBLIC
    for package in ("mavqa", "pipeline", "train"):
        assert (paths.ROOT / package / "py.typed").exists()


def test_importing_mavqa_loads_nothing_heavy(tmp_path):
    shown = python(tmp_path, "-c", "import sys, mavqa; print(sorted(set(sys.modules) & {'torch', 'zarr', 'click'}))")
    assert shown.stdout == "[]\n", shown.stderr


@pytest.mark.parametrize("name", ["train.py", "pipeline.py", "train/__init__.py"])
@pytest.mark.parametrize("start", ["import", "module", "script"])
def test_a_file_that_shadows_a_package_is_named_and_not_run(tmp_path, name, start):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("open('was-run', 'w')")
    package = name[: name.index("." if "/" not in name else "/")]
    message = f"{tmp_path / name} shadows mavqa's package {package!r}: rename it, or start Python in another folder"
    if start == "import":
        ended = python(tmp_path, "-c", "import mavqa; print('imported'); mavqa.open_store")
        assert (ended.returncode, ended.stdout) == (1, "imported\n")
        assert ended.stderr.splitlines()[-1] == f"ImportError: {message}"
    else:
        words = [sys.executable, "-m", "mavqa"] if start == "module" else [Path(sys.executable).parent / "mavqa-train"]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        ended = subprocess.run([*words, "-h"], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (2, f"Error: {message}\n")
    assert not (tmp_path / "was-run").exists()


def test_a_module_without_a_file_in_place_of_a_package_is_refused(tmp_path):
    stub = "import sys, types; sys.modules['train'] = types.ModuleType('train'); import mavqa; mavqa.open_store"
    ended = python(tmp_path, "-c", stub)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("ImportError: a module without a file shadows mavqa's package")


def test_a_folder_of_data_does_not_shadow_a_package(tmp_path):
    (tmp_path / "train" / "data").mkdir(parents=True)
    ended = python(tmp_path, "-c", "import mavqa; mavqa.Batch; from train.data.batch import Batch")
    assert ended.returncode == 0, ended.stderr


def test_an_editable_installation_is_a_path_that_type_checkers_follow():
    """Setuptools' other kind, a finder, is code that only Python follows."""
    installed = Path(importlib.metadata.distribution("mavqa").locate_file(""))
    for file in installed.glob("__editable__*mavqa*"):
        assert file.suffix == ".pth"
        assert Path(file.read_text().strip()).is_dir()


def test_every_script_starts_in_one_place():
    scripts = commands.project()["project"]["scripts"]
    assert scripts == dict.fromkeys(["mavqa", *(f"mavqa-{name}" for name in COMMANDS)], "mavqa.__main__:main")


def test_options_of_importing_and_exporting_are_those_of_the_commands():
    for function, name, words in (
        (mavqa.import_features, "mavqa-import-features", ["--from", "vggish=feats"]),
        (mavqa.export, "mavqa-export", ["store.zarr", "--out", "feats"]),
    ):
        parameters = inspect.signature(function).parameters
        options = commands.scripts()[name].make_context(name, words).params
        assert sorted(parameters.keys() - {"on_progress"}) == sorted(options.keys() - {"dataset", "as_json"})
        for parameter in parameters.keys() - {"manifest", "store", "sources", "out", "on_progress"}:
            assert parameters[parameter].default == options[parameter], parameter


def test_options_of_extract_are_those_of_the_command():
    parameters = inspect.signature(mavqa.extract).parameters
    options = commands.scripts()["mavqa-extract"].make_context("mavqa-extract", []).params
    ours = ["manifest", "videos", "store", "features", "on_progress"]
    assert sorted(parameters.keys() - set(ours)) == sorted(options.keys() - {*ours, "dataset", "as_json"})
    for name in parameters.keys() - {*ours, "accept"}:
        assert parameters[name].default == options[name], name


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mavqa-train --method rmm", ["rmm", "rmm-avr"]),
        ("mavqa-train --backbone p", ["pano", "pstp"]),
        (
            "mavqa-extract --features tokens,clip-vit-b32-",
            ["tokens,clip-vit-b32-sentence", "tokens,clip-vit-b32-words"],
        ),
        ("mavqa-manifest build music", ["music-avqa"]),
        ("mavqa train --preset ps", ["pstp"]),
        ("mavqa-evaluate run --scenario audio", ["audio-missing"]),
        ("mavqa-sweep meth", ["methods"]),
        ("mavqa-extract --dataset m", ["mine"]),
        ("mavqa-train --start-from a", ["avst-1"]),
    ],
)
def test_the_shell_completes_names_of_parts_and_folders(line, expected, tmp_path, monkeypatch):
    for folder in ("data_manifests/mine", "runs/avst-1", "runs/pano-1"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    name, *words = line.split()
    completion = ShellComplete(commands.scripts()[name], {}, name, "_COMPLETE")
    found = [item.value for item in completion.get_completions(words[:-1], words[-1])]
    assert found == expected


def test_one_command_lists_and_runs_all(tmp_path):
    names = [name.removeprefix("mavqa-") for name in commands.scripts() if name != "mavqa"]
    shown = CliRunner().invoke(group, ["-h"])
    listed = [line.split()[0] for line in shown.output.partition("Commands:")[2].strip().splitlines()]
    assert sorted(listed) == sorted(names)
    own, here = commands.scripts()["mavqa-train"], CliRunner().invoke(group, ["train", "--help"])
    assert here.output.startswith("Usage: mavqa train [OPTIONS]\n")
    options = CliRunner().invoke(own, ["--help"]).output.partition("\n")[2]
    assert options.startswith(here.output.partition("\n")[2].rstrip())
    assert CliRunner().invoke(group, ["nothing"]).exit_code == 2
    assert CliRunner().invoke(group, ["--version"]).output.startswith("mavqa 0.")
    failed = CliRunner().invoke(group, ["inspect", str(tmp_path / "no.zarr")])
    assert failed.exit_code == 2
    assert "no feature store" in failed.output

"""Options of loading and settings in the commands, and `mavqa-cache`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from workplace import ON_TINY_DATA, invoke, run_tiny_train

from train.cli.cache import cache
from train.runs.folder import read_config

FEATURES = ["resnet18-map", "vggish"]


def run_cache(*arguments: object) -> Result:
    return CliRunner().invoke(cache, [str(argument) for argument in arguments])


def listed(*options: object) -> list[dict]:
    result = run_cache("list", "store.zarr", *options, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["files"]


def test_runs_share_the_files_of_the_disk_cache(workplace: Path) -> None:
    first = run_tiny_train("a", "--cache", "disk")
    assert first.exit_code == 0, first.output
    announced = [line for line in first.stderr.splitlines() if line.startswith("caching ")]
    assert [line.split()[1] for line in announced] == ["vggish", "resnet18-map"]
    assert announced[0].endswith(f"on disk, 0.0 GB, in {workplace / 'store.zarr.cache'}")
    files = listed()
    assert [(file["feature"], file["time_steps"], file["state"]) for file in files] == [
        (name, 4, "current") for name in FEATURES
    ]
    second = run_tiny_train("b", "--cache", "disk", "--workers", 3)
    assert second.exit_code == 0, second.output
    assert "caching" not in second.stderr
    assert listed()[0]["used"] >= files[0]["used"]
    assert Path("a/checkpoint.safetensors").read_bytes() == Path("b/checkpoint.safetensors").read_bytes()
    evaluated = invoke("evaluate", "a", "--cache", "disk", "--device", "cpu")
    assert evaluated.exit_code == 0, evaluated.output


def test_a_sweep_of_processes_builds_the_files_before_it_starts_them(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.training.sweep.run_jobs", lambda jobs, *others: dict.fromkeys(jobs, "not started"))
    options = ("--out", "s", "--cache", "disk", "--cache-dir", "c", "--jobs", 2)
    result = invoke("sweep", "tiny.toml", *ON_TINY_DATA, *options)
    assert result.stderr.count("not started") == 2, result.output
    assert [file["feature"] for file in listed("--cache-dir", "c")] == FEATURES


def test_the_cache_is_listed_and_removed(workplace: Path) -> None:
    assert run_cache("list", "store.zarr").stderr == f"{workplace / 'store.zarr.cache'}: 0 files, 0.00 GB\n"
    assert run_tiny_train("a", "--cache", "disk").exit_code == 0
    folder = Path("store.zarr.cache")
    (folder / "vggish-4s-0123456789abcdef.npy").write_bytes(b"old")
    (folder / "vggish-4s-1123456789abcdef.npy.partial").write_bytes(b"cut")
    (folder / "notes.txt").write_text("mine")
    assert [file["state"] for file in listed()] == ["current", "outdated", "incomplete", "current"]
    shown = run_cache("list", "store.zarr")
    assert "outdated" in shown.stdout
    assert shown.stderr.startswith(f"{workplace / folder}: 4 files, ")
    removed = run_cache("remove", "store.zarr")
    assert removed.stderr.endswith("removed 2 files, freed 0.00 GB; 2 current files were kept (--all removes them)\n")
    size = sum(file["nbytes"] for file in listed())
    document = json.loads(run_cache("remove", "store.zarr", "--all", "--json").stdout)
    assert document["freed_bytes"] == size > 0
    assert listed() == []
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize("command", ["list", "remove"])
def test_the_error_for_a_missing_store_is_one_line(workplace: Path, command: str) -> None:
    result = run_cache(command, "none.zarr")
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: feature store none.zarr is missing: pass the store that the cache is of\n",
    )


def test_a_memory_limit_is_kept(workplace: Path) -> None:
    refused = run_tiny_train("a", "--cache", "memory", "--memory-limit", 0)
    assert refused.exit_code == 2
    assert "pass --cache disk, or a larger --memory-limit" in refused.stderr
    assert not Path("a").exists()
    assert run_tiny_train("a", "--memory-limit", 0).exit_code == 0
    assert [file["feature"] for file in listed()] == FEATURES


def test_settings_come_from_a_file_then_options_then_assignments(workplace: Path) -> None:
    Path("mine.toml").write_text("preset = 'demo'\nmethod = 'zero-fill'\nepochs = 3\nseed = 8\nbatch_size = 7\n")
    options = ("--config", "mine.toml", "--epochs", 1, "--set", "seed=9", "--set", "options.missing_fill=mean")
    result = invoke("train", *ON_TINY_DATA, *options, "--out", "a")
    assert result.exit_code == 0, result.output
    config = read_config(Path("a"))
    assert (config.preset, config.epochs, config.seed, config.batch_size) == ("demo", 1, 9, 7)
    assert config.options == {"missing_fill": "mean"}
    again = invoke("train", "--config", "a/config.json", "--out", "b")
    assert again.exit_code == 0, again.output
    assert Path("a/checkpoint.safetensors").read_bytes() == Path("b/checkpoint.safetensors").read_bytes()
    assert read_config(Path("b")) == config


def test_the_shown_settings_can_be_given_back(workplace: Path) -> None:
    options = ("--preset", "demo", "--method", "avr", "--set", "batch_size=9")
    shown = invoke("train", *options, "--show-settings")
    assert shown.exit_code == 0, shown.output
    Path("shown.toml").write_text(shown.stdout)
    assert invoke("train", "--config", "shown.toml", "--show-settings").stdout == shown.stdout


def test_a_resumed_run_keeps_its_settings_whatever_gives_others(workplace: Path) -> None:
    assert run_tiny_train("a", "--seed", 3).exit_code == 0
    Path("mine.toml").write_text("batch_size = 7\n")
    for given in (("--set", "batch_size=7"), ("--config", "mine.toml")):
        result = invoke("train", "--resume", "--out", "a", *given)
        assert result.exit_code == 2
        assert "a was started with batch_size 64, not 7: pass another --out" in result.stderr
    same = invoke("train", "--resume", "--out", "a", "--set", "seed=3", "--config", "a/config.json")
    assert same.exit_code == 0, same.output


def test_places_come_from_assignments_then_options_then_the_dataset_then_the_file(workplace: Path) -> None:
    def shown(*options: str) -> list[str]:
        lines = invoke("train", "--config", "mine.toml", *options, "--show-settings").stdout.splitlines()
        return [line for line in lines if line.startswith(("manifest = ", "store = "))]

    Path("mine.toml").write_text("manifest = 'file'\nstore = 'file.zarr'\n")
    assert shown() == ['manifest = "file"', 'store = "file.zarr"']
    assert shown("--dataset", "mine") == ['manifest = "data_manifests/mine"', 'store = "stores/mine.zarr"']
    assert shown("--dataset", "mine", "--store", "s") == ['manifest = "data_manifests/mine"', 'store = "s"']
    assert shown("--store", "s", "--set", "store=t") == ['manifest = "file"', 'store = "t"']
    missing = invoke("train", *ON_TINY_DATA, "--set", "store=none.zarr")
    assert "feature store none.zarr is missing" in missing.stderr


def test_a_preset_and_the_settings_of_another_one_exclude_each_other(workplace: Path) -> None:
    Path("mine.toml").write_text("preset = 'demo'\nepochs = 1\n")
    result = invoke("train", "--config", "mine.toml", "--preset", "avst", "--show-settings")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--preset avst and --config mine.toml exclude each other" in result.stderr
    assert invoke("train", "--config", "mine.toml", "--preset", "demo", "--show-settings").exit_code == 0


def test_a_resumed_run_takes_none_as_it_recorded_it(workplace: Path) -> None:
    options = ("--set", "backbone_options.hidden=none", "--backbone", "pano")
    assert run_tiny_train("a", *options).exit_code == 0
    assert run_tiny_train("a", *options, "--resume").exit_code == 0


def test_a_wrong_option_is_not_shown(workplace: Path) -> None:
    result = invoke("train", "--set", "options.slotz=5", "--show-settings")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "has no option 'slotz' (did you mean 'slots'?)" in result.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--set", "epoch=3"), "setting epoch = 3 is unknown (did you mean 'epochs'?)"),
        (("--set", "options.slot=3"), "method 'rmm' has no option 'slot' (did you mean 'slots'?)"),
        (("--set", "backbone_options.layer=3"), "backbone 'pano' has no option 'layer' (did you mean 'layers'?)"),
        (("--set", "missing_rates.sound=0.1"), "'sound' is no modality, use audio or visual"),
        (("--set", "options.slots=many"), "option 'slots' of method 'rmm' is 'many'"),
        (("--set", "options.slots=2020-01-01"), "option 'slots' of method 'rmm' is '2020-01-01'"),
        (("--set", "learning_rate=inf"), "learning_rate = inf: Input should be a finite number"),
        (("--memory-limit", "nan"), "--memory-limit nan is no size"),
        (("--set", "seed=1\nepochs=7"), "seed = '1\\nepochs=7'"),
        (("--set", "batch_size"), "pass SETTING=VALUE"),
        (("--config", "none.toml"), "none.toml is missing"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(workplace: Path, given: tuple[str, ...], message: str) -> None:
    command = ("train", *ON_TINY_DATA, "--preset", "demo", "--backbone", "pano", "--method", "rmm", "--out", "a")
    result = invoke(*command, *given)
    assert result.exit_code == 2, result.output
    assert message in result.stderr.splitlines()[-1]
    assert not Path("a").exists()

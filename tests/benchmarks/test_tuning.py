"""The tuning of the methods: equal numbers of settings and budgets, no test split, and which setting is chosen."""

import json
from collections import Counter
from pathlib import Path

import pytest
import tuning
from training_budgets import budget_of

from pipeline.errors import UserError
from train.methods.avr import REFINE_VARIANTS
from train.methods.imputation import matches_imputed
from train.methods.registry import method_variants
from train.methods.rmm import RECALL_VARIANTS
from train.runs.config import TrainConfig
from train.training.sweep import list_cells, read_grid

# They are not trained, or have nothing to choose.
UNTUNED = ("zero-fill", "mean-fill")
# What the paper leaves open and its variant decides.
RECALL_OPTIONS = {"recall_error": "error", "placed": "placed"}
REFINE_OPTIONS = {"refine_error": "error", "schedule": "schedule", "clamp": "clamp", "join": "join"}


@pytest.fixture(scope="module")
def cells():
    return [cell for cell in list_cells(read_grid(tuning.GRID), None, "m", "s") if cell.config.start_from]


def test_every_method_has_as_many_settings_none_of_them_twice(cells):
    counts = Counter(tuning.method_of(cell) for cell in cells)
    assert len(set(counts.values())) == 1, counts
    settings = [(cell.config.method, cell.config.variant, settings_of(cell.config)) for cell in cells]
    assert [one for number, one in enumerate(settings) if one in settings[:number]] == []
    for method in counts:
        of_method = [cell.config for cell in cells if tuning.method_of(cell) == method]
        assert len({(config.method, config.variant) for config in of_method}) == 1


def test_every_setting_has_the_same_budget_and_no_test_split_is_read(cells):
    by_name = {cell.name: cell for cell in list_cells(read_grid(tuning.GRID), None, "m", "s")}
    assert len({budget_of(cell, by_name) for cell in cells}) == 1
    assert len({(cell.config.decay_epochs, cell.config.start_from) for cell in cells}) == 1
    assert not any(cell.is_evaluated for cell in cells)


def test_settings_of_the_paper_do_not_depend_on_what_its_variant_is_by_default(cells):
    for config in (cell.config for cell in cells if cell.config.variant == "paper"):
        assert set(open_options(config)) <= {*config.options}, config.options


def test_the_setting_with_the_highest_mean_is_chosen_the_first_of_equals():
    tried = [
        tuning.Tried("a", "a-1", "", {1: 50.0, 2: 60.0}),
        tuning.Tried("a", "a-2", "slots 75", {1: 58.0, 2: 54.0}),
        tuning.Tried("b", "b-1", "", {1: 10.0, 2: 10.0}),
        tuning.Tried("b", "b-2", "", {1: 9.0, 2: 11.0}),
    ]
    assert [one.run for one in tuning.choose(tried)] == ["a-2", "b-1"]


def save_metrics(folder: Path, validation: dict[str, float]) -> None:
    folder.mkdir(parents=True)
    common = {"stage": "joint", "learning_rate": 1e-3, "losses": {"total": 1.0}}
    validations = (validation, {"audio-missing": 99.0, "visual-missing": 99.0})
    rows = [
        {"epoch": epoch, **common, "validation": of_epoch, "selected": epoch == 1}
        for epoch, of_epoch in enumerate(validations, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_accuracies_of_the_selected_epochs_are_added_to_the_table_and_compared(tmp_path, cells, capsys):
    of_method = [cell for cell in cells if tuning.method_of(cell) == "drfuse"]
    known = {}
    for seed in (7, 8):
        for number, cell in enumerate(of_method):
            accuracies = {"audio-missing": seed + number, "visual-missing": seed - number}
            save_metrics(tmp_path / str(seed) / cell.name, accuracies)
        known |= tuning.read_accuracies(seed, of_method, tmp_path / str(seed))
        tuning.write_table(tmp_path / "table.csv", known)
    known = tuning.read_table(tmp_path / "table.csv")
    tried = tuning.collect(known)
    assert [one.accuracies for one in tried] == [{7: 7.0, 8: 8.0}] * len(of_method)
    assert [one.setting for one in tried][:2] == ["exposure all, learning_rate 0.00025", "exposure all"]
    tuning.print_table(tried)
    assert capsys.readouterr().out.count("**drfuse**") == 1
    del known[next(key for key in known if key[0] == "drfuse-3-seed0" and key[2] == 8)]
    assert not tuning.collect(known)  # not all settings were tried on the same datasets
    for run in ("other", "drfuse-3-seed0"):
        with pytest.raises(UserError, match=f"no run {run} with another setting"):
            tuning.collect({(run, "another setting", 7): 50.0})


def settings_of(config: TrainConfig) -> dict[str, object]:
    """Return the options and the learning rate that a run trains with, those of its variant included."""
    settings = {**open_options(config), **config.options, "learning_rate": config.learning_rate}
    return {name: value for name, value in settings.items() if name != "exposure"}


def open_options(config: TrainConfig) -> dict[str, object]:
    """Return the options of RMM and AVR that the paper leaves open, with the values that the variant has today."""
    options: dict[str, object] = {}
    if config.method in ("rmm", "rmm-avr"):
        options |= {name: getattr(RECALL_VARIANTS[config.variant], field) for name, field in RECALL_OPTIONS.items()}
    if config.method in ("avr", "rmm-avr"):
        options |= {name: getattr(REFINE_VARIANTS[config.variant], field) for name, field in REFINE_OPTIONS.items()}
    return options | {"match_imputed": matches_imputed(config.variant, None)} if options else {}


def method_and_variant(config: TrainConfig) -> tuple[str, str]:
    return config.method, config.variant if method_variants(config.method) else ""


@pytest.mark.parametrize("grid", ["methods", "dial"])
def test_the_demo_s_grids_train_each_method_with_the_chosen_setting(cells, grid):
    configs = {cell.name: cell.config for cell in cells}
    chosen = {
        method_and_variant(configs[one.run]): settings_of(configs[one.run])
        for one in tuning.choose(tuning.collect(tuning.read_table(tuning.TABLE)))
    }
    assert len(chosen) == len({tuning.method_of(cell) for cell in cells})
    trained = list_cells(read_grid(tuning.GRID.with_name(f"{grid}.toml")), (0,), "m", "s")
    trained = [cell.config for cell in trained if cell.config.start_from]
    trained = [config for config in trained if config.method not in UNTUNED]
    assert all(settings_of(config) == chosen[method_and_variant(config)] for config in trained)
    if grid == "methods":
        assert {*chosen} == {*map(method_and_variant, trained)}


def test_the_options_of_the_variant_paper_are_those_chosen_for_the_paper_s_method(cells):
    configs = {cell.name: cell.config for cell in cells}
    chosen = tuning.choose(tuning.collect(tuning.read_table(tuning.TABLE)))
    (best,) = [configs[one.run] for one in chosen if one.method == "rmm-avr-paper"]
    without = best.model_copy(
        update={"options": {n: v for n, v in best.options.items() if n not in open_options(best)}}
    )
    assert settings_of(best) == settings_of(without)


def test_every_setting_was_tried_on_the_same_two_or_more_datasets(cells):
    tried = tuning.collect(tuning.read_table(tuning.TABLE))
    assert [one.run for one in tried] == [cell.name for cell in cells]
    (datasets,) = {tuple(one.accuracies) for one in tried}
    assert len(datasets) >= 2

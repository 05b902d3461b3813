"""Every setting can be given in a file or an assignment and read back; an unknown one names its neighbours."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from train.backbones.sizes import ModelSizes
from train.runs.config import PRESETS, SETTINGS, TrainConfig, make_config
from train.runs.settings import TABLES, format_settings, merge_settings, parse_assignments, read_settings

# A value of each setting that differs from its default, and the settings that it needs.
VALUES: dict[str, tuple[Any, dict[str, Any]]] = {
    "objective": ("grounding", {}),
    "backbone": ("pano", {}),
    "method": ("avr", {}),
    "variant": ("released", {}),
    "backbone_variant": ("released", {}),
    "inputs": ("question", {}),
    "preset": ("demo", {}),
    "manifest": ("m", {}),
    "store": ("s.zarr", {}),
    "seed": (7, {}),
    "device": ("cpu", {}),
    "precision": ("bfloat16", {}),
    "epochs": (3, {}),
    "batch_size": (5, {}),
    "accumulate": (3, {}),
    "learning_rate": (0.5, {}),
    "decay_epochs": (2, {}),
    "decay_factor": (0.25, {}),
    "warmup_epochs": (0.5, {}),
    "weight_decay": (0.01, {}),
    "clip_norm": (2.5, {}),
    "training": ("joint", {}),
    "channels": (16, {}),
    "heads": (2, {}),
    "dropout": (0.3, {}),
    "time_steps": (6, {}),
    "map_size": (7, {}),
    "whiten": (True, {}),
    "start_from": ("run", {}),
    "ema_decay": (0.9, {}),
    "missing_rates": ({"audio": 0.5}, {}),
    "unit": ("video", {}),
    "options": ({"slots": 9, "schedule": "linear"}, {}),
    "backbone_options": ({"layers": [1, 2, 2, 2]}, {"backbone": "pano"}),
}


def made(settings: dict[str, Any]) -> TrainConfig:
    """Return the configuration that mavqa-train makes of `settings`."""
    return make_config(**{"preset": "paper", **settings})


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(value)


def test_the_values_are_of_every_setting() -> None:
    assert list(VALUES) == SETTINGS


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_can_be_assigned_and_be_in_a_file(tmp_path: Path, name: str) -> None:
    value, needed = VALUES[name]
    assignments = [f"{name}={as_toml(value)}"]
    if isinstance(value, str):
        assignments.append(f"{name}={value}")
    assignments_of_table = [f"{name}.{key}={as_toml(entry)}" for key, entry in value.items()] if name in TABLES else []
    (tmp_path / "mine.toml").write_text(f"{name} = {as_toml(value)}\n")
    sources = [*(parse_assignments([text]) for text in assignments), read_settings(tmp_path / "mine.toml")]
    if assignments_of_table:
        sources.append(parse_assignments(assignments_of_table))
    for source in sources:
        assert source == {name: value}
        assert getattr(made({**needed, **source}), name) == value


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": "answer", "inputs": "visual,question"},
        {"objective": "answer", "method": "rmm-avr", "map_size": "none", "options": {"slots": 5}},
        {"objective": "grounding", "missing_rates": {"visual": 0.25}},
        {"objective": "answer", "method": "drfuse", "start_from": "a", "whiten": True, "learning_rate": 1e-5},
    ],
    ids=["preset", "reference", "method", "grounding", "more"],
)
def test_a_listing_and_a_recorded_configuration_can_be_given_back(
    tmp_path: Path, preset: str, changes: dict[str, Any]
) -> None:
    config = make_config(preset, **changes)
    (tmp_path / "listed.toml").write_text(format_settings(config))
    assert made(read_settings(tmp_path / "listed.toml")) == config
    sizes = ModelSizes(words=2, answers=3, input_shapes={"vggish": (128,)})
    (tmp_path / "config.json").write_text(config.model_copy(update={"sizes": sizes}).model_dump_json())
    recorded = made(read_settings(tmp_path / "config.json"))
    unread = {"method", "options", "inputs"} if config.objective == "grounding" else set()
    assert recorded.model_dump(exclude=unread) == config.model_dump(exclude=unread)


def test_the_listing_has_the_options_that_are_not_set_with_their_defaults() -> None:
    listing = format_settings(make_config("paper", backbone="pstp", options={"slots": 9}))
    lines = listing.splitlines()
    assert "slots = 9" in lines
    assert "# recall_weight = 1.0" in lines
    assert "# segments = 12" in lines
    assert "# number of training epochs" in lines


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, r"setting epoch = 3 is unknown \(did you mean 'epochs'\?\): choose one of"),
        ({"sizes": 3}, "setting sizes = 3 is unknown"),
        ({"missing_rates": {"sound": 0.1}}, "'sound' is no modality, use audio or visual"),
        ({"missing_rate": {"audio": 0.1}}, r"did you mean 'missing_rates'\?"),
    ],
)
def test_an_unknown_setting_names_the_nearest_one(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    (tmp_path / "mine.toml").write_text("".join(f"{name} = {as_toml(value)}\n" for name, value in settings.items()))
    with pytest.raises(UserError, match=message):
        made(read_settings(tmp_path / "mine.toml"))
    with pytest.raises(UserError, match=message):
        made(parse_assignments([f"{name}={as_toml(value)}" for name, value in settings.items()]))


@pytest.mark.parametrize("assignment", ["epochs", "epochs.a=3", "=3", "sizes.words=3"])
def test_what_is_no_assignment_is_refused(assignment: str) -> None:
    with pytest.raises(UserError, match=r"--set|is unknown"):
        parse_assignments([assignment])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.toml", None, "none.toml is missing: pass a TOML file, or the config.json of a run"),
        ("mine.toml", "epochs = ", "mine.toml is not a TOML file of settings"),
        ("mine.toml", "\udcff", "mine.toml is not a TOML file of settings"),
        ("config.json", "{", "config.json is not a JSON file of settings"),
        ("config.JSON", "{", "config.JSON is not a JSON file of settings"),
        ("config.json", "[1]", "config.json is not a JSON file of settings: it has no settings"),
        ("mine.toml", "epoch = 3", r"mine.toml: setting epoch = 3 is unknown \(did you mean 'epochs'\?\)"),
    ],
)
def test_the_error_for_a_file_has_its_name(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        read_settings(tmp_path / name)


def test_later_sources_replace_earlier_ones_and_tables_are_merged() -> None:
    merged = merge_settings({"epochs": 1, "options": {"a": 1, "b": 1}}, {"epochs": 2, "options": {"b": 2}})
    assert merged == {"epochs": 2, "options": {"a": 1, "b": 2}}

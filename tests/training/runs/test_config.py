"""Presets and their overrides, read without loading torch."""

import re
import subprocess
import sys

import pytest

from pipeline.errors import UserError
from train.runs.config import PRESETS, SETTINGS, TrainConfig, make_config
from train.runs.settings import parse_assignments, read_settings


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", [None, "zero-fill", "rmm-avr"])
def test_the_configuration_of_every_preset_survives_a_json_round_trip(preset, method):
    config = make_config(preset, method=None if preset == "grounding" else method)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    assert config.preset == preset


# (batch size, learning rate, epochs, step of the schedule, seed, time steps) as published, copied by hand.
PUBLISHED = {
    "paper": (4, 1e-4, 20, 8, 1, None),
    "released": (4, 1e-4, 50, 20, 1, None),
    "avst": (64, 1e-4, 24, 8, 1, None),
    "grounding": (6, 1e-4, 30, 8, 1, None),
    "baseline": (64, 1e-4, 20, 8, 1, None),
    "avsd": (64, 1e-4, 24, 8, 1, None),
    "pano": (64, 1e-4, 24, 8, 1, None),
    "pano-faithful": (32, 5e-5, 10, 8, 1234, None),
    "pstp": (64, 1e-4, 30, 8, 1, 60),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_preset_has_the_numbers_of_its_source(preset):
    config = make_config(preset)
    numbers = (config.batch_size, config.learning_rate, config.epochs, config.decay_epochs, config.seed)
    assert numbers == PUBLISHED[preset][:5]
    assert config.time_steps == (PUBLISHED[preset][5] or TrainConfig.model_fields["time_steps"].default)
    assert config.decay_factor == 0.1


def test_every_preset_except_demo_has_published_numbers_and_pano_faithful_has_its_papers_depth():
    assert {*PUBLISHED, "demo"} == set(PRESETS)
    assert make_config("pano-faithful").backbone_options == {"hidden": 768, "heads": 12, "layers": [9, 5, 5, 5]}
    assert make_config("paper", backbone="pstp").time_steps == 60


def test_none_keeps_the_value_of_the_preset():
    assert make_config("demo", epochs=None).epochs == PRESETS["demo"].settings["epochs"]
    assert make_config("demo", epochs=2).epochs == 2


def test_options_of_a_method_are_merged_into_the_presets():
    options = make_config("demo", method="rmm-avr", options={"slots": 3}).options
    assert options == {**PRESETS["demo"].options["rmm-avr"], "slots": 3}
    assert make_config("demo", method="zero-fill").options == {}


def test_inputs_other_than_all_select_the_method_reference():
    config = make_config("demo", inputs="question")
    assert (config.method, config.options) == ("reference", {"inputs": "question"})


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("paper", {"method": "rmm-avr", "inputs": "question"}, "--method rmm-avr and --inputs question exclude"),
        ("avst", {"method": "zero-fill", "inputs": "audio,question"}, "--method zero-fill and --inputs audio,question"),
        ("demo", {"inputs": "question", "options": {"inputs": "visual,question"}}, "inputs 'question' need the same"),
        ("grounding", {"method": "rmm-avr"}, "without a method: remove method = 'rmm-avr', or set --objective answer"),
        ("grounding", {"options": {"slots": 3}}, r"remove options = \{'slots': 3\}"),
        ("grounding", {"inputs": "question"}, "remove inputs = 'question'"),
        ("paper", {"objective": "grounding", "method": "rmm"}, "remove method = 'rmm'"),
    ],
)
def test_an_explicit_setting_that_another_would_replace_is_an_error(preset, overrides, message):
    with pytest.raises(UserError, match=message):
        make_config(preset, **overrides)


def test_the_inputs_of_a_reference_are_those_of_its_options():
    with pytest.raises(ValueError, match="inputs 'audio,question' need the same inputs in the options"):
        TrainConfig(method="reference", inputs="audio,question")
    assert make_config("grounding", inputs="all", objective="answer", method="rmm").method == "rmm"


def test_options_of_a_backbone_are_merged_into_the_presets():
    options = make_config("pano-faithful", backbone_options={"heads": 8}).backbone_options
    assert options == {"hidden": 768, "heads": 8, "layers": [9, 5, 5, 5]}
    segments = make_config("demo", backbone="pstp", backbone_options={"top_patches": 8}).backbone_options
    assert segments == {"segments": 3, "top_segments": 2, "top_patches": 8}


@pytest.mark.parametrize("overrides", [{}, {"inputs": "all"}])
def test_the_method_reference_without_inputs_is_an_error_with_the_possible_inputs(overrides):
    message = r"^method 'reference' only .* \(--inputs\) to 'question' or 'audio,question' or 'visual,question'$"
    with pytest.raises(UserError, match=message):
        make_config("demo", method="reference", **overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epochs": 0}, "epochs = 0"),
        (
            {"epoch": 3},
            r"setting epoch = 3 is unknown \(did you mean 'epochs'\?\): choose one of .*, epochs, batch_size",
        ),
        (
            {"start_from": "../x"},
            r"^start_from \(--start-from\) '../x' is not a plain name, it has a slash: pass the name",
        ),
        ({"start_from": "/x"}, "it has a slash"),
        ({"start_from": ".."}, "'..' is not a plain name"),
        ({"sizes": None, "seeds": [1]}, r"setting seeds = \[1\] is unknown"),
        ({"options": 3}, "^options = 3: pass a table of names and values"),
        ({"missing_rates": [1]}, r"^missing_rates = \[1\]: pass a table"),
        ({"missing_rates": {"smell": 0.1}}, "smell=0.1: 'smell' is no modality, use audio or visual"),
        ({"missing_rates": {"audio": "half"}}, "audio=half: it must be a number between 0 and 1"),
        ({"inputs": "smell"}, "inputs = 'smell'"),
        ({"training": "twice"}, "training = 'twice'"),
        ({"seed": 2**63}, "^seed = 9223372036854775808: Input should be less than or equal to 9223372036854775807"),
    ],
)
def test_the_error_for_an_invalid_setting_has_its_name_and_value(overrides, message):
    with pytest.raises(UserError, match=message):
        make_config("paper", **{"method": "zero-fill", **overrides})


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_another_type_is_an_error_with_its_name_and_value(name):
    kinds = {"integer": int, "number": (int, float), "boolean": bool, "string": str, "object": dict}
    schema = TrainConfig.model_json_schema()["properties"][name]
    # Of a single text, older versions of pydantic have the constant alone.
    kind = str if "const" in schema else kinds[schema.get("type") or schema["anyOf"][0]["type"]]
    for value in ([1], ["zero-fill"], {"x": 1}, 3.5, True, "text"):
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            continue
        with pytest.raises(UserError, match=rf"^{re.escape(f'{name} = {value!r}: ')}"):
            make_config(**{name: value})


@pytest.mark.parametrize("value", ["['zero-fill']", "{x = 1}", "3"])
@pytest.mark.parametrize("name", ["method", "preset", "backbone", "manifest", "store", "device", "start_from"])
def test_a_setting_that_is_a_name_must_be_a_text_in_files_and_assignments(name, value, tmp_path):
    (tmp_path / "mine.toml").write_text(f"{name} = {value}\n")
    with pytest.raises(UserError, match=rf"^{name} = .*: Input should be a valid string"):
        parse_assignments([f"{name}={value}"])
    with pytest.raises(UserError, match=rf"mine.toml: {name} = .*: Input should be a valid string"):
        read_settings(tmp_path / "mine.toml")


def test_importing_configuration_and_masks_does_not_load_torch():
    code = "import sys, train.runs.config, train.data.scenarios; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

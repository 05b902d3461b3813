"""Presets and their overrides, and that reading them loads no torch."""

import subprocess
import sys

import pytest

from pipeline.failure import UserError
from train.config import PRESETS, TrainConfig, make_config


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", ["zero-fill", "rmm-avr"])
def test_every_preset_makes_a_configuration_that_reads_back(preset, method):
    config = make_config(preset, method=method)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    assert config.preset == preset


def test_none_means_as_the_preset_has_it():
    assert make_config("demo", epochs=None).epochs == PRESETS["demo"].settings["epochs"]
    assert make_config("demo", epochs=2).epochs == 2


def test_options_of_a_method_are_laid_over_the_presets():
    options = make_config("demo", method="rmm-avr", options={"slots": 3}).options
    assert options == {**PRESETS["demo"].options["rmm-avr"], "slots": 3}
    assert make_config("demo", method="zero-fill").options == {}


def test_inputs_other_than_all_choose_the_reference():
    config = make_config("demo", inputs="question")
    assert (config.method, config.options) == ("reference", {"inputs": "question"})
    with pytest.raises(UserError, match="reference"):
        make_config("demo", method="reference")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epochs": 0}, "epochs = 0"),
        ({"epoch": 3}, "epoch = 3"),
        ({"inputs": "smell"}, "inputs = 'smell'"),
        ({"training": "twice"}, "training = 'twice'"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(overrides, message):
    with pytest.raises(UserError, match=message):
        make_config("paper", **{"method": "zero-fill", **overrides})


def test_configuration_and_masks_load_no_torch():
    code = "import sys, train.config, train.missingness; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

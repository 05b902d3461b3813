"""What a row says of its run: the options that were chosen."""

import pytest

from train.evaluation.subject import chosen_options
from train.runs.config import make_config


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"method": "rmm-avr"}, {}),
        ({"method": "rmm-avr", "options": {"slots": 16, "schedule": "ddpm"}}, {"schedule": "ddpm"}),
        ({"method": "rmm-avr", "options": {"slots": 75}}, {"slots": 75}),
        ({"method": "modality-dropout", "options": {"exposure": "all"}}, {"exposure": "all"}),
        ({"inputs": "question", "options": {"exposure": "all"}}, {"exposure": "all"}),
    ],
)
def test_a_row_has_the_options_that_are_not_the_preset_s(settings: dict, options: dict) -> None:
    assert chosen_options(make_config("demo", **settings)) == options

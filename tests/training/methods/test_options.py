"""Options of methods and backbones: each value that is not one of the accepted ones is an error that names it."""

from inspect import Parameter, signature
from typing import Any

import pytest
from pydantic import TypeAdapter
from tiny_store import SIZES

from pipeline.errors import UserError
from pipeline.plugins import load_plugin
from train.backbones.registry import BACKBONES, make_backbone
from train.methods.registry import METHODS, make_method
from train.runs.config import make_config

INFINITE, NO_NUMBER = float("inf"), float("nan")
INVALID = {
    "integer": [-1, "1", 1.5, True, [1]],
    "number": [-0.1, INFINITE, NO_NUMBER, "1", False, [0.5]],
    "boolean": ["yes", 1],
    "string": ["unheard of", 1, ["zeros"]],
    "array": ["1", 1, [], [-1, 1, 1, 1], ["a", 1, 1, 1], [True, 1, 1, 1]],
}


def options_of(kind: str, table: dict[str, str]) -> list[tuple[str, str, Parameter]]:
    return [
        (kind, name, parameter)
        for name in table
        for parameter in list(signature(load_plugin(kind, table, name)).parameters.values())[1:]
        if parameter.name != "variant"
    ]


def build(kind: str, name: str, options: dict[str, Any]) -> object:
    """Build a backbone, or a method on AVST."""
    if kind == "backbone":
        return make_backbone(name, SIZES, **options)
    return make_method(name, make_backbone("avst", SIZES), **options)


OPTIONS = options_of("method", METHODS) + options_of("backbone", BACKBONES)


NAMES = [f"{name}-{option.name}" for _, name, option in OPTIONS]


@pytest.mark.parametrize(("kind", "name", "option"), OPTIONS, ids=NAMES)
def test_an_option_of_another_type_or_range_is_an_error_that_names_it(kind: str, name: str, option: Parameter) -> None:
    schema = TypeAdapter(option.annotation).json_schema()
    types = [one["type"] for one in schema.get("anyOf", [schema])]
    build(kind, name, {option.name: option.default})
    for value in [*INVALID[types[0]], {"a": 1}, *([] if "null" in types else [None])]:
        with pytest.raises(UserError) as caught:
            build(kind, name, {option.name: value})
        assert str(value) in str(caught.value), value
        assert option.name in str(caught.value), value


@pytest.mark.parametrize(
    ("kind", "name", "option", "value"),
    [
        ("method", "rmm", "slots", 0),
        ("method", "prompts", "prompts", 0),
        ("method", "retrieval-fill", "neighbours", 0),
        ("method", "actionmae", "smoothing", 1.0),
        ("method", "avr", "steps", 0),
        ("method", "avr", "mults", [1, 0]),
        ("method", "avr", "stem_kernel", 2),
        ("method", "avr", "dim", 12),
        ("method", "avr", "gradient_steps", 0),
        ("backbone", "pano", "hidden", 0),
        ("backbone", "pano", "layers", [1, 1, 1]),
        ("backbone", "pstp", "segments", 0),
    ],
)
def test_the_bounds_of_an_option_are_checked(kind: str, name: str, option: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"{option}\b.*{str(value).replace('[', '.')[:3]}"):
        build(kind, name, {option: value})


def test_an_option_can_be_none_in_a_file() -> None:
    assert make_config("demo", method="avr", options={"width": "none"}).options["width"] is None

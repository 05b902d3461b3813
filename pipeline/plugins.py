"""Plug-ins by name: those of mavqa and those of installed packages, registered as entry points.

A table of plug-ins is {name: "module:attribute"}; a module is imported when its plug-in is loaded.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import Parameter, signature
from typing import Any

from pipeline.errors import UserError, did_you_mean, one_line, unknown_name

PLUGIN_GROUPS = tuple(
    f"mavqa.{kind}" for kind in ("datasets", "extractors", "question_extractors", "backbones", "methods", "trackers")
)


def with_installed(group: str, own: Mapping[str, str]) -> dict[str, str]:
    """Return the table of the plug-ins `own` and of the entry points in `group`, such as "mavqa.backbones".

    An entry point with the name of an own plug-in, or of an earlier package's, is ignored with a warning.
    """
    table = dict(own)
    for entry in sorted(entry_points(group=group), key=lambda entry: (entry.name, _package(entry))):
        if table.get(entry.name, entry.value) != entry.value:
            has_it = "mavqa has its own" if entry.name in own else f"{table[entry.name]} has this name"
            warnings.warn(f"{group} {entry.name!r} of {_package(entry)} is ignored: {has_it}", stacklevel=2)
        else:
            table[entry.name] = entry.value
    return table


def load_plugin(kind: str, table: Mapping[str, str], name: str) -> Any:
    """Import and return the plug-in `name` of the table.

    Raises `UserError` with the known names if there is no such plug-in, and with the package and the reason if an
    installed package's cannot be imported; `kind` is what the message calls it.
    """
    if name not in table:
        raise unknown_name(kind, name, table)
    module, _, attribute = table[name].partition(":")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:
        installed = list(entry_points(name=name, value=table[name]))
        if not installed:
            raise
        raise UserError(
            f"{kind} {name!r} ({table[name]}) of the package {_package(installed[0])} cannot be loaded: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error


def choose_variant(kind: str, name: str, variants: Sequence[str], variant: str | None) -> dict[str, str]:
    """Return {"variant": the variant to build}, {} for a plug-in without variants; None chooses the first.

    Raises `UserError` if the plug-in has no variant of this name.
    """
    if variant is not None and variant not in variants:
        known = ", ".join(variants) or "none"
        hint = did_you_mean(variant, variants)
        raise UserError(f"{kind} {name!r} has no variant {variant!r}{hint}: choose one of {known}")
    return {"variant": variant or variants[0]} if variants else {}


def check_options(kind: str, name: str, build: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise `UserError` if one of `options` is no parameter of `build` but the first, or is the setting `variant`.

    A value must be one of its parameter's annotation, read as JSON: `int`, `Sequence[str]`, pydantic's `PositiveInt`; a
    bool is no number. Annotations that pydantic does not know are not checked.
    """
    parameters = {parameter.name: parameter for parameter in list(signature(build).parameters.values())[1:]}
    if parameters.pop("variant", None) and "variant" in options:
        raise UserError(f"{kind} {name!r} takes no option 'variant': set the variant of the run")
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for option in sorted(set(options) - set(parameters)):
        known = ", ".join(parameters) or "none"
        hint = did_you_mean(option, parameters)
        raise UserError(f"{kind} {name!r} has no option {option!r}{hint}: its options are {known}")
    for option, value in options.items():
        if problem := _problem_of(value, parameters[option].annotation):
            raise UserError(f"option {option!r} of {kind} {name!r} is {value!r}: {problem}")


def _problem_of(value: Any, annotation: Any) -> str:
    """Return why `value` is none of the annotated ones; "" if it is one, or pydantic does not know the annotation."""
    from pydantic import PydanticUserError, TypeAdapter, ValidationError
    from pydantic_core import to_json

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(Any if annotation is Parameter.empty else annotation)
        adapter.validate_json(to_json(value, fallback=str), strict=True)
    except ValidationError as error:
        return error.errors()[0]["msg"]
    except (PydanticUserError, NameError):  # a class of a plug-in, or one that is only imported for type checkers
        return ""
    return ""


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value

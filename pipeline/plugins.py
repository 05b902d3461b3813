"""Plug-ins by name: those of mavqa and those of installed packages, registered as entry points.

A table of plug-ins is {name: "module:attribute"}; a module is imported when its plug-in is loaded.
"""

import warnings
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from inspect import signature
from typing import Any

from pipeline.errors import UserError


def with_installed(group: str, own: Mapping[str, str]) -> dict[str, str]:
    """Return the table of the plug-ins `own` and of the entry points in `group`, such as "mavqa.backbones".

    An entry point with the name of an own plug-in is ignored with a warning.
    """
    table = dict(own)
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        if entry.name in own:
            package = entry.dist.name if entry.dist else entry.value
            warnings.warn(f"{group} {entry.name!r} of {package} is ignored: mavqa has its own", stacklevel=2)
        else:
            table[entry.name] = entry.value
    return table


def load_plugin(kind: str, table: Mapping[str, str], name: str) -> Any:
    """Import and return the plug-in `name` of the table.

    Raises `UserError` with the known names if there is no such plug-in; `kind` is what the message calls it.
    """
    if name not in table:
        raise UserError(f"{kind} {name!r} is unknown: choose one of {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)


def check_options(kind: str, name: str, build: Callable[..., Any], options: Collection[str]) -> None:
    """Raise `UserError` if one of `options` is no parameter of `build`, whose first parameter is not an option."""
    known = list(signature(build).parameters)[1:]
    for option in sorted(set(options) - set(known)):
        raise UserError(f"{kind} {name!r} has no option {option!r}: its options are {', '.join(known) or 'none'}")

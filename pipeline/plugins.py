"""Plug-ins by name: mavqa's own and those that installed packages offer through entry points.

A table of plug-ins is {name: "module:attribute"}; a module is imported when its plug-in is asked for.
"""

import warnings
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from inspect import signature
from typing import Any

from pipeline.errors import UserError


def with_installed(group: str, own: Mapping[str, str]) -> dict[str, str]:
    """Return the table of `own` plug-ins and of the entry points in `group`, such as "mavqa.backbones".

    An entry point of a name that mavqa has itself is left out, with a warning.
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
    """Return what the table's entry `name` points to.

    Raises `UserError` naming the known ones where there is none of that name; `kind` says what they are.
    """
    if name not in table:
        raise UserError(f"{kind} {name!r} is unknown: choose one of {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)


def check_options(kind: str, name: str, build: Callable[..., Any], options: Collection[str]) -> None:
    """Raise `UserError` where `build`, whose first parameter is not for users, has no keyword of one of `options`."""
    known = list(signature(build).parameters)[1:]
    for option in sorted(set(options) - set(known)):
        raise UserError(f"{kind} {name!r} has no option {option!r}: it knows {', '.join(known) or 'none'}")

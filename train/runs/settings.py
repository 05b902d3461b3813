"""The settings of a run as text: files, `key=value` assignments, and a listing to edit and give back."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, one_line
from pipeline.manifests.manifest import parse_json
from pipeline.plugins import check_options, load_plugin
from train.backbones.registry import BACKBONES
from train.methods.registry import METHODS
from train.runs.config import NONE, SETTINGS, TrainConfig, check_names

# Settings that are tables of names and values.
TABLES = ("options", "backbone_options", "missing_rates")


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file, or in the `config.json` of a run (a name that ends with .json).

    Raises `UserError` with the file if it is missing or invalid, or has an unknown setting.
    """
    is_json = path.suffix.lower() == ".json"
    try:
        text = path.read_text(encoding="utf-8")
        settings = parse_json(text) if is_json else tomllib.loads(text)
        if not isinstance(settings, dict):
            raise ValueError("it has no settings")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: pass a TOML file, or the config.json of a run") from None
    except ValueError as error:
        kind = "JSON" if is_json else "TOML"
        raise UserError(f"{path} is not a {kind} file of settings: {one_line(error)}") from None
    if is_json:
        # It has a value of every setting, of a pre-training also those of the method that it does not have.
        unread = ("method", "options", "inputs") if settings.get("objective") == "grounding" else ()
        settings = {name: value for name, value in settings.items() if name not in ("sizes", *unread)}
        settings = {name: NONE if value is None else value for name, value in settings.items()}
    try:
        check_names(settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return settings


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Return the settings of texts such as `batch_size=32`, `method=avr` and `options.slots=50`.

    A value is read as TOML, or as text if it is none. Raises `UserError` if a text is no assignment, or its setting is
    unknown.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, is_assignment, text = assignment.partition("=")
        name, _, entry = key.strip().partition(".")
        if not is_assignment or (entry and name not in TABLES):
            raise UserError(
                f"--set {assignment!r}: pass SETTING=VALUE, or one of {', '.join(TABLES)} as TABLE.NAME=VALUE"
            )
        value = _parse_value(text)
        check_names({name: value})
        settings = merge_settings(settings, {name: {entry: value} if entry else value})
    return settings


def _parse_value(text: str) -> Any:
    """Return the TOML value of `text`; the text itself if it is none that JSON has, too."""
    try:
        document = tomllib.loads(f"value = {text}")
        json.dumps(document)
    except (tomllib.TOMLDecodeError, TypeError):
        return text.strip()
    return document["value"] if len(document) == 1 else text.strip()


def merge_settings(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of all sources; later ones replace earlier ones, entries of a table one by one."""
    merged: dict[str, Any] = {}
    for source in sources:
        for name, value in source.items():
            is_table = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = {**merged[name], **value} if is_table else value
    return merged


def format_settings(config: TrainConfig) -> str:
    """Return all settings of `config` as TOML; the options that its backbone and method have otherwise are comments.

    `read_settings` of it gives the same configuration. Raises `UserError` if an option is unknown or invalid.
    """
    is_answering = config.objective == "answer"
    lines = [
        f"# {TrainConfig.model_fields[name].description}\n{name} = {_to_toml(getattr(config, name))}\n"
        for name in SETTINGS
        if name not in TABLES and (is_answering or name not in ("method", "inputs"))
    ]
    built = [("backbone_options", load_plugin("backbone", BACKBONES, config.backbone), config.backbone)]
    if is_answering:
        built.append(("options", load_plugin("method", METHODS, config.method), config.method))
    for table, build, name in built:
        chosen = getattr(config, table)
        check_options("method" if table == "options" else "backbone", name, build, chosen)
        defaults = {key: value for key, value in _defaults_of(build).items() if key not in chosen}
        lines += [f"# Options of {name}; those that are not set have these values.", f"[{table}]"]
        lines += [f"{key} = {_to_toml(value)}" for key, value in chosen.items()]
        lines += [f"# {key} = {_to_toml(value)}" for key, value in defaults.items()] + [""]
    lines += [f"# {TrainConfig.model_fields['missing_rates'].description}", "[missing_rates]"]
    lines += [f"{modality} = {rate}" for modality, rate in config.missing_rates.items()]
    return "\n".join(lines) + "\n"


def _defaults_of(build: Any) -> dict[str, Any]:
    """Return {option: default} of a backbone or method; options without a default are left out."""
    parameters = list(signature(build).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.name != "variant" and p.default is not Parameter.empty}


def _to_toml(value: Any) -> str:
    if value is None:
        return f'"{NONE}"'
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_to_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)} = {_to_toml(item)}' for key, item in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)

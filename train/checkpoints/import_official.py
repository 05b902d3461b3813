"""Official checkpoints become runs: names are mapped, vocabularies brought into the manifest's order.

It trains nothing and unpickles nothing but tensors. Which official tensor is which of ours stands in
`train.checkpoints.release_names`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.manifests.manifest import Vocabulary
from pipeline.manifests.templates import build_vocabulary, fill
from train.backbones.sizes import ModelSizes
from train.checkpoints.release_names import RELEASES, Release
from train.runs.config import TrainConfig, make_config
from train.runs.folder import CHECKPOINT, build_method, write_start, write_tensors

SHOWN = 5


@dataclass(frozen=True)
class Imported:
    """What became of an official checkpoint.

    `mapped` counts tensors that the run holds; `unused` are official ones that no forward pass reads, `unknown` those
    that the release is not known to have, `fresh` ours that it does not hold (they start as they are built).
    """

    run: str
    mapped: int
    unused: tuple[str, ...]
    unknown: tuple[str, ...]
    fresh: tuple[str, ...]


def import_checkpoint(
    kind: str,
    checkpoint: Path,
    annotations: Path,
    out: Path,
    manifest: str,
    store: str,
    vocabulary: Vocabulary | None = None,
) -> Imported:
    """Make a run in `out` of the official `checkpoint`; `mavqa-evaluate` takes it.

    `annotations`: the official training file, or a folder that holds it: words and answers are numbered by their
    first appearance there, as the release does. With the `vocabulary` of a manifest they are renumbered to its order.
    Raises `UserError` where the file is no checkpoint of that kind, or the vocabularies do not fit.
    """
    if kind not in RELEASES:
        raise UserError(f"kind {kind!r} is unknown: choose one of {', '.join(RELEASES)}")
    if (out / "config.json").exists():
        raise UserError(f"{out} already holds a run: give another --out")
    release = RELEASES[kind]
    official = read_official(checkpoint)
    frozen = official_vocabulary(find_training_file(annotations, release))
    settings: dict[str, Any] = {**release.settings, "options": release.read(official)}
    config = make_config(**settings, manifest=manifest, store=store)
    config = config.model_copy(update={"sizes": _sizes(release, frozen)})
    torch.manual_seed(config.seed)
    method = build_method(config)
    assert isinstance(method, nn.Module)
    state, imported = _map(release, official, method, checkpoint)
    if vocabulary is not None:
        state = renumber(state, release, frozen, vocabulary)
    method.load_state_dict(state)
    _write(out, config, vocabulary or frozen, method, checkpoint, imported)
    return Imported(str(out), **imported)


def read_official(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an official checkpoint without the prefixes that `DataParallel` put before their names.

    Raises `UserError` where the file is missing or holds anything but tensors by name.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} is not there: name the file of the official release") from None
    except Exception as error:  # noqa: BLE001 - of a damaged file the reader raises whatever it stumbles over
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} cannot be read as a checkpoint of tensors: {reason[:200]}") from None
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in state.items()):
        raise UserError(f"{path} is not a state dict of tensors: save the model's state_dict() itself")
    return {_without_prefix(name): values for name, values in state.items()}


def find_training_file(annotations: Path, release: Release) -> Path:
    """Return the official training file: `annotations` itself, or the first of the release's names in it."""
    if annotations.is_file():
        return annotations
    candidates = [annotations / name for name in release.training_files]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        names = ", ".join(release.training_files)
        raise UserError(f"{annotations} holds no official training file: looked for {names}")
    return found


def official_vocabulary(path: Path) -> Vocabulary:
    """Return words and answers numbered by their first appearance in an official training file.

    Source: the released data loaders. Raises `UserError` where the file is not one.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        texts = [fill(record["question_content"], json.loads(record["templ_values"])) for record in records]
        return build_vocabulary(texts, [record["anser"] for record in records])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no official training file ({type(error).__name__}: {error})") from None


def renumber(state: Mapping[str, Tensor], release: Release, old: Vocabulary, new: Vocabulary) -> dict[str, Tensor]:
    """Return `state` with the rows of words and answers in the order of `new`.

    Raises `UserError` naming what the two vocabularies do not share.
    """
    moved = dict(state)
    for names, before, after in ((release.words, old.tokens, new.tokens), (release.answers, old.answers, new.answers)):
        if not names:
            continue
        differing = sorted(set(before) ^ set(after))
        if differing:
            raise UserError(
                f"the official training file and the manifest do not share {len(differing)} words or answers, such as "
                f"{', '.join(map(repr, differing[:SHOWN]))}: build the manifest from the official annotations"
            )
        place = {word: number for number, word in enumerate(before)}
        order = torch.tensor([place[word] for word in after])
        moved |= {name: state[name][order] for name in names}
    return moved


def _sizes(release: Release, frozen: Vocabulary) -> ModelSizes:
    return ModelSizes(words=len(frozen.tokens), answers=len(frozen.answers), **release.sizes)


def _map(
    release: Release, official: Mapping[str, Tensor], method: nn.Module, path: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    own = method.state_dict()
    state: dict[str, Tensor] = {}
    unused: list[str] = []
    unknown: list[str] = []
    foreign: list[str] = []
    for name, values in official.items():
        ours = release.rename(name)
        if ours in own:
            state[ours] = values
        elif ours is not None or _matches(name, release.foreign):
            foreign.append(name)
        else:
            (unused if _matches(name, release.unused) else unknown).append(name)
    missing = [name for name in own if name not in state]
    faults = {
        "missing": [name for name in missing if not _matches(name, release.fresh)],
        "of a network with other settings": foreign,
        "wrong shape": [
            f"{n} {list(v.shape)}, not {list(own[n].shape)}" for n, v in state.items() if own[n].shape != v.shape
        ],
        "no finite real numbers": [name for name, values in state.items() if not _is_plain(values)],
    }
    if any(faults.values()):
        told = "; ".join(f"{fault}: {_some(names)}" for fault, names in faults.items() if names)
        raise UserError(f"{path} is no checkpoint of {release.source}, or its training file is another: {told}")
    imported = {"mapped": len(state), "unused": tuple(unused), "unknown": tuple(unknown), "fresh": tuple(missing)}
    return {**own, **{name: values.float() for name, values in state.items()}}, imported


def _write(
    out: Path,
    config: TrainConfig,
    vocabulary: Vocabulary,
    method: nn.Module,
    checkpoint: Path,
    imported: Mapping[str, Any],
) -> None:
    with checkpoint.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out / CHECKPOINT, method.state_dict(), {"imported": checkpoint.name})
    origin = {"file": checkpoint.name, "sha256": sha256, **imported}
    write_start(out, config, vocabulary, {"imported_from": origin})


def _without_prefix(name: str) -> str:
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _is_plain(values: Tensor) -> bool:
    is_stored = values.layout == torch.strided and not values.is_meta
    return is_stored and values.is_floating_point() and bool(values.isfinite().all())


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")

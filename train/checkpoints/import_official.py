"""Convert official checkpoints to runs: map tensor names, reorder vocabularies.

Only tensors are unpickled. The mapping of the names is in `train.checkpoints.release_names`.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError, unknown_name, why_unreadable
from pipeline.files import hash_file, make_folder
from pipeline.manifests.manifest import Vocabulary, parse_json
from pipeline.manifests.templates import build_vocabulary, fill
from train.backbones.sizes import ModelSizes
from train.checkpoints.release_names import FIRST_FILE, RELEASES, UPDATED_FILE, Release, TrainingFile, matches
from train.runs.claim import IMPORTED
from train.runs.config import TrainConfig, make_config
from train.runs.folder import CHECKPOINT, build_method, describe_settings, write_start, write_tensors

NAMES_SHOWN = 5
# Folders of the official repositories that contain the paths of `TrainingFile`.
ANNOTATION_FOLDERS = ("", "data", "dataset")


@dataclass(frozen=True)
class Imported:
    """The result of importing an official checkpoint.

    `training_file`: the file that numbers words and answers; `is_official`: whether it is known to be the release's, by
    its content or by its folder and name. `mapped`: number of imported tensors. `unused`: official tensors that no
    forward pass reads. `unknown`: tensors that no release is known to have. `fresh`: our tensors that are not in the
    checkpoint and keep their initial values.
    """

    run: str
    training_file: str
    is_official: bool
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
    """Convert the official `checkpoint` to a run in `out`; every `kind` except "grounding" can be evaluated.

    `annotations`: the release's training file or a folder that contains it. The release numbers words and answers by
    their first appearance in this file; if the `vocabulary` of a manifest is given, they are reordered to match it.
    Raises `UserError` if the file is not a checkpoint of this kind, the training file is another release's, or the
    vocabularies contain different entries.
    """
    if kind not in RELEASES:
        raise unknown_name("kind", kind, RELEASES)
    if (out / "config.json").exists():
        raise UserError(f"{out} already contains a run: pass another --out")
    release = RELEASES[kind]
    official = read_official(checkpoint)
    _check_kind(kind, official, checkpoint)
    training_file = find_training_file(annotations, release)
    release_vocabulary = official_vocabulary(training_file)
    settings: dict[str, Any] = {**release.settings, "options": release.read_options(official)}
    config = make_config(**settings, manifest=manifest, store=store)
    words, answers = len(release_vocabulary.tokens), len(release_vocabulary.answers)
    config = config.model_copy(update={"sizes": ModelSizes(words=words, answers=answers, **release.sizes)})
    torch.manual_seed(config.seed)
    method = build_method(config)
    assert isinstance(method, nn.Module)
    state, tensors = _map_state(release, official, method, checkpoint)
    is_official = identify_training_file(training_file) in release.training_files
    imported = {"training_file": str(training_file), "is_official": is_official, **tensors}
    if vocabulary is not None:
        state = renumber(state, release, release_vocabulary, vocabulary)
    method.load_state_dict(state)
    _write_run(out, config, release, vocabulary or release_vocabulary, method, checkpoint, imported)
    return Imported(str(out), **imported)


def read_official(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an official checkpoint, without the prefixes that `DataParallel` adds to their names.

    Raises `UserError` if the file is missing, corrupt or contains anything but named tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist: pass the file of the official release") from None
    except PermissionError:
        raise
    except Exception as error:  # noqa: BLE001 - for a corrupt file the reader raises errors of many types
        why = why_unreadable(path, error)
        raise UserError(
            f"checkpoint {path} cannot be read: {why}; download it again, or save only the model's state_dict()"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in state.items()):
        raise UserError(f"{path} is not a state dict of tensors: save only the model's state_dict()")
    return {re.sub(r"^(module\.)+", "", name): values for name, values in state.items()}


def find_training_file(annotations: Path, release: Release) -> Path:
    """Return the release's training file: `annotations` itself, or a file in this folder.

    Raises `UserError` if there is none, or if it is the training file of another release.
    """
    paths = [path for file in release.training_files for path in file.paths]
    wanted = " or ".join(paths)
    candidates = [annotations]
    candidates += [annotations / folder / path for path in paths for folder in ANNOTATION_FOLDERS]
    candidates += [annotations / Path(path).name for path in paths]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise UserError(
            f"{annotations} contains no official training file of {release.source}: searched for {wanted}; pass the "
            "folder that contains it, or the file itself"
        )
    official = identify_training_file(found)
    if official is not None and official not in release.training_files:
        raise UserError(
            f"{found} is {official.paths[0]} of MUSIC-AVQA, but {release.source} numbers words and answers by "
            f"{wanted}: pass that file"
        )
    return found


def identify_training_file(path: Path) -> TrainingFile | None:
    """Return which official training file `path` is, by its content, else by its folder and name; None if neither."""
    content = path.read_bytes()
    git_id = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    name = "/".join(path.absolute().parts[-2:])
    by_content = [file for file in (FIRST_FILE, UPDATED_FILE) if file.git_id == git_id]
    by_name = [file for file in (FIRST_FILE, UPDATED_FILE) if name in file.paths]
    return next(iter(by_content + by_name), None)


def official_vocabulary(path: Path) -> Vocabulary:
    """Return words and answers in the order of their first appearance in an official training file.

    Source: the released data loaders. Raises `UserError` if the file is not an official training file.
    """
    try:
        records = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not an official training file: it is not JSON ({error})") from None
    if not isinstance(records, list):
        raise UserError(f"{path} is not an official training file: it is not a list of records")
    read = [_read_record(record, f"{path}, record {number}") for number, record in enumerate(records, start=1)]
    return build_vocabulary([text for text, _ in read], [answer for _, answer in read])


def _read_record(record: Any, where: str) -> tuple[str, str]:
    """Return the filled question and the answer of a record of an official training file."""
    for key in ("question_content", "templ_values", "anser"):
        if not isinstance(record, dict) or not isinstance(record.get(key), str):
            raise UserError(f"{where} has no text {key!r}: pass an official training file")
    try:
        values = parse_json(record["templ_values"])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError("it is not a list of texts")
        return fill(record["question_content"], values), record["anser"]
    except ValueError as error:
        raise UserError(f"{where}: templ_values {record['templ_values']!r} cannot be read: {error}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def renumber(state: Mapping[str, Tensor], release: Release, old: Vocabulary, new: Vocabulary) -> dict[str, Tensor]:
    """Return `state` with the rows of words and answers reordered from the vocabulary `old` to `new`.

    Raises `UserError` with some of the words and answers that are in only one of the vocabularies.
    """
    renumbered = dict(state)
    for names, before, after in ((release.words, old.tokens, new.tokens), (release.answers, old.answers, new.answers)):
        if not names:
            continue
        differing = sorted(set(before) ^ set(after))
        if differing:
            raise UserError(
                f"the official training file and the manifest differ in {len(differing)} words or answers, such as "
                f"{', '.join(map(repr, differing[:NAMES_SHOWN]))}: build the manifest from the official annotations"
            )
        position = {word: number for number, word in enumerate(before)}
        order = torch.tensor([position[word] for word in after])
        renumbered |= {name: state[name][order] for name in names}
    return renumbered


def _check_kind(kind: str, official: Mapping[str, Tensor], path: Path) -> None:
    """Raise `UserError` if the tensors' names are those of another kind of checkpoint."""
    fitting = [other for other, release in RELEASES.items() if release.describes(official)]
    if fitting and kind not in fitting:
        expected, found = RELEASES[kind].source, RELEASES[fitting[0]].source
        raise UserError(
            f"{path} is not a checkpoint of {expected}: it has the tensors of {found}; import it as {fitting[0]!r}"
        )


def _map_state(
    release: Release, official: Mapping[str, Tensor], method: nn.Module, path: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the method's state dict with the official tensors, and the fields of `Imported` about tensors.

    Raises `UserError` if tensors are missing, incompatible, not finite or have another shape.
    """
    initial = method.state_dict()
    state: dict[str, Tensor] = {}
    unused: list[str] = []
    unknown: list[str] = []
    incompatible: list[str] = []
    for name, values in official.items():
        ours = release.rename(name)
        if ours in initial:
            state[ours] = values
        elif ours is not None or matches(name, release.incompatible):
            incompatible.append(name)
        else:
            (unused if matches(name, release.unused) else unknown).append(name)
    missing = [name for name in initial if name not in state]
    unmatched = [pattern for pattern in release.required if not any(matches(name, (pattern,)) for name in official)]
    faults = {
        "missing": [*unmatched, *(name for name in missing if not matches(name, release.fresh))],
        "of another release": [name for name in unknown if any(other.knows(name) for other in RELEASES.values())],
        "of a network with other settings": incompatible,
        "wrong shape": [
            f"{n} {list(v.shape)}, not {list(initial[n].shape)}"
            for n, v in state.items()
            if initial[n].shape != v.shape
        ],
        "not finite floating-point numbers": [name for name, values in state.items() if not _is_finite(values)],
    }
    if any(faults.values()):
        details = "; ".join(f"{fault}: {_list_names(names)}" for fault, names in faults.items() if names)
        raise UserError(f"{path} is not a checkpoint of {release.source}, or not of this training file: {details}")
    imported = {"mapped": len(state), "unused": tuple(unused), "unknown": tuple(unknown), "fresh": tuple(missing)}
    return {**initial, **{name: values.float() for name, values in state.items()}}, imported


def _write_run(
    out: Path,
    config: TrainConfig,
    release: Release,
    vocabulary: Vocabulary,
    method: nn.Module,
    checkpoint: Path,
    imported: Mapping[str, Any],
) -> None:
    """Write the run; its data are the file, by content, and the vocabulary if the weights number words or answers."""
    make_folder(out)
    state = method.state_dict()
    trained = sorted(state.keys() - set(imported["fresh"]))
    facts = {"imported": checkpoint.name, "trained": trained, "settings": describe_settings(method)}
    write_tensors(out / CHECKPOINT, state, facts)
    sha256 = hash_file(checkpoint)
    data: dict[str, Any] = {IMPORTED: sha256}
    if release.words or release.answers:
        data["vocabulary"] = vocabulary.to_json()
    environment = {"imported_from": {"file": checkpoint.name, "sha256": sha256, **imported}}
    write_start(out, config, vocabulary, environment, data)


def _is_finite(values: Tensor) -> bool:
    is_dense = values.layout == torch.strided and not values.is_meta
    return is_dense and values.is_floating_point() and bool(values.isfinite().all())


def _list_names(names: list[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")

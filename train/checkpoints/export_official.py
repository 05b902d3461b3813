"""Export runs as official checkpoints: our tensors under the names of the release, numbered by its training file.

The reverse of `train.checkpoints.import_official`, with the same table of names: `train.checkpoints.release_names`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.files import staged
from train.backbones.sizes import ModelSizes
from train.checkpoints.import_official import find_training_file, identify_training_file, official_vocabulary, renumber
from train.checkpoints.release_names import RELEASES, Release, matches
from train.runs.config import TrainConfig, make_config
from train.runs.folder import build_method, describe_settings, load_run, read_vocabulary

# What the vocabulary decides, and what has no part in answering.
_FREE_SIZES = ("words", "answers", "dropout")


@dataclass(frozen=True)
class Exported:
    """The result of exporting a run.

    `kind`: that of `mavqa-import`. `training_file`: the file that numbers words and answers; `is_official`: whether it
    is known to be the release's. `mapped`: number of exported tensors. `unused`: further official tensors, which no
    forward pass reads. `left_out`: our tensors that the release does not have.
    """

    checkpoint: str
    kind: str
    training_file: str
    is_official: bool
    mapped: int
    unused: tuple[str, ...]
    left_out: tuple[str, ...]


def export_checkpoint(run: Path, annotations: Path, out: Path) -> Exported:
    """Write the best epoch of `run` to `out`, a state dict that `torch.load` reads with `weights_only=True`.

    `annotations`: the release's training file or a folder that contains it; the rows of words and answers are reordered
    to their first appearance in it. Raises `UserError` if no release has the network of the run, if the vocabularies
    contain different entries, or if `out` exists.
    """
    if out.exists():
        raise UserError(f"{out} already exists: pass another --out")
    method, config = load_run(run)
    assert isinstance(method, nn.Module)
    kind = _find_kind(run, config)
    release = RELEASES[kind]
    official, left_out = _restore_names(run, release, method.state_dict())
    official |= (unused := release.make_unused(method, official))
    _check_network(run, config, release, method, official)
    training_file = find_training_file(annotations, release)
    state = {release.rename(name) or name: values for name, values in official.items()}
    state = renumber(state, release, read_vocabulary(run), official_vocabulary(training_file))
    tensors = {name: state[release.rename(name) or name].detach().cpu().contiguous() for name in official}
    with staged(out) as staging:
        torch.save(tensors, staging)
    is_official = identify_training_file(training_file) in release.training_files
    mapped = len(official) - len(unused)
    return Exported(str(out), kind, str(training_file), is_official, mapped, tuple(unused), tuple(left_out))


def _find_kind(run: Path, config: TrainConfig) -> str:
    """Return the kind of release whose backbone and method the run has. Raises `UserError` if there is none."""
    known = {}
    for kind, release in RELEASES.items():
        expected = make_config(**release.settings)
        known[expected.objective, expected.backbone, expected.method] = kind
    own = (config.objective, config.backbone, config.method)
    if own in known and config.inputs == "all":
        return known[own]
    listed = ", ".join(f"{method} on {backbone}" for objective, backbone, method in known if objective == "answer")
    raise UserError(
        f"{run} is a run of {config.method} on {config.backbone} with the objective {config.objective!r} and the "
        f"inputs {config.inputs!r}, of which there is no release: export one of {listed}, or of the grounding "
        "pre-training"
    )


def _restore_names(run: Path, release: Release, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return {official name: values}, and our names of the tensors that the release does not have.

    Raises `UserError` if the release needs one of them to give the same answers.
    """
    official, left_out = {}, []
    for ours, values in state.items():
        name = None if matches(ours, release.fresh) else release.restore(ours)
        if name is None:
            left_out.append(ours)
        elif release.rename(name) != ours:
            raise ValueError(f"{ours} is exported as {name}, which is imported as {release.rename(name)}")
        else:
            official[name] = values
    needed = [name for name in left_out if not matches(name, release.fresh)]
    if needed:
        raise UserError(
            f"{run} has tensors that {release.source} does not have, such as {needed[0]}: it has no such file"
        )
    return official, left_out


def _check_network(
    run: Path, config: TrainConfig, release: Release, method: nn.Module, official: dict[str, Tensor]
) -> None:
    """Raise `UserError` unless the release computes the answers of the run: an import must build the same network."""
    expected = make_config(**release.settings, options=release.read_options(official))
    assert config.sizes is not None
    sizes = ModelSizes(words=config.sizes.words, answers=config.sizes.answers, **release.sizes)
    built = build_method(expected.model_copy(update={"sizes": sizes}))
    assert isinstance(built, nn.Module)
    ours: dict[str, Any] = {**config.sizes.model_dump(exclude=set(_FREE_SIZES)), "whiten": config.whiten}
    theirs: dict[str, Any] = {**sizes.model_dump(exclude=set(_FREE_SIZES)), "whiten": False}
    for values, settings, module in ((ours, config, method), (theirs, expected, built)):
        values |= {"backbone_options": settings.backbone_options}
        values |= {f"options.{name}": value for name, value in settings.options.items()}
        values |= {
            f"{part}.{name}".lstrip("."): value
            for part, of_module in describe_settings(module).items()
            for name, value in of_module.items()
        }
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{run} cannot be exported: {name} is {ours.get(name, 'not set')} in the run, "
                f"{theirs.get(name, 'not set')} in {release.source}"
            )
    mine, others = ({name: values.shape for name, values in m.state_dict().items()} for m in (method, built))
    if mine != others:
        name = sorted(set(mine.items()) ^ set(others.items()))[0][0]
        raise UserError(
            f"{run} cannot be exported: its tensor {name} is not that of {release.source}: another variant?"
        )

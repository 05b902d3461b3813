"""A run's folder: write its files, and load the trained model back.

    config.json  data.json  vocabulary.json  environment.json  masks-train.json (with missing rates)
    metrics.jsonl  times.json (seconds per epoch; the only file that is not reproducible)
    checkpoint.safetensors (best epoch)  last.safetensors (last epoch, with the optimiser; until the last epoch)
    steps.csv  tensorboard/ (if steps are recorded: `train.training.tracking`)

Every file but those of steps is written under a staging name and renamed, so that a run can be killed at any time. No
file is a pickle.
"""

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.errors import UserError, describe_invalid, did_you_mean, one_line
from pipeline.files import make_folder, replace_text, staged
from pipeline.manifests.manifest import Vocabulary, parse_json
from pipeline.store.schema import FeatureSpec
from train import processes
from train.backbones.registry import backbone_variants, make_backbone
from train.interfaces import MissingModalityMethod
from train.methods.grounding import GroundingPretraining
from train.methods.registry import make_method, method_variants
from train.runs.claim import read_data
from train.runs.config import TrainConfig
from train.runs.device import choose_device
from train.runs.features import weights_hash
from train.runs.identity import CHECKPOINT, CONFIG, DATA, LOCATION_SETTINGS, is_run_folder, run_id
from train.runs.log import read_metrics

ENVIRONMENT = "environment.json"
LAST = "last.safetensors"
VOCABULARY = "vocabulary.json"
LIBRARIES = ("torch", "numpy", "zarr", "safetensors")
# A safetensors file begins with the length of its header, which is JSON.
HEADER_LENGTH_BYTES = 8


def build_method(config: TrainConfig) -> MissingModalityMethod:
    """Build the untrained method of `config`; its weights depend on the state of torch's random generator.

    Raises `UserError` if a name or an option is unknown.
    """
    if config.sizes is None:
        raise ValueError("the configuration has no sizes: set them from the store and the vocabulary before building")
    of_backbone, of_method = backbone_variants(config.backbone), method_variants(config.method)
    if config.objective == "grounding":  # no method is built
        of_method = ()
    known = {"recommended", *of_backbone, *of_method}
    if config.variant not in known:
        raise UserError(
            f"backbone {config.backbone!r} and method {config.method!r} have no variant {config.variant!r}"
            f"{did_you_mean(config.variant, known)}: choose one of {', '.join(sorted(known))}"
        )
    chosen = config.backbone_variant or config.variant
    if config.backbone_variant and of_backbone and chosen not in of_backbone:
        raise UserError(
            f"backbone {config.backbone!r} has no variant {chosen!r}{did_you_mean(chosen, of_backbone)}: set "
            f"backbone_variant to one of {', '.join(of_backbone)}"
        )
    variant = chosen if chosen in of_backbone else None
    backbone = make_backbone(config.backbone, config.sizes, variant, **config.backbone_options)
    if config.objective == "grounding":
        return GroundingPretraining(backbone)
    return make_method(
        config.method, backbone, config.variant if config.variant in of_method else None, **config.options
    )


def load_run(run: str | Path, device: str = "cpu") -> tuple[MissingModalityMethod, TrainConfig]:
    """Return the trained method of `run` (its best epoch, in evaluation mode) and its configuration.

    `device`: cpu, cuda, or auto, which is a GPU if one is available. Raises `UserError` if the device is not available,
    or if a file is missing, corrupt or does not match the configuration.
    """
    method, config, _ = load_hashed_run(Path(run), device)
    return method, config


def load_hashed_run(run: Path, device: str = "cpu") -> tuple[MissingModalityMethod, TrainConfig, str]:
    """Return the method and configuration of `load_run`, and the SHA-256 of the checkpoint that was loaded."""
    config = read_config(run)
    method = build_method(config)
    assert isinstance(method, nn.Module)
    content = _read_bytes(run / CHECKPOINT)
    tensors, facts = _parse_tensors(content, run / CHECKPOINT)
    if facts.get("run", run_id(run)) != run_id(run):
        raise UserError(f"{run / CHECKPOINT} is of a run with other settings or data than {run}: train it again")
    check_settings(facts, method, config.variant, run / CHECKPOINT)
    try:
        method.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{run / CHECKPOINT} does not match {run / CONFIG}: {one_line(error)}") from None
    method.to(choose_device(device)).eval()
    return method, config, hashlib.sha256(content).hexdigest()


def read_config(run: Path) -> TrainConfig:
    """Return the configuration of `run`. Raises `UserError` if the folder is not a run."""
    path = run / CONFIG
    try:
        return TrainConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {run} is not a run folder, create one with mavqa-train") from None
    except ValueError as error:
        why = describe_invalid(error) if isinstance(error, ValidationError) else one_line(error)
        raise UserError(f"{path} is not a run configuration ({why}): train the run again") from None


def read_vocabulary(run: Path) -> Vocabulary:
    """Return the words and answers that `run` was trained with.

    Raises `UserError` if the file is missing or corrupt, or is another one than the run's data recorded.
    """
    path = run / VOCABULARY
    try:
        vocabulary = Vocabulary.from_json(parse_json(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: train the run again") from None
    except ValueError as error:
        raise UserError(f"{path} is not a vocabulary ({one_line(error)}): train the run again") from None
    if read_data(run).get("vocabulary", vocabulary.to_json()) != vocabulary.to_json():
        raise UserError(f"{path} has other words or answers, or in another order, than {run / DATA}: restore the file")
    return vocabulary


def is_finished(run: Path, config: TrainConfig) -> bool:
    """Return whether `run` contains the training of `config`, finished to its last epoch; False if it has no config.

    Raises `UserError` if the folder contains a run with other settings (devices and paths may differ).
    """
    if not is_run_folder(run):
        return False
    if read_config(run).model_dump(exclude=set(LOCATION_SETTINGS)) != config.model_dump(exclude=set(LOCATION_SETTINGS)):
        raise UserError(f"{run} contains a run with other settings (its config.json): pass another --out, or remove it")
    return len(read_metrics(run)) >= config.epochs and (run / CHECKPOINT).exists()


def write_start(
    run: Path,
    config: TrainConfig,
    vocabulary: Vocabulary,
    environment: dict[str, Any],
    data: dict[str, Any] | None = None,
) -> None:
    """Write the files known before the first epoch; `config.json` last, so that it marks a complete folder.

    `data`: what the run is trained on (`train.runs.claim.describe_data`); None if that is not known.
    """
    make_folder(run)
    if data is not None:
        replace_text(run / DATA, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    replace_text(run / VOCABULARY, json.dumps(vocabulary.to_json(), ensure_ascii=False, indent=1) + "\n")
    replace_text(run / ENVIRONMENT, json.dumps(environment, indent=1) + "\n")
    replace_text(run / CONFIG, config.model_dump_json(indent=1) + "\n")


def describe_environment(device: torch.device, specs: Mapping[str, FeatureSpec]) -> dict[str, Any]:
    """Return what a run depends on besides its configuration: versions, device, git commit and features.

    `specs`: {stored feature: its spec}. They are recorded whole, so that the features of a new video can be computed
    when the store is gone.
    """
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "libraries": {library: version(library) for library in LIBRARIES},
        "device": device.type,
        "device_name": gpu.name if gpu else platform.processor(),
        "device_uuid": f"GPU-{gpu.uuid}" if gpu else None,  # as nvidia-smi -L; the index depends on what a process sees
        "threads": torch.get_num_threads(),
        "processes": processes.count(),
        "git_commit": _git_commit(),
        "store_fingerprints": {name: spec.fingerprint for name, spec in specs.items()},
        "feature_weights": {name: weights_hash(spec) for name, spec in specs.items()},
        "feature_specs": {name: spec.to_json() for name, spec in specs.items()},
    }


def read_environment(run: Path) -> dict[str, Any]:
    """Return what `describe_environment` recorded at the start of the run; {} if the file is missing.

    Raises `UserError` if the file is corrupt.
    """
    path = run / ENVIRONMENT
    try:
        environment = parse_json(path.read_text(encoding="utf-8")) if path.exists() else {}
        tables = ("feature_weights", "feature_specs", "store_fingerprints")
        if not isinstance(environment, dict) or not all(isinstance(environment.get(t, {}), dict) for t in tables):
            raise ValueError("it has not the fields of an environment")
        return environment
    except ValueError as error:
        raise UserError(f"{path} is corrupt ({one_line(error)}): remove it") from None


def describe_settings(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Return {name of a module: its settings}, which a variant and the options of a method decide."""
    settings = {name: getattr(part, "settings", None) for name, part in module.named_modules()}
    return {name: asdict(of) for name, of in settings.items() if is_dataclass(of) and not isinstance(of, type)}


def check_settings(facts: Mapping[str, Any], module: nn.Module, variant: str, path: Path) -> None:
    """Raise `UserError` if the weights in `path`, with its `facts`, were trained with other settings than the module's.

    What the defaults of a variant are may change from version to version. Files of versions that did not record the
    settings are refused for the variant `paper`, whose defaults have changed.
    """
    now = describe_settings(module)
    before = facts.get("settings", {} if variant == "paper" else now)
    differences = [
        f"{name} {_show(before.get(part, {}).get(name))}, now {_show(value)}"
        for part, settings in now.items()
        for name, value in settings.items()
        if before.get(part, {}).get(name, None) != value
    ]
    if differences:
        raise UserError(
            f"{path} was trained by a version of mavqa whose variant {variant} has other settings "
            f"({'; '.join(differences[:3])}): train the run again"
        )


def _show(value: Any) -> str:
    return "not recorded" if value is None else str(value)


def write_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any] | None = None) -> None:
    """Write named tensors and JSON `facts` as one safetensors file, renamed to `path` when complete."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with staged(path) as staging:  # `save_file` would let only the owner read it
        staging.write_bytes(save(contiguous, metadata={"facts": json.dumps(facts or {})}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and facts of a file written by `write_tensors`.

    Raises `UserError` if it is missing or corrupt.
    """
    return _parse_tensors(_read_bytes(path), path)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: train the run, or resume it") from None


def _parse_tensors(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors = load(content)
        length = int.from_bytes(content[:HEADER_LENGTH_BYTES], "little")
        header = parse_json(content[HEADER_LENGTH_BYTES:][:length].decode())
        return tensors, parse_json(header.get("__metadata__", {}).get("facts", "{}"))
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is corrupt ({one_line(error)}): train the run again") from None


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

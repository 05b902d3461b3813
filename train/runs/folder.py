"""A run's folder: what it holds, how it is written so that it can be killed anywhere, and how a model comes back.

    config.json  vocabulary.json  environment.json  masks-train.json (with missing rates)
    metrics.jsonl  times.json (seconds of each epoch; the only file that a repeated run would not repeat)
    checkpoint.safetensors (best epoch)  last.safetensors (last epoch, with the optimiser, for resume)

It trains nothing. Nothing here is a pickle.
"""

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import UserError, one_line
from pipeline.files import replace_text, staged
from pipeline.manifests.manifest import Vocabulary
from train.backbones.registry import backbone_variants, make_backbone
from train.interfaces import MissingModalityMethod
from train.methods.grounding import GroundingPretraining
from train.methods.registry import make_method, method_variants
from train.runs.config import TrainConfig
from train.runs.log import read_metrics

CHECKPOINT = "checkpoint.safetensors"
ENVIRONMENT = "environment.json"
LAST = "last.safetensors"
LIBRARIES = ("torch", "numpy", "zarr", "safetensors")
_WHERE_AND_WITH_WHAT = {"device", "manifest", "store", "sizes"}


def build_method(config: TrainConfig) -> MissingModalityMethod:
    """Build the untrained method that `config` describes; weights come from torch's seeded state.

    Raises `UserError` where a name or an option is unknown.
    """
    if config.sizes is None:
        raise ValueError("a configuration without sizes cannot be built: they come from the store and the vocabulary")
    known = {"recommended", *backbone_variants(config.backbone), *method_variants(config.method)}
    if config.variant not in known:
        raise UserError(
            f"there is no variant {config.variant!r} of backbone {config.backbone!r} or method {config.method!r}: "
            f"they know {', '.join(sorted(known))}"
        )
    backbone = make_backbone(config.backbone, config.sizes, config.variant, **config.backbone_options)
    if config.objective == "grounding":
        return GroundingPretraining(backbone)
    return make_method(config.method, backbone, config.variant, **config.options)


def load_run(run: Path, device: str = "cpu") -> tuple[MissingModalityMethod, TrainConfig]:
    """Return the trained method of `run` (its best epoch, in evaluation mode) and its configuration.

    Raises `UserError` naming the file that is missing or does not fit.
    """
    config = read_config(run)
    method = build_method(config)
    assert isinstance(method, nn.Module)
    tensors, _ = read_tensors(run / CHECKPOINT)
    try:
        method.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{run / CHECKPOINT} does not fit {run / 'config.json'}: {one_line(error)}") from None
    method.to(device).eval()
    return method, config


def read_config(run: Path) -> TrainConfig:
    """Return the configuration of `run`, or raise `UserError` where the folder is none of a run."""
    path = run / "config.json"
    try:
        return TrainConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {run} is not the folder of a run, mavqa-train makes one") from None
    except ValueError as error:
        raise UserError(f"{path} is not the configuration of a run: {one_line(error)}") from None


def read_vocabulary(run: Path) -> Vocabulary:
    """Return the words and answers that `run` was trained with.

    Raises `UserError` where the file is missing or damaged.
    """
    path = run / "vocabulary.json"
    try:
        return Vocabulary.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: train the run again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a vocabulary ({one_line(error)}): train the run again") from None


def same_run(left: TrainConfig, right: TrainConfig) -> bool:
    """Return whether two configurations describe the same training; devices and paths do not count."""
    return left.model_dump(exclude=_WHERE_AND_WITH_WHAT) == right.model_dump(exclude=_WHERE_AND_WITH_WHAT)


def is_finished(run: Path, config: TrainConfig) -> bool:
    """Return whether `run` holds the training that `config` describes, carried through to its last epoch.

    Raises `UserError` where the folder holds a different run.
    """
    if not (run / "config.json").exists():
        return False
    if not same_run(read_config(run), config):
        raise UserError(f"{run} holds a run of other settings (its config.json): give another --out, or remove it")
    return len(read_metrics(run)) >= config.epochs and (run / CHECKPOINT).exists()


def write_start(run: Path, config: TrainConfig, vocabulary: Vocabulary, environment: dict[str, Any]) -> None:
    """Write what is known before the first epoch; `config.json` comes last, so that a folder with one is whole."""
    run.mkdir(parents=True, exist_ok=True)
    replace_text(run / "vocabulary.json", json.dumps(vocabulary.to_json(), ensure_ascii=False, indent=1) + "\n")
    replace_text(run / ENVIRONMENT, json.dumps(environment, indent=1) + "\n")
    replace_text(run / "config.json", config.model_dump_json(indent=1) + "\n")


def describe_environment(device: torch.device, fingerprints: dict[str, str], weights: dict[str, str]) -> dict[str, Any]:
    """Return what a run depends on outside its configuration: versions, device, git commit, and its features.

    `fingerprints` and `weights` (SHA-256 of the extractor's weights) are by stored feature.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "libraries": {library: version(library) for library in LIBRARIES},
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
        "store_fingerprints": fingerprints,
        "feature_weights": weights,
    }


def read_environment(run: Path) -> dict[str, Any]:
    """Return what `describe_environment` said when the run began; {} where the file is not there."""
    path = run / ENVIRONMENT
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return said
    except ValueError as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): remove it") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any] | None = None) -> None:
    """Write named tensors and JSON facts as one safetensors file, beside its name and renamed last."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with staged(path) as staging:
        save_file(plain, staging, metadata={"facts": json.dumps(facts or {})})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and facts of a file that `write_tensors` wrote.

    Raises `UserError` where it is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads((file.metadata() or {}).get("facts", "{}"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: train the run, or resume it") from None
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): train the run again") from None


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

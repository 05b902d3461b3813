"""Where a frozen network's weights come from: published files, a folder of the user's, or a declared seed.

It knows no network: extractors say which tensors they need (`Network`) and take a checked state dict. Files
are read without unpickling code, published files are checked by SHA-256, and seeded weights are only taken
when asked for.
"""

import hashlib
import json
import math
import os
import pickle
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

DOWNLOAD_TIMEOUT_SECONDS = 60
CHUNK_BYTES = 1 << 20
NAMES_SHOWN = 3
SHA256_DIGITS = 64
SHORTEST_PREFIX = 8

Fan = Literal["in", "out"]


@dataclass(frozen=True)
class PublishedFile:
    """One checkpoint as its authors publish it: file name, address, SHA-256 of the file.

    `sha256`: all 64 hex digits, or the first ones (8 at least), where only those are published: torch hub puts
    8 of them into its file names. `kind`: a state dict (safetensors or torch), or a TorchScript archive, which
    holds a program besides and must have all 64.
    """

    name: str
    url: str
    sha256: str
    kind: Literal["state dict", "torchscript"] = "state dict"

    def __post_init__(self) -> None:
        shortest = SHORTEST_PREFIX if self.kind == "state dict" else SHA256_DIGITS
        if len(self.sha256) < shortest:
            raise ValueError(f"{self.name}: the hash {self.sha256!r} has less than {shortest} digits")

    @property
    def expected(self) -> str:
        """What is known of the file's SHA-256, in words."""
        return self.sha256 if len(self.sha256) == SHA256_DIGITS else f"one that begins with {self.sha256}"


@dataclass(frozen=True)
class Network:
    """What one frozen network takes: its name, its published files (the first is the one downloaded).

    `unused`: patterns of tensor names that a file may hold and that the network does not read. `seeded_fan`:
    which count of connections scales seeded weights.
    """

    name: str
    published: tuple[PublishedFile, ...]
    unused: tuple[str, ...] = ()
    seeded_fan: Fan = "in"

    @property
    def own_files(self) -> tuple[str, ...]:
        """The file names under which a folder may hold weights that nobody published."""
        return (f"{self.name}.safetensors", f"{self.name}.pth")


@dataclass(frozen=True)
class WeightsSource:
    """The choice of weights for a run; picklable and light.

    `pretrained`: published files out of `folder`, downloaded into it where they are not there. `folder`:
    files in `folder`, never downloaded; a file with a published name must be that file,
    `<network>.safetensors` or `<network>.pth` may hold any weights. `seeded`: random weights made from
    `seed`, for trials without checkpoints.
    """

    kind: Literal["pretrained", "folder", "seeded"]
    folder: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind != "seeded" and self.folder is None:
            raise ValueError(f"weights of kind {self.kind!r} need a folder")

    def constants(self) -> dict[str, Any]:
        """Return what a store declares of this choice; the hash of the tensors stands beside it.

        A published file has the same description wherever it lay.
        """
        return {"weights": "seeded", "seed": self.seed} if self.kind == "seeded" else {"weights": "file"}


def parse_weights(text: str, cache: Path) -> WeightsSource:
    """Return the source that a user named: `pretrained` (looked up in `cache` first), `seeded` or a folder.

    Raises `UserError` where `text` is none of these.
    """
    if text == "pretrained":
        return WeightsSource("pretrained", cache)
    if text == "seeded":
        return WeightsSource("seeded")
    folder = Path(text)
    if not folder.is_dir():
        raise UserError(f"weights {text!r} are not a folder: give 'pretrained', 'seeded' or a folder of checkpoints")
    return WeightsSource("folder", folder)


def hub_cache() -> Path:
    """Return torch hub's own folder of downloaded checkpoints, the usual `cache` of `parse_weights`.

    It is where torch hub says; asking that would take torch's import.
    """
    usual = Path(os.getenv("XDG_CACHE_HOME", "~/.cache")) / "torch"
    return Path(os.getenv("TORCH_HOME", usual)).expanduser() / "hub" / "checkpoints"


def load_state(source: WeightsSource, network: Network, wanted: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return float32 tensors with the names and shapes of `wanted` (which may lie on the meta device).

    Raises `UserError` where a file is missing, is not the published one, cannot be read, or does not fit.
    """
    if source.kind == "seeded":
        return seed_state(wanted, source.seed, network.seeded_fan)
    path = find_file(source, network)
    archives = [file.name for file in network.published if file.kind == "torchscript"]
    state = _read_archive(path) if path.name in archives else read_state(path)
    return _fit(state, wanted, network, path)


def seed_state(wanted: "Mapping[str, Tensor]", seed: int, fan: Fan) -> "dict[str, Tensor]":
    """Return Kaiming-initialised tensors like `wanted`, the same bits on every machine for the same seed.

    Weights of two axes or more, [output, input, ...], are uniform with variance 2 / fan, `fan` being the
    inputs (or outputs) of a unit; batch norms are the identity; biases are 0. Uniform numbers are exact in
    float32 where normal ones depend on the processor.
    Source: He et al. 2015, Delving Deep into Rectifiers, equations 10 ("in") and 14 ("out").
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name in sorted(wanted):
        shape = wanted[name].shape
        if len(shape) >= 2:
            connections = math.prod(shape[1:] if fan == "in" else (shape[0], *shape[2:]))
            uniform = torch.empty(shape).uniform_(generator=generator)
            state[name] = uniform.mul_(2).sub_(1).mul_(math.sqrt(6 / connections))
        else:
            is_scale = name.endswith((".weight", ".running_var"))
            state[name] = torch.ones(shape) if is_scale else torch.zeros(shape)
    return state


def hash_state_dict(state: "Mapping[str, Tensor]") -> str:
    """Return the SHA-256 over names (sorted), dtypes, shapes and bytes: files of the same weights agree."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def find_file(source: WeightsSource, network: Network) -> Path:
    """Return the checkpoint file of `network`: looked up in the source's folder, downloaded where allowed.

    Raises `UserError` where it is not there, or a published name holds other bytes.
    """
    assert source.folder is not None
    found = find_local_file(source, network)
    if found is not None:
        return found
    if source.kind == "pretrained":
        return _download(network.published[0], source.folder)
    names = ", ".join(accepted_files(source, network))
    raise UserError(f"{source.folder} holds no weights of {network.name}: put one of these files there: {names}")


def find_local_file(source: WeightsSource, network: Network) -> Path | None:
    """Return the checkpoint file of `network` that lies in the source's folder, or None.

    Raises `UserError` where a published name holds other bytes.
    """
    assert source.folder is not None
    published = {file.name: file for file in network.published}
    for name in accepted_files(source, network):
        path = source.folder / name
        if path.is_file():
            if name in published:
                _check_bytes(path, published[name])
            return path
    return None


def accepted_files(source: WeightsSource, network: Network) -> tuple[str, ...]:
    """Return the file names under which the source's folder may hold the weights of `network`, the first first."""
    own = network.own_files if source.kind == "folder" else ()
    return (*(file.name for file in network.published), *own)


def read_state(path: Path) -> "dict[str, Tensor]":
    """Return the tensors of a `.safetensors` or torch file by name, without running any code the file holds.

    Raises `UserError` where the file is not a state dict.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} cannot be read as weights: {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} is not a state dict of tensors: save the network's state_dict() itself")
    return {name: value.detach() for name, value in state.items()}


def _read_archive(path: Path) -> "dict[str, Tensor]":
    """Return the tensors of a TorchScript archive by name: for files whose published SHA-256 was checked.

    Such an archive holds a program; it is loaded without being run.
    """
    import torch

    state: dict[str, Tensor] = torch.jit.load(path, map_location="cpu").state_dict()
    return {name: value.detach() for name, value in state.items()}


def _fit(
    state: "Mapping[str, Tensor]", wanted: "Mapping[str, Tensor]", network: Network, path: Path
) -> "dict[str, Tensor]":
    kept = {name: value for name, value in state.items() if not _is_unused(name, network)}
    problems = {
        "missing": [name for name in wanted if name not in kept],
        "unexpected": [name for name in kept if name not in wanted],
        "wrong shape": [
            f"{name} {list(kept[name].shape)} instead of {list(wanted[name].shape)}"
            for name in wanted
            if name in kept and kept[name].shape != wanted[name].shape
        ],
        "not finite": [name for name in wanted if name in kept and not kept[name].isfinite().all()],
    }
    if any(problems.values()):
        told = "; ".join(f"{kind}: {_shorten(names)}" for kind, names in problems.items() if names)
        raise UserError(f"{path} does not hold the weights of {network.name}: {told}")
    return {name: kept[name].float() for name in wanted}


def _is_unused(name: str, network: Network) -> bool:
    return any(fnmatch(name, pattern) for pattern in network.unused)


def _shorten(names: list[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _check_bytes(path: Path, file: PublishedFile) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(file.sha256):
        raise UserError(
            f"{path} has sha256 {found}, the published file {file.expected}: delete it and fetch {file.url}"
        )


def _download(file: PublishedFile, folder: Path) -> Path:
    path = folder / file.name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=file.name, suffix=".partial", delete=False) as sink:
        staging = Path(sink.name)
        try:
            with urllib.request.urlopen(file.url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as source:
                while chunk := source.read(CHUNK_BYTES):
                    sink.write(chunk)
            sink.flush()
            _check_bytes(staging, file)
            staging.replace(path)
        except (OSError, HTTPException) as error:
            raise UserError(
                f"{file.name} cannot be downloaded ({error}): put the file from {file.url} into {folder}, "
                "or name a folder that holds it"
            ) from None
        finally:
            staging.unlink(missing_ok=True)
    return path

"""The weights of frozen networks: published files, a user's folder, or random weights from a seed.

Extractors declare the tensors they need (`Network`) and receive a checked state dict. Files are read without
unpickling code, published files are checked by SHA-256, and seeded weights are used only on request.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import UserError, one_line, why_unreadable
from pipeline.files import make_folder

if TYPE_CHECKING:
    from torch import Tensor

DOWNLOAD_TIMEOUT_SECONDS = 60
NAMES_SHOWN = 3
SHA256_DIGITS = 64
MIN_PREFIX_DIGITS = 8

Fan = Literal["in", "out"]
OnDownload = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PublishedFile:
    """One published checkpoint: file name, URL, SHA-256 of the file.

    `sha256`: all 64 hex digits, or at least the first 8 if only those are published (torch hub puts 8 into its file
    names). `kind`: a state dict (safetensors or torch), or a TorchScript archive, which also contains a program and
    therefore needs all 64 digits.
    """

    name: str
    url: str
    sha256: str
    kind: Literal["state dict", "torchscript"] = "state dict"

    def __post_init__(self) -> None:
        minimum = MIN_PREFIX_DIGITS if self.kind == "state dict" else SHA256_DIGITS
        if len(self.sha256) < minimum:
            raise ValueError(f"{self.name}: the hash {self.sha256!r} has fewer than {minimum} digits")

    @property
    def expected(self) -> str:
        """The known part of the file's SHA-256, for messages."""
        return self.sha256 if len(self.sha256) == SHA256_DIGITS else f"{self.sha256}..."


@dataclass(frozen=True)
class Network:
    """The weights of one frozen network: its name, its published files (the first one is downloaded; () if none).

    `unused`: patterns of tensor names that a file may contain but the network does not use. `seeded_fan`: whether
    seeded weights are scaled by the fan-in or the fan-out of a layer.
    """

    name: str
    published: tuple[PublishedFile, ...]
    unused: tuple[str, ...] = ()
    seeded_fan: Fan = "in"

    @property
    def own_files(self) -> tuple[str, ...]:
        """The file names of unpublished weights in a folder."""
        return (f"{self.name}.safetensors", f"{self.name}.pth")


@dataclass(frozen=True)
class WeightsSource:
    """The choice of weights for a run; small and picklable.

    `pretrained`: published files in `folder`, downloaded into it if missing. `folder`: files in `folder`, never
    downloaded; a file with a published name must be that file, `<network>.safetensors` and `<network>.pth` may contain
    any weights. `seeded`: random weights generated from `seed`, for trials without checkpoints.
    """

    kind: Literal["pretrained", "folder", "seeded"]
    folder: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind != "seeded" and self.folder is None:
            raise ValueError(f"weights of kind {self.kind!r} need a folder")

    def constants(self) -> dict[str, Any]:
        """Return the spec constants of this choice; the hash of the tensors is stored next to them.

        They do not depend on the folder of a file.
        """
        return {"weights": "seeded", "seed": self.seed} if self.kind == "seeded" else {"weights": "file"}


def parse_weights(text: str, cache: Path) -> WeightsSource:
    """Return the source for `text`: `pretrained` (files in `cache`, downloaded if missing), `seeded` or a folder.

    Raises `UserError` for any other `text`.
    """
    if text == "pretrained":
        return WeightsSource("pretrained", cache)
    if text == "seeded":
        return WeightsSource("seeded")
    folder = Path(text)
    if not folder.is_dir():
        raise UserError(f"weights {text!r} are not a folder: pass 'pretrained', 'seeded' or a folder of checkpoints")
    return WeightsSource("folder", folder)


def hub_cache() -> Path:
    """Return torch hub's folder of downloaded checkpoints, the default `cache` of `parse_weights`.

    It equals the path of `torch.hub`, without importing torch.
    """
    default = Path(os.getenv("XDG_CACHE_HOME", "~/.cache")) / "torch"
    return Path(os.getenv("TORCH_HOME", default)).expanduser() / "hub" / "checkpoints"


def load_state(source: WeightsSource, network: Network, wanted: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return float32 tensors with the names and shapes of `wanted` (which may be on the meta device).

    Raises `UserError` if the file is missing, is not the published one, cannot be read, or has other tensors.
    """
    if source.kind == "seeded":
        return seed_state(wanted, source.seed, network.seeded_fan)
    path = find_file(source, network)
    archives = [file.name for file in network.published if file.kind == "torchscript"]
    state = _read_archive(path) if path.name in archives else read_state(path)
    return _select_tensors(state, wanted, network, path)


def seed_state(wanted: "Mapping[str, Tensor]", seed: int, fan: Fan) -> "dict[str, Tensor]":
    """Return Kaiming-initialised tensors like `wanted`, bit-identical on every machine for the same seed.

    Weights with two axes or more, [output, input, ...], are uniform with variance 2 / fan, where the fan is the number
    of inputs (or outputs) of a unit; batch norms are the identity; biases are 0. The distribution is uniform because
    normal numbers depend on the processor in their last bits.
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
    """Return the SHA-256 over sorted names, dtypes, shapes and bytes: the same for all files of the same weights."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def find_file(
    source: WeightsSource, network: Network, on_progress: OnDownload = lambda name, done, total: None
) -> Path:
    """Return the checkpoint file of `network` in the source's folder; a `pretrained` one is downloaded if missing.

    `on_progress` receives the name of the downloaded file, the bytes done, and those in total (0 if not known).
    Raises `UserError` if it is missing or a file with a published name has another SHA-256.
    """
    assert source.folder is not None
    found = find_local_file(source, network)
    if found is not None:
        return found
    if source.kind == "pretrained" and network.published:
        return _download(network.published[0], source.folder, on_progress)
    names = ", ".join(accepted_files(source, network))
    raise UserError(f"{source.folder} has no weights of {network.name}: put one of these files there: {names}")


def find_local_file(source: WeightsSource, network: Network) -> Path | None:
    """Return the checkpoint file of `network` in the source's folder, or None if it is missing.

    Raises `UserError` if a file with a published name has another SHA-256.
    """
    assert source.folder is not None
    published = {file.name: file for file in network.published}
    for name in accepted_files(source, network):
        path = source.folder / name
        if path.is_file():
            if name in published:
                _check_hash(path, published[name])
            return path
    return None


def accepted_files(source: WeightsSource, network: Network) -> tuple[str, ...]:
    """Return the possible names of the weights of `network` in the source's folder, in order of preference."""
    own = network.own_files if source.kind == "folder" or not network.published else ()
    return (*(file.name for file in network.published), *own)


def read_state(path: Path) -> "dict[str, Tensor]":
    """Return {name: tensor} of a `.safetensors` or torch file, without running code from the file.

    Raises `UserError` if the file is not a state dict.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # noqa: BLE001  # for a corrupt file the readers raise errors of many types
        why = why_unreadable(path, error)
        raise UserError(
            f"{path} cannot be read as weights: {why}; download it again, or save the network's state_dict() there"
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise UserError(f"{path} is not a state dict of tensors: save the network's state_dict() itself")
    return {name: value.detach() for name, value in state.items()}


def _read_archive(path: Path) -> "dict[str, Tensor]":
    """Return {name: tensor} of a TorchScript archive, whose published SHA-256 must have been checked.

    Such an archive contains a program, which is loaded but not run.
    """
    import torch

    state: dict[str, Tensor] = torch.jit.load(path, map_location="cpu").state_dict()
    return {name: value.detach() for name, value in state.items()}


def _select_tensors(
    state: "Mapping[str, Tensor]", wanted: "Mapping[str, Tensor]", network: Network, path: Path
) -> "dict[str, Tensor]":
    kept = {name: value for name, value in state.items() if not any(fnmatch(name, p) for p in network.unused)}
    problems = {
        "missing": [name for name in wanted if name not in kept],
        "unexpected": [name for name in kept if name not in wanted],
        "wrong shape": [
            f"{name} {list(kept[name].shape)} instead of {list(wanted[name].shape)}"
            for name in wanted
            if name in kept and kept[name].shape != wanted[name].shape
        ],
        "not finite": [name for name in wanted if name in kept and not _is_finite(kept[name])],
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_shorten(names)}" for kind, names in problems.items() if names)
        raise UserError(f"{path} does not contain the weights of {network.name}: {listed}")
    return {name: kept[name].float() for name in wanted}


def _is_finite(values: "Tensor") -> bool:
    """Return whether the tensor is dense, real and finite."""
    import torch

    is_dense = values.layout == torch.strided and not values.is_meta and not values.is_complex()
    return is_dense and bool(values.isfinite().all())


def _shorten(names: list[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _check_hash(path: Path, file: PublishedFile) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(file.sha256):
        raise UserError(
            f"{path} has sha256 {found}, but the published file has {file.expected}: delete it and download {file.url}"
        )


def _download(file: PublishedFile, folder: Path, on_progress: OnDownload) -> Path:
    from pooch import HTTPDownloader

    path = folder / file.name
    make_folder(folder)
    descriptor, partial_name = tempfile.mkstemp(dir=folder, prefix=file.name, suffix=".partial")
    os.close(descriptor)
    staging = Path(partial_name)
    bar = _Bar(file.name, on_progress)
    try:
        HTTPDownloader(progressbar=bar, timeout=DOWNLOAD_TIMEOUT_SECONDS)(file.url, str(staging), None)
        _check_hash(staging, file)
        staging.replace(path)
    except OSError as error:
        # requests wraps the reason in the story of its retries.
        reason = getattr(error.args[0] if error.args else error, "reason", None) or error
        raise UserError(
            f"{file.name} cannot be downloaded ({one_line(reason)}): put the file from {file.url} into {folder}, "
            "or pass the folder that contains it"
        ) from None
    finally:
        staging.unlink(missing_ok=True)
    return path


class _Bar:
    """A progress bar as pooch uses it, which reports to a function."""

    def __init__(self, name: str, on_progress: OnDownload) -> None:
        self._name, self._on_progress = name, on_progress
        self.total = self._done = 0

    def update(self, size: int) -> None:
        """Add `size` bytes."""
        self._done = min(self._done + size, self.total)
        self._on_progress(self._name, self._done, self.total)

    def reset(self) -> None:
        """Begin again."""
        self._done = 0

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

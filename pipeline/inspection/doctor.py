"""What extraction could use on this machine: which decoders, FFmpeg libraries, GPU and weights are there, and how to
get what is not.

It changes, downloads and installs nothing. What it finds is plain data; `pipeline.cli.doctor` shows it.
"""

import ctypes.util
from importlib import import_module
from typing import Any

from pipeline.errors import UserError
from pipeline.extractors.registry import EXTRACTORS, QUESTION_EXTRACTORS
from pipeline.extractors.weights import Network, WeightsSource, accepted_files, find_local_file
from pipeline.media.decoders.interface import DecoderLoadError
from pipeline.media.decoders.registry import DECODERS, choose_decoder, open_decoder
from pipeline.run.devices import DRIVER, loads

FFMPEG_LIBRARIES = ("avcodec", "avformat", "avutil", "avfilter", "swscale", "swresample", "avdevice")
VIDEO_DRIVER = "libnvcuvid.so.1"

GET_FFMPEG = "apt-get install ffmpeg, or conda install ffmpeg (torchcodec needs them; pyav brings its own)"
GET_DRIVER = "install NVIDIA's driver, or go on with --device cpu"
GET_TORCH = "install a torch built for CUDA: the ordinary wheel, not the one for processors only"
GET_VIDEO_DRIVER = (
    "install the driver's decoding library (libnvidia-decode), or start the container with "
    "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
)


def examine(weights: WeightsSource) -> dict[str, Any]:
    """Return what is there: `decoders`, `auto`, `ffmpeg`, `gpu`, `weights`: those in the folder of that source.

    Everything has `is_there`, and what is not there says why not (`why`) and how to get it (`remedy`).
    """
    name, why = choose_decoder()
    return {
        "format": 1,
        "decoders": {name: examine_decoder(name) for name in DECODERS},
        "auto": {"name": name, "why": why},
        "ffmpeg": {name: examine_ffmpeg_library(name) for name in FFMPEG_LIBRARIES},
        "gpu": examine_gpu(),
        "weights": {network.name: examine_weights(network, weights) for network in list_networks()},
    }


def examine_decoder(name: str) -> dict[str, Any]:
    """Return whether the decoder loads, its version or what it lacks, and what it leaves to PyAV."""
    module = import_module(DECODERS[name].partition(":")[0])
    leaves = dict(getattr(module, "EXCEPTIONS", {}))
    try:
        return {"is_there": True, "version": open_decoder(name).version(), "exceptions": leaves}
    except DecoderLoadError as error:
        return {"is_there": False, "why": error.why, "remedy": error.remedy, "exceptions": leaves}


def examine_ffmpeg_library(name: str) -> dict[str, Any]:
    """Return which file the system's loader finds for one library of FFmpeg."""
    found = ctypes.util.find_library(name)
    if found:
        return {"is_there": True, "file": found}
    return {"is_there": False, "why": f"the loader finds no lib{name}", "remedy": GET_FFMPEG}


def examine_gpu() -> dict[str, dict[str, Any]]:
    """Return what there is of a GPU, `cuda` for networks and `nvdec` for decoding, and what each makes possible."""
    import torch

    cuda: dict[str, Any] = {"enables": "networks on the GPU (--device cuda, or auto)"}
    nvdec: dict[str, Any] = {"enables": "decoding on the GPU (--decoder torchcodec-cuda)"}
    if torch.cuda.is_available():
        cuda |= {"is_there": True, "devices": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]}
    elif torch.version.cuda is None:
        cuda |= {"is_there": False, "why": f"torch {torch.__version__} is built without CUDA", "remedy": GET_TORCH}
    elif not loads(DRIVER):
        cuda |= {"is_there": False, "why": f"the driver's {DRIVER} does not load", "remedy": GET_DRIVER}
    else:
        why = f"the driver is there, but torch, built for CUDA {torch.version.cuda}, sees no device"
        cuda |= {"is_there": False, "why": why, "remedy": "update the driver, or make the GPU visible to this process"}
    if not loads(VIDEO_DRIVER):
        nvdec |= {"is_there": False, "why": f"the driver's {VIDEO_DRIVER} does not load", "remedy": GET_VIDEO_DRIVER}
    elif not cuda["is_there"]:
        nvdec |= {"is_there": False, "why": f"there is {VIDEO_DRIVER}, but no CUDA", "remedy": cuda["remedy"]}
    else:
        nvdec |= {"is_there": True}
    return {"cuda": cuda, "nvdec": nvdec}


def examine_weights(network: Network, source: WeightsSource) -> dict[str, Any]:
    """Return whether the source's folder holds a file of the network as extraction takes it, and which would do.

    A published file is checked by its SHA-256.
    """
    accepted, url = accepted_files(source, network), network.published[0].url
    entry: dict[str, Any] = {"folder": str(source.folder), "accepted": list(accepted), "url": url}
    try:
        found = find_local_file(source, network)
    except UserError as error:
        why, _, remedy = str(error).rpartition(": ")
        return entry | {"is_there": False, "why": why, "remedy": remedy}
    if found is not None:
        return entry | {"is_there": True, "file": str(found)}
    fetches = "; with a network mavqa-extract fetches it itself" if source.kind == "pretrained" else ""
    remedy = f"put {' or '.join(accepted)} into {source.folder}, such as {url}{fetches}"
    return entry | {"is_there": False, "why": "not there", "remedy": remedy}


def list_networks() -> list[Network]:
    """Return the frozen networks of all extractors that read weights from files, by name, each once."""
    modules = {entry.partition(":")[0] for entry in (*EXTRACTORS.values(), *QUESTION_EXTRACTORS.values())}
    found = (value for name in sorted(modules) for value in vars(import_module(name)).values())
    networks = {value.name: value for value in found if isinstance(value, Network)}
    return [networks[name] for name in sorted(networks)]

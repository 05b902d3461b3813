"""What extraction can use on this machine: decoders, FFmpeg libraries, GPU and weights, and how to get missing ones.

Nothing is changed, downloaded or installed. The findings are plain data; `pipeline.cli.doctor` prints them.
"""

import ctypes.util
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pipeline.errors import UserError, one_line
from pipeline.extractors.registry import EXTRACTORS, QUESTION_EXTRACTORS
from pipeline.extractors.weights import Network, WeightsSource, accepted_files, find_local_file
from pipeline.machine import DRIVER, VIDEO_DRIVER, VIDEO_DRIVER_REMEDY, loads
from pipeline.media.decoders.interface import DecoderLoadError
from pipeline.media.decoders.registry import DECODERS, choose_decoder, open_decoder
from pipeline.plugins import PLUGIN_GROUPS, load_plugin

FFMPEG_LIBRARIES = ("avcodec", "avformat", "avutil", "avfilter", "swscale", "swresample", "avdevice")

FFMPEG_REMEDY = "apt-get install ffmpeg, or conda install ffmpeg (needed by torchcodec; pyav includes its own)"
DRIVER_REMEDY = "install NVIDIA's driver, or use --device cpu"
TORCH_REMEDY = "install a torch built for CUDA: the default wheel, not the CPU-only one"


def examine(weights: WeightsSource) -> dict[str, Any]:
    """Return the findings as JSON values: `decoders`, `auto`, `ffmpeg`, `gpu`, and `weights` in the source's folder.

    Each entry has `is_there`; a missing item also has the reason (`why`) and how to get it (`remedy`).
    """
    name, why = choose_decoder()
    return {
        "format": 1,
        "decoders": {name: examine_decoder(name) for name in DECODERS},
        "auto": {"name": name, "why": why},
        "ffmpeg": {name: examine_ffmpeg_library(name) for name in FFMPEG_LIBRARIES},
        "gpu": examine_gpu(),
        "plugins": {f"{kind} {name}": entry for kind, name, entry in examine_plugins()},
        "weights": {network.name: examine_weights(network, weights) for network in list_networks()},
    }


def examine_decoder(name: str) -> dict[str, Any]:
    """Return whether the decoder loads, its version or the reason why not, and the cases that PyAV handles for it."""
    module = import_module(DECODERS[name].partition(":")[0])
    exceptions = dict(getattr(module, "EXCEPTIONS", {}))
    try:
        return {"is_there": True, "version": open_decoder(name).version(), "exceptions": exceptions}
    except DecoderLoadError as error:
        return {"is_there": False, "why": error.why, "remedy": error.remedy, "exceptions": exceptions}


def examine_ffmpeg_library(name: str) -> dict[str, Any]:
    """Return which file the system's loader finds for an FFmpeg library."""
    found = ctypes.util.find_library(name)
    if found:
        return {"is_there": True, "file": found}
    return {"is_there": False, "why": f"the loader does not find lib{name}", "remedy": FFMPEG_REMEDY}


def examine_gpu() -> dict[str, dict[str, Any]]:
    """Return whether a GPU can run networks (`cuda`) and decode (`nvdec`), and what each enables.

    `nvdec` also has what the GPU `decodes` and `refuses`, as measured with generated clips.
    """
    import torch

    cuda: dict[str, Any] = {"enables": "networks on the GPU (--device cuda, or auto)"}
    nvdec: dict[str, Any] = {"enables": "decoding on the GPU (--decoder pyav-cuda)"}
    if torch.cuda.is_available():
        cuda |= {"is_there": True, "devices": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]}
    elif torch.version.cuda is None:
        cuda |= {"is_there": False, "why": f"torch {torch.__version__} is built without CUDA", "remedy": TORCH_REMEDY}
    elif not loads(DRIVER):
        cuda |= {"is_there": False, "why": f"the driver's {DRIVER} does not load", "remedy": DRIVER_REMEDY}
    else:
        why = f"the driver is installed, but torch (built for CUDA {torch.version.cuda}) sees no device"
        cuda |= {"is_there": False, "why": why, "remedy": "update the driver, or make the GPU visible to this process"}
    if not loads(VIDEO_DRIVER):
        nvdec |= {"is_there": False, "why": f"the driver's {VIDEO_DRIVER} does not load", "remedy": VIDEO_DRIVER_REMEDY}
    elif not cuda["is_there"]:
        nvdec |= {
            "is_there": False,
            "why": f"{VIDEO_DRIVER} loads, but CUDA is unavailable",
            "remedy": cuda["remedy"],
        }
    else:
        nvdec |= examine_nvdec()
    return {"cuda": cuda, "nvdec": nvdec}


def examine_nvdec() -> dict[str, Any]:
    """Return {codec and pixel format: difference from PyAV's frames} that the GPU `decodes`, and those it `refuses`.

    Those refused have the reason. The differences are the largest, in levels of 0 to 255.
    """
    from pipeline.media.decoders.pyav.nvdec import Nvdec

    try:
        found = Nvdec().probe()
    except DecoderLoadError as error:
        return {"is_there": False, "why": error.why, "remedy": error.remedy}
    decodes = {form: difference for form, difference in found.items() if isinstance(difference, int)}
    refuses = {form: why for form, why in found.items() if isinstance(why, str)}
    return {"is_there": True, "decodes": decodes, "refuses": refuses}


def examine_weights(network: Network, source: WeightsSource) -> dict[str, Any]:
    """Return whether the source's folder has a file of the network's weights, and which files would be accepted.

    A published file is checked by its SHA-256.
    """
    accepted = accepted_files(source, network)
    url = network.published[0].url if network.published else None
    entry: dict[str, Any] = {"folder": str(source.folder), "accepted": list(accepted), "url": url}
    try:
        found = find_local_file(source, network)
    except UserError as error:
        why, _, remedy = str(error).rpartition(": ")
        return entry | {"is_there": False, "why": why, "remedy": remedy}
    if found is not None:
        return entry | {"is_there": True, "file": str(found)}
    download = "; mavqa-extract downloads it when online" if url and source.kind == "pretrained" else ""
    from_url = f", for example from {url}" if url else ""
    remedy = f"put {' or '.join(accepted)} there{from_url}{download}"
    return entry | {"is_there": False, "why": f"not in {source.folder}", "remedy": remedy}


def examine_plugins() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (kind, name, entry) for every plug-in of an installed package; the entry says whether it can be imported.

    The kinds are the names of the groups of entry points without "mavqa.".
    """
    for group in PLUGIN_GROUPS:
        kind = group.partition(".")[2]
        for plugin in entry_points(group=group):
            package = plugin.dist.name if plugin.dist else plugin.value
            try:
                plugin.load()
            except Exception as error:  # noqa: BLE001  # importing foreign code may raise anything
                why = f"{package}: {type(error).__name__}: {one_line(error)}"
                yield kind, plugin.name, {"is_there": False, "why": why, "remedy": f"repair or uninstall {package}"}
            else:
                yield kind, plugin.name, {"is_there": True, "package": package, "object": plugin.value}


def list_networks() -> list[Network]:
    """Return the distinct networks whose weights the extractors load, sorted by name; broken plug-ins have none."""
    networks: dict[str, Network] = {}
    for table in (EXTRACTORS, QUESTION_EXTRACTORS):
        for name in table:
            with suppress(UserError):
                loaded = getattr(load_plugin("feature", table, name), "networks", ())
                networks |= {network.name: network for network in loaded}
    return [networks[name] for name in sorted(networks)]

"""The decoders by name. No library is imported before `open_decoder` is called."""

from importlib import import_module
from inspect import isfunction
from typing import Any, cast

from pipeline.errors import UserError, did_you_mean, one_line
from pipeline.media.decoders.dispatch import ContentDecoder
from pipeline.media.decoders.interface import Decoder

PYAV = "pipeline.media.decoders.pyav.decoder:PyAVDecoder"
# All but the first decode frames only: the GPU (`Nvdec`), or a library (`FrameLibrary`).
DECODERS = {
    "pyav": PYAV,
    "pyav-cuda": "pipeline.media.decoders.pyav.nvdec:Nvdec",
    "torchcodec": "pipeline.media.decoders.torchcodec:TorchCodec",
    "decord": "pipeline.media.decoders.decord:Decord",
}


def open_decoder(name: str) -> Decoder:
    """Return the decoder `name` of the registry, or a custom "module:Class", which then decodes every file.

    Raises `UserError` if the name is unknown, `DecoderLoadError` if the decoder does not load on this machine.
    """
    if ":" in name:
        return cast(Decoder, _find_custom(name)())
    if name not in DECODERS:
        raise UserError(
            f"unknown decoder {name!r}{did_you_mean(name, DECODERS)}: choose one of {', '.join(sorted(DECODERS))}"
        )
    library = {} if DECODERS[name] == PYAV else {"library": _load(DECODERS[name])}
    return ContentDecoder(_load(PYAV, **library))


def choose_decoder() -> tuple[str, str]:
    """Return the name of the default decoder of a new store, and the reason as text.

    PyAV always loads. In `benchmarks/decoders.py` it decoded the same frames as torchcodec in less time on clips of
    datasets; decord must be requested by name.
    """
    return "pyav", "the default: fastest on dataset clips, available on every machine"


def _find_custom(name: str) -> Any:
    module, _, attribute = name.partition(":")
    known = f"choose one of {', '.join(sorted(DECODERS))}, or the module:Class of your own"
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"decoder {name!r} cannot be imported ({one_line(error)}): {known}") from None
    if not hasattr(found, "decode") and not isfunction(found):
        raise UserError(f"decoder {name!r} is not a class of decoders: {known}")
    return found


def _load(entry: str, **options: Any) -> Any:
    module, _, name = entry.partition(":")
    return getattr(import_module(module), name)(**options)

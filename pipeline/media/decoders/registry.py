"""The decoders by name. Nothing heavy is loaded before `open_decoder` is called."""

from importlib import import_module
from typing import Any, cast

from pipeline.errors import UserError
from pipeline.media.decoders.dispatch import DecoderBySuffix
from pipeline.media.decoders.interface import Decoder

PYAV = "pipeline.media.decoders.pyav.decoder:PyAVDecoder"
# Names of decoders; all but the first are libraries that draw pictures.
DECODERS = {
    "pyav": PYAV,
    "torchcodec": "pipeline.media.decoders.torchcodec:TorchCodec",
    "torchcodec-cuda": "pipeline.media.decoders.torchcodec:on_cuda",
    "decord": "pipeline.media.decoders.decord:Decord",
}

AUDIO_DECODER = "pipeline.media.decoders.audio_file:AudioFileDecoder"


def open_decoder(name: str) -> Decoder:
    """Return the decoder `name` of the table, or of an own "module:Class"; the latter gets every file.

    Raises UserError for a name that is neither, DecoderLoadError for one that does not load here.
    """
    if ":" in name:
        return cast(Decoder, _load(name))
    if name not in DECODERS:
        raise UserError(f"unknown decoder {name!r}: choose one of {', '.join(sorted(DECODERS))}")
    library = {} if DECODERS[name] == PYAV else {"library": _load(DECODERS[name])}
    return DecoderBySuffix(container=_load(PYAV, **library), audio=_load(AUDIO_DECODER))


def choose_decoder() -> tuple[str, str]:
    """Return the decoder of a new store where none is asked for, and why it is that one, in words.

    PyAV always loads. `benchmarks/decoders.py` found the same pictures and fewer seconds than with torchcodec on clips
    of datasets; decord must be asked for by its name.
    """
    return "pyav", "the best that loads: the fastest on clips of datasets, and the same on every machine"


def _load(entry: str, **options: Any) -> Any:
    module, _, name = entry.partition(":")
    return getattr(import_module(module), name)(**options)

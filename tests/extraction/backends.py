"""What tests know of the decoders that they run over: the declared exceptions, and who drew the pictures.

It is not a test.
"""

from importlib import import_module

from pipeline.media.decoders.interface import Decoder
from pipeline.media.decoders.registry import DECODERS
from pipeline.media.timeline import Media

NOTE = "pictures decoded by pyav: "


def exceptions(name: str) -> dict[str, str]:
    """Return the declared exceptions of the decoder `name`."""
    return getattr(import_module(DECODERS[name].partition(":")[0]), "EXCEPTIONS", {})


def own_reason(decoder: Decoder, media: Media, case: str = "") -> str:
    """Return the visual track's reason without the note that PyAV drew the pictures in the library's place.

    That note must be there where `case` is a declared exception of the decoder, and nowhere else.
    """
    reason, _, note = media.visual.reason.partition(NOTE)
    assert bool(note) == (case in exceptions(decoder.name)), (decoder.name, media.visual.reason)
    return reason.removesuffix("; ")

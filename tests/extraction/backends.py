"""Helpers for tests of every decoder: declared exceptions, and which decoder decoded the frames. Not a test."""

from importlib import import_module

from pipeline.media.decoders.interface import Decoder
from pipeline.media.decoders.registry import DECODERS
from pipeline.media.timeline import Media

NOTE = "frames decoded by pyav: "


def exceptions(name: str) -> dict[str, str]:
    """Return the declared exceptions of the decoder `name`."""
    return getattr(import_module(DECODERS[name].partition(":")[0]), "EXCEPTIONS", {})


def own_reason(decoder: Decoder, media: Media, case: str = "") -> str:
    """Return the visual track's reason without the note that PyAV decoded the frames instead of the library.

    Asserts that the note exists if `case` is a declared exception of the decoder, and only then.
    """
    reason, _, note = media.visual.reason.partition(NOTE)
    assert bool(note) == (case in exceptions(decoder.name)), (decoder.name, media.visual.reason)
    return reason.removesuffix("; ")

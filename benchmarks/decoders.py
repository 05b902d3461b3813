"""Compare other decoders with PyAV in pixel values and CPU time: `python benchmarks/decoders.py [CLIP ...]`.

For every clip (by default those of `make demo`): the largest and the mean difference between pixels of the sampled
frames and those of PyAV, in levels of 0 to 255 at full frame size, and the CPU seconds to decode the clip, audio
included. A note reports files whose frames PyAV decoded because the library was not used or failed. Decoders that do
not load are skipped, with the reason.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from pipeline.media.decoders.interface import Decoder, DecoderLoadError
from pipeline.media.decoders.pyav import collectors
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import DecodeRequest, FrameSize, Media
from pipeline.store.schema import State

DEMO = Path("build/demo/data/videos")
OTHERS = ("pyav-cuda", "torchcodec", "decord")
SQUARE = FrameSize("stretch", 224)


def main(arguments: list[str]) -> None:
    """Print the table of the clips given on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", nargs="*", type=Path, help=f"files or folders  [default: {DEMO}]")
    parser.add_argument("--seconds", type=int, default=60, help="maximum steps per clip  [default: 60]")
    parser.add_argument("--repeats", type=int, default=3, help="number of timed runs; the fastest counts")
    options = parser.parse_args(arguments)
    decoders = {"pyav": open_decoder("pyav"), **load_others()}
    header = [f"{'clip':44}", *(f"{f'{name} s':>13}" for name in decoders)]
    print(*header, *(f"{f'{name} pixel':>17} {'mean':>6}" for name in decoders if name != "pyav"), " note")
    for clip in list_files(options.clips or [DEMO]):
        print(measure(clip, decoders, options.seconds, options.repeats), flush=True)


def load_others() -> dict[str, Decoder]:
    """Return the other decoders that load on this machine; print the reason for each that does not."""
    found = {}
    for name in OTHERS:
        try:
            found[name] = open_decoder(name)
        except DecoderLoadError as error:
            print(error)
    return found


def list_files(places: list[Path]) -> list[Path]:
    """Return the files among `places` and in the folders among them, in order."""
    return [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*")))]


def measure(clip: Path, decoders: dict[str, Decoder], seconds: int, repeats: int) -> str:
    """Return the table row of `clip`."""
    request = DecodeRequest(seconds=seconds, frame_sizes=(SQUARE,))
    media = {name: decode_full_size(decoder, clip, request) for name, decoder in decoders.items()}
    if media["pyav"].visual.state is not State.COMPLETE:
        track = media["pyav"].visual
        return f"{clip.name[:44]:44} {track.state.name.lower()}: {track.reason}"
    cpu_seconds = [min(time_once(decoder, clip, request) for _ in range(repeats)) for decoder in decoders.values()]
    columns = [f"{value:13.3f}" for value in cpu_seconds]
    notes = []
    for name in decoders:
        if name != "pyav":
            largest, mean = compare(media["pyav"], media[name])
            columns.append(f"{largest:>17} {mean:6.3f}")
            notes.append(describe_difference(name, media["pyav"], media[name]))
    return " ".join([f"{clip.name[:44]:44}", *columns, " " + "; ".join(filter(None, notes))])


def decode_full_size(decoder: Decoder, clip: Path, request: DecodeRequest) -> Media:
    """Return the media of `clip` with frames at their full size: they are decoded as usual, but not resized."""
    fit, collectors.fit = collectors.fit, lambda image, size: image
    try:
        return decoder.decode(clip, request)
    finally:
        collectors.fit = fit


def time_once(decoder: Decoder, clip: Path, request: DecodeRequest) -> float:
    """Return the CPU seconds to decode `clip` as extraction does, including the resizing of frames."""
    start = time.process_time()
    decoder.decode(clip, request)
    return time.process_time() - start


def compare(one: Media, other: Media) -> tuple[int, float]:
    """Return the largest and the mean difference between the frames of two media; -1 if their shapes differ."""
    frames, others = one.frames[SQUARE], other.frames.get(SQUARE)
    if others is None or frames.shape != others.shape:
        return -1, -1.0
    difference = np.abs(frames.astype(np.int16) - others.astype(np.int16))
    return int(difference.max()), float(difference.mean())


def describe_difference(name: str, one: Media, other: Media) -> str:
    """Return the differences in states, steps, audio and reasons, as text."""
    found = []
    for kind in ("visual", "audio"):
        ours, theirs = getattr(one, kind), getattr(other, kind)
        if (ours.state, ours.steps) != (theirs.state, theirs.steps):
            found.append(f"{kind} {theirs.state.name.lower()} {theirs.steps} against {ours.steps}")
    if not np.array_equal(one.waveform, other.waveform):
        found.append("the audio differs")
    if other.visual.reason != one.visual.reason:
        found.append(other.visual.reason or "reports no lost frames")
    return f"{name}: {', '.join(found)}" if found else ""


if __name__ == "__main__":
    main(sys.argv[1:])

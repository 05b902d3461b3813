"""A decoder in its own process: a file that crashes, hangs or needs too much memory fails alone.

`DecoderProcess` is the parent's side; `serve` runs in the decoder process, which is started as a plain Python program
because a daemonic worker process may have no multiprocessing children. Requests and replies are JSON headers over
stdin and stdout; replies are followed by raw array bytes. Everything that FFmpeg and other libraries print goes to a
log file, whose last line is reported if the process dies.

The kernel enforces the limits, so no polling can be too late: RLIMIT_CPU is set for every file, and raised as its
frames are decoded; RLIMIT_DATA counts private writable memory, not mapped libraries, and makes an allocation fail
before the machine starts to swap (Linux only). The parent enforces only the wall-clock limit, because a process that is
stopped or waits uses no CPU time.
"""

import json
import math
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from pipeline.errors import one_line
from pipeline.files import LARGEST_FILE_BYTES
from pipeline.media.decoders.interface import Decoder
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import DecodeRequest, FrameSize, Media, Track, fail_media
from pipeline.store.schema import State

ATTEMPTS = 2
START_SECONDS = 300.0
# CPU time for each second of requested media before any frame is decoded, for each decoded pixel (ten times what HEVC
# of a high bit rate takes on a core of 2020), and at most, for each second.
MIN_CPU_SECONDS = 10.0
CPU_SECONDS_PER_SECOND = 0.5
CPU_SECONDS_PER_PIXEL = 1e-7
MOST_CPU_SECONDS_PER_SECOND = 20.0
LENGTH = struct.Struct(">Q")
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from pipeline.media.decoder_process import serve; serve(sys.argv[2], int(sys.argv[3]))"
)


@dataclass(frozen=True)
class Limits:
    """The limits of decoding one file. They never change a decoded value, so no fingerprint contains them.

    CPU seconds, by default in proportion to the requested seconds and to the frames decoded so far; wall-clock seconds
    without progress; bytes of memory on top of a fresh decoder process; bytes of the file itself; pixels of a frame.
    """

    cpu_seconds: int | None = None
    wall_seconds: float = 600.0
    memory_bytes: int = 1_500_000_000
    file_bytes: int = LARGEST_FILE_BYTES
    max_pixels: int = DecodeRequest.max_pixels

    def cpu_range(self, seconds: int) -> tuple[int, int]:
        """Return the CPU seconds of a file of which `seconds` are requested: without any decoded frame, and at most.

        What the file claims about its frames has no influence.
        """
        if self.cpu_seconds is not None:
            return self.cpu_seconds, self.cpu_seconds
        least = math.ceil(max(MIN_CPU_SECONDS, CPU_SECONDS_PER_SECOND * seconds))
        return least, max(least, math.ceil(MOST_CPU_SECONDS_PER_SECOND * seconds))


class DecoderStartError(RuntimeError):
    """The decoder process does not start: a fault of the machine or of this program, never of a file."""


class _DecoderLostError(Exception):
    """The decoder process crashed, had to be killed, or has a bug that a file reached.

    The message is the reason; `option` is that of the limit, if one was exceeded.
    """

    def __init__(self, reason: str, option: str = "") -> None:
        super().__init__(reason)
        self.option = option


class DecoderProcess:
    """Decode files in a separate process, which is started on demand and restarted after it died. Not thread-safe."""

    def __init__(self, decoder_name: str, limits: Limits = Limits()) -> None:
        self._decoder_name = decoder_name
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Any = None
        self._requests = self._replies = -1
        self._is_idle = True
        self._cpu_seconds = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process id of the decoder process, None if it is not running."""
        return None if self._process is None else self._process.pid

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Return the file's media. After an attempt that crashed or exceeded a limit, each modality is decoded alone.

        The track of a modality whose second attempt also crashes or exceeds a limit is failed.

        Raises `DecoderStartError` if the decoder process cannot be started.
        """
        try:
            return self._attempt(path, request)
        except _DecoderLostError as error:
            return _join([self._attempt_again(path, part, error) for part in _split(request)])

    def _attempt(self, path: Path, request: DecodeRequest) -> Media:
        self._send(path, request)
        try:
            return self._receive()
        except _DecoderLostError:
            self.close()
            raise

    def _attempt_again(self, path: Path, request: DecodeRequest, first: _DecoderLostError) -> Media:
        try:
            return self._attempt(path, request)
        except _DecoderLostError as second:
            reason = f"{first} twice" if str(first) == str(second) else f"{first}, then {second}"
            options = " and ".join(dict.fromkeys(error.option for error in (first, second) if error.option))
            return fail_media(f"{reason} (to allow more: {options})" if options else reason)

    def close(self) -> None:
        """End the decoder process."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in filter(None, (self._process.stdin, self._process.stdout, self._log)):
            pipe.close()
        self._process = None

    def _ensure_started(self) -> None:
        if self._process is not None and self._process.poll() is None and self._is_idle:
            return
        self.close()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the decoder process
        arguments = [json.dumps(sys.path), self._decoder_name, str(self._limits.memory_bytes)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", BOOT, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._is_idle = True
        self._requests, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()

    def _send(self, path: Path, request: DecodeRequest) -> None:
        """Send the request and wait until decoding starts: a process that died before did not die of this file."""
        least, most = self._limits.cpu_range(request.seconds)
        record = asdict(request)
        del record["on_frame"]
        message = _pack_header({"path": str(path), "cpu_seconds": [least, most], "request": record})
        self._cpu_seconds = least
        cause = ""
        for _ in range(ATTEMPTS):
            self._ensure_started()
            self._log.seek(0)
            self._log.truncate()
            try:
                _write(self._requests, message)
                self._is_idle = False
                _read_header(self._replies, START_SECONDS)
                return
            except (EOFError, BrokenPipeError, TimeoutError) as error:
                cause = self._last_log_line() or str(error)
                self.close()
        raise DecoderStartError(f"the process of decoder {self._decoder_name!r} does not start: {cause}")

    def _receive(self) -> Media:
        limits = self._limits
        try:
            while "cpu_seconds" in (reply := _read_header(self._replies, limits.wall_seconds)):
                self._cpu_seconds = reply["cpu_seconds"]
            if "out_of_memory" in reply:
                raise _DecoderLostError(
                    f"needs more than {limits.memory_bytes / 1e9:g} GB of memory", "--max-memory-gb"
                )
            if "bug" in reply:
                raise _DecoderLostError(f"internal error of decoder {self._decoder_name}, report it: {reply['bug']}")
            media = _read_media(self._replies, reply, limits.wall_seconds)
            self._is_idle = True
            return media
        except TimeoutError:
            raise _DecoderLostError(f"decoder did not answer for {limits.wall_seconds:g} s") from None
        except EOFError:
            raise self._explain_death() from None

    def _explain_death(self) -> _DecoderLostError:
        assert self._process is not None
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return _DecoderLostError(f"used more than {self._cpu_seconds} s of CPU time", "--max-cpu-seconds")
        if code < 0:
            return _DecoderLostError(f"decoder killed by signal {-code} ({signal.Signals(-code).name})")
        return _DecoderLostError(f"decoder exited with code {code} ({self._last_log_line()})")

    def _last_log_line(self) -> str:
        self._log.seek(0)
        lines: list[bytes] = self._log.read().splitlines()
        return lines[-1].decode(errors="replace") if lines else ""


def _split(request: DecodeRequest) -> tuple[DecodeRequest, ...]:
    """Return one request for each requested modality, visual first."""
    if not (request.frame_sizes and request.wants_audio):
        return (request,)
    return replace(request, wants_audio=False), replace(request, frame_sizes=())


def _join(parts: list[Media]) -> Media:
    """Return the media of the requests of `_split`."""
    visual, audio = parts[0], parts[-1]
    return replace(audio, visual=visual.visual, frames=visual.frames)


def serve(decoder_name: str, memory_bytes: int) -> None:
    """Run the decoder process: answer requests from stdin until the parent closes it or dies."""
    requests, replies = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(requests,), daemon=True).start()
    decoder = open_decoder(decoder_name)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(memory_bytes)
    while True:
        _answer(decoder, _read_header(requests, None), replies)


def _answer(decoder: Decoder, message: dict[str, Any], replies: int) -> None:
    path = Path(message["path"])
    record = message["request"]
    sizes = tuple(FrameSize(**size) for size in record.pop("frame_sizes"))
    least, most = message["cpu_seconds"]
    allowance = _CpuAllowance(least, most, replies)
    _write(replies, _pack_header({"started": True}))
    try:
        media = decoder.decode(path, DecodeRequest(frame_sizes=sizes, on_frame=allowance.add_frame, **record))
    except MemoryError:
        _write(replies, _pack_header({"out_of_memory": True}))
        return
    except Exception as error:  # noqa: BLE001  # a bug must not stop the run, and must not pass for a corrupt file
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        _write(replies, _pack_header({"bug": f"{type(error).__name__}: {one_line(error)} ({where})"}))
        return
    _write_media(replies, media)


def _exit_with_parent(requests: int) -> None:
    """Exit as soon as the other end of `requests` is closed, which also happens when the parent dies."""
    poll = select.poll()
    poll.register(requests, 0)
    poll.poll()
    os._exit(0)


def _limit_memory(memory_bytes: int) -> None:
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        used = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:")) * 1024
        _set_soft_limit(resource.RLIMIT_DATA, used + memory_bytes)


class _CpuAllowance:
    """The CPU time of one file in this process: `least` seconds, and more for every decoded pixel up to `most`.

    Each second that was gained is reported to the parent, which thereby sees that decoding makes progress.
    """

    def __init__(self, least: int, most: int, replies: int) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._used_before = math.ceil(used.ru_utime + used.ru_stime)
        self._least, self._most, self._replies = least, most, replies
        self._pixels = self._gained = 0
        self._limit(least)

    def add_frame(self, pixels: int) -> None:
        """Count a decoded frame."""
        self._pixels += pixels
        gained = int(self._pixels * CPU_SECONDS_PER_PIXEL)
        if gained > self._gained:
            self._gained = gained
            allowed = min(self._least + gained, self._most)
            self._limit(allowed)
            _write(self._replies, _pack_header({"cpu_seconds": allowed}))

    def _limit(self, cpu_seconds: int) -> None:
        _set_soft_limit(resource.RLIMIT_CPU, self._used_before + cpu_seconds)


def _set_soft_limit(limit: int, value: int) -> None:
    """Set the soft limit to `value`, or to the hard limit if that is lower."""
    hard = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _write_media(replies: int, media: Media) -> None:
    arrays = [*media.frames.values(), media.waveform, media.released_waveform]
    header = {
        "visual": asdict(media.visual),
        "audio": asdict(media.audio),
        "sample_rate_hz": media.sample_rate_hz,
        "frame_sizes": [asdict(size) for size in media.frames],
        "arrays": [{"dtype": array.dtype.str, "shape": array.shape} for array in arrays],
    }
    _write(replies, _pack_header(header))
    for array in arrays:
        _write(replies, np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)


def _read_media(stream: int, header: dict[str, Any], wall_seconds: float) -> Media:
    arrays = []
    for entry in header["arrays"]:
        array = np.empty(entry["shape"], np.dtype(entry["dtype"]))
        _fill(stream, array.reshape(-1).view(np.uint8).data, wall_seconds)
        arrays.append(array)
    sizes = [FrameSize(**size) for size in header["frame_sizes"]]
    return Media(
        visual=_to_track(header["visual"]),
        audio=_to_track(header["audio"]),
        frames=dict(zip(sizes, arrays[:-2], strict=True)),
        waveform=arrays[-2],
        sample_rate_hz=header["sample_rate_hz"],
        released_waveform=arrays[-1],
    )


def _to_track(record: dict[str, Any]) -> Track:
    return Track(State(record["state"]), record["steps"], record["reason"], record["first"])


def _pack_header(header: dict[str, Any]) -> bytes:
    body = json.dumps(header).encode()
    return LENGTH.pack(len(body)) + body


def _read_header(stream: int, wall_seconds: float | None) -> dict[str, Any]:
    length = bytearray(LENGTH.size)
    _fill(stream, memoryview(length), wall_seconds)
    body = bytearray(LENGTH.unpack(length)[0])
    _fill(stream, memoryview(body), wall_seconds)
    header: dict[str, Any] = json.loads(body)
    return header


def _fill(stream: int, buffer: memoryview, wall_seconds: float | None) -> None:
    """Fill `buffer` from a pipe.

    Raises `EOFError` if the pipe is closed, `TimeoutError` after `wall_seconds` without a byte.
    """
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    while buffer:
        if not poll.poll(None if wall_seconds is None else wall_seconds * 1000):
            raise TimeoutError(f"no answer for {wall_seconds} s")
        count = os.readv(stream, [buffer])
        if count == 0:
            raise EOFError("the pipe was closed")
        buffer = buffer[count:]


def _write(stream: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(stream, rest) :]

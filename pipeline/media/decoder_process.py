"""A decoder in a process of its own that may die: a file that crashes, hangs or bloats it costs only itself.

The parent's half is `DecoderProcess`; the child's half is `serve`, started as a plain Python program,
because a daemonic worker process may have no multiprocessing children. Requests and replies are JSON
headers, replies followed by raw array bytes, over the child's stdin and stdout; what FFmpeg and others
write there goes to a file that is only read for the last words of a child that died.

The kernel enforces the limits, so no poll can come too late: RLIMIT_CPU is set anew for every file;
RLIMIT_DATA counts private writable memory, not mapped libraries, and makes an allocation fail instead of
swapping the machine to death (Linux only). The parent enforces only the time on the wall: a child that is
stopped or waits uses no processor.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from pipeline.media.decoders.interface import Decoder
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import DecodeRequest, FrameSize, Media, Track, fail_media
from pipeline.store.schema import State

ATTEMPTS = 2
START_SECONDS = 300.0
LENGTH = struct.Struct(">Q")
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from pipeline.media.decoder_process import serve; serve(sys.argv[2], int(sys.argv[3]))"
)


@dataclass(frozen=True)
class Limits:
    """What one file may cost.

    Processor seconds per minute of media asked for (and at least), and per picture beyond one a second; seconds
    on the wall, bytes of memory above the fresh child's, bytes of the file itself.
    """

    cpu_seconds_per_minute: float = 30.0
    cpu_seconds_per_picture: float = 0.05
    cpu_seconds_at_least: float = 10.0
    wall_seconds: float = 600.0
    memory_bytes: int = 1_500_000_000
    file_bytes: int = 20_000_000_000

    def cpu_seconds(self, request: DecodeRequest) -> int:
        """Return the whole processor seconds allowed for what is asked of one file."""
        pictures = request.seconds * sum(size.per_second - 1 for size in request.frame_sizes)
        media = max(self.cpu_seconds_at_least, self.cpu_seconds_per_minute * request.seconds / 60)
        return math.ceil(media + self.cpu_seconds_per_picture * pictures)


class DecoderStartError(RuntimeError):
    """The child did not even start: the machine's fault or ours, never a file's."""


class _DecoderLostError(Exception):
    """The child died of a file, or had to be killed; the message says of what."""


class DecoderProcess:
    """Decode files in a child process, started when needed and again when it died. For one thread only."""

    def __init__(self, decoder_name: str, limits: Limits = Limits()) -> None:
        self._decoder_name = decoder_name
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._noise: Any = None
        self._requests = self._replies = -1
        self._is_idle = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process id of the running child, None where there is none."""
        return None if self._process is None else self._process.pid

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Return the file's media; one that killed or outlasted its child twice in a row has failed.

        Raises DecoderStartError if no child can be started.
        """
        if path.is_file() and path.stat().st_size > self._limits.file_bytes:
            return fail_media(f"the file has {path.stat().st_size} bytes, more than {self._limits.file_bytes}")
        deaths = []
        for _ in range(ATTEMPTS):
            self._hand_over(path, request)
            try:
                return self._receive(request)
            except _DecoderLostError as death:
                self.close()
                deaths.append(str(death))
        return fail_media(f"{deaths[0]} twice" if len(set(deaths)) == 1 else f"{deaths[0]}, then {deaths[1]}")

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None and self._is_idle:
            return
        self.close()
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the child
        arguments = [json.dumps(sys.path), self._decoder_name, str(self._limits.memory_bytes)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", BOOT, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._is_idle = True
        self._requests, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()

    def _hand_over(self, path: Path, request: DecodeRequest) -> None:
        """Give the file to a living child: one that died before it began to decode died of something else."""
        cpu_seconds = self._limits.cpu_seconds(request)
        question = _pack_header({"path": str(path), "cpu_seconds": cpu_seconds, "request": asdict(request)})
        cause = ""
        for _ in range(ATTEMPTS):
            self._start()
            self._noise.seek(0)
            self._noise.truncate()
            try:
                _write(self._requests, question)
                self._is_idle = False
                _read_header(self._replies, START_SECONDS)
                return
            except (EOFError, BrokenPipeError, TimeoutError) as error:
                cause = self._last_words() or str(error)
                self.close()
        raise DecoderStartError(f"the decoding process for {self._decoder_name!r} does not start: {cause}")

    def _receive(self, request: DecodeRequest) -> Media:
        limits = self._limits
        try:
            reply = _read_header(self._replies, limits.wall_seconds)
            if "out_of_memory" in reply:
                raise _DecoderLostError(f"needs more than {limits.memory_bytes / 1e9:g} GB of memory")
            media = _read_media(self._replies, reply, limits.wall_seconds)
            self._is_idle = True
            return media
        except TimeoutError:
            raise _DecoderLostError(f"gave no answer for {limits.wall_seconds:g} s") from None
        except EOFError:
            raise _DecoderLostError(self._explain_death(limits.cpu_seconds(request))) from None

    def _explain_death(self, cpu_seconds: int) -> str:
        assert self._process is not None
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return f"took more than {cpu_seconds} s of processor time"
        if code < 0:
            return f"decoder killed by signal {-code} ({signal.Signals(-code).name})"
        return f"decoder stopped with exit code {code} ({self._last_words()})"

    def _last_words(self) -> str:
        self._noise.seek(0)
        lines: list[bytes] = self._noise.read().splitlines()
        return lines[-1].decode(errors="replace") if lines else ""

    def _reap(self) -> None:
        assert self._process is not None
        self._process.wait()
        for pipe in filter(None, (self._process.stdin, self._process.stdout, self._noise)):
            pipe.close()
        self._process = None


def serve(decoder_name: str, memory_bytes: int) -> None:
    """Be the child: answer requests on stdin until the parent closes it, or dies."""
    requests, replies = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(requests,), daemon=True).start()
    decoder = open_decoder(decoder_name)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(memory_bytes)
    while True:
        _answer(decoder, _read_header(requests, None), replies)


def _answer(decoder: Decoder, question: dict[str, Any], replies: int) -> None:
    path = Path(question["path"])
    record = question["request"]
    sizes = tuple(FrameSize(**size) for size in record.pop("frame_sizes"))
    decoder.prepare(path)
    _limit_cpu(question["cpu_seconds"])
    _write(replies, _pack_header({"begun": True}))
    try:
        media = decoder.decode(path, DecodeRequest(frame_sizes=sizes, **record))
    except MemoryError:
        _write(replies, _pack_header({"out_of_memory": True}))
        return
    _write_media(replies, media)


def _end_with_parent(requests: int) -> None:
    """Exit as soon as the other end of `requests` is closed, which the parent's death does too."""
    poll = select.poll()
    poll.register(requests, 0)
    poll.poll()
    os._exit(0)


def _limit_memory(memory_bytes: int) -> None:
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        used = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:")) * 1024
        _lower(resource.RLIMIT_DATA, used + memory_bytes)


def _limit_cpu(cpu_seconds: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + cpu_seconds)


def _lower(limit: int, value: int) -> None:
    """Set a soft limit, never above the hard one."""
    hard = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _write_media(replies: int, media: Media) -> None:
    arrays = [*media.frames.values(), media.waveform]
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
        frames=dict(zip(sizes, arrays[:-1], strict=True)),
        waveform=arrays[-1],
        sample_rate_hz=header["sample_rate_hz"],
    )


def _to_track(record: dict[str, Any]) -> Track:
    return Track(State(record["state"]), record["steps"], record["reason"])


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

    Raises EOFError at the pipe's end, TimeoutError after `wall_seconds` without a byte.
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

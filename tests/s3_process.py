"""A server that speaks S3, and a door before it that fails, each a process of its own. It is not a test.

    python s3_process.py door PORT SERVER_PORT

The door passes requests on. Every `fail_every`th it answers with 503 without asking the server. After `die_after` more
it kills itself, as `kill -9` does: the server has done what was asked, the client never hears of it. Of the next
`lose_writes` the server does what was asked, and the client hears 503. With `ignore_conditions` it hides the condition
of a request from the server. `/door?fail_every=7` sets one of them.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

PATIENCE_SECONDS = 60
BUCKET = "bucket"
# Of the client, for processes that are to speak to a door.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class S3:
    """The server's port, and a door to it, whose address clients are given."""

    server_port: int
    door_port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What a client must find in its environment."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.door_port}"}

    def open_door(self, **settings: int) -> None:
        """Start the door, with nothing failing but what `settings` say."""
        arguments = [str(Path(__file__)), "door", str(self.door_port), str(self.server_port)]
        self.processes.append(subprocess.Popen([sys.executable, *arguments]))
        wait_for_port(self.door_port)
        self.set_door(**settings)

    def set_door(self, **settings: int) -> int:
        """Change what fails from now on; return how many requests were answered with 503 so far."""
        query = "&".join(f"{name}={value}" for name, value in settings.items())
        with urllib.request.urlopen(f"http://127.0.0.1:{self.door_port}/door?{query}") as answer:
            return int(answer.read())

    def door_died(self) -> bool:
        """Wait a moment for the door's end; return whether it killed itself."""
        return self.processes[-1].wait(timeout=10) == -signal.SIGKILL


@contextmanager
def s3() -> Iterator[S3]:
    """Start a server with an empty bucket, and a door; a client needs the environment that they give; end both."""
    found = S3(free_port(), free_port())
    server = ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(found.server_port)]
    quiet = subprocess.DEVNULL
    try:
        found.processes.append(subprocess.Popen([sys.executable, *server], stdout=quiet, stderr=quiet))
        wait_for_port(found.server_port)
        found.open_door()
        put = urllib.request.Request(f"http://127.0.0.1:{found.server_port}/{BUCKET}", method="PUT")
        urllib.request.urlopen(put).close()
        yield found
    finally:
        for process in found.processes:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, f"nothing listens on {port}"
            time.sleep(0.05)


class Door(BaseHTTPRequestHandler):
    """Pass each request on to the server, or fail it."""

    protocol_version = "HTTP/1.1"
    server_port = 0
    settings: dict[str, int] = dict.fromkeys(("fail_every", "die_after", "lose_writes", "ignore_conditions"), 0)
    counts: dict[str, int] = {"asked": 0, "failed": 0}  # noqa: RUF012
    one_at_a_time = threading.Lock()

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path)
        if path.path == "/door":
            self.settings.update({name: int(value[0]) for name, value in parse_qs(path.query).items()})
            return self.answer(200, {}, str(self.counts["failed"]).encode())
        with self.one_at_a_time:
            self.counts["asked"] += 1
            every = self.settings["fail_every"]
            if every and self.counts["asked"] % every == 0:
                self.counts["failed"] += 1
                return self.answer(503, {}, b"")
            status, headers, content = self.ask_server(body)
            if self.settings["die_after"]:
                self.settings["die_after"] -= 1
                if self.settings["die_after"] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            if self.settings["lose_writes"] and self.command == "PUT":
                self.settings["lose_writes"] -= 1
                return self.answer(503, {}, b"")
        return self.answer(status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

    def ask_server(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server_port)
        headers = dict(self.headers)
        if self.settings["ignore_conditions"]:
            headers.pop("If-None-Match", None)
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        skipped = {"transfer-encoding", "connection"} | (set() if self.command == "HEAD" else {"content-length"})
        for name, value in headers.items():
            if name.lower() not in skipped:
                self.send_header(name, value)
        if self.command != "HEAD" or "content-length" not in {name.lower() for name in headers}:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    Door.server_port = int(sys.argv[3])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Door).serve_forever()

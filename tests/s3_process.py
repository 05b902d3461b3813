"""An S3 server and a failing proxy in front of it, each in a separate process. It is not a test.

    python s3_process.py proxy PORT SERVER_PORT

The proxy forwards requests. It answers every `fail_every`th with 503 without asking the server. After `die_after` more
it sends itself SIGKILL: the server has carried out the last one, but the client gets no answer. The server carries out
the next `lose_writes` writes, but the client gets 503. With `ignore_conditions` the proxy removes the condition of a
request. `/proxy?fail_every=7` changes one of these settings.
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

TIMEOUT_SECONDS = 60
BUCKET = "bucket"
# The client's credentials; its endpoint is a proxy.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class S3:
    """The ports of the server and of the proxy, to which clients connect."""

    server_port: int
    proxy_port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The environment that a client needs."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy_port}"}

    def start_proxy(self, **settings: int) -> None:
        """Start the proxy, without failures except those in `settings`."""
        arguments = [str(Path(__file__)), "proxy", str(self.proxy_port), str(self.server_port)]
        self.processes.append(subprocess.Popen([sys.executable, *arguments]))
        wait_for_port(self.proxy_port)
        self.set_proxy(**settings)

    def set_proxy(self, **settings: int) -> int:
        """Change what fails from now on; return the number of requests that failed by `fail_every` so far."""
        query = "&".join(f"{name}={value}" for name, value in settings.items())
        with urllib.request.urlopen(f"http://127.0.0.1:{self.proxy_port}/proxy?{query}") as answer:
            return int(answer.read())

    def has_proxy_died(self) -> bool:
        """Wait up to ten seconds for the proxy to end; return whether it killed itself."""
        return self.processes[-1].wait(timeout=10) == -signal.SIGKILL


@contextmanager
def s3() -> Iterator[S3]:
    """Start a server with an empty bucket and a proxy; kill both at the end. A client needs their `environment`."""
    started = S3(free_port(), free_port())
    server = ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(started.server_port)]
    quiet = subprocess.DEVNULL
    try:
        started.processes.append(subprocess.Popen([sys.executable, *server], stdout=quiet, stderr=quiet))
        wait_for_port(started.server_port)
        started.start_proxy()
        put = urllib.request.Request(f"http://127.0.0.1:{started.server_port}/{BUCKET}", method="PUT")
        urllib.request.urlopen(put).close()
        yield started
    finally:
        for process in started.processes:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, f"nothing listens on {port}"
            time.sleep(0.05)


class Proxy(BaseHTTPRequestHandler):
    """Forward each request to the server, or fail it."""

    protocol_version = "HTTP/1.1"
    server_port = 0
    settings: dict[str, int] = dict.fromkeys(("fail_every", "die_after", "lose_writes", "ignore_conditions"), 0)
    counts: dict[str, int] = {"received": 0, "failed": 0}  # noqa: RUF012
    one_at_a_time = threading.Lock()

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path)
        if path.path == "/proxy":
            self.settings.update({name: int(value[0]) for name, value in parse_qs(path.query).items()})
            return self.answer(200, {}, str(self.counts["failed"]).encode())
        with self.one_at_a_time:
            self.counts["received"] += 1
            every = self.settings["fail_every"]
            if every and self.counts["received"] % every == 0:
                self.counts["failed"] += 1
                return self.answer(503, {}, b"")
            status, headers, content = self.forward(body)
            if self.settings["die_after"]:
                self.settings["die_after"] -= 1
                if self.settings["die_after"] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            if self.settings["lose_writes"] and self.command == "PUT":
                self.settings["lose_writes"] -= 1
                return self.answer(503, {}, b"")
        return self.answer(status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_request

    def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
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
    Proxy.server_port = int(sys.argv[3])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Proxy).serve_forever()

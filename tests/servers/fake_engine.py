"""A Docker engine's HTTP side on a unix socket, with answers given by the test: for what no real engine does.

Old versions, GPUs that are not there, pushes that fail in every way, sessions that start with bytes behind
the response's header.
"""

from __future__ import annotations

import http.server
import json
import re
import socketserver
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.servers.running import RunsInThread

VERSION = {"Version": "26.1.5", "ApiVersion": "1.45", "Os": "linux", "Arch": "amd64"}
INFO = {"OSType": "linux", "Architecture": "x86_64", "DockerRootDir": "/var/lib/docker", "Name": "elsewhere"}

Answer = Callable[["Request"], None]


class Request(http.server.BaseHTTPRequestHandler):
    """One request; an Answer calls `reply`, or writes to `wfile` itself."""

    protocol_version = "HTTP/1.1"
    server: FakeEngine
    body: bytes

    def reply(self, status: int, document: object = None, *, raw: bytes | None = None) -> None:
        data = json.dumps(document).encode() if raw is None else raw
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        self.body = self._read_body()
        path = re.sub(r"^/v[\d.]+", "", self.path.partition("?")[0])
        self.server.seen.append((self.command, self.path, dict(self.headers.items()), self.body))
        for pattern, answer in self.server.answers.items():
            method, _, expression = pattern.partition(" ")
            if method == self.command and re.fullmatch(expression, path):
                answer(self)
                return
        self.reply(404, {"message": "page not found"})

    do_GET = do_DELETE = do_POST  # noqa: N815 - named by http.server

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        pass


class FakeEngine(RunsInThread, socketserver.ThreadingUnixStreamServer):
    """Serve `answers` ('METHOD path-regex' -> what to do) in a `with` block; `host` is the address."""

    daemon_threads = True

    def __init__(
        self,
        folder: Path,
        answers: Mapping[str, Answer] | None = None,
        *,
        version: Mapping[str, Any] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answers: dict[str, Answer] = {
            "GET /version": lambda request: request.reply(200, {**VERSION, **(version or {})}),
            "GET /info": lambda request: request.reply(200, {**INFO, **(info or {})}),
            **(answers or {}),
        }
        path = folder / "engine.sock"
        self.host = f"unix://{path}"
        super().__init__(str(path), Request)

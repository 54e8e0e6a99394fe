"""What goes between a client and the registry: a proxy that passes bytes on as they are, and counts them.

Every byte of a connection is counted, headers included; and each request is noted down with the sizes of its
bodies. It is for counting, never for timing.
"""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedReader
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, urlsplit

_BUFFER = 1 << 20
if TYPE_CHECKING:
    _Reader = BufferedReader[socket.SocketIO]


@dataclass(frozen=True)
class Request:
    """One request: who asked (User-Agent), and the sizes on the wire, of its body and its answer's body."""

    method: str
    path: str
    agent: str
    status: int
    sent: int
    received: int

    @property
    def blob(self) -> str:
        """The digest of the blob that is read, '' for anything else."""
        found = re.search(r"/blobs/(sha256:[0-9a-f]{64})$", urlsplit(self.path).path)
        return found[1] if found and self.method == "GET" else ""


@dataclass(frozen=True)
class Uploaded:
    """One upload session: how many body bytes it took, and what was committed ('': nothing)."""

    agent: str
    size: int
    digest: str


class Recorder(socketserver.ThreadingTCPServer):
    """The proxy, before the registry at `upstream`; a context manager."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        self._host, _, port = upstream.rpartition(":")
        self._port = int(port)
        self._guard = threading.Lock()
        self.requests: list[Request] = []
        self.up = self.down = 0
        super().__init__(("127.0.0.1", 0), _Connection)
        self.address = f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self.server_close()

    def forget(self) -> None:
        """Begin to count anew."""
        with self._guard:
            self.requests, self.up, self.down = [], 0, 0

    def connect(self) -> socket.socket:
        """Return a connection to the registry."""
        made = socket.create_connection((self._host, self._port))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def count(self, up: int, down: int) -> None:
        """Add bytes that have passed."""
        with self._guard:
            self.up += up
            self.down += down

    def note(self, request: Request) -> None:
        """Remember a request."""
        with self._guard:
            self.requests.append(request)

    def uploads(self) -> list[Uploaded]:
        """Put PATCHes and PUTs of each upload session together."""
        size: dict[str, int] = {}
        digest: dict[str, str] = {}
        agent: dict[str, str] = {}
        for request in self.requests:
            url = urlsplit(request.path)
            if "/blobs/uploads/" not in url.path or request.method not in ("PATCH", "PUT"):
                continue
            size[url.path] = size.get(url.path, 0) + request.sent
            agent[url.path] = request.agent
            if request.method == "PUT" and request.status == 201:
                digest[url.path] = parse_qs(url.query).get("digest", [""])[0]
        return [Uploaded(agent[path], size[path], digest.get(path, "")) for path in size]

    def pulled(self, digests: Iterable[str]) -> tuple[int, int]:
        """Return how many of these blobs were asked for, and how many bytes of them were sent."""
        wanted = set(digests)
        asked = [request for request in self.requests if request.blob in wanted]
        return len(asked), sum(request.received for request in asked)


class _Connection(socketserver.BaseRequestHandler):
    """One client's connection, and one to the registry for it: a request, its answer, the next request."""

    server: Recorder

    def handle(self) -> None:
        client: socket.socket = self.request
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError, EOFError, ValueError), self.server.connect() as registry:
            asked = BufferedReader(client.makefile("rb", 0), _BUFFER)
            answered = BufferedReader(registry.makefile("rb", 0), _BUFFER)
            if asked.peek(1)[:1] == b"\x16":
                # An engine tries TLS first, and takes this for "here is plain HTTP".
                client.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                return
            while self._one(client, registry, asked, answered):
                pass

    def _one(self, client: socket.socket, registry: socket.socket, asked: _Reader, answered: _Reader) -> bool:
        head = _head(asked)
        if not head:
            return False
        method, path = head.split(b" ", 2)[:2]
        self.server.count(len(head), 0)
        registry.sendall(head)
        sent = self._pass(asked, registry, head, up=True)
        reply = _head(answered)
        while reply.startswith(b"HTTP/1.1 1"):
            client.sendall(reply)
            reply = _head(answered)
        if not reply:
            return False
        status = int(reply.split(b" ", 2)[1])
        self.server.count(0, len(reply))
        client.sendall(reply)
        received = 0
        if method != b"HEAD" and status not in (204, 304):
            received = self._pass(answered, client, reply, up=False)
        agent = _header(head, b"user-agent").decode(errors="replace")
        self.server.note(Request(method.decode(), path.decode(), agent, status, sent, received))
        return _header(head, b"connection").lower() != b"close" and _header(reply, b"connection") != b"close"

    def _pass(self, reader: _Reader, to: socket.socket, head: bytes, *, up: bool) -> int:
        """Pass a body on as it is framed; return its bytes on the wire."""
        passed = 0

        def give(piece: bytes) -> None:
            nonlocal passed
            to.sendall(piece)
            passed += len(piece)
            self.server.count(*((len(piece), 0) if up else (0, len(piece))))

        def give_exactly(count: int) -> None:
            while count:
                piece = reader.read1(min(count, _BUFFER))
                if not piece:
                    raise EOFError
                give(piece)
                count -= len(piece)

        if _header(head, b"transfer-encoding").lower() == b"chunked":
            while True:
                line = reader.readline()
                give(line)
                if not (size := int(line.split(b";")[0], 16)):
                    break
                give_exactly(size + 2)
            while (line := reader.readline()) not in (b"\r\n", b""):
                give(line)
            give(line)
        elif length := _header(head, b"content-length"):
            give_exactly(int(length))
        elif not up:
            while piece := reader.read1(_BUFFER):
                give(piece)
        return passed


def _head(reader: _Reader) -> bytes:
    lines = []
    while line := reader.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _header(head: bytes, name: bytes) -> bytes:
    found = re.search(rb"\r\n" + name + rb":[ \t]*([^\r\n]*)", head, re.IGNORECASE)
    return found[1].strip() if found else b""

"""A registry that keeps no bytes: digests, sizes, manifests and what is small. `python -m bench.sink`.

So that a model of any size can be published without a disk to hold it. It hashes what it gets and refuses a
wrong digest, as a registry does; small blobs (configurations) can be read back. It prints its address.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_KEPT = 1 << 20  # bytes; blobs up to this size can be read back
_BUFFER = 1 << 20
_OCTETS = "application/octet-stream"


@dataclass
class _Session:
    """An upload on its way."""

    size: int = 0
    kept: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def add(self, piece: memoryview) -> None:
        self.sha256.update(piece)
        self.size += len(piece)
        if self.size <= _KEPT:
            self.kept += piece


class Sink(ThreadingHTTPServer):
    """The server. All repositories share one store, so every mount of what is known works."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        self.sessions: dict[str, _Session] = {}
        self.sizes: dict[str, int] = {}
        self.kept: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.guard = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, unless it is just the client that went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Sink
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rbufsize = _BUFFER

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        """Give a manifest, a small blob, or how far an upload came."""
        path = urlsplit(self.path).path
        if found := re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", path):
            manifest = self.server.manifests.get((found[1], found[2]))
            if manifest is None:
                return self._answer(404)
            digest = f"sha256:{hashlib.sha256(manifest[1]).hexdigest()}"
            return self._answer(200, manifest[1], manifest[0], Docker_Content_Digest=digest)
        if found := re.fullmatch(r"/v2/.+/blobs/(sha256:[0-9a-f]{64})", path):
            size = self.server.sizes.get(found[1])
            if size is None or (self.command == "GET" and found[1] not in self.server.kept):
                return self._answer(404)
            return self._answer(200, self.server.kept.get(found[1], b""), _OCTETS, size)
        session = self.server.sessions.get(path.rpartition("/")[2])
        if "/blobs/uploads/" in path and session:
            return self._answer(204, Location=path, Range=f"0-{max(0, session.size - 1)}")
        return self._answer(200 if path == "/v2/" else 404)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        """Begin an upload, or mount what is known."""
        self._body(_Session())
        url = urlsplit(self.path)
        if parse_qs(url.query).get("mount", [""])[0] in self.server.sizes:
            return self._answer(201)
        name = secrets.token_hex(16)
        self.server.sessions[name] = _Session()
        return self._answer(202, Location=f"{url.path.rstrip('/')}/{name}", Range="0-0")

    def do_PATCH(self) -> None:
        """Take bytes."""
        path = urlsplit(self.path).path
        session = self.server.sessions.get(path.rpartition("/")[2])
        self._body(session or _Session())
        if session is None:
            return self._answer(404)
        return self._answer(202, Location=path, Range=f"0-{max(0, session.size - 1)}")

    def do_PUT(self) -> None:
        """Commit an upload, or take a manifest."""
        url = urlsplit(self.path)
        if found := re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", url.path):
            body = _Session()
            self._body(body)
            digest = f"sha256:{body.sha256.hexdigest()}"
            for reference in (found[2], digest):
                entry = (self.headers.get("Content-Type", ""), bytes(body.kept))
                self.server.manifests[found[1], reference] = entry
            return self._answer(201, Docker_Content_Digest=digest)
        session = self.server.sessions.pop(url.path.rpartition("/")[2], None)
        self._body(session or _Session())
        if session is None:
            return self._answer(404)
        digest = f"sha256:{session.sha256.hexdigest()}"
        if parse_qs(url.query).get("digest") != [digest]:
            return self._answer(400, b'{"errors": [{"code": "DIGEST_INVALID", "message": ""}]}')
        with self.server.guard:
            self.server.sizes[digest] = session.size
            if session.size <= _KEPT:
                self.server.kept[digest] = bytes(session.kept)
        return self._answer(201, Docker_Content_Digest=digest)

    def do_DELETE(self) -> None:
        """Cancel an upload."""
        self.server.sessions.pop(urlsplit(self.path).path.rpartition("/")[2], None)
        self._answer(204)

    def _body(self, session: _Session) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self._exactly(size, session)
                self.rfile.readline()
            self.rfile.readline()
        else:
            self._exactly(int(self.headers.get("Content-Length", 0)), session)

    def _exactly(self, count: int, session: _Session) -> None:
        room = memoryview(bytearray(min(_BUFFER, max(1, count))))
        while count:
            got = self.rfile.readinto1(room[: min(len(room), count)])
            if not got:
                raise ConnectionError("the client went away")
            session.add(room[:got])
            count -= got

    def _answer(
        self, status: int, body: bytes = b"", kind: str = "", size: int | None = None, **headers: str
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if kind:
            self.send_header("Content-Type", kind)
        if status != 204:
            self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def main() -> None:
    """Serve until the end."""
    with Sink() as sink:
        sys.stdout.write(f"127.0.0.1:{sink.server_address[1]}\n")
        sys.stdout.flush()
        sink.serve_forever()


if __name__ == "__main__":
    main()

"""The reverse proxy of `registry_proxy` for bodies of any size: they are passed on as they come.

    with StreamingProxy("127.0.0.1:5000") as proxy:
        proxy.fail("PATCH", r"/weights/blobs/uploads/", "cut 70000")
        ...
        assert proxy.received["ns/weights"] < 1.5 * size

Besides what `RegistryProxy` does to requests, "cut N" passes on N bytes of the request's body, then breaks
off both connections: the registry has a part of an upload, and its client no answer.

    keeps_uploads    upload sessions are kept here, as GHCR, Harbor and zot keep theirs: one that was cut is
                     still known, says how far it came, and goes on from there. (docker-registry gives such a
                     session up: its clients begin anew.) The real registry gets each blob whole.
    mounts           False: a request to mount a blob begins an upload instead, as the specification allows
    on_bytes         called with the bytes of bodies that have arrived in all, whenever some have
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from tests.servers.registry_proxy import Action, RegistryProxy, Seen

_PIECE = 64 * 1024
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "expect"}
_UPLOADS = re.compile(r"/v2/(?P<repository>.+)/blobs/uploads/(?P<id>[^/?]*)")
_WORDS = {
    401: "UNAUTHORIZED",
    403: "DENIED",
    404: "BLOB_UPLOAD_INVALID",
    416: "BLOB_UPLOAD_INVALID",
    429: "TOOMANYREQUESTS",
}


@dataclass
class _Upload:
    """A session kept here; `location` is the registry's own."""

    location: str
    held: bytearray = field(default_factory=bytearray)

    @property
    def range(self) -> str:
        return f"0-{max(0, len(self.held) - 1)}"


class StreamingProxy(RegistryProxy):
    """See the module. `received`: bytes of request bodies that arrived, by repository."""

    def __init__(
        self,
        upstream: str,
        *,
        keeps_uploads: bool = False,
        mounts: bool = True,
        host: str = "127.0.0.1",
    ) -> None:
        super().__init__(upstream, host=host)
        self.keeps_uploads = keeps_uploads
        self.mounts = mounts
        self.on_bytes: Callable[[int], None] | None = None
        self.received: Counter[str] = Counter()
        self.uploads: dict[str, _Upload] = {}
        self._server.RequestHandlerClass = _handler(self)

    def forget(self) -> None:
        """Drop all faults and everything seen."""
        super().forget()
        self.received.clear()

    def take(self, repository: str, count: int) -> None:
        """Count bytes that have arrived."""
        with self._lock:
            self.received[repository] += count
            total = sum(self.received.values())
        if self.on_bytes is not None:
            self.on_bytes(total)


class _CutError(Exception):
    """The body is to break off here."""


def _handler(proxy: StreamingProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        raw_requestline: bytes
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:
            pass

        def parse_request(self) -> bool:
            # An engine tries TLS first, and takes what follows for "this registry speaks plain HTTP".
            if self.raw_requestline.startswith(b"\x16"):
                self.connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                self.close_connection = True
                return False
            return super().parse_request()

        def _handle(self) -> None:
            agent = self.headers.get("User-Agent", "")
            if proxy.before is not None:
                proxy.before(self.command, self.path)
            action = proxy.action_for(self.command, self.path, agent)
            try:
                status = self._answer(action)
            except (_CutError, OSError, http.client.HTTPException):
                self._reset()
                status = 0
            authorization = self.headers.get("Authorization")
            proxy.note(Seen(self.command, self.path, authorization, status, agent))

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815

        def _answer(self, action: Action | None) -> int:
            if action == "reset":
                raise _CutError
            if isinstance(action, int):
                self._drain()
                return self._refuse(action)
            if action == "slow":
                time.sleep(1)
            if action == "hang":
                time.sleep(3)
                self.close_connection = True
                return 0
            if action == "garbage":
                self._drain()
                self.connection.sendall(b"\x00\xff\xfenot HTTP at all\r\n\r\n")
                self.close_connection = True
                return 0
            upload = _UPLOADS.match(self.path)
            if proxy.keeps_uploads and upload and upload["id"] and upload["id"] in proxy.uploads:
                return self._kept(upload["repository"], upload["id"], action)
            return self._pass_on(action)

        # --- bodies ----------------------------------------------------------------------------------------

        def _body(self, action: Action | None = None) -> Iterator[bytes]:
            """Yield the request's body; "cut N" ends it there."""
            found = re.match(r"/v2/(.+?)/(?:blobs|manifests|tags)/", self.path)
            cut = re.fullmatch(r"cut (\d+)", action) if isinstance(action, str) else None
            left = int(cut[1]) if cut else None
            for piece in self._chunks() if self._chunked else self._counted():
                kept = piece if left is None else piece[:left]
                proxy.take(found[1] if found else "", len(kept))
                yield kept
                if left is not None and (left := left - len(kept)) == 0:
                    raise _CutError
            if left is not None:
                raise _CutError

        @property
        def _chunked(self) -> bool:
            return "chunked" in self.headers.get("Transfer-Encoding", "")

        def _counted(self) -> Iterator[bytes]:
            left = int(self.headers.get("Content-Length", 0))
            while left:
                piece = self.rfile.read1(min(left, _PIECE))
                if not piece:
                    raise ConnectionError("the client went away")
                left -= len(piece)
                yield piece

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass

        def _drain(self) -> None:
            for _ in self._body():
                pass

        # --- answers ---------------------------------------------------------------------------------------

        def _reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> int:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            return status

        def _refuse(self, status: int) -> int:
            code = _WORDS.get(status, "UNKNOWN")
            body = json.dumps({"errors": [{"code": code, "message": "made to fail"}]}).encode()
            headers = {"WWW-Authenticate": 'Basic realm="made to fail"'} if status == 401 else {}
            return self._reply(status, {"Content-Type": "application/json", **headers}, body)

        def _reset(self) -> None:
            self.close_connection = True
            with suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.rfile.close()  # it holds the socket open, and only a real close sends the reset
                self.connection.close()

        def _kept(self, repository: str, key: str, action: Action | None) -> int:
            """Answer for a session that is kept here."""
            upload = proxy.uploads[key]
            here = {"Location": f"/v2/{repository}/blobs/uploads/{key}"}
            if self.command == "PATCH":
                begins = re.match(r"(\d+)-", self.headers.get("Content-Range", ""))
                if begins and int(begins[1]) != len(upload.held):
                    self._drain()
                    return self._reply(416, {**here, "Range": upload.range})
                for piece in self._body(action):
                    upload.held += piece
                return self._lose_or(action, 202, {**here, "Range": upload.range})
            if self.command == "GET":
                return self._lose_or(action, 204, {**here, "Range": upload.range})
            self._drain()
            target = urlsplit(upload.location)
            query = "&".join(part for part in (target.query, urlsplit(self.path).query) if part)
            body = bytes(upload.held) if self.command == "PUT" else b""
            upstream = self._upstream(f"{target.path}?{query}", len(body))
            try:
                upstream.send(body)
                reply = upstream.getresponse()
                answer = reply.read()
            finally:
                upstream.close()
            if reply.status < 400:
                del proxy.uploads[key]
            headers = {n: v for n, v in reply.getheaders() if n.lower() not in _HOP_BY_HOP}
            return self._lose_or(action, reply.status, headers, answer)

        def _lose_or(
            self, action: Action | None, status: int, headers: dict[str, str], body: bytes = b""
        ) -> int:
            if action == "lose":
                raise _CutError
            return self._reply(status, headers, body)

        def _upstream(self, path: str, length: int | None) -> http.client.HTTPConnection:
            """Open a connection to the registry and send the head of this request; `length` of its body."""
            upstream = http.client.HTTPConnection(proxy.upstream, timeout=60)
            upstream.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                    upstream.putheader(name, value)
            if length is None:
                upstream.putheader("Transfer-Encoding", "chunked")
            elif length or self.command in ("PUT", "POST", "PATCH"):
                upstream.putheader("Content-Length", str(length))
            upstream.endheaders()
            return upstream

        def _pass_on(self, action: Action | None) -> int:
            path = self.path
            if not proxy.mounts and self.command == "POST" and "?mount=" in path:
                path = path.partition("?")[0]
            length = None if self._chunked else int(self.headers.get("Content-Length", 0))
            upstream = self._upstream(path, length)
            try:
                for piece in self._body(action):
                    upstream.send(b"%x\r\n%s\r\n" % (len(piece), piece) if length is None else piece)
                if length is None:
                    upstream.send(b"0\r\n\r\n")
                reply = upstream.getresponse()
                if action == "lose":
                    reply.read()
                    raise _CutError
                headers = {n: v for n, v in reply.getheaders() if n.lower() not in _HOP_BY_HOP}
                begun = _UPLOADS.match(path) if self.command == "POST" and reply.status == 202 else None
                if proxy.keeps_uploads and begun:
                    key = secrets.token_hex(8)
                    proxy.uploads[key] = _Upload(headers["Location"])
                    headers["Location"] = f"/v2/{begun['repository']}/blobs/uploads/{key}"
                if callable(action) or "Content-Length" not in headers:
                    body = reply.read()
                    body = action(body) if callable(action) else body
                    return self._reply(reply.status, {**headers, "Content-Length": str(len(body))}, body)
                self.send_response_only(reply.status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                while piece := reply.read(_PIECE):
                    self.wfile.write(piece)
                return reply.status
            finally:
                upstream.close()

    return Handler

"""A reverse proxy in front of a real registry that fails on demand.

    with RegistryProxy("127.0.0.1:5000") as proxy:
        proxy.fail("PUT", r"/manifests/1\\.0\\.0$", 500, nth=2)
        ...                                  # talk to proxy.address, as one would to the registry
        assert proxy.seen[-1].path == "/v2/a/manifests/1.0.0"

What a fault does to the nth request (counted from 1) of its method and path:

    an int        that status is answered, and the registry never sees the request
    "reset"       the connection is reset, and the registry never sees the request
    "garbage"     bytes that are not HTTP are answered
    "truncate"    the registry's answer breaks off in the middle of its body
    "slow"        the answer takes a second longer
    "hang"        nothing is answered for three seconds, then the connection is closed
    "lose"        the registry does what it was asked, but its answer is lost
    "alter"       a space is added to the request's body before the registry gets it
    a callable    takes the registry's body and returns the one to answer instead

It passes the Host header on, so that the registry's Locations lead back here. Bodies are held in memory: it
is for small images.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

Action = int | str | Callable[[bytes], bytes]
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer"}


@dataclass
class Seen:
    """A request that arrived, and the status that was answered (0 where none was, or not yet)."""

    method: str
    path: str
    authorization: str | None
    status: int
    agent: str


@dataclass
class Fault:
    """What to do to which requests. `fired` counts how often it was done."""

    method: str
    pattern: str
    action: Action
    nth: int
    times: int
    agent: str
    counted: int = 0
    fired: int = 0


@dataclass
class RegistryProxy:
    """The proxy; `upstream` is the registry's `host:port`. `before(method, path)`, where set, is called
    when a request has arrived. `host`: what it listens at.
    """

    upstream: str
    seen: list[Seen] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    before: Callable[[str, str], None] | None = None
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer((self.host, 0), _handler(self))
        self._server.daemon_threads = True
        self.address = f"{self.host}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(
        self, method: str, pattern: str, action: Action, *, nth: int = 1, times: int = 1, agent: str = ""
    ) -> Fault:
        """Do `action` to the nth request of that method whose path the pattern is found in, `times` times.

        `agent` counts only the requests of programs whose name (User-Agent) begins so.
        """
        fault = Fault(method, pattern, action, nth, times, agent)
        self.faults.append(fault)
        return fault

    def forget(self) -> None:
        """Drop all faults and everything seen."""
        with self._lock:
            self.faults.clear()
            self.seen.clear()

    def action_for(self, method: str, path: str, agent: str) -> Action | None:
        """Count the request; return what is to be done to it."""
        with self._lock:
            chosen: Action | None = None
            for fault in self.faults:
                if not (re.fullmatch(fault.method, method) and re.search(fault.pattern, path)):
                    continue
                if not agent.startswith(fault.agent):
                    continue
                fault.counted += 1
                if chosen is None and fault.nth <= fault.counted < fault.nth + fault.times:
                    fault.fired += 1
                    chosen = fault.action
            return chosen

    def note(self, seen: Seen) -> None:
        """Remember a request."""
        with self._lock:
            self.seen.append(seen)


def _handler(proxy: RegistryProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        raw_requestline: bytes
        # Two small writes, headers and body, must not wait for each other's acknowledgement.
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
            body = self._read_body()
            agent = self.headers.get("User-Agent", "")
            if proxy.before is not None:
                proxy.before(self.command, self.path)
            action = proxy.action_for(self.command, self.path, agent)
            # Noted before it is answered: whoever has the answer also finds the request.
            seen = Seen(self.command, self.path, self.headers.get("Authorization"), 0, agent)
            proxy.note(seen)
            if isinstance(action, int):
                seen.status = action
                self._refuse(action)
            elif action == "reset":
                self._reset()
            elif action == "hang":
                time.sleep(3)
                self.close_connection = True
            elif action == "garbage":
                self.connection.sendall(b"\x00\xff\xfenot HTTP at all\r\n\r\n")
                self.close_connection = True
            else:
                if action == "slow":
                    time.sleep(1)
                seen.status = self._pass_on(body + b" " if action == "alter" else body, action)

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815

        def _read_body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _refuse(self, status: int) -> None:
            words = {401: "UNAUTHORIZED", 403: "DENIED", 429: "TOOMANYREQUESTS"}.get(status, "UNKNOWN")
            body = json.dumps({"errors": [{"code": words, "message": "made to fail"}]}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="made to fail"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()  # it holds the socket open, and only a real close sends the reset
            self.connection.close()

        def _pass_on(self, body: bytes, action: Action | None) -> int:
            upstream = http.client.HTTPConnection(proxy.upstream, timeout=60)
            try:
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in _HOP_BY_HOP | {"content-length", "expect"}:
                        upstream.putheader(name, value)
                if body or self.command in ("PUT", "POST", "PATCH"):
                    upstream.putheader("Content-Length", str(len(body)))
                upstream.endheaders(body or None)
                reply = upstream.getresponse()
                answer = reply.read()
                headers = [(n, v) for n, v in reply.getheaders() if n.lower() not in _HOP_BY_HOP]
                status = reply.status
            except OSError:
                self._refuse(502)
                return 502
            finally:
                upstream.close()
            if action == "lose":
                self._reset()
                return 0
            if callable(action):
                answer = action(answer)
                headers = [(n, v) for n, v in headers if n.lower() != "content-length"]
                headers.append(("Content-Length", str(len(answer))))
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer[: len(answer) // 2] if action == "truncate" else answer)
            if action == "truncate":
                self.close_connection = True
            return status

    return Handler

"""The HTTP part of the hub server: listening, ranges, logging, committing faults. Knows nothing of models."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import socket
import ssl
import struct
import sys
import termios
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.servers.hub_faults import Fault, Faults
from tests.servers.hub_log import Draft, Record, RequestLog, Role, Tokens
from tests.servers.hub_messages import Answer, Call, FileBody, asked_range, length_headers, spoilt

_CHUNK = 1024 * 1024
_LEEWAY_SECONDS = 0.5
_BODY_LIMIT = 1024 * 1024
_UPLOAD_LIMIT = 64 * 1024 * 1024  # of a commit, and of a file that is put into the storage


class Rate:
    """Lets so many bytes a second pass, over all connections together; None: as many as go."""

    def __init__(self) -> None:
        self.per_second: float | None = None
        self.passed = 0  # bytes so far, also of what is still being answered
        self._guard = threading.Lock()
        self._free = 0.0  # when what passed so far has had its time

    @property
    def piece(self) -> int:
        """The bytes to send at once."""
        return _CHUNK if self.per_second is None else 1 << 16

    def wait(self, count: int, stopping: threading.Event) -> None:
        """Return when `count` bytes more have had their time."""
        with self._guard:
            self.passed += count
            if self.per_second is None:
                return
            now = time.monotonic()
            # What a busy machine has kept it from sending, it may send a little later.
            self._free = max(now - _LEEWAY_SECONDS, self._free) + count / self.per_second
            seconds = self._free - now
        if seconds > 0 and stopping.wait(seconds):
            raise ConnectionAbortedError("the server is closing")


class Site:
    """What one listening socket serves.

    Attributes:
        host: which of the servers it is.
        answer: makes the answer to a call.
        subject: tells which (repository, file) a call is about, '' where none.
        control: makes the answer to the control requests below `/__`, which are neither logged nor spoilt.
        ranges: whether Range headers are heeded.
        rate: how fast files are sent.
        failures: tracebacks of defects of this server.
    """

    def __init__(
        self,
        host: Role,
        answer: Callable[[Call], Answer],
        subject: Callable[[Call], tuple[str, str]],
        control: Callable[[Call], Answer],
        *,
        log: RequestLog,
        faults: Faults,
        tokens: Tokens,
        ranges: bool = True,
        rate: Rate | None = None,
    ) -> None:
        self.host = host
        self.answer = answer
        self.subject = subject
        self.control = control
        self.log = log
        self.faults = faults
        self.tokens = tokens
        self.ranges = ranges
        self.rate = rate or Rate()
        self.failures: list[str] = []
        self.stopping = threading.Event()


class Listener(ThreadingHTTPServer):
    """A listening socket with its thread; `close` also ends the connections that clients keep alive."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def __init__(self, site: Site, address: tuple[str, int], tls: ssl.SSLContext | None) -> None:
        self.site = site
        self._tls = tls
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), name=f"hub-{site.host}")
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Close the connection at once when a fault says so."""
        return not self.site.faults.take_down(self.site.host)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection, in its own thread."""
        if self._tls is not None:
            request = self._tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._connections.add(request)
        try:
            if self.site.stopping.is_set():
                return
            if self._tls is not None:
                request.settimeout(_Handler.timeout)
                request.do_handshake()
            super().finish_request(request, client_address)
        finally:
            with self._lock:
                self._connections.discard(request)
            if self._tls is not None:
                request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep the traceback, unless it is just the client that hung up."""
        error = sys.exception()
        hung_up = isinstance(error, (ConnectionError, TimeoutError, ssl.SSLError))
        if not hung_up and not (isinstance(error, OSError) and error.errno == errno.ENOTCONN):
            self.site.failures.append(traceback.format_exc())

    def close(self) -> None:
        """Stop listening, cut every connection and wait for their threads."""
        self.site.stopping.set()
        self.shutdown()
        with self._lock:
            for connection in self._connections:
                _hang_up(connection)
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Reads requests, applies faults, sends answers and notes everything down."""

    server: Listener
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        site = self.server.site
        url = urlsplit(self.path)
        given_length = self.headers.get("Content-Length") or "0"
        length = int(given_length) if given_length.isdecimal() else _BODY_LIMIT + 1
        uploads = self.command == "PUT" or "/commit/" in url.path
        if length > (_UPLOAD_LIMIT if uploads else _BODY_LIMIT) or "Transfer-Encoding" in self.headers:
            self.send_error(413)
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(length)
        if len(body) < length:  # the client is gone
            self.close_connection = True
            return
        call = Call(site.host, self.command, url.path, url.query, headers, body)
        if site.faults.take_down(site.host):
            self.close_connection = True
            return
        if call.path.startswith("/__"):
            self._send(
                site.control(call), Draft(Record(0, site.host, call.method, call.path)), call, ("", "")
            )
            return
        repo, file = subject = site.subject(call)
        authorization = headers.get("authorization")
        others = [value for name, value in headers.items() if name != "authorization"]
        record = Record(
            id=0,
            host=site.host,
            method=call.method,
            path=site.tokens.scrub(call.path),
            query=site.tokens.scrub(call.raw_query),
            repo=repo,
            file=file,
            had_authorization=authorization is not None,
            authorization_valid=site.tokens.find(authorization) is not None,
            token_elsewhere=site.tokens.inside(" ".join([unquote(self.path), *others])),
            range=headers.get("range"),
            headers=site.tokens.scrub_headers(self.headers.items()),
        )
        with site.log.record(record) as draft:
            self._send(self._answer(call, subject, draft), draft, call, subject)

    def _answer(self, call: Call, subject: tuple[str, str], draft: Draft) -> Answer:
        """Make the answer, or the wrong one that a fault asks for."""
        site = self.server.site
        for fault in site.faults.take_before(call.host, call.method, call.path, *subject):
            draft.faults.append(fault.kind)
            if fault.kind == "delay":
                site.stopping.wait(fault.seconds)
            elif fault.kind == "slow_head":
                self._drip(
                    itertools.chain(b"HTTP/1.1 200 OK\r\nX-Slow: ", itertools.repeat(0x61)), fault.seconds
                )
            else:
                return spoilt(fault, call)
        try:
            return site.answer(call)
        except Exception:
            site.failures.append(traceback.format_exc())
            return Answer(500, {"Content-Type": "text/plain"}, b"defect of the test server")

    def _send(self, answer: Answer, draft: Draft, call: Call, subject: tuple[str, str]) -> None:
        headers = {"X-Request-Id": f"Root=1-{draft.record.id:08x}", **answer.headers}
        status, body = answer.status, answer.body
        draft.status = status
        if isinstance(body, bytes):
            self._head(status, {**headers, "Content-Length": str(len(body))})
            if call.method != "HEAD":
                self._body(iter([body]), draft)
            return
        start, stop = 0, body.size
        if self.server.site.ranges:
            headers["Accept-Ranges"] = "bytes"
            span = asked_range(call, headers.get("ETag"), body.size)
            if span == (0, 0):
                draft.status = 416
                self._head(416, {**headers, "Content-Range": f"bytes */{body.size}", "Content-Length": "0"})
                return
            if span is not None:
                draft.status = status = 206
                start, stop = span
        if call.method == "HEAD":
            self._head(status, length_headers(headers, status, start, stop, body.size))
            return
        taken = self.server.site.faults.take_body(
            call.host, call.path, *subject, start=start, stop=stop, size=body.size, partial=status == 206
        )
        draft.faults += [fault.kind for fault in taken]
        self._send_file(body, status, headers, start, stop, taken, draft)

    def _send_file(
        self,
        body: FileBody,
        status: int,
        headers: dict[str, str],
        start: int,
        stop: int,
        taken: list[Fault],
        draft: Draft,
    ) -> None:
        by_kind = {fault.kind: fault for fault in taken}
        size = {kind: fault.size for kind, fault in by_kind.items()}
        flips = {fault.position(body.size) for fault in taken if fault.kind == "corrupt"}
        end = max(start, stop - size.get("short", 0) - size.get("truncate", 0))
        if "drop" in by_kind:
            end = min(end, start + by_kind["drop"].offset)
        slow = by_kind.get("trickle")
        if slow:
            end = min(end, start + slow.offset)
        extra = size.get("extra", 0)
        sent_headers = length_headers(headers, status, start, stop, body.size)
        sent_headers["Content-Length"] = str(max(0, stop - start - size.get("short", 0)) + extra)
        if "content_range" in by_kind:
            shift = size["content_range"]
            sent_headers["Content-Range"] = f"bytes {start + shift}-{stop - 1 + shift}/{body.size}"
        if "endless" in by_kind:
            del sent_headers["Content-Length"]
            sent_headers["Connection"] = "close"
        self._head(status, sent_headers)
        if flips or isinstance(self.connection, ssl.SSLSocket):
            self._body(_read(body.path, start, end, flips), draft)
        else:
            self._send_part(body.path, start, end, draft)
        self._body(iter([b"\xee" * extra] if extra else []), draft)
        if slow:
            with body.path.open("rb") as file:
                file.seek(end)
                self._drip(file.read(stop - end), slow.seconds)
        if "endless" in by_kind:
            self._drip(itertools.repeat(0xEE), 0.0, piece=1 << 16)
        if {"drop", "truncate"} & by_kind.keys():
            self.close_connection = True
        if "drop" in by_kind:
            _reset(self.connection)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_part(self, path: Path, start: int, end: int, draft: Draft) -> None:
        """Let the kernel send the bytes [start, end): a hub has its own processors, here it shares ours."""
        self.wfile.flush()
        with path.open("rb") as file:
            while start < end:
                site = self.server.site
                sent = self.connection.sendfile(file, start, min(site.rate.piece, end - start))
                if not sent:
                    raise EOFError(f"{path} is shorter than it was")
                start += sent
                draft.bytes_sent += sent
                site.rate.wait(sent, site.stopping)

    def _drip(self, content: Iterable[int], seconds: float, *, piece: int = 1) -> None:
        """Send byte after byte, or pieces of the same byte, until the client or the test has had enough."""
        for byte in content:
            self.wfile.write(bytes([byte]) * piece)
            if self.server.site.stopping.wait(seconds):
                raise ConnectionAbortedError("the server is closing")

    def _body(self, pieces: Iterator[bytes], draft: Draft) -> None:
        for piece in pieces:
            self.wfile.write(piece)
            draft.bytes_sent += len(piece)
            self.server.site.rate.wait(len(piece), self.server.site.stopping)


def _read(path: Path, start: int, end: int, flips: set[int]) -> Iterator[bytes]:
    """Yield the bytes [start, end) of a file, with the lowest bit of the bytes in `flips` inverted."""
    with path.open("rb") as file:
        file.seek(start)
        while start < end:
            piece = file.read(min(_CHUNK, end - start))
            if not piece:
                raise EOFError(f"{path} is shorter than it was")
            inside = [flip - start for flip in flips if start <= flip < start + len(piece)]
            if inside:
                changed = bytearray(piece)
                for index in inside:
                    changed[index] ^= 1
                piece = bytes(changed)
            start += len(piece)
            yield piece


def _reset(connection: socket.socket) -> None:
    """Cut the connection with a TCP reset, after the client's machine has everything that was sent."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        if not struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))[0]:
            break
        time.sleep(0.005)
    # Closing a socket that lingers for zero seconds sends a reset instead of a normal end; it has to be
    # closed here, because the base class would first end it politely.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the client was faster
        connection.shutdown(socket.SHUT_RDWR)

"""A web server for files: strong or weak ETags, ranges, a password, redirects, HTTPS; it notes requests.

with WebServer({"model/a b.bin": data}, user=("reader", password)) as web:
    web.files["model/a b.bin"] = other          # a file is replaced
    web.redirects["/old/x"] = f"{other.url}/x"
    assert web.seen[-1].authorization == ""
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from tests.servers.hub_certificate import Certificate
from tests.servers.running import RunsInThread


@dataclass(frozen=True)
class Seen:
    """A request; the names of `headers` are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def authorization(self) -> str:
        return self.headers.get("authorization", "")


class _Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self) -> None:
        web = self.server
        web.seen.append(
            Seen(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        )
        path = unquote(self.path.partition("?")[0])
        if self.path in web.redirects:
            return self._reply(302, {"Location": web.redirects[self.path]})
        if web.login and self.headers.get("Authorization", "") != web.login:
            return self._reply(401, {"WWW-Authenticate": 'Basic realm="test"'})
        if web.refused:
            return self._reply(web.refused.pop(0), {})
        if self.command == "HEAD" and not web.knows_head:
            return self._reply(405, {})
        data = web.files.get(path.removeprefix("/"))
        if data is None:
            return self._reply(404, {}, web.missing)
        etag = web.etag_of(data)
        if (wanted := self.headers.get("If-Match")) and wanted != etag:
            return self._reply(412, {})
        headers = {"ETag": etag} if etag else {}
        headers |= {"Last-Modified": web.modified} if web.modified else {}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not web.ranges or self.headers.get("If-Range", etag) != etag:
            return self._reply(200, headers, data, cut=web.cuts.pop(0) if web.cuts else None)
        start, stop = int(asked[1]), min(len(data), int(asked[2] or len(data)) + 1)
        if start >= len(data):
            return self._reply(416, {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return self._reply(206, headers, data[start:stop])

    do_HEAD = do_GET  # noqa: N815 - named by http.server

    def _reply(
        self, status: int, headers: Mapping[str, str], data: bytes = b"", cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut])
            if cut is not None:
                self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


class WebServer(RunsInThread, http.server.ThreadingHTTPServer):
    """See the module. `etags`: strong, weak or none. `refused`: statuses of the next answers. `cuts`: after
    how many bytes the next whole answers break off. `missing`: what it says of files that it has not.
    `modified`: the Last-Modified of every file, "" for none."""

    daemon_threads = True

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        host: str = "127.0.0.1",
        user: tuple[str, str] | None = None,
        certificate: Certificate | None = None,
        etags: str = "strong",
    ) -> None:
        super().__init__((host, 0), _Request)
        self.files = dict(files)
        self.redirects: dict[str, str] = {}
        self.seen: list[Seen] = []
        self.refused: list[int] = []
        self.cuts: list[int] = []
        self.etags, self.ranges, self.knows_head = etags, True, True
        self.missing = b""
        self.modified = ""
        self.login = ""
        if user is not None:
            self.login = f"Basic {base64.b64encode(':'.join(user).encode()).decode()}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.cert, certificate.key)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://{host}:{self.server_address[1]}"

    def etag_of(self, data: bytes) -> str:
        """The ETag of some content."""
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return {"strong": f'"{digest}"', "weak": f'W/"{digest}"', "none": ""}[self.etags]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, or does not trust the certificate, is no error here."""

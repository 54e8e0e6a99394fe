"""A registry that wants bearer tokens, as most in the cloud do, over one image made by the test.

The token comes from another path of the same server, for user and password; a manifest or a blob comes for
the token only. https://distribution.github.io/distribution/spec/auth/token/
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import io
import json
from typing import Any

from tests.servers.running import RunsInThread

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class _Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TokenRegistry

    def handle_one_request(self) -> None:
        # An engine tries TLS first, and goes on in plain HTTP where the answer to that looks like HTTP.
        if isinstance(self.rfile, io.BufferedReader) and self.rfile.peek(1)[:1] == b"\x16":
            self.wfile.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            self.close_connection = True
        else:
            super().handle_one_request()

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))  # a POST asks for a token in another way
        path, given = self.path.partition("?")[0], self.headers.get("Authorization", "")
        self.server.seen.append((path, given))
        if path == "/token":
            user = base64.b64encode(f"{self.server.user}:{self.server.password}".encode()).decode()
            if given == f"Basic {user}":
                self._reply(200, json.dumps({"token": self.server.token}).encode(), "application/json")
            else:
                self._reply(401, b'{"details":"incorrect username or password"}', "application/json")
        elif given != f"Bearer {self.server.token}":
            realm = (
                f'Bearer realm="http://{self.server.host}/token",service="test",scope="repository:base:pull"'
            )
            self._reply(401, b"{}", "application/json", {"WWW-Authenticate": realm})
        elif path in self.server.content:
            media_type, data = self.server.content[path]
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            self._reply(200, data, media_type, {"Docker-Content-Digest": digest})
        else:
            self._reply(404, b"{}", "application/json")

    do_HEAD = do_POST = do_GET  # noqa: N815 - named by http.server

    def _reply(
        self, status: int, data: bytes, media_type: str, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": media_type,
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class TokenRegistry(RunsInThread, http.server.ThreadingHTTPServer):
    """Serve `base:1`, whose only layer is `rootfs` (a tar), to `user` with `password`."""

    daemon_threads = True

    def __init__(self, rootfs: bytes, user: str, password: str) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.user, self.password, self.token = user, password, "t0ken"
        self.seen: list[tuple[str, str]] = []
        self.content: dict[str, tuple[str, bytes]] = {}
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(rootfs).hexdigest()}"]},
        }
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._blob(
                json.dumps(config).encode(), "application/vnd.docker.container.image.v1+json"
            ),
            "layers": [
                self._blob(gzip.compress(rootfs, 1), "application/vnd.docker.image.rootfs.diff.tar.gzip")
            ],
        }
        manifest = json.dumps(document).encode()
        for name in ("1", f"sha256:{hashlib.sha256(manifest).hexdigest()}"):
            self.content[f"/v2/base/manifests/{name}"] = (MANIFEST, manifest)

    def _blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.content[f"/v2/base/blobs/{digest}"] = ("application/octet-stream", data)
        return {"mediaType": media_type, "size": len(data), "digest": digest}

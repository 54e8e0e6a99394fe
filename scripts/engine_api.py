"""Just enough of the Docker Engine HTTP API for the scripts here (standard library only)."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from local_service import Problem

SYSTEM_SOCKET = "unix:///var/run/docker.sock"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class EngineAPI:
    """An engine at a DOCKER_HOST address, unix:// or tcp://.

    TLS is asked for as with the docker CLI: DOCKER_TLS_VERIFY and DOCKER_CERT_PATH.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self._url = urlsplit(host)
        if self._url.scheme not in ("unix", "tcp", "http", "https"):
            raise Problem(
                f"DOCKER_HOST={host}: these scripts reach engines over unix:// and tcp:// only",
                "forward the socket first, e.g. ssh -nNT -L /tmp/docker.sock:/var/run/docker.sock HOST",
            )

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if self._url.scheme == "unix":
            return _UnixConnection(self._url.path, timeout)
        name, port = self._url.hostname or "localhost", self._url.port
        if self._url.scheme == "https" or os.environ.get("DOCKER_TLS_VERIFY"):
            folder = Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
            authority = folder / "ca.pem"
            context = ssl.create_default_context(cafile=str(authority) if authority.exists() else None)
            if (folder / "cert.pem").exists():
                context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
            return http.client.HTTPSConnection(name, port or 2376, timeout=timeout, context=context)
        return http.client.HTTPConnection(name, port or 2375, timeout=timeout)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | BinaryIO | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 300,
    ) -> bytes:
        """One request; the whole answer. ``body`` is bytes or an open file.

        Raises:
            Problem: no engine there, or it answered with an error.
        """
        connection = self._connection(timeout)
        try:
            connection.request(method, path, body, dict(headers or {}))
            reply = connection.getresponse()
            content = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise Problem(f"{self.host}: {method} {path}: {error}", "is the engine running?") from error
        finally:
            connection.close()
        if reply.status >= 400:
            raise Problem(
                f"{self.host}: {method} {path}: {reply.status} {content.decode(errors='replace').strip()}"
            )
        return content

    def answers(self) -> bool:
        """Whether an engine answers there."""
        try:
            return self.request("GET", "/_ping", timeout=5).strip() == b"OK"
        except Problem:
            return False

    def read(self, path: str) -> Any:
        """The JSON document at a path."""
        return json.loads(self.request("GET", path))

"""Pushing blobs and manifests to the registry of scripts/registry (standard library only)."""

from __future__ import annotations

import base64
import http.client
import os
import re
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from local_service import Problem


def split_reference(reference: str) -> tuple[str, str, str]:
    """``HOST[:PORT]/NAME:TAG`` -> (host with port, name, tag).

    Raises:
        Problem: not of that form.
    """
    match = re.fullmatch(
        r"([a-zA-Z0-9.-]+(?::\d+)?)/([a-z0-9]+(?:[._/-]+[a-z0-9]+)*):([\w][\w.-]{0,127})", reference
    )
    if match is None:
        raise Problem(
            f"{reference!r} is not HOST[:PORT]/NAME:TAG",
            "for example 127.0.0.1:5000/base/python:3.11-bookworm",
        )
    return match[1], match[2], match[3]


class RegistryClient:
    """A registry that takes a user and a password with each request."""

    def __init__(self, host: str, user: str, password: str, authority: str | None) -> None:
        self.host = host
        self._authority = authority
        self._authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    @classmethod
    def from_environment(cls, host: str) -> RegistryClient:
        """The registry that MODELBAKE_REGISTRY names; its password is sent to no other host."""
        named = os.environ.get("MODELBAKE_REGISTRY", "").split("/")[0]
        if named != host:
            what = f"MODELBAKE_REGISTRY is {named}, not {host}" if named else "MODELBAKE_REGISTRY is not set"
            raise Problem(what, 'eval "$(scripts/registry up)" first')
        try:
            password = Path(os.environ["MODELBAKE_REGISTRY_PASSWORD_FILE"]).read_text().strip()
            return cls(
                host, os.environ["MODELBAKE_REGISTRY_USER"], password, os.environ.get("MODELBAKE_REGISTRY_CA")
            )
        except KeyError as error:
            raise Problem(f"{error.args[0]} is not set", 'eval "$(scripts/registry up)" first') from error
        except OSError as error:
            raise Problem(f"the registry's password file cannot be read: {error.strerror}") from error

    def put_blob(self, repository: str, digest: str, content: bytes) -> None:
        """Uploads a blob, unless the registry has it."""
        if self._request("HEAD", f"/v2/{repository}/blobs/{digest}", None, (200, 404))[0] == 200:
            return
        _, headers = self._request("POST", f"/v2/{repository}/blobs/uploads/", b"", (202,))
        place = urlsplit(headers.get("location") or "")
        if place.netloc not in ("", self.host):
            raise Problem(
                f"{self.host} sends the upload to {place.netloc}: not followed, for the password's sake"
            )
        query = f"{place.query}&digest={digest}" if place.query else f"digest={digest}"
        self._request("PUT", f"{place.path}?{query}", content, (201,), "application/octet-stream")

    def put_manifest(self, repository: str, tag: str, media_type: str, manifest: bytes) -> None:
        """Uploads a manifest under a tag."""
        self._request("PUT", f"/v2/{repository}/manifests/{tag}", manifest, (201,), media_type)

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | None,
        expected: tuple[int, ...],
        media_type: str | None = None,
    ) -> tuple[int, http.client.HTTPMessage]:
        loopback = self.host.rsplit(":", 1)[0] in ("127.0.0.1", "localhost")
        connection = http.client.HTTPConnection(self.host, timeout=60)
        if self._authority or not loopback:  # a password in clear text stays on this machine
            context = ssl.create_default_context(cafile=self._authority)
            connection = http.client.HTTPSConnection(self.host, timeout=60, context=context)
        headers = {"Authorization": self._authorization} | (
            {"Content-Type": media_type} if media_type else {}
        )
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            text = reply.read().decode(errors="replace").strip()
        except (OSError, http.client.HTTPException) as error:
            raise Problem(
                f"{self.host}: {method} {path}: {error}", "scripts/registry up starts it"
            ) from error
        finally:
            connection.close()
        if reply.status not in expected:
            raise Problem(f"{self.host}: {method} {path}: {reply.status} {reply.reason} {text[:300]}")
        return reply.status, reply.headers

"""The bench's own registry: where it is, what lies in it, and how it is emptied between runs."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tests.servers.environment import run_script, shell_exports

_ACCEPT = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json,"
    " application/vnd.oci.image.index.v1+json"
)


class Store:
    """A registry of `scripts/registry up --name NAME`; `close` deletes it and all it holds."""

    def __init__(self, name: str, cache: Path) -> None:
        self.name = name
        self.close()  # of a run that was killed
        exports = shell_exports("registry", "up", "--name", name)
        self.host = exports["MODELBAKE_REGISTRY"]
        self.user = exports["MODELBAKE_REGISTRY_USER"]
        self.password_file = Path(exports["MODELBAKE_REGISTRY_PASSWORD_FILE"])
        self.exports = exports
        folder = cache / "registry" / name
        self._storage = folder / "storage/docker/registry/v2"
        self.pid = int((folder / "docker-registry.pid").read_text())

    def close(self) -> None:
        """Stop it, and delete what it holds."""
        run_script("registry", "down", "--name", self.name, "--purge")

    @property
    def login(self) -> str:
        """Base64 of user:password."""
        return base64.b64encode(f"{self.user}:{self.password_file.read_text().strip()}".encode()).decode()

    def manifest(self, repository: str, reference: str) -> dict[str, Any]:
        """Return a manifest."""
        return dict(json.loads(self._get(f"{repository}/manifests/{reference}")))

    def tags(self, repository: str) -> list[str]:
        """Return a repository's tags."""
        return sorted(json.loads(self._get(f"{repository}/tags/list"))["tags"] or [])

    def keep_only(self, repositories: Collection[str]) -> None:
        """Delete all other repositories, and every blob that is in none of these."""
        root = self._storage / "repositories"
        for layers in sorted(root.rglob("_layers")):
            repository = layers.parent
            if repository.relative_to(root).as_posix() not in repositories:
                shutil.rmtree(repository)
        linked = {link.read_text().removeprefix("sha256:") for link in root.rglob("link")}
        for blob in (self._storage / "blobs/sha256").glob("*/*"):
            if blob.name not in linked:
                shutil.rmtree(blob)

    def _get(self, path: str) -> bytes:
        headers: Mapping[str, str] = {"Authorization": f"Basic {self.login}", "Accept": _ACCEPT}
        request = urllib.request.Request(f"http://{self.host}/v2/{path}", headers=dict(headers))
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310  # http, to this machine
            return bytes(reply.read())


def sync() -> None:
    """Write out what is waiting for the disk, so that it is not written during what is timed next."""
    subprocess.run(["sync"], check=True)

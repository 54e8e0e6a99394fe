"""Images in a registry of tests: layers of a few files, a configuration, a manifest, tags."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

from modelbake.grammar import VERSION
from modelbake.manifest import OCI_INDEX, OCI_MANIFEST, Manifest
from modelbake.plan import LABEL_PREFIX
from modelbake.stream.repository import RegistryRepository

DIGEST = "sha256:" + "ab" * 32
TAR, CONFIG = "application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.config.v1+json"
BAKED = {
    "schema": 1,
    "model": "minilm",
    "version": "1.0.0",
    "source": "hf://acme/minilm",
    "commit": "0123456789" * 4,
    "lock": DIGEST,
    "files": [
        {"path": "config.json", "size": 2, "sha256": "cd" * 32},
        {"path": "model.safetensors", "size": 2 << 20, "sha256": "ef" * 32},
    ],
}
STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u7
Description: a library
 Version: not this one

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0
"""


def layer(files: Mapping[str, bytes | str]) -> bytes:
    """Return an uncompressed layer."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as writer:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            writer.addfile(member, io.BytesIO(data))
    return archive.getvalue()


def metadata(name: str, version: str, *more: str) -> str:
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *more, "", "Version: a text"]
    return "\n".join(lines)


def usual_layers() -> list[bytes]:
    """A base, a runtime (compressed), weights, the manifest."""
    site = "opt/venv/lib/python3.11/site-packages"
    return [
        layer(
            {
                "usr/lib/os-release": 'ID=debian\nVERSION_ID="12"\n',
                "var/lib/dpkg/status": STATUS,
                "usr/lib/python3/dist-packages/old-0.1.dist-info/METADATA": metadata("old", "0.1"),
            }
        ),
        gzip.compress(
            layer(
                {
                    f"{site}/torch-2.0+cpu.dist-info/METADATA": metadata(
                        "torch", "2.0+cpu", "License-Expression: BSD-3-Clause"
                    ),
                    f"{site}/My_Package-1.dist-info/METADATA": metadata("My_Package", "1", "License: mine"),
                    "usr/lib/python3/dist-packages/.wh.old-0.1.dist-info": "",
                }
            ),
            mtime=0,
        ),
        layer({"models/config.json": "{}", "models/model.safetensors": bytes(2 << 20)}),
        layer({"modelbake/manifest.json": json.dumps(BAKED)}),
    ]


def put_image(
    repository: RegistryRepository,
    tag: str | None = None,
    *,
    layers: Sequence[bytes] = (),
    labels: Mapping[str, str] | None = None,
    note: str = "",
) -> Manifest:
    """Store an image; `note` makes it another one. Under a version tag its labels say model and version."""
    said = (
        {"model": repository.path.rpartition("/")[2], "version": tag} if tag and VERSION.matches(tag) else {}
    )
    known = {LABEL_PREFIX + key: value for key, value in said.items()}
    settings: dict[str, Any] = {"Labels": {**known, **(labels or {})}}
    config = json.dumps({"created": "2026-01-02T03:04:05.123456789Z", "config": settings, "note": note})
    stored = [repository.put(each, TAR) for each in layers or [layer({"note": note})]]
    described = repository.put(config.encode(), CONFIG)
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": CONFIG, "digest": described.digest, "size": described.size},
        "layers": [{"mediaType": TAR, "digest": each.digest, "size": each.size} for each in stored],
    }
    manifest = Manifest.of(OCI_MANIFEST, json.dumps(body).encode())
    repository.registry.put_manifest(repository.path, tag or manifest.digest, manifest)
    return manifest


def put_index(repository: RegistryRepository, tag: str, *images: Manifest, note: str = "") -> Manifest:
    """Store an index of images under a tag, a channel's record for example."""
    listed = [
        {"mediaType": each.media_type, "digest": each.digest, "size": len(each.body)} for each in images
    ]
    body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed, "annotations": {"note": note}}
    manifest = Manifest.of(OCI_INDEX, json.dumps(body).encode())
    repository.registry.put_manifest(repository.path, tag, manifest)
    return manifest

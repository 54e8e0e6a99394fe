"""Artifacts and images of weights, put into a real registry as their own tools put them.

content = OciContent(services.registry, user, password, f"{namespace}/pets")
content.modelpack("1", {"model.safetensors": data})
content.image("car", [{"models/model.safetensors": data}, {"models/.wh.old.bin": b""}], "gzip")
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
import zstandard

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"


class OciContent:
    """One repository of a registry that speaks plain HTTP."""

    def __init__(self, host: str, user: str, password: str, repository: str) -> None:
        self.host, self.repository = host, repository
        self._client = httpx2.Client(base_url=f"http://{host}/v2/{repository}/", auth=(user, password))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def source(self, reference: str) -> str:
        """The address of what is under a tag or digest."""
        return f"oci://{self.host}/{self.repository}{'@' if ':' in reference else ':'}{reference}"

    def blob(self, data: bytes, media_type: str, **annotations: str) -> dict[str, Any]:
        """Put a blob; return its descriptor."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        begun = self._client.post("blobs/uploads/").raise_for_status()
        put = self._client.put(
            httpx2.URL(begun.headers["Location"]).copy_merge_params({"digest": digest}), content=data
        )
        put.raise_for_status()
        described = {"mediaType": media_type, "digest": digest, "size": len(data)}
        return {**described, "annotations": annotations} if annotations else described

    def put(self, tag: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Put a manifest or an index under a tag; return its descriptor."""
        body = json.dumps(document).encode()
        kind = document["mediaType"]
        self._client.put(f"manifests/{tag}", content=body, headers={"Content-Type": kind}).raise_for_status()
        return {
            "mediaType": kind,
            "digest": f"sha256:{hashlib.sha256(body).hexdigest()}",
            "size": len(body),
        }

    def delete_blob(self, digest: str) -> None:
        """Take a blob out of the repository."""
        self._client.delete(f"blobs/{digest}").raise_for_status()

    def manifest(
        self, layers: Sequence[Mapping[str, Any]], config: Mapping[str, Any] | None = None, **keys: Any
    ) -> dict[str, Any]:
        """A manifest of layers."""
        config = config or self.blob(b"{}", EMPTY)
        return {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": list(layers), **keys}

    def modelpack(self, tag: str, files: Mapping[str, bytes], packing: str = "raw") -> dict[str, Any]:
        """A ModelPack artifact, a layer for each file: `raw`, `tar`, `tar+gzip`, `tar+zstd`."""
        config = self.blob(b"{}", "application/vnd.cncf.model.config.v1+json")
        layers = [
            self.blob(
                data if packing == "raw" else packed({path: data}, packing.partition("+")[2]),
                f"application/vnd.cncf.model.weight.v1.{packing}",
                **{"org.cncf.model.filepath": path},
            )
            for path, data in files.items()
        ]
        kind = "application/vnd.cncf.model.manifest.v1+json"
        return self.put(tag, self.manifest(layers, config, artifactType=kind))

    def oras(self, tag: str, files: Mapping[str, bytes], folders: Mapping[str, bytes]) -> dict[str, Any]:
        """What `oras push` makes of files and of folders (as tars)."""
        title = "org.opencontainers.image.title"
        layers = [
            self.blob(data, "application/vnd.oci.image.layer.v1.tar", **{title: path})
            for path, data in files.items()
        ]
        layers += [
            self.blob(
                gzip.compress(data),
                "application/vnd.oci.image.layer.v1.tar+gzip",
                **{title: path, "io.deis.oras.content.unpack": "true"},
            )
            for path, data in folders.items()
        ]
        return self.put(tag, self.manifest(layers, artifactType="application/vnd.test.model"))

    def image(
        self, tag: str, layers: Sequence[Mapping[str, bytes | None]], compression: str = ""
    ) -> dict[str, Any]:
        """An image; its layers' files by name, None for a link."""
        ending = f"+{compression}" if compression else ""
        kind = f"application/vnd.oci.image.layer.v1.tar{ending}"
        blobs = [self.blob(packed(layer, compression), kind) for layer in layers]
        document = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
        config = self.blob(json.dumps(document).encode(), IMAGE_CONFIG)
        return self.put(tag, self.manifest(blobs, config))

    def index(self, tag: str, manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """An index of descriptors that have a `platform`, if any."""
        return self.put(tag, {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests)})


def packed(files: Mapping[str, bytes | None], compression: str = "") -> bytes:
    """A tar of files, with a link for None."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/elsewhere"
            else:
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data or b""))
    if compression == "gzip":
        return gzip.compress(made.getvalue(), 1)
    return zstandard.compress(made.getvalue(), 1) if compression == "zstd" else made.getvalue()

"""Images for audits: real OCI layouts, each layer a tar that is put together entry by entry."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from modelbake.audit.auditing import audit
from modelbake.audit.findings import Findings
from modelbake.audit.images import RepositoryImage
from modelbake.audit.judging import Expected
from modelbake.credentials import Secret
from modelbake.manifest import Manifest
from modelbake.stream.layout import LayoutRepository
from modelbake.stream.weights import OCI_CONFIG, encode

TAR = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
WEIGHTS = {
    "config.json": b'{"model_type": "bert"}',
    "sub/model.safetensors": b"\x02\0\0\0\0\0\0\0{}" + b"w" * 5000,
}
PASSWD = b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\napp:x:1000:1000::/home:/bin/sh\n"


@dataclass(frozen=True)
class File:
    """An entry of a layer: a file, unless `type` says something else."""

    content: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    type: bytes = tarfile.REGTYPE
    target: str = ""
    pax: Mapping[str, str] = field(default_factory=dict)


FOLDER = File(mode=0o755, type=tarfile.DIRTYPE)
Layer = Mapping[str, File | bytes]


def layer_tar(entries: Layer) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, each in entries.items():
            file = File(each) if isinstance(each, bytes) else each
            entry = tarfile.TarInfo(path)
            entry.mode, entry.uid, entry.gid, entry.type = file.mode, file.uid, file.gid, file.type
            entry.linkname, entry.size = file.target, len(file.content)
            entry.pax_headers = dict(file.pax)
            archive.addfile(entry, io.BytesIO(file.content))
    return buffer.getvalue()


def facts(weights: Mapping[str, bytes]) -> dict[str, tuple[int, str]]:
    return {path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in weights.items()}


def baked(weights: Mapping[str, bytes]) -> bytes:
    files = [
        {"path": path, "size": size, "sha256": digest} for path, (size, digest) in facts(weights).items()
    ]
    return json.dumps({"schema": 1, "files": files}).encode()


def base_layer() -> dict[str, File | bytes]:
    return {
        "etc/passwd": PASSWD,
        "etc/group": b"root:x:0:\nstaff:x:50:app\n",
        "tmp": File(mode=0o1777, type=tarfile.DIRTYPE),
        "usr/bin/env": File(b"\x7fELF" + bytes(99), 0o755),
        "var/mail": File(mode=0o2775, type=tarfile.DIRTYPE),
        "bin": File(mode=0o777, type=tarfile.SYMTYPE, target="usr/bin"),
        "var/lib/dpkg/status": b"Package: base-files\n",
    }


def weights_layer(weights: Mapping[str, bytes] = WEIGHTS) -> dict[str, File | bytes]:
    folders = {"models": File(mode=0o555, type=tarfile.DIRTYPE)}
    folders |= {f"models/{path.rpartition('/')[0]}": folders["models"] for path in weights if "/" in path}
    return {**folders, **{f"models/{path}": File(data, 0o444) for path, data in weights.items()}}


@dataclass
class Made:
    """An image before it is stored. A test changes one thing of a clean one."""

    layers: list[dict[str, File | bytes]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    expected: Expected | None = None
    canary: str = "correct-horse-" + "battery-staple-42"
    strict: bool = False
    raw: bytes | None = None  # instead of the lowest layer's tar

    @classmethod
    def clean(cls) -> Made:
        return cls(
            [base_layer(), weights_layer(), {"modelbake/manifest.json": baked(WEIGHTS)}],
            {
                "User": "65532:65532",
                "Env": ["PATH=/usr/bin", "MODELBAKE_WEIGHTS=/models", "GPG_KEY=" + "A1B2" * 10],
                "Labels": {"io.modelbake.model": "tiny"},
                "Entrypoint": ["/usr/bin/env"],
            },
            {"org.opencontainers.image.version": "1.0.0"},
            [
                {"created_by": "RUN --mount=type=secret,id=hf_token,env=HF_TOKEN /build # buildkit"},
                {"created_by": "RUN HF_TOKEN=$(cat /run/secrets/hf_token) fetch"},
                {"created_by": "ENV MAX_TOKENS=4 HF_TOKEN_PATH=/run/secrets/hf", "empty_layer": True},
            ],
            Expected(facts(WEIGHTS)),
        )

    def store(self, folder: Path, compress: Callable[[bytes], bytes] = bytes) -> RepositoryImage:
        layout = LayoutRepository.create(folder)
        suffix = "+gzip" if compress is gzip.compress else "+zstd" if compress is zstd else ""
        tars = [layer_tar(layer) for layer in self.layers]
        if self.raw is not None:
            tars[0] = self.raw
        blobs = [layout.put(compress(tar), TAR + suffix) for tar in tars]
        ids = [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]
        config = encode(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": self.config,
                "rootfs": {"type": "layers", "diff_ids": ids},
                "history": self.history,
            }
        )
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _entry(layout.put(config, OCI_CONFIG)),
            "layers": [_entry(blob) for blob in blobs],
            "annotations": self.annotations,
        }
        layout.put_manifest("1.0.0", Manifest.of(MANIFEST, encode(document)))
        return RepositoryImage(layout, "1.0.0")

    def audit(self, folder: Path, compress: Callable[[bytes], bytes] = bytes) -> Findings:
        image = self.store(folder, compress)
        return audit(image, self.expected, canaries=[Secret(self.canary)], strict=self.strict)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def rules_of(findings: Findings) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in findings.found:
        found.setdefault(each.rule.id, []).append(each.path)
    return found


def _entry(blob: Any) -> dict[str, Any]:
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}

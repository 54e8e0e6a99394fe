"""Images that are signed in tests: a few kilobytes, put into the registry without an engine; and keys."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from modelbake.locked import LockedFile, LockedModel
from modelbake.manifest import OCI_MANIFEST, Manifest
from modelbake.plan import LABEL_PREFIX, LOCK_LABEL, encode_json
from modelbake.release.signatures import SIMPLE_SIGNING, signature_tag
from modelbake.stream.layers import small_layer
from modelbake.stream.repository import RegistryRepository
from modelbake.stream.weights import image_manifest

PASSWORD = f"unlocks-{secrets.token_hex(8)}"
WEIGHTS = {"config.json": b"{}\n", "model.safetensors": b"\7" * 70_000, "tokenizer/vocab.txt": b"a\nb\n"}
BASE = "docker.io/library/python:3.11-slim-bookworm@sha256:" + "a" * 64


def locked_model(hub: str = "https://huggingface.co", weights: dict[str, bytes] | None = None) -> LockedModel:
    """The facts of the weights, as `lock` writes them."""
    content = WEIGHTS if weights is None else weights
    files = [
        LockedFile(path, len(each), hashlib.sha256(each).hexdigest())
        for path, each in sorted(content.items())
    ]
    return LockedModel("tiny", "hf://acme/tiny", hub, "main", "c" * 40, (), (), tuple(files))


def put_image(repository: RegistryRepository, version: str, locked: LockedModel, base: str = "") -> Manifest:
    """Put a small image with these weights under a version tag."""
    files = [{"path": each.path, "size": each.size, "sha256": each.sha256} for each in locked.weights]
    baked = encode_json(
        {"schema": 1, "model": "tiny", "version": version, "lock": locked.digest, "files": files}
    )
    labels = {LABEL_PREFIX + "model": "tiny", LABEL_PREFIX + "version": version, LOCK_LABEL: locked.digest}
    if base:
        labels["org.opencontainers.image.base.name"] = base
        labels["org.opencontainers.image.base.digest"] = base.rpartition("@")[2]
    tar = "application/vnd.oci.image.layer.v1.tar"
    layers = []
    for content in (
        small_layer({"models/config.json": version.encode()}),
        small_layer({"modelbake/manifest.json": baked}),
    ):
        blob = repository.put(content, tar)
        layers.append({"mediaType": tar, "digest": blob.digest, "size": blob.size})
    diff_ids = [layer["digest"] for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    body = json.dumps(config).encode()
    manifest = image_manifest(body, layers, {})
    repository.put(body, "application/vnd.oci.image.config.v1+json")
    repository.put_manifest(version, manifest)
    return manifest


@dataclass(frozen=True)
class Keys:
    """A pair of cosign's keys in a folder of their own, and the program."""

    program: Path
    folder: Path

    @classmethod
    def generate(cls, program: Path, folder: Path) -> Keys:
        """Make a pair whose private half has the password PASSWORD."""
        folder.mkdir(parents=True)
        made = cls(program, folder)
        made.cosign("generate-key-pair")
        return made

    @property
    def private(self) -> Path:
        return self.folder / "cosign.key"

    @property
    def public(self) -> Path:
        return self.folder / "cosign.pub"

    def cosign(
        self, *arguments: str, config: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run cosign as a user does who has never heard of modelbake."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "COSIGN_PASSWORD": PASSWORD}
        if config is not None:
            env["DOCKER_CONFIG"] = str(config)
        command = [str(self.program), *arguments]
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done.stderr
        return done


@dataclass(frozen=True)
class MemoryKey:
    """A pair of keys in memory, for signatures that no cosign has made."""

    key: ec.EllipticCurvePrivateKey

    @classmethod
    def generate(cls) -> MemoryKey:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, content: bytes) -> bytes:
        return self.key.sign(content, ec.ECDSA(SHA256()))


def payload_about(digest: str, kind: str = "cosign container image signature") -> bytes:
    """Return the document that cosign signs of an image."""
    critical = {
        "identity": {"docker-reference": "registry.example.com/ml/tiny"},
        "image": {"docker-manifest-digest": digest},
        "type": kind,
    }
    return json.dumps({"critical": critical, "optional": None}).encode()


def put_signatures(
    repository: RegistryRepository, digest: str, signed: Sequence[tuple[bytes, bytes]]
) -> None:
    """Put payloads with their signatures where cosign keeps those of a digest."""
    config = repository.put(b"{}", "application/vnd.oci.image.config.v1+json")
    layers = []
    for payload, signature in signed:
        blob = repository.put(payload, SIMPLE_SIGNING)
        layers.append(
            {
                "mediaType": SIMPLE_SIGNING,
                "digest": blob.digest,
                "size": blob.size,
                "annotations": {"dev.cosignproject.cosign/signature": base64.b64encode(signature).decode()},
            }
        )
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": config.media_type, "digest": config.digest, "size": config.size},
        "layers": layers,
    }
    repository.put_manifest(signature_tag(digest), Manifest.of(OCI_MANIFEST, json.dumps(body).encode()))

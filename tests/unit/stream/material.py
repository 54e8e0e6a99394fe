"""What the tests of the stream lane are made of: files in memory, groups, layers, a runtime's image."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelbake.locked import LockedFile
from modelbake.manifest import DOCKER_MANIFEST, Descriptor, Manifest, digest_of
from modelbake.plan import WeightGroup
from modelbake.stream.assembly import RuntimeImage, read_runtime, runtime_manifest
from modelbake.stream.flow import FileBytes, LayerFlow
from modelbake.stream.layers import WeightLayer
from modelbake.stream.repository import Repository
from modelbake.stream.weights import OCI_CONFIG, StoredLayer

DOCKER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"


class MemoryFile:
    """The bytes of a file in memory, in pieces."""

    def __init__(self, content: bytes, sizes: Iterator[int]) -> None:
        self._content = content
        self._sizes = sizes
        self.attempts = 0

    def __iter__(self) -> Iterator[bytes]:
        self.attempts += 1
        position = 0
        while position < len(self._content):
            size = next(self._sizes)
            yield self._content[position : position + size]
            position += size


class MemoryReader:
    """Reads files that are in memory. `reads`: the (path, offset) that were asked for."""

    def __init__(self, contents: Mapping[str, bytes], *, largest: int = 5000, seed: int = 0) -> None:
        self._contents = contents
        self._random = random.Random(seed)
        self._largest = largest
        self.reads: list[tuple[str, int]] = []

    def read(self, file: LockedFile, start: int = 0) -> FileBytes:
        self.reads.append((file.path, start))
        return MemoryFile(self._contents[file.path][start:], self._sizes())

    def _sizes(self) -> Iterator[int]:
        while True:
            yield self._random.randint(1, self._largest)


def content(size: int, seed: int = 0) -> bytes:
    """Return bytes that no compression makes smaller."""
    return random.Random(seed).randbytes(size)


def locked(contents: Mapping[str, bytes]) -> tuple[LockedFile, ...]:
    """Return what a lock says of these files."""
    return tuple(
        LockedFile(path, len(data), hashlib.sha256(data).hexdigest())
        for path, data in sorted(contents.items())
    )


def group_of(contents: Mapping[str, bytes]) -> WeightGroup:
    """Return the group of these files."""
    return WeightGroup(locked(contents))


def layer_of(contents: Mapping[str, bytes]) -> WeightLayer:
    """Return the layer of these files."""
    return WeightLayer(group_of(contents))


def flow_of(
    contents: Mapping[str, bytes], *, served: Mapping[str, bytes] | None = None, **options: Any
) -> LayerFlow:
    """Return a flow of these files; `served`: what is read instead of what is locked."""
    return LayerFlow(layer_of(contents), MemoryReader(contents if served is None else served), **options)


def bytes_of(contents: Mapping[str, bytes]) -> bytes:
    """Return the layer of these files."""
    return b"".join(flow_of(contents).read())


def stored(contents: Mapping[str, bytes], compression: str = "none") -> StoredLayer:
    """Return the layer of these files as a repository remembers it."""
    flow = flow_of(contents, compression=compression)
    for _ in flow.read():
        pass
    blob = Descriptor(flow.media_type, flow.digest, flow.sent)
    return StoredLayer(group_of(contents), blob, flow.diff_id, flow.samples)


def tar_of(names: Sequence[str], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar of empty files and folders (names that end in a slash)."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(member)
    return made.getvalue()


def runtime_config(tars: Sequence[bytes], **keys: Any) -> bytes:
    """Return a runtime's configuration as an engine makes it."""
    document = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2025-01-31T12:00:00Z",
        "config": {
            "Env": ["PATH=/opt/venv/bin:/usr/bin", "HF_HUB_OFFLINE=1"],
            "Cmd": ["serve"],
            "User": "10001",
            "Labels": {"maintainer": "platform", "io.modelbake.model": "of the base"},
        },
        "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
        "history": [
            {"created": "2025-01-31T12:00:00Z", "created_by": "ADD rootfs"},
            {"created": "2025-01-31T12:00:00Z", "created_by": "ENV A=1", "empty_layer": True},
            *({"created_by": f"RUN {number}"} for number in range(1, len(tars))),
        ],
        **keys,
    }
    return json.dumps(document).encode()


def put_runtime(repository: Repository, *, layers: int = 2, hides: Sequence[str] = ()) -> RuntimeImage:
    """Put a runtime's blobs and manifest into a repository, as `runtimes` does after an engine's push."""
    tars = [tar_of([f"usr/lib/{number}/", f"usr/lib/{number}/code.py"]) for number in range(layers)]
    config = runtime_config(tars)
    entries = [repository.put(gzip.compress(tar, mtime=0), DOCKER_GZIP) for tar in tars]
    pushed = docker_manifest(config, entries)
    manifest = runtime_manifest(pushed, config, hides, {"io.modelbake.runtime": "embeddings"})
    repository.put(config, OCI_CONFIG)
    repository.put_manifest("runtime", manifest)
    return read_runtime(manifest, config)


def docker_manifest(config: bytes, layers: Sequence[Descriptor]) -> Manifest:
    """Return the manifest that an engine pushes."""
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": digest_of(config),
            "size": len(config),
        },
        "layers": [
            {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size} for layer in layers
        ],
    }
    return Manifest.of(DOCKER_MANIFEST, json.dumps(document).encode())


def runtime_image(sizes: Sequence[int] = (500, 300), hides: Sequence[str] = (), **keys: Any) -> RuntimeImage:
    """Return a runtime's image whose layers have these sizes in a registry; there are no such bytes."""
    tars = [f"layer {number}".encode() for number in range(len(sizes))]
    config = runtime_config(tars, **keys)
    layers = [
        Descriptor(DOCKER_GZIP, digest_of(b"gzip of " + tar), size)
        for tar, size in zip(tars, sizes, strict=True)
    ]
    return read_runtime(runtime_manifest(docker_manifest(config, layers), config, hides, {}), config)

"""Shelves in S3 and in SageMaker's model registry; see `shelves`."""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.integration.shelves import Shelf
from tests.integration.world import World
from tests.servers.s3 import READ, S3Server


def s3_shelf(world: World, files: Mapping[str, bytes], folder: Path, server: S3Server) -> Shelf:
    """A bucket with versions."""
    return _bucket(server, files, versioned=True)


def plain_s3_shelf(world: World, files: Mapping[str, bytes], folder: Path, server: S3Server) -> Shelf:
    """A bucket without versions: only the ETag tells what was replaced."""
    return _bucket(server, files, versioned=False)


def sagemaker_shelf(world: World, files: Mapping[str, bytes], folder: Path, server: S3Server) -> Shelf:
    """An approved model package whose weights are one archive."""
    bucket, there = server.bucket(), dict(files)

    def put(path: str, content: bytes) -> None:
        there[path] = content
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
            for name, data in there.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        server.put(bucket, "packed/model.tar.gz", out.getvalue())

    put("config.json", files["config.json"])
    arn = server.model_package(f"g{secrets.token_hex(4)}", f"s3://{bucket}/packed/model.tar.gz")
    shelf = _shelf(server, {"source": f"sagemaker:{arn}"}, put, versioned=True)
    # A package names no server: the SDK's own variable does.
    shelf.environment["AWS_ENDPOINT_URL"] = server.endpoint
    return shelf


def _bucket(server: S3Server, files: Mapping[str, bytes], versioned: bool) -> Shelf:
    bucket = server.bucket(versioned)

    def put(path: str, content: bytes) -> None:
        server.put(bucket, f"models/llama 3/{path}", content)

    for path, content in files.items():
        put(path, content)
    entry = {"source": f"s3://{bucket}/models/llama 3", "endpoint": server.endpoint}
    return _shelf(server, entry, put, versioned)


def _shelf(
    server: S3Server, entry: dict[str, str], put: Callable[[str, bytes], None], versioned: bool
) -> Shelf:
    session = server.session(READ, seconds=3600)  # as a role has one, with a token
    return Shelf(
        dict(entry),
        put,
        keeps_versions=versioned,
        environment=server.environment_for(session),
        secrets=frozenset({session.secret, session.token}),
    )

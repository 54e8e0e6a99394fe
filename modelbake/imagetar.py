"""What lies in an image: its layers and their files, read from the stream in which an engine exports it.

Nothing is kept but names, sizes and the records of Python packages; no file touches a disk here. The format
is that of `docker save`: https://github.com/moby/docker-image-spec, a tar of blobs and a `manifest.json`.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import zstandard

from modelbake.errors import EngineError

_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ"
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")  # a frame, or one to be skipped
_RECORD = re.compile(r"[^/]+\.dist-info/RECORD")
_HIDDEN, _OPAQUE = ".wh.", ".wh..wh..opq"
_LARGEST_DOCUMENT = 32 << 20  # bytes
_UNREADABLE = (
    tarfile.TarError,
    zstandard.ZstdError,
    zlib.error,
    lzma.LZMAError,
    OSError,
    EOFError,
    ValueError,
    RecursionError,  # JSON that is nested too deeply
)


@dataclass(frozen=True)
class Layer:
    """A layer, unpacked: what made it, and the bytes of its files by their path, without a '/' before it.

    `hidden` are the paths below it that it takes away, `records` the content of packages' RECORD files.
    """

    created_by: str = ""
    files: Mapping[str, int] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    records: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(self.files.values())


@dataclass(frozen=True)
class ImageContent:
    """An image's layers, bottom first."""

    layers: tuple[Layer, ...]

    @property
    def size(self) -> int:
        """Bytes of all layers, unpacked; what an upper layer hides still takes its place on a disk."""
        return sum(layer.size for layer in self.layers)

    def files(self) -> dict[str, int]:
        """Return the files that a container sees, with their bytes."""
        return {path: size for path, (size, _) in self._seen().items()}

    def records(self) -> dict[str, str]:
        """Return the RECORD files that a container sees."""
        return {
            path: self.layers[number].records[path]
            for path, (_, number) in self._seen().items()
            if path in self.layers[number].records
        }

    def _seen(self) -> dict[str, tuple[int, int]]:
        seen: dict[str, tuple[int, int]] = {}
        for number, layer in enumerate(self.layers):
            if layer.hidden:
                gone = layer.hidden
                seen = {
                    path: at for path, at in seen.items() if not any(_is_below(path, top) for top in gone)
                }
            seen |= {path: (size, number) for path, size in layer.files.items()}
        return seen


def read_image(chunks: Iterator[bytes]) -> ImageContent:
    """Read an exported image.

    Raises:
        EngineError: it is not of the format, or ends too early.
    """
    layers: dict[str, Layer] = {}
    documents: dict[str, Any] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=_Chunks(chunks), mode="r|") as archive:
            for member in archive:
                name = posixpath.normpath(member.name)
                if member.islnk() or member.issym():
                    target = member.linkname
                    links[name] = posixpath.normpath(
                        target if member.islnk() else posixpath.join(posixpath.dirname(name), target)
                    )
                elif member.isfile() and (content := archive.extractfile(member)) is not None:
                    assert isinstance(content, io.BufferedReader)
                    if content.peek(1)[:1] in (b"{", b"["):
                        if member.size <= _LARGEST_DOCUMENT:
                            documents[name] = json.loads(content.read())
                    elif (layer := _read_layer(content)) is not None:
                        layers[name] = layer
    except _UNREADABLE as error:
        raise EngineError(f"the exported image cannot be read: {error}") from error
    return _assembled(layers, documents, links)


def read_file(chunks: Iterator[bytes], path: str, largest: int) -> bytes:
    """Return a small file out of an exported image that has it in one layer.

    Raises:
        EngineError: the image cannot be read, has no such file, or one of more than `largest` bytes.
    """
    try:
        with tarfile.open(fileobj=_Chunks(chunks), mode="r|") as archive:
            for member in archive:
                if not member.isfile() or (content := archive.extractfile(member)) is None:
                    continue
                assert isinstance(content, io.BufferedReader)
                if (found := _file_of_layer(content, path, largest)) is not None:
                    return found
    except _UNREADABLE as error:
        raise EngineError(f"the exported image cannot be read: {error}") from error
    raise EngineError(f"the exported image has no {path} of at most {largest:,} bytes")


def _file_of_layer(content: io.BufferedReader, path: str, largest: int) -> bytes | None:
    """Return a file of a layer; None for what has no such file, or is no archive."""
    try:
        archive = tarfile.open(fileobj=_unpacked(content), mode="r|")  # noqa: SIM115
    except tarfile.ReadError:
        return None
    with archive:
        for member in archive:
            if posixpath.normpath(member.name.lstrip("/")) == path and member.isfile():
                read = archive.extractfile(member)
                return read.read() if read is not None and member.size <= largest else None
    return None


def _assembled(
    layers: Mapping[str, Layer], documents: Mapping[str, Any], links: Mapping[str, str]
) -> ImageContent:
    try:
        (image,) = documents["manifest.json"]
        history = [
            str(step.get("created_by", ""))
            for step in documents[posixpath.normpath(image["Config"])].get("history") or []
            if not step.get("empty_layer")
        ]
        names = [posixpath.normpath(name) for name in image["Layers"]]
        found = [layers[links.get(name, name)] for name in names]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"the exported image lacks a part: {error}") from error
    if len(history) != len(found):  # an imported image has none, a squashed one has another
        history = [""] * len(found)
    return ImageContent(
        tuple(
            Layer(said, layer.files, layer.hidden, layer.records)
            for said, layer in zip(history, found, strict=True)
        )
    )


def _read_layer(content: io.BufferedReader) -> Layer | None:
    """Read a layer, compressed or not; None for what is no archive."""
    files: dict[str, int] = {}
    hidden: set[str] = set()
    records: dict[str, str] = {}
    try:
        archive = tarfile.open(fileobj=_unpacked(content), mode="r|")  # noqa: SIM115
    except tarfile.ReadError:
        return None
    with archive:
        for member in archive:
            path = posixpath.normpath(member.name.lstrip("/"))
            folder, name = posixpath.split(path)
            if name == _OPAQUE:
                hidden.add(folder + "/")
            elif name.startswith(_HIDDEN):
                hidden.add(posixpath.join(folder, name.removeprefix(_HIDDEN)))
            elif member.isfile():
                files[path] = member.size
                if _RECORD.fullmatch("/".join(path.rsplit("/", 2)[-2:])):
                    read = archive.extractfile(member)
                    records[path] = read.read().decode(errors="replace") if read else ""
    return Layer("", files, frozenset(hidden), records)


def _unpacked(content: io.BufferedReader) -> Any:
    """Return a layer's tar as a file; what was compressed in several parts is read to the last of them."""
    head = content.peek(6)
    if head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=content)
    if _ZSTD.match(head):
        return zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True)
    if head.startswith(_BZIP2):
        return bz2.BZ2File(content)
    if head.startswith(_XZ):
        return lzma.LZMAFile(content)
    return content


def _is_below(path: str, top: str) -> bool:
    """Tell whether a whiteout takes a path away: `a/b` that and all below it, `a/` only what is below."""
    return path == top or path.startswith(top if top.endswith("/") else f"{top}/")


class _Chunks(io.RawIOBase):
    """An iterator of chunks as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Return `size` bytes, fewer at the end."""
        assert size is not None and size >= 0
        parts = []
        while size:
            if not self._rest:
                self._rest = memoryview(next(self._chunks, b""))
                if not self._rest:
                    break
            part, self._rest = self._rest[:size], self._rest[size:]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

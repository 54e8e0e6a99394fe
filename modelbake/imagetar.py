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
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import zstandard

from modelbake.errors import EngineError
from modelbake.manifest import unique

_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ"
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")  # a frame, or one to be skipped
_RECORD = re.compile(r"[^/]+\.dist-info/RECORD")
_HIDDEN, _OPAQUE = ".wh.", ".wh..wh..opq"
_LARGEST_DOCUMENT = 32 << 20  # bytes
_BUFFER = 1 << 20  # bytes
_BLOCK = 512
_LARGEST_WINDOW = 128 << 20  # bytes that xz may keep; `xz -9` asks for 64 MiB
UNREADABLE = (
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
                seen = {path: at for path, at in seen.items() if not is_hidden(path, layer.hidden)}
            seen |= {path: (size, number) for path, size in layer.files.items()}
        return seen


_Read = TypeVar("_Read")


@dataclass(frozen=True)
class ExportedImage(Generic[_Read]):
    """What was read of an export: JSON documents by name, the configuration, and the layers, bottom first.

    `steps`: what made each layer, "" where the history does not tell as many steps as there are layers.
    """

    documents: Mapping[str, Any]
    config: Mapping[str, Any]
    layers: tuple[_Read, ...]
    steps: tuple[str, ...]


def read_image(chunks: Iterator[bytes]) -> ImageContent:
    """Read an exported image.

    Raises:
        EngineError: it is not of the format, or ends too early.
    """
    image = read_export(chunks, _read_layer)
    return ImageContent(
        tuple(
            Layer(said, layer.files, layer.hidden, layer.records)
            for said, layer in zip(image.steps, image.layers, strict=True)
        )
    )


def read_export(
    chunks: Iterator[bytes], read_layer: Callable[[io.BufferedReader], _Read | None]
) -> ExportedImage[_Read]:
    """Read an exported image with a reader of layers, which is given the bytes of each, compressed or not.

    `read_layer` returns None for what is no archive; layers come in the order of the export.

    Raises:
        EngineError: it is not of the format, or ends too early.
    """
    layers: dict[str, _Read] = {}
    documents: dict[str, Any] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=as_file(chunks), mode="r|", bufsize=_BUFFER) as archive:
            for member in archive:
                name = posixpath.normpath(member.name)
                if member.islnk() or member.issym():
                    target = member.linkname
                    links[name] = posixpath.normpath(
                        target if member.islnk() else posixpath.join(posixpath.dirname(name), target)
                    )
                elif member.isfile() and (content := archive.extractfile(member)) is not None:
                    assert isinstance(content, io.BufferedReader)
                    if _is_document(content.peek(_BLOCK)):
                        if member.size <= _LARGEST_DOCUMENT:
                            documents[name] = json.loads(content.read(), object_pairs_hook=unique)
                    elif (layer := read_layer(content)) is not None:
                        layers[name] = layer
    except UNREADABLE as error:
        raise EngineError(f"the exported image cannot be read: {error}") from error
    return _assembled(layers, documents, links)


def _is_document(head: bytes) -> bool:
    """Tell JSON from a layer, whose first file may have a name that begins like JSON."""
    return head[:1] in (b"{", b"[") and head[257:262] != b"ustar"


def read_file(chunks: Iterator[bytes], path: str, largest: int) -> bytes:
    """Return a small file out of an exported image that has it in one layer.

    Raises:
        EngineError: the image cannot be read, has no such file, or one of more than `largest` bytes.
    """
    try:
        with tarfile.open(fileobj=as_file(chunks), mode="r|", bufsize=_BUFFER) as archive:
            for member in archive:
                if not member.isfile() or (content := archive.extractfile(member)) is None:
                    continue
                assert isinstance(content, io.BufferedReader)
                if (found := _file_of_layer(content, path, largest)) is not None:
                    return found
    except UNREADABLE as error:
        raise EngineError(f"the exported image cannot be read: {error}") from error
    raise EngineError(f"the exported image has no {path} of at most {largest:,} bytes")


def _file_of_layer(content: io.BufferedReader, path: str, largest: int) -> bytes | None:
    """Return a file of a layer; None for what has no such file, or is no archive."""
    archive = _open_layer(content)
    if archive is None:
        return None
    with archive:
        for member in archive:
            if posixpath.normpath(member.name.lstrip("/")) == path and member.isfile():
                read = archive.extractfile(member)
                return read.read() if read is not None and member.size <= largest else None
    return None


def _assembled(
    layers: Mapping[str, _Read], documents: Mapping[str, Any], links: Mapping[str, str]
) -> ExportedImage[_Read]:
    try:
        (image,) = documents["manifest.json"]
        config = documents[posixpath.normpath(image["Config"])]
        names = [posixpath.normpath(name) for name in image["Layers"]]
        found = tuple(layers[links.get(name, name)] for name in names)
        steps = steps_of(config, len(found))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"the exported image lacks a part: {error}") from error
    return ExportedImage(documents, config, found, steps)


def steps_of(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Return what made each of `count` layers, as the history of an image's configuration says."""
    history = [
        str(step.get("created_by", "")) for step in config.get("history") or [] if not step.get("empty_layer")
    ]
    # An imported image has none, a squashed one has another.
    return tuple(history) if len(history) == count else ("",) * count


def whiteout(path: str) -> str | None:
    """Return what a layer's entry hides below it: `a/b`, or `a/` for all that is in it; None: nothing."""
    folder, name = posixpath.split(path)
    if name == _OPAQUE:
        return folder + "/"
    return posixpath.join(folder, name.removeprefix(_HIDDEN)) if name.startswith(_HIDDEN) else None


def _read_layer(content: io.BufferedReader) -> Layer | None:
    """Read a layer, compressed or not; None for what is no archive."""
    files: dict[str, int] = {}
    hidden: set[str] = set()
    records: dict[str, str] = {}
    archive = _open_layer(content)
    if archive is None:
        return None
    with archive:
        for member in archive:
            path = posixpath.normpath(member.name.lstrip("/"))
            if (taken := whiteout(path)) is not None:
                hidden.add(taken)
            elif member.isfile():
                files[path] = member.size
                if _RECORD.fullmatch("/".join(path.rsplit("/", 2)[-2:])):
                    read = archive.extractfile(member)
                    records[path] = read.read().decode(errors="replace") if read else ""
    return Layer("", files, frozenset(hidden), records)


def _open_layer(content: io.BufferedReader) -> tarfile.TarFile | None:
    """Open a layer, compressed or not; None for what is no archive."""
    try:
        return tarfile.open(fileobj=unpacked(content), mode="r|")
    except tarfile.ReadError:
        return None


def unpacked(content: io.BufferedReader) -> Any:
    """Return a layer's tar as a file; what was compressed in several parts is read to the last of them."""
    head = content.peek(6)
    if head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=content)
    if _ZSTD.match(head):
        return zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True)
    if head.startswith(_BZIP2):
        return bz2.BZ2File(content)
    if head.startswith(_XZ):
        return as_file(_unpacked_xz(content))
    return content


def _unpacked_xz(content: io.BufferedReader) -> Iterator[bytes]:
    """Unpack xz with a limit of memory, which LZMAFile has none of."""
    data = b""
    while data := data.lstrip(b"\0") or content.read(_BUFFER):
        machine = lzma.LZMADecompressor(memlimit=_LARGEST_WINDOW)
        while not machine.eof:
            if machine.needs_input and not data and not (data := content.read(_BUFFER)):
                raise EOFError("it ends inside of a stream of xz")
            yield machine.decompress(data, _BUFFER)
            data = b""
        data = machine.unused_data


def is_below(path: str, top: str) -> bool:
    """Tell whether a whiteout takes a path away: `a/b` that and all below it, `a/` only what is below."""
    return top == "/" or path == top or path.startswith(top if top.endswith("/") else f"{top}/")


def is_hidden(path: str, tops: Set[str]) -> bool:
    """Tell whether any of a layer's whiteouts takes a path away, however many there are."""
    if not tops:
        return False
    if "/" in tops or path in tops:
        return True
    end = path.rfind("/")
    while end > 0:
        folder = path[:end]
        if folder in tops or f"{folder}/" in tops:
            return True
        end = path.rfind("/", 0, end)
    return False


def as_file(pieces: Iterator[bytes]) -> io.BufferedReader:
    """Return pieces of bytes as a file that can be read once."""
    return io.BufferedReader(_Pieces(pieces), _BUFFER)  # type: ignore[arg-type]  # RawIOBase, as it asks for


class _Pieces(io.RawIOBase):
    """The raw file below `as_file`."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        filled = 0
        while filled < len(
            buffer
        ):  # to the brim: what is peeked at must not depend on how the pieces are cut
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = memoryview(piece)
            count = min(len(buffer) - filled, len(self._rest))
            buffer[filled : filled + count] = self._rest[:count]
            self._rest = self._rest[count:]
            filled += count
        return filled

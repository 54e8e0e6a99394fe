"""One layer on its way: the bytes of its files between their tar headers, hashed as they pass.

Each byte is read once, and hashed twice: for its file, compared with the lock before the layer can be
committed, and for the layer, whose digest names it. When an upload is continued at an earlier offset, the
bytes that were hashed before are read again and not hashed again: the registry compares the layer's digest.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from modelbake.errors import Interrupted, WrongBytes
from modelbake.sample import Sampler, sampled
from modelbake.stream.layers import Segment, WeightLayer
from modelbake.stream.readahead import Kept, ReadAhead
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.locked import LockedFile

TAR = "application/vnd.oci.image.layer.v1.tar"
TAR_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
_ZSTD_LEVEL = 3
_EMPTY = hashlib.sha256().hexdigest()


class FileBytes(Protocol):
    """The bytes of a file from some offset on, and how many requests they took so far."""

    @property
    def attempts(self) -> int:
        """Requests so far."""

    def __iter__(self) -> Iterator[bytes]:
        """Yield them all, or raise a SourceError."""


class Reader(Protocol):
    """Where file contents come from."""

    def read(self, file: LockedFile, start: int = 0) -> FileBytes:
        """Return the bytes of a file from `start` on."""


@dataclass(frozen=True)
class Verified:
    """A file that has passed with the right sha256: for the audit. `seconds` is wall time."""

    file: LockedFile
    attempts: int
    seconds: float


class LayerFlow:
    """The bytes of one weight layer; `digest`, `diff_id` and `samples` are known when all have been read.

    Args:
        layer: what flows.
        reader: where the files' bytes are.
        compression: 'none' or 'zstd'.
        on_bytes: called with the count of uncompressed bytes that passed for the first time.
        on_verified: called for each file whose bytes were right.
        stop: set to end the flow early.
    """

    def __init__(
        self,
        layer: WeightLayer,
        reader: Reader,
        *,
        compression: str = "none",
        on_bytes: Callable[[int], None] = lambda count: None,
        on_verified: Callable[[Verified], None] = lambda verified: None,
        stop: threading.Event | None = None,
    ) -> None:
        self.layer = layer
        self._reader = reader
        self._compression = compression
        self._on_bytes = on_bytes
        self._on_verified = on_verified
        self._stop = stop or threading.Event()
        self._told = 0  # uncompressed bytes that `on_bytes` has heard of
        self._sent_bytes = 0
        self._passed = 0  # uncompressed bytes that are hashed: the high-water mark
        self._begin()

    @property
    def media_type(self) -> str:
        """The OCI media type of what is read."""
        return TAR if self._compression == "none" else TAR_ZSTD

    @property
    def size(self) -> int | None:
        """Bytes that will be read, None where compression makes that unknown."""
        return self.layer.size if self._compression == "none" else None

    @property
    def can_continue(self) -> bool:
        """Whether `read` may begin at another offset than 0."""
        return self._compression == "none"

    @property
    def digest(self) -> str:
        """`sha256:...` of what was read."""
        return f"sha256:{self._sent.hexdigest()}"

    @property
    def diff_id(self) -> str:
        """`sha256:...` of the uncompressed tar."""
        return f"sha256:{self._tar.hexdigest()}"

    @property
    def samples(self) -> tuple[str, ...]:
        """The samples of the layer's large files, in the order of the group."""
        return tuple(self._samples)

    @property
    def sent(self) -> int:
        """Bytes that were read so far: at the end, the blob's size."""
        return self._sent_bytes

    def require_wanted(self) -> None:
        """Raise Interrupted where another layer has failed, or the user gave up: this one ends here."""
        if self._stop.is_set():
            raise Interrupted("stopped", subject=shown(self.layer.group.files[0].path))

    def read(self, offset: int = 0) -> Iterator[bytes]:
        """Yield the layer from `offset` on; from 0 it begins anew.

        Raises:
            WrongBytes: a file's content is not the locked one. The layer must not be committed.
            SourceError: its bytes cannot be had.
            Interrupted: see `stop`.
        """
        if offset == 0:
            self._begin()
        if self._compression == "none":
            for piece in self._pass(offset):
                self._sent_bytes = max(self._sent_bytes, self._passed)
                yield piece
            return
        assert offset == 0, "a compressed layer cannot be continued"
        yield from self._compressed()

    def _begin(self) -> None:
        self._tar = hashlib.sha256()
        # Uncompressed, what is sent is the tar: one hash is both.
        self._sent = self._tar if self._compression == "none" else hashlib.sha256()
        self._sent_bytes = 0
        self._passed = 0
        self._file = hashlib.sha256()
        self._sampler: Sampler | None = None
        self._samples: list[str] = []
        self._attempts = 0
        self._since = time.monotonic()

    def _compressed(self) -> Iterator[bytes]:
        import zstandard

        # One thread and a pinned library: the same bytes everywhere.
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
        for piece in self._pass(0):
            if squeezed := compressor.compress(piece):
                yield self._count(squeezed)
        yield self._count(compressor.flush())

    def _count(self, piece: bytes) -> bytes:
        self._sent.update(piece)
        self._sent_bytes += len(piece)
        return piece

    def _pass(self, offset: int) -> Iterator[bytes]:
        parts = list(self.layer.parts(offset))
        # A file that is continued in its middle is not for reading ahead.
        ahead = ReadAhead(self._reader, [part.file for part, inner in parts if part.file and not inner])
        try:
            for segment, inner in parts:
                yield from self._segment(segment, inner, ahead)
        finally:
            ahead.close()

    def _segment(self, segment: Segment, inner: int, ahead: ReadAhead) -> Iterator[bytes]:
        position = segment.start + inner
        if segment.literal is not None:
            literal = segment.literal[inner:]
            self._hash(segment, literal, position)
            yield literal
            return
        assert segment.file is not None
        self._since = time.monotonic() if position >= self._passed else self._since
        pieces = ahead.read(segment.file, inner)
        for piece in pieces:
            self.require_wanted()
            if isinstance(pieces, Kept):
                self._since = time.monotonic() - pieces.seconds  # it was read before its turn
            # The last piece of a wrong file must never be sent: hashed first, then handed on.
            self._hash(segment, piece, position, attempts=pieces.attempts)
            position += len(piece)
            yield piece

    def _hash(self, segment: Segment, piece: bytes, position: int, attempts: int = 0) -> None:
        """Hash what of a piece was not hashed before; at a file's end compare its sha256 with the lock."""
        fresh = memoryview(piece)[max(0, self._passed - position) :]
        if not fresh:
            return
        if segment.file is not None:
            if self._passed == segment.start:
                self._file = hashlib.sha256()
                self._sampler = Sampler(segment.size) if sampled([segment.file]) else None
                self._attempts = 0
            self._file.update(fresh)
            if self._sampler:
                self._sampler.update(fresh)
            self._attempts = max(self._attempts, attempts)
        self._tar.update(fresh)
        self._passed += len(fresh)
        if self._passed > self._told:
            self._on_bytes(self._passed - self._told)
            self._told = self._passed
        if segment.file is not None and self._passed == segment.start + segment.size:
            self._compare(segment.file, self._file.hexdigest())

    def _compare(self, file: LockedFile, sha256: str) -> None:
        if sha256 != file.sha256:
            raise WrongBytes(
                f"wrong bytes: sha256 {file.sha256} expected, {sha256} received",
                subject=shown(file.path),
                hint="the file was damaged on the way or changed at the source; the layer was not committed."
                " Run it again; if it stays so, see `build.py lock --check`, or remove the model from"
                " models.lock and lock it anew",
            )
        if self._sampler:
            self._samples.append(self._sampler.hexdigest())
        self._on_verified(Verified(file, max(1, self._attempts), time.monotonic() - self._since))


def refuse_wrong_empty_files(layer: WeightLayer) -> None:
    """Raise WrongBytes where the lock gives a file without bytes another sha256 than that of no bytes."""
    for file in layer.group.files:
        if file.size == 0 and file.sha256 != _EMPTY:
            raise WrongBytes(
                "an empty file has another sha256 in models.lock",
                subject=shown(file.path),
                hint=f"run `build.py lock`: {_EMPTY} is that of no bytes",
            )

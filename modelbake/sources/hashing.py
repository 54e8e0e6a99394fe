"""Reading an object of a store once, whole: its sha256, with what the store says of its bytes compared."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelbake.errors import WrongBytes
from modelbake.sources.store import StoredFile, unhashed
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.stream.flow import Reader

_HASHES: Mapping[str, Callable[[], Any]] = {
    "sha256": hashlib.sha256,
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "crc32c": lambda: _Crc32c(),
}


@dataclass(frozen=True)
class ReadObject:
    """What was read. `attempts`: requests; `seconds`: wall time; `content`: all bytes, if they were kept."""

    sha256: str
    attempts: int
    seconds: float
    content: bytes | None


def read_object(reader: Reader, file: StoredFile, subject: str, *, keep: bool = False) -> ReadObject:
    """Read an object to its end; `keep` its content, `subject` is of errors.

    Raises:
        WrongBytes: it is of another size, or its bytes are not those of the checksum that the store says.
        SourceError: or a subclass of it, as the reader does.
    """
    started, size, kept = time.monotonic(), 0, bytearray()
    digest = hashlib.sha256()
    algorithm, said = file.said() or ("sha256", "")
    second = _HASHES[algorithm]() if said and algorithm != "sha256" else None
    pieces = reader.read(unhashed(file))
    for piece in pieces:
        size += len(piece)
        digest.update(piece)
        if second is not None:
            second.update(piece)
        if keep:
            kept += piece
    if size != file.size:
        raise _wrong(subject, f"{shown(file.path)}: the store serves {size:,} bytes instead of {file.size:,}")
    found = second.hexdigest() if second is not None else digest.hexdigest()
    if said and found != said:
        what = f"{shown(file.path)}: the store serves bytes whose {algorithm} is {found}"
        if file.checksum_of == "the store":
            raise _wrong(subject, f"{what}, and says {said}")
        raise WrongBytes(
            f"{what}, and {file.checksum_of} says {said}",
            subject=subject,
            hint="was the file replaced? If it is the wanted one, write its sha256 there; if not, find out"
            " who changed it",
        )
    seconds = time.monotonic() - started
    return ReadObject(digest.hexdigest(), max(1, pieces.attempts), seconds, bytes(kept) if keep else None)


def _wrong(subject: str, what: str) -> WrongBytes:
    return WrongBytes(
        what,
        subject=subject,
        hint="the object was damaged on the way, or by a proxy or mirror: lock again",
    )


class _Crc32c:
    """CRC32C as hashlib would have it, by Google's library, which only Google's store needs."""

    def __init__(self) -> None:
        import google_crc32c

        self._checksum: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]

    def update(self, piece: bytes) -> None:
        self._checksum.update(piece)

    def hexdigest(self) -> str:
        digest: bytes = self._checksum.digest()
        return digest.hex()

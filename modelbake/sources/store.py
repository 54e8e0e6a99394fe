"""What every source but a hub has in common: objects with versions, listed and addressed.

A kind of store is one module with a `Store`; `storesource` makes a `Source` of it.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol

from modelbake.errors import SourceUnavailable
from modelbake.locked import LockedFile
from modelbake.sources.opener import Address
from modelbake.sources.patience import Patience
from modelbake.sources.reading import AddressReader
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.stream.flow import Reader


@dataclass(frozen=True)
class StoredFile:
    """An object as a store lists it, or asked for by name.

    `path`: below the source's address. `version`: what the store calls these very bytes, 1 to 1024 printable
    ASCII characters. `checksum`: what it says of them, `sha256`, `sha1`, `md5` or `crc32c` and lower-case hex
    digits; only one of the whole object; or what asks for it, where that takes a question for each object.
    `checksum_of`: who says it.
    """

    path: str
    size: int
    version: str
    checksum: tuple[str, str] | Callable[[], tuple[str, str] | None] | None = None
    checksum_of: str = "the store"

    def said(self) -> tuple[str, str] | None:
        """Return the checksum, asked for if need be."""
        return self.checksum() if callable(self.checksum) else self.checksum


class Store(Protocol):
    """One place of one kind of store, as a source of a model names it.

    `subject`: what every error is about: model, address, server. Every method raises SourceError or a
    subclass of it, and no exception of a library. Methods may be called from several threads.
    """

    subject: str

    def listing(self) -> Iterator[StoredFile]:
        """Yield what there is now, as many pages as there are."""
        ...

    def reader(self, stop: threading.Event) -> Reader:
        """Return what reads files whose `path` is the store's, of the version that they say."""
        ...

    def address(self, file: LockedFile) -> Address | None:
        """Return where a file of this version is for a while, for a builder elsewhere; None where nowhere is.

        It lets whoever has it read these bytes, and do nothing else.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class AddressedStore:
    """A `Store` whose files are read at the addresses that it gives out: what most kinds are made of.

    A kind defines `listing`, `address`, and `noun`; `refuse` where a refusal of its server says more.
    """

    noun = "store"

    def __init__(self, subject: str, server: str) -> None:
        self.subject = subject
        self.server = server

    def address(self, file: LockedFile) -> Address:
        """See Store."""
        raise NotImplementedError

    def locate(self, file: LockedFile, patience: Patience, stop: threading.Event) -> Address:
        """Return where a file is; what `AddressReader` asks."""
        return self.address(file)

    def refuse(self, file: LockedFile, status: int, headers: Mapping[str, str]) -> NoReturn:
        """Raise what an answer means."""
        raise SourceUnavailable(
            f"the {self.noun} answers {status} for a file", subject=f"{self.subject}: {shown(file.path)}"
        )

    def reader(self, stop: threading.Event) -> Reader:
        """See Store."""
        return AddressReader(self, stop=stop)

    def close(self) -> None:
        """Let go of connections."""


def hex_of(encoded: str) -> str:
    """Return the hex digits of a checksum in base64, as stores write them; "" for what is none."""
    try:
        return base64.b64decode(encoded, validate=True).hex()
    except ValueError:
        return ""


def unhashed(file: StoredFile) -> LockedFile:
    """Return what a reader asks a store for: a file whose sha256 nobody knows yet."""
    return LockedFile(file.path, file.size, "", file.version)

"""Files that came with the build context: copied to their places, and proved on the way."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from events import Code, Events, FetchError
from manifest import Entry
from tree import Destination, Partial

_PIECE = 1 << 20  # bytes


def take_in(folder: Path, entries: Sequence[Entry], destination: Destination, events: Events) -> None:
    """Copy the files of a manifest from a folder; leave an audit line of each.

    Raises:
        FetchError: a file is not there, or has other bytes than the manifest says.
        OSError: a file cannot be read or written.
    """
    for entry in entries:
        started = time.monotonic()
        partial = destination.begin()
        try:
            _copy(folder / entry.path, partial, entry)
            destination.place(partial, entry)
        except BaseException:
            destination.discard(partial)
            raise
        events.fetched(
            source="the build context",
            file=entry.path,
            bytes=entry.size,
            attempts=1,
            sha256=entry.sha256,
            seconds=round(time.monotonic() - started, 3),
            method="carried",
            host="",
        )


def _copy(path: Path, partial: Partial, entry: Entry) -> None:
    try:
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FetchError(
            Code.NOT_FOUND, f"{entry.path}: did not come with the build context", file=entry.path
        ) from None
    digest, size = hashlib.sha256(), 0
    with os.fdopen(source, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            raise FetchError(Code.WRONG_BYTES, f"{entry.path}: is not a regular file", file=entry.path)
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(partial.fd, view) :]
    if size != entry.size or digest.hexdigest() != entry.sha256:
        raise FetchError(
            Code.WRONG_BYTES,
            f"{entry.path}: wrong bytes: sha256 {entry.sha256} expected, {digest.hexdigest()} received",
            file=entry.path,
            expected=entry.sha256,
            actual=digest.hexdigest(),
        )

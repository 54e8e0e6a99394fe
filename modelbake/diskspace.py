"""A full disk, said so that somebody can act on it: where, how much is needed, how much is free."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.errors import DiskFull

if TYPE_CHECKING:
    from modelbake.engine import Engine

_FULL = {errno.ENOSPC, errno.EDQUOT}


def is_full(error: OSError) -> bool:
    """Tell whether an error says that a disk, or the quota of its user, is used up."""
    return error.errno in _FULL


def disk_full(path: Path, needed: int | None = None) -> DiskFull:
    """Return the error for a file or folder here that `needed` bytes could not be written to."""
    need = "more" if needed is None else f"{needed:,} bytes"
    free = free_at(path)
    there = "" if free is None else f", {free:,} are free"
    return DiskFull(
        f"the disk is full: {need} needed{there}",
        subject=str(path),
        hint="free some space, or name a folder on another disk; what was there before is as it was",
    )


@contextmanager
def saying_full(path: Path, needed: int | None = None) -> Iterator[None]:
    """Raise DiskFull about a path instead of an OSError that says so; others pass through."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise disk_full(path, needed) from error
        raise


def require_free(folder: Path, needed: int) -> None:
    """Raise DiskFull where a folder's disk has less than `needed` bytes free."""
    free = free_at(folder)
    if free is not None and free < needed:
        raise disk_full(folder, needed)


def free_at(path: Path) -> int | None:
    """Return the bytes free for the file or folder at a path, or where it would be; None if unknown."""
    for place in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


@contextmanager
def telling_need(engine: Engine, need: str) -> Iterator[None]:
    """Add to a DiskFull of the engine what it needs the space for, and how much is free there.

    The engine itself says only that there is no space left.
    """
    try:
        yield
    except DiskFull as error:
        free = engine.disk_free()
        there = "" if free is None else f"; {free:,} bytes are free there"
        error.message = f"{error.message}{there}, {need}" if there else f"{error.message}; {need}"
        raise

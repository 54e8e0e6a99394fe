"""Files that are written whole or not at all, and what a killed run leaves of them.

Until it is complete a file has a temporary name, and whoever writes it holds a lock on it. The kernel takes
that lock back when the process ends, however it ends: so the next run can tell a file that nobody will
finish from one that another run is writing at this moment, and removes it.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from modelbake.diskspace import saying_full


def replace_file(target: Path, content: bytes) -> None:
    """Put a complete file in the place of `target`, or leave everything as it was.

    Raises:
        DiskFull: there is no room for it.
        OSError: it cannot be written for another reason.
    """
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o644
    temporary_name = (target.parent, f".{target.name}.", ".tmp")
    with saying_full(target, len(content)), new_file(*temporary_name) as (file, temporary):
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
        temporary.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the new name has to survive a power cut, too
    finally:
        os.close(folder)


@contextmanager
def new_file(folder: Path, prefix: str, suffix: str = "") -> Iterator[tuple[IO[bytes], Path]]:
    """Yield a temporary file of a folder, which is gone afterwards unless it was renamed inside the block."""
    remove_abandoned(folder, prefix, suffix)
    descriptor, path = _held(lambda: tempfile.mkstemp(suffix, prefix, folder))
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file, path
    finally:
        path.unlink(missing_ok=True)


def memory_folder() -> Path:
    """Return where a private folder goes: into memory where the system has such a place."""
    memory = Path("/dev/shm")  # noqa: S108 - an own folder is made in it
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


@contextmanager
def private_folder(prefix: str, parent: Path) -> Iterator[Path]:
    """A folder of our own (0700), which is gone afterwards."""

    def make() -> tuple[int, str]:
        name = tempfile.mkdtemp(prefix=prefix, dir=parent)
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY), name

    remove_abandoned(parent, prefix)
    descriptor, path = _held(make)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def exclusively(folder: Path) -> Iterator[None]:
    """Keep every other process that asks for the same from running the `with` block for this folder.

    Raises OSError where there is no such folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks: as good as it was
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path, prefix: str, suffix: str = "") -> None:
    """Remove what is called so, is ours, and nobody holds: a run that was killed has left it."""
    for path in folder.glob(f"{glob.escape(prefix)}*{glob.escape(suffix)}"):
        # What cannot be opened or locked is not known to be abandoned.
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(descriptor)


def _held(make: Callable[[], tuple[int, str]]) -> tuple[int, Path]:
    """Make a temporary thing and hold its lock; return its descriptor and path."""
    while True:
        descriptor, name = make()
        with suppress(OSError):  # a file system without locks: nothing is ever taken for abandoned there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between these two another run may have found it without an owner.
        if _is_at(descriptor, name):
            return descriptor, Path(name)
        os.close(descriptor)


def _is_at(descriptor: int, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), Path(name).stat())
    except FileNotFoundError:
        return False

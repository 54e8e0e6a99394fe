"""The source `file:///folder`: files of this machine, for an air gap, a mounted disk, and tests.

A disk keeps no versions: a file's version is the sha256 of its content, so that the same files make the same
lock on every machine. In the docker lane they travel with the build context.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.errors import SourceAuthError, SourceError, SourceNotFound, SourceUnavailable, WrongBytes
from modelbake.sources.kinds import subject_of
from modelbake.sources.store import StoredFile
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.config import SourceSpec
    from modelbake.locked import LockedFile, LockedSource

_PIECE = 1 << 20  # bytes


def open_store(spec: SourceSpec | LockedSource) -> FileStore:
    """Return the folder that an address names. Raises SourceNotFound where there is none."""
    folder = Path(spec.source.removeprefix("file://"))
    subject = subject_of(spec)
    try:
        is_folder = folder.is_dir()
    except OSError as error:
        raise _translated(error, subject) from error
    if not is_folder:
        what = "is a file; name the folder it is in, and the file in `include`" if folder.exists() else ""
        raise SourceNotFound(
            what or "there is no such folder",
            subject=subject,
            hint="is the disk mounted here? The path begins at the root of this machine",
        )
    return FileStore(folder, subject)


class FileStore:
    """A folder. Links are followed: a hub's cache is made of them."""

    def __init__(self, folder: Path, subject: str) -> None:
        self.subject = subject
        self._folder = folder

    def listing(self) -> Iterator[StoredFile]:
        """Yield every file below the folder, read once for its sha256."""

        def refuse(error: OSError) -> None:
            raise _translated(error, self.subject) from error

        for folder, folders, names in os.walk(self._folder, onerror=refuse):
            folders[:] = sorted(name for name in folders if name != ".git")
            for name in sorted(names):
                path = Path(folder, name)
                below = path.relative_to(self._folder).as_posix()
                if any(part.startswith(".git") for part in below.split("/")):
                    continue
                size, sha256 = self._hash(path)
                yield StoredFile(below, size, f"sha256:{sha256}", ("sha256", sha256))

    def reader(self, stop: threading.Event) -> FileStore:
        """Return what reads the files: this. Reading a disk is over before `stop` could matter."""
        return self

    def read(self, file: LockedFile, start: int = 0) -> _Bytes:
        """Return the bytes of a file from `start` on. Raises SourceError, WrongBytes for another size."""
        return _Bytes(self._folder / file.path, file, start, self.subject)

    def address(self, file: LockedFile) -> None:
        """Return None: no builder reads this disk."""

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def _hash(self, path: Path) -> tuple[int, str]:
        try:
            with _opened(path, self.subject) as file:
                digest = hashlib.file_digest(file, "sha256")
                return file.tell(), digest.hexdigest()
        except OSError as error:
            raise _translated(error, self.subject) from error


class _Bytes:
    """The bytes of one file from an offset on."""

    attempts = 1

    def __init__(self, path: Path, file: LockedFile, start: int, subject: str) -> None:
        self._path, self._file, self._start, self._subject = path, file, start, subject

    def __iter__(self) -> Iterator[bytes]:
        position = self._start
        try:
            with _opened(self._path, self._subject) as file:
                if (size := os.fstat(file.fileno()).st_size) != self._file.size:
                    raise WrongBytes(
                        f"{shown(self._file.path)} has {size:,} bytes instead of the {self._file.size:,}"
                        " that are locked",
                        subject=self._subject,
                        hint="the file was changed since: look at it, and lock again",
                    )
                file.seek(position)
                while piece := file.read(_PIECE):
                    position += len(piece)
                    yield piece
        except OSError as error:
            raise _translated(error, self._subject) from error
        if position != self._file.size:
            raise SourceUnavailable(
                f"{shown(self._file.path)} was cut off while it was read", subject=self._subject
            )


def _opened(path: Path, subject: str) -> io.FileIO:
    # A pipe would wait for somebody to write to it.
    if not stat.S_ISREG(path.stat().st_mode):
        raise SourceError(f"{shown(str(path))} is no regular file", subject=subject)
    return path.open("rb", buffering=0)


def _translated(error: OSError, subject: str) -> SourceError:
    where = f"{shown(str(error.filename))}: " if error.filename else ""
    if isinstance(error, PermissionError):
        return SourceAuthError(
            f"{where}may not be read by this user", subject=subject, hint="chmod, or another user"
        )
    kind = SourceNotFound if isinstance(error, FileNotFoundError) else SourceUnavailable
    return kind(f"{where}{error.strerror or type(error).__name__}", subject=subject)

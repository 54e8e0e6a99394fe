"""The source `file:///folder`: files of this machine, for an air gap, a mounted disk, and tests.

A disk keeps no versions: a file's version is the sha256 of its content, so that the same files make the same
lock on every machine. In the docker lane they travel with the build context.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from modelbake.diskspace import require_free, saying_full
from modelbake.errors import SourceAuthError, SourceError, SourceNotFound, SourceUnavailable, WrongBytes
from modelbake.sources.kinds import subject_of
from modelbake.sources.store import StoredFile
from modelbake.weightpath import shown
from modelbake.writing import new_file

if TYPE_CHECKING:
    from modelbake.config import SourceSpec
    from modelbake.locked import LockedFile, LockedSource

_PIECE = 1 << 20  # bytes
_UNFINISHED = ".modelbake-upload-"  # what a name begins with until the file is complete


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


def open_target(spec: SourceSpec) -> FileStore:
    """Return a folder to put files into, which need not be there yet; the one above it has to.

    Raises SourceNotFound: a path is made up of nothing where a disk is not mounted.
    """
    folder, subject = Path(spec.source.removeprefix("file://")), subject_of(spec)
    try:
        if folder.exists() or not folder.parent.is_dir():
            return open_store(spec) if folder.exists() else _no_parent(folder, subject)
    except OSError as error:
        raise _translated(error, subject) from error
    return FileStore(folder, subject)


def _no_parent(folder: Path, subject: str) -> FileStore:
    raise SourceNotFound(
        f"there is no folder {shown(str(folder.parent))} to make it in",
        subject=subject,
        hint="is the disk mounted here? Otherwise make that folder first",
    )


class FileStore:
    """A folder. Links are followed: a hub's cache is made of them."""

    def __init__(self, folder: Path, subject: str) -> None:
        self.subject = subject
        self._folder = folder

    def listing(self) -> Iterator[StoredFile]:
        """Yield every file below the folder, read once for its sha256."""

        def refuse(error: OSError) -> None:
            raise _translated(error, self.subject) from error

        if not self._folder.exists():  # see open_target
            return
        above = {str(self._folder): frozenset({os.path.realpath(self._folder)})}
        for folder, folders, names in os.walk(self._folder, onerror=refuse, followlinks=True):
            folders[:] = sorted(name for name in folders if name != ".git")
            within = above.pop(folder)
            for name in folders:
                inner = str(Path(folder, name))
                if (real := os.path.realpath(inner)) in within:
                    raise SourceError(
                        f"{shown(inner)} is a link to a folder that it lies in",
                        subject=self.subject,
                        hint="take the link away",
                    )
                above[inner] = within | {real}
            for name in sorted(names):
                path = Path(folder, name)
                below = path.relative_to(self._folder).as_posix()
                if any(part.startswith((".git", _UNFINISHED)) for part in below.split("/")):
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

    def upload(self, path: str, content: IO[bytes], size: int) -> None:
        """Put a file there, whole or not at all, and never in the place of another.

        Raises DiskFull; SourceError where there is a file of this name.
        """
        target = self._folder / path
        try:
            self._folder.mkdir(exist_ok=True)
            require_free(self._folder, size)
            with saying_full(target, size), new_file(self._folder, _UNFINISHED) as (file, temporary):
                shutil.copyfileobj(content, file, _PIECE)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
                with suppress(
                    OSError
                ):  # what is read back has to come from the disk, as far as we can say so
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.hardlink_to(temporary)  # unlike renaming, this replaces nothing
            for folder in {target.parent, self._folder, self._folder.parent}:
                _persist(folder)
        except FileExistsError as error:
            raise SourceError(
                f"{shown(path)} is there already", subject=self.subject, hint="another run has put it there"
            ) from error
        except OSError as error:
            raise _translated(error, self.subject) from error

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


def _persist(folder: Path) -> None:
    """Have a folder's new names survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


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

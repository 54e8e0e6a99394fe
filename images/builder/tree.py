"""The destination folder: where files are written, put in place and, at the end, sealed.

Every path is walked with directory descriptors and O_NOFOLLOW, so that no symbolic link, old or new, can lead
a write out of the folder. A file is written under a temporary name in the folder itself and renamed when its
bytes have been proven; a run that fails takes away all that it put there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from events import Code, FetchError
from manifest import PARTIAL_PREFIX, Entry

try:
    import weight_sample
except ModuleNotFoundError:  # Outside of a build, where it lies beside this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "start"))
    import weight_sample

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_LISTED = 10  # paths named in a message; the rest is counted


@dataclass(frozen=True)
class Partial:
    """A file that is being written: its descriptor, its name in the destination, its absolute path."""

    fd: int
    name: str
    path: Path


def is_full(error: OSError) -> bool:
    """Whether an error says that there is no room left."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Destination:
    """The folder DEST. Safe to use from any thread; hold it open with `with`.

    Raises:
        FetchError: UNEXPECTED if the folder cannot be made or used, or another run is writing to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock = threading.Lock()
        self._abandoned = False
        self._partials: set[str] = set()
        self._placed: list[str] = []
        self._folders: list[str] = []
        self._serial = 0
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._root = os.open(self.path, _FOLDER)
        except OSError as error:
            raise FetchError(
                Code.UNEXPECTED, f"cannot use {path} as the destination: {error.strerror}"
            ) from error
        try:
            fcntl.flock(self._root, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._root)
            raise FetchError(Code.UNEXPECTED, f"another fetch is writing to {path}") from error
        self._unlock(self._root)

    def __enter__(self) -> Destination:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._root)

    def present(self, entries: Sequence[Entry]) -> set[str]:
        """Return the paths that are there with the right bytes; take away what a killed run left unfinished.

        Raises:
            FetchError: WRONG_BYTES if the folder holds something that is not of the manifest.
        """
        for name in os.listdir(self._root):  # noqa: PTH208  # pathlib knows no descriptors
            if name.startswith(PARTIAL_PREFIX):
                os.unlink(name, dir_fd=self._root)
        found = self._walk()
        self._refuse_extra(found, entries)
        return {
            entry.path
            for entry in entries
            if (state := found.get(entry.path)) and state.st_size == entry.size and self._is(entry)
        }

    def free(self) -> int | None:
        """Return how many bytes can be written here, or None if the file system does not say."""
        state = os.fstatvfs(self._root)
        blocks = state.f_bfree if os.geteuid() == 0 else state.f_bavail
        return blocks * state.f_frsize if state.f_blocks else None

    def begin(self) -> Partial:
        """Make an empty file with a temporary name."""
        with self._lock:
            self._refuse_abandoned()
            self._serial += 1
            name = f"{PARTIAL_PREFIX}{os.getpid()}-{self._serial}"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=self._root)
            self._partials.add(name)
        return Partial(fd, name, self.path / name)

    def discard(self, partial: Partial) -> None:
        """Remove a file that was begun and not placed."""
        with self._lock:
            os.close(partial.fd)
            if partial.name in self._partials:
                self._partials.remove(partial.name)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(partial.name, dir_fd=self._root)

    def place(self, partial: Partial, entry: Entry) -> None:
        """Give a finished file its modes, owner, time and name, atomically, and close it."""
        _seal(partial.fd, 0o444)
        folders, name = entry.path.split("/")[:-1], entry.path.split("/")[-1]
        with self._lock:
            self._refuse_abandoned()
            with self._folder(folders) as parent:
                os.replace(partial.name, name, src_dir_fd=self._root, dst_dir_fd=parent)
            self._partials.remove(partial.name)
            self._placed.append(entry.path)
        os.close(partial.fd)

    def seal(self, entries: Sequence[Entry]) -> None:
        """Prove that the folder holds exactly the manifest's files, and make everything read-only.

        Raises:
            FetchError: WRONG_BYTES, naming what is there besides, what is missing, what has another size.
        """
        found = self._walk()
        self._refuse_extra(found, entries)
        wrong = [
            entry.path
            for entry in entries
            if (state := found.get(entry.path)) is None or state.st_size != entry.size
        ]
        if wrong:
            raise FetchError(
                Code.WRONG_BYTES, f"missing or of another size in {self.path}: {_some(wrong)}", file=wrong[0]
            )
        for entry in entries:
            with self._file(entry.path) as fd:
                _seal(fd, 0o444)
        for folder in sorted(_folders(entries), reverse=True):  # a folder sorts before what is in it
            with self._folder(folder.split("/")) as fd:
                _seal(fd, 0o555)
        _seal(self._root, 0o555)

    def samples(self, entries: Sequence[Entry]) -> dict[str, str]:
        """Return the sample of each file that is too large to do without: its sha256 -> the sample.

        Taken when the bytes have just been proven: of a few MiB each, and they are in the page cache.
        """
        taken = {}
        for entry in entries:
            if entry.size > weight_sample.SAMPLED_ABOVE:
                with self._file(entry.path) as fd:
                    taken[entry.sha256] = weight_sample.sample_of(fd, entry.size)
        return taken

    def abandon(self) -> None:
        """Take away all that this run wrote, and refuse to write anything more. Does not raise."""
        with self._lock, contextlib.suppress(OSError):
            self._abandoned = True
            for name in self._partials:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._root)
            for path in self._placed:
                *folders, name = path.split("/")
                with contextlib.suppress(OSError), self._folder(folders) as parent:
                    os.unlink(name, dir_fd=parent)
            for folder in reversed(self._folders):
                *folders, name = folder.split("/")
                with contextlib.suppress(OSError), self._folder(folders) as parent:
                    os.rmdir(name, dir_fd=parent)

    @contextlib.contextmanager
    def _folder(self, parts: Sequence[str]) -> Iterator[int]:
        """Yield a descriptor of a folder below DEST, made if need be, through no symbolic link."""
        fd = os.dup(self._root)
        try:
            for depth, part in enumerate(parts):
                if not self._abandoned:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=fd)
                        self._folders.append("/".join(parts[: depth + 1]))
                following = os.open(part, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = following
                self._unlock(fd)
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _file(self, path: str) -> Iterator[int]:
        *folders, name = path.split("/")
        with self._folder(folders) as parent:
            fd = os.open(name, _FILE, dir_fd=parent)
        try:
            yield fd
        finally:
            os.close(fd)

    @staticmethod
    def _unlock(folder: int) -> None:
        """Make a folder that an earlier run sealed writable again; root needs no permission."""
        if os.geteuid() != 0:
            with contextlib.suppress(PermissionError):
                os.fchmod(folder, 0o755)

    def _is(self, entry: Entry) -> bool:
        with self._file(entry.path) as fd, os.fdopen(os.dup(fd), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256

    def _walk(self) -> dict[str, os.stat_result]:
        """Return everything below DEST, folders too: relative path -> its state."""
        found = {}
        for folder, folders, names, fd in os.fwalk(".", dir_fd=self._root, onerror=_raise):
            for name in [*names, *folders]:
                state = os.stat(name, dir_fd=fd, follow_symlinks=False)
                found[(Path(folder) / name).as_posix()] = state
        return found

    def _refuse_extra(self, found: Mapping[str, os.stat_result], entries: Sequence[Entry]) -> None:
        files, folders = {entry.path for entry in entries}, _folders(entries)
        extra = [
            path
            for path, state in found.items()
            if not (path in files and stat.S_ISREG(state.st_mode))
            and not (path in folders and stat.S_ISDIR(state.st_mode))
        ]
        if extra:
            raise FetchError(
                Code.WRONG_BYTES,
                f"{self.path} holds what the manifest does not name: {_some(extra)}",
                file=sorted(extra)[0],
            )

    def _refuse_abandoned(self) -> None:
        if self._abandoned:
            raise FetchError(Code.INTERRUPTED, "the run has been given up")


def _folders(entries: Sequence[Entry]) -> set[str]:
    """Return every folder, relative to DEST, that holds a file of the manifest or such a folder."""
    parts = [entry.path.split("/") for entry in entries]
    return {"/".join(names[:depth]) for names in parts for depth in range(1, len(names))}


def _raise(error: OSError) -> None:
    raise error


def _seal(fd: int, mode: int) -> None:
    if os.geteuid() == 0:
        os.fchown(fd, 0, 0)
    os.fchmod(fd, mode)
    os.utime(fd, ns=(0, 0))


def _some(paths: Sequence[str]) -> str:
    rest = f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else ""
    return ", ".join(repr(path) for path in sorted(paths)[:_LISTED]) + rest

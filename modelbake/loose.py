"""A folder of loose weights: which files are in it, their sha256, and what is odd about them."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelbake.conversion import is_convertible
from modelbake.errors import UsageError
from modelbake.parallel import parallel
from modelbake.weightpath import shown

_POINTER = b"version https://git-lfs.github.com/spec/"
_LARGEST_POINTER = 1024  # bytes, by the specification of Git LFS
_THREADS = 2  # files hashed at the same time; a disk that turns would not like more
_SAME_SIZE = 0.02  # how much two formats of the same tensors differ by their headers
_ASIDE = (".git", ".cache")  # folders that are no part of a model
_KINDS = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a pipe",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


@dataclass(frozen=True)
class LooseFile:
    """A file of the folder. `path`: below it, with forward slashes; `stamp`: changes when the file does."""

    path: str
    place: Path
    size: int
    stamp: tuple[int, int, int]

    def require_unchanged(self) -> None:
        """Raise UsageError where the file is another one than when it was listed."""
        try:
            now = _stamp(self.place.stat(follow_symlinks=False))
        except OSError as error:
            raise _unreadable(self.place, error) from error
        if now != self.stamp:
            raise UsageError(
                "was changed meanwhile", subject=str(self.place), hint="run this again when nobody writes it"
            )

    def open(self, progress: Callable[[int], None]) -> io.BufferedReader:
        """Open it; `progress` is told how many bytes were read, again and again. Raises UsageError."""
        try:
            return io.BufferedReader(_Told(self.place, progress), 1 << 20)
        except OSError as error:
            raise _unreadable(self.place, error) from error


class _Told(io.FileIO):
    """A file that tells of what is read from it."""

    def __init__(self, place: Path, progress: Callable[[int], None]) -> None:
        super().__init__(place)
        self._progress = progress

    def readinto(self, buffer: object) -> int | None:
        count = super().readinto(buffer)  # type: ignore[arg-type]
        self._progress(count or 0)
        return count


def list_folder(folder: Path) -> list[LooseFile]:
    """Return every file below a folder, by path; `.git` and what a hub's client keeps (`.cache`) aside.

    Raises UsageError where there is none, and for what cannot be copied as a file: links, sockets, pipes,
    what may not be read, pointers of Git LFS.
    """
    if not folder.is_dir():
        what = "is a file: name the folder it is in, and the file with --include" if folder.exists() else ""
        raise UsageError(what or "there is no such folder", subject=str(folder))
    found: list[LooseFile] = []

    def refuse(error: OSError) -> None:
        raise _unreadable(Path(error.filename or folder), error) from error

    for name, folders, names in os.walk(folder, onerror=refuse):
        here = Path(name)
        folders[:] = sorted(each for each in folders if each not in _ASIDE)
        for each in folders:
            if (here / each).is_symlink():
                raise _link(here / each)
        found += [_loose(folder, here / each) for each in sorted(names)]
    if not found:
        raise UsageError("holds no files", subject=str(folder))
    return sorted(found, key=lambda file: file.path)


def not_taken(folder: Path, taken: Collection[str]) -> list[str]:
    """Return what lies in a folder now and is none of the files `taken`, by path; asked before it is deleted.

    A folder of which `list_folder` lists nothing (`.git`, `.cache`) is one entry, with a slash at its end.
    Raises UsageError.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable(Path(error.filename or folder), error) from error

    found: list[str] = []
    for name, folders, names in os.walk(folder, onerror=refuse):
        here = Path(name).relative_to(folder)
        aside = [each for each in folders if each in _ASIDE]
        links = [each for each in folders if each not in _ASIDE and Path(name, each).is_symlink()]
        folders[:] = [each for each in folders if each not in _ASIDE]
        found += [f"{(here / each).as_posix()}/" for each in aside]
        found += [(here / each).as_posix() for each in (*links, *names)]
    return sorted(path for path in found if path not in taken)


def hash_files(
    files: Sequence[LooseFile], done: Callable[[LooseFile, str], None] = lambda file, sha256: None
) -> dict[str, str]:
    """Return the sha256 of each file by its path; `done` is told as each is finished. Raises UsageError."""

    def hash_one(file: LooseFile) -> str:
        with file.open(lambda count: None) as opened:
            try:
                sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            except OSError as error:
                raise _unreadable(file.place, error) from error
        file.require_unchanged()
        done(file, sha256)
        return sha256

    digests = parallel(files, hash_one, _THREADS)
    return {file.path: digest for file, digest in zip(files, digests, strict=True)}


def duplicates(files: Sequence[LooseFile], digests: Mapping[str, str]) -> list[str]:
    """Return what seems to be in the folder twice: the same bytes, or the same weights in two formats."""
    by_digest: dict[str, list[str]] = {}
    for file in files:
        if file.size:
            by_digest.setdefault(digests.get(file.path, file.path), []).append(shown(file.path))
    found = [f"{' and '.join(names)} are the same bytes" for names in by_digest.values() if len(names) > 1]
    safe = [file for file in files if file.path.endswith(".safetensors")]
    pickles = [file for file in files if is_convertible(file.path)]
    sizes = [sum(file.size for file in each) for each in (safe, pickles)]
    if all(sizes) and abs(sizes[0] - sizes[1]) <= _SAME_SIZE * max(sizes):
        both = [", ".join(shown(file.path) for file in each[:3]) for each in (safe, pickles)]
        found.append(f"{both[0]} and {both[1]} are about as large: the same weights in two formats, it seems")
    return found


def _loose(folder: Path, place: Path) -> LooseFile:
    try:
        status = place.stat(follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            raise _link(place)
        if not stat.S_ISREG(status.st_mode):
            what = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
            raise UsageError(f"is {what}", subject=str(place), hint="take it away; weights are regular files")
        with place.open("rb") as file:
            start = file.read(len(_POINTER)) if status.st_size <= _LARGEST_POINTER else b""
    except OSError as error:
        raise _unreadable(place, error) from error
    if start == _POINTER:
        raise UsageError(
            "is a pointer of Git LFS, and not the weights",
            subject=str(place),
            hint="run `git lfs pull` first",
        )
    path = place.relative_to(folder).as_posix()
    return LooseFile(path, place, status.st_size, _stamp(status))


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _link(place: Path) -> UsageError:
    return UsageError(
        "is a link, and what it points to may be elsewhere",
        subject=str(place),
        hint="copy the folder with `cp -RL`, which puts the files in their places, and adopt the copy",
    )


def _unreadable(place: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot be read ({error.strerror})", subject=str(place))

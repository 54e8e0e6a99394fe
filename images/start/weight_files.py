"""The weights folder against the files that it has to hold: names, kinds, sizes, and bytes as far as asked.

    full     every byte: the sha256 of every file, in as many threads as there are cores
    quick    names, kinds and sizes of all files; the sha256 of the smallest ones, as many whole files as
             QUICK_BYTES hold; of the others the header, where they have one, and a sample of the bytes

The manifest has one sha256 a file, which says nothing of a part of it: hence the samples, in a folder beside
the manifest (weight_sample.py). One file is hashed by one core: sha256 cannot be divided.

Standard library only, for any Python from 3.9 on.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import stat
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from weight_headers import header_problem
from weight_sample import SAMPLED_ABOVE, sample_of

# What a core hashes in about a fifth of a second: configurations, tokenizers, a small model, an adapter.
QUICK_BYTES = 256 * 1024 * 1024
# Large enough that a read costs nothing beside hashing it, small enough to stay in a core's own cache.
CHUNK = 256 * 1024
# NONBLOCK: opening a pipe that somebody put among the weights must not wait for a writer.
FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class WantedFile(NamedTuple):
    """A file as the manifest states it."""

    path: str
    size: int
    sha256: str


class Problem(NamedTuple):
    """One difference between the manifest and the weights folder."""

    file: str
    event: str
    expected: str
    actual: str


class Verified(NamedTuple):
    """What a verification found, sorted by file; of which files it read every byte, and of which a sample."""

    problems: list[Problem]
    hashed: list[WantedFile]
    sampled: list[WantedFile]


def parents(files: dict[str, WantedFile]) -> set[str]:
    """Every folder that the files lie in, below the weights folder itself."""
    return {path.rsplit("/", count)[0] for path in files for count in range(1, path.count("/") + 1)}


def find_differences(root: Path, files: dict[str, WantedFile]) -> tuple[list[Problem], list[WantedFile]]:
    """Compare names, kinds and sizes; return the differences, and the files that remain to be hashed."""
    problems: list[Problem] = []
    candidates: list[WantedFile] = []
    folders = parents(files)
    seen = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(root / folder) as entries:
                found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        except OSError as error:
            problems.append(Problem(folder or ".", "mismatch", "directory", f"unreadable: {error.strerror}"))
            continue
        for name, status in found:
            path = f"{folder}/{name}" if folder else name
            seen.add(path)
            kind = describe(status.st_mode)
            if path in folders and kind == "directory":
                waiting.append(path)
            elif path in folders:
                problems.append(Problem(path, "mismatch", "directory", kind))
            elif path not in files:
                # A whole unexpected folder is one line, however much is in it.
                problems.append(Problem(path, "extra", "nothing", kind))
            elif kind != "regular file":
                problems.append(Problem(path, "mismatch", "regular file", kind))
            elif status.st_size != files[path].size:
                expected, actual = f"{files[path].size} bytes", f"{status.st_size} bytes"
                problems.append(Problem(path, "mismatch", expected, actual))
            else:
                candidates.append(files[path])
    problems.extend(
        Problem(path, "missing", f"sha256:{wanted.sha256}", "nothing")
        for path, wanted in files.items()
        if path not in seen
    )
    return problems, candidates


def describe(mode: int) -> str:
    """The kind of a directory entry, in words."""
    kinds = (
        (stat.S_ISREG, "regular file"),
        (stat.S_ISDIR, "directory"),
        (stat.S_ISLNK, "symbolic link"),
    )
    return next((words for test, words in kinds if test(mode)), "special file")


def open_file(path: Path) -> io.FileIO:
    """Open a regular file for unbuffered reading; OSError for everything else, a link among it."""
    stream = io.FileIO(os.open(path, FLAGS), "r")
    try:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(0, "not a regular file")
    except BaseException:
        stream.close()
        raise
    return stream


class Hasher:
    """Hashes files in several threads, each with a buffer of its own that it uses for every file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.local = threading.local()

    def check(self, wanted: WantedFile) -> list[Problem]:
        """Hash one file; return what is wrong with it, at most one thing."""
        expected = f"sha256:{wanted.sha256}"
        try:
            size, sha256 = self.read(self.root / wanted.path, wanted.size)
        except OSError as error:
            return [Problem(wanted.path, "mismatch", expected, f"unreadable: {error.strerror}")]
        if size != wanted.size:  # It changed since it was listed.
            return [Problem(wanted.path, "mismatch", f"{wanted.size} bytes", f"{size} bytes or more")]
        if sha256 != wanted.sha256:
            return [Problem(wanted.path, "mismatch", expected, f"sha256:{sha256}")]
        return []

    def read(self, path: Path, limit: int) -> tuple[int, str]:
        """Return how many bytes were read, just beyond ``limit`` at most, and their sha256."""
        if not hasattr(self.local, "buffer"):
            # At the beginning of a page, as the file's pages are. A bytearray of this size begins a few bytes
            # behind one, and copying to such a place took an AMD EPYC five times as long.
            self.local.buffer = memoryview(mmap.mmap(-1, CHUNK))
        buffer: memoryview = self.local.buffer
        digest = hashlib.sha256()
        size = 0
        with open_file(path) as stream:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while size <= limit:
                count = stream.readinto(buffer)
                if not count:
                    break
                digest.update(buffer[:count])  # Releases the interpreter lock: threads hash side by side.
                size += count
        return size, digest.hexdigest()


def check_header(root: Path, wanted: WantedFile) -> list[Problem]:
    """Look at the beginning of a file that is not hashed; return what is wrong with it, at most one thing."""
    expected = f"a file of {wanted.size} bytes whose header fits"
    try:
        with open_file(root / wanted.path) as raw, io.BufferedReader(raw) as stream:
            actual = header_problem(wanted.path, stream, wanted.size)
    except OSError as error:
        actual = f"unreadable: {error.strerror}"
    return [Problem(wanted.path, "mismatch", expected, actual)] if actual else []


def check_sample(root: Path, wanted: WantedFile, sample: str) -> list[Problem]:
    """Compare the sample of a file that is not hashed; return what is wrong with it, at most one thing."""
    expected = f"a file whose sample has sha256:{sample}"
    try:
        with open_file(root / wanted.path) as stream:
            actual = sample_of(stream.fileno(), wanted.size)
    except OSError as error:
        return [Problem(wanted.path, "mismatch", expected, f"unreadable: {error.strerror}")]
    if actual == sample:
        return []
    return [Problem(wanted.path, "mismatch", expected, f"one whose sample has sha256:{actual}")]


def choose_quick(files: list[WantedFile]) -> list[WantedFile]:
    """The files that a quick verification hashes: the smallest, as many as QUICK_BYTES hold.

    And whatever the number, files that are no larger than a sample.
    """
    chosen = []
    room = QUICK_BYTES
    for wanted in sorted(files, key=lambda wanted: (wanted.size, wanted.path)):
        room -= wanted.size
        if room < 0 and wanted.size > SAMPLED_ABOVE:
            break
        chosen.append(wanted)
    return chosen


def verify(
    root: Path, files: dict[str, WantedFile], threads: int, samples: Mapping[str, str] | None = None
) -> Verified:
    """Compare the weights folder with the files it has to hold; return every difference that can be told.

    ``samples`` (a file's sha256 -> its sample) are given where the verification is to be a quick one.
    """
    try:
        kind = describe(root.lstat().st_mode)
    except OSError as error:
        return Verified([Problem(".", "missing", f"directory {root}", error.strerror or str(error))], [], [])
    if kind != "directory":
        return Verified([Problem(".", "mismatch", f"directory {root}", kind)], [], [])
    problems, candidates = find_differences(root, files)
    hashed = candidates if samples is None else choose_quick(candidates)
    sampled = set(candidates).difference(hashed)
    hasher = Hasher(root)

    def check(wanted: WantedFile) -> list[Problem]:
        if samples is None or wanted not in sampled:
            return hasher.check(wanted)
        # What a header tells says more than a sample that differs.
        return check_header(root, wanted) or check_sample(root, wanted, samples[wanted.sha256])

    # The largest first, so that no thread starts on a large file when the others are already done.
    hashed.sort(key=lambda wanted: -wanted.size)
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for found in pool.map(check, [*sampled, *hashed]):
            problems.extend(found)
    return Verified(sorted(problems), hashed, sorted(sampled))


def count_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""Verifies the weights against the baked manifest, then becomes the server.

    start.py [--] COMMAND [ARGUMENT...]
    start.py --verify                     verifies, and ends with 0

The manifest is ``manifest.json`` beside this file; the weights are in ``$MODELBAKE_WEIGHTS`` (``/models``).
They have to be exactly the manifest's files: none missing, none extra, no symbolic link anywhere, every size
and sha256 right. Every problem is reported, as one JSON object a line on stdout. Only where there is none
COMMAND replaces this process, so that a server never answers from weights that nobody released.

    exit code 65    the weights are not the manifest's
    exit code 66    the manifest cannot be used, or this program or COMMAND could not run

Standard library only, for any Python from 3.9 on: it runs on whatever base an image has.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import stat
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

WRONG_WEIGHTS = 65
CANNOT_START = 66

MAX_MANIFEST = 64 * 1024 * 1024
# Large enough that a read costs nothing beside hashing it, small enough to stay in a core's own cache.
CHUNK = 1024 * 1024
# NONBLOCK: opening a pipe that somebody put among the weights must not wait for a writer.
FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestError(Exception):
    """The manifest cannot be read, or is not one."""


class WantedFile(NamedTuple):
    """A file as the manifest states it."""

    path: str
    size: int
    sha256: str


class Manifest(NamedTuple):
    """What has to be in the weights folder, and whose it is."""

    model: str
    version: str
    files: dict[str, WantedFile]


class Problem(NamedTuple):
    """One difference between the manifest and the weights folder."""

    file: str
    event: str
    expected: str
    actual: str


class Log:
    """JSON lines on stdout, each with the time, the model and its version."""

    def __init__(self, model: str, version: str) -> None:
        self.model = model
        self.version = version

    def __call__(self, level: str, event: str, **fields: object) -> None:
        """Write one event; where nobody reads stdout any more there is nobody to tell, which is no error."""
        now = datetime.now(timezone.utc)  # noqa: UP017 (datetime.UTC is of Python 3.11)
        stamp = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, object] = {"time": stamp, "level": level, "event": event}
        line.update(model=self.model, version=self.version, **fields)
        data = (json.dumps(line) + "\n").encode("ascii")
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(1, data) :]


def read_manifest(path: Path) -> Manifest:
    """Read and check the manifest; ManifestError says what is wrong with it."""
    try:
        descriptor = os.open(path, FLAGS)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ManifestError("not a regular file")
            data = stream.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise ManifestError(error.strerror or str(error)) from error
    if len(data) > MAX_MANIFEST:
        raise ManifestError(f"larger than {MAX_MANIFEST} bytes")
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"not JSON: {error}") from error
    return check_manifest(document)


def check_manifest(document: Any) -> Manifest:
    """Turn the decoded JSON into a Manifest; anything that is not of schema 1 is a ManifestError."""
    if not isinstance(document, dict) or document.get("schema") != 1:
        raise ManifestError("expected a JSON object with schema 1")
    model, version, entries = document.get("model"), document.get("version"), document.get("files")
    if not isinstance(model, str) or not isinstance(version, str):
        raise ManifestError("expected model and version to be strings")
    if not isinstance(entries, list) or not entries:
        raise ManifestError("expected files to be a list of at least one file")
    files: dict[str, WantedFile] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ManifestError(f"files[{number}] is not an object")
        path, size, sha256 = entry.get("path"), entry.get("size"), entry.get("sha256")
        if not isinstance(path, str) or not is_safe(path):
            raise ManifestError(f"files[{number}].path is not a relative path inside the weights folder")
        if path in files:
            raise ManifestError(f"files[{number}].path stands there twice: {path}")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ManifestError(f"files[{number}].size is not a number of bytes")
        if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
            raise ManifestError(f"files[{number}].sha256 is not 64 lower-case hexadecimal digits")
        files[path] = WantedFile(path, size, sha256)
    for folder in sorted(parents(files)):
        if folder in files:
            raise ManifestError(f"a file and a folder of the same path: {folder}")
    return Manifest(model, version, files)


def is_safe(path: str) -> bool:
    """Whether a path names something inside the folder it is joined to, in one way only."""
    return "\0" not in path and all(part not in ("", ".", "..") for part in path.split("/"))


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
            self.local.buffer = memoryview(bytearray(CHUNK))
        buffer: memoryview = self.local.buffer
        digest = hashlib.sha256()
        size = 0
        with os.fdopen(os.open(path, FLAGS), "rb", buffering=0) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise OSError(0, "not a regular file")
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while size <= limit:
                count = stream.readinto(buffer)
                if not count:
                    break
                digest.update(buffer[:count])  # Releases the interpreter lock: threads hash side by side.
                size += count
        return size, digest.hexdigest()


def verify(root: Path, manifest: Manifest, threads: int) -> list[Problem]:
    """Compare the weights folder with the manifest; return every difference, sorted by file."""
    try:
        kind = describe(root.lstat().st_mode)
    except OSError as error:
        return [Problem(".", "missing", f"directory {root}", error.strerror or str(error))]
    if kind != "directory":
        return [Problem(".", "mismatch", f"directory {root}", kind)]
    problems, candidates = find_differences(root, manifest.files)
    # The largest first, so that no thread starts on a large file when the others are already done.
    candidates.sort(key=lambda wanted: -wanted.size)
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for found in pool.map(Hasher(root).check, candidates):
            problems.extend(found)
    return sorted(problems)


def count_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_on_signals(log: Log) -> None:
    """Make SIGTERM and SIGINT end the verification: process 1 has to handle them to be ended."""

    def end(number: int, _frame: object) -> NoReturn:
        log("error", "stopped", signal=signal.Signals(number).name)
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def main(argv: list[str]) -> int:
    """Verify, then replace this process by ``argv``; return an exit code where that is not to be."""
    log = Log(os.environ.get("MODELBAKE_MODEL", ""), os.environ.get("MODELBAKE_VERSION", ""))
    end_on_signals(log)
    path = Path(__file__).resolve().parent / "manifest.json"
    command = argv[1:] if argv[:1] == ["--"] else argv
    try:
        manifest = read_manifest(path)
        log.model, log.version = manifest.model, manifest.version
        if not command:
            log("error", "cannot_start", error="no command given: start.py [--] COMMAND [ARGUMENT...]")
            return CANNOT_START
        started = time.monotonic()
        threads = min(count_cores(), len(manifest.files))
        problems = verify(Path(os.environ.get("MODELBAKE_WEIGHTS", "/models")), manifest, threads)
        for problem in problems:
            fields = {"file": problem.file, "expected": problem.expected, "actual": problem.actual}
            log("error", problem.event, **fields)
        if problems:
            return WRONG_WEIGHTS
        seconds = time.monotonic() - started
        size = sum(wanted.size for wanted in manifest.files.values())
        log(
            "info",
            "verified",
            files=len(manifest.files),
            bytes=size,
            seconds=round(seconds, 3),
            gigabytes_per_second=round(size / 1e9 / max(seconds, 1e-9), 2),
            threads=threads,
        )
        if argv == ["--verify"]:
            return 0
        os.execvp(command[0], command)  # noqa: S606
    except ManifestError as error:
        log("error", "manifest_unusable", file=str(path), error=str(error))
    except Exception as error:  # Whatever it was, a log reader can use a JSON line and not a traceback.
        log("error", "cannot_start", command=command[:1], error=f"{type(error).__name__}: {error}")
    return CANNOT_START


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

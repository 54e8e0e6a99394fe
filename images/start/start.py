"""Verifies the weights against the baked manifest, then becomes the server.

    start.py [--] COMMAND [ARGUMENT...]
    start.py --verify                     verifies all of it, whatever is said below, and ends with 0

The manifest is ``manifest.json`` beside this file; the weights are in ``$MODELBAKE_WEIGHTS`` (``/models``).
They have to be exactly the manifest's files: none missing, none extra, no symbolic link anywhere, every size
and sha256 right. Every problem is reported, as one JSON object a line on stdout. Only where there is none
COMMAND replaces this process, so that a server never answers from weights that nobody released.

How much of that is done is the manifest's ``verify``: ``full`` all of it, ``quick`` what weight_files.py
says (it needs a sample of each large file, in ``samples`` beside this file), ``off`` nothing.
``MODELBAKE_VERIFY`` in the environment wins: who starts a container could as well leave this program out, so
that refusing would protect nothing. But the log says at every start what was not looked at, and warns where
the environment asks for less than the image does.

    exit code 65    the weights are not the manifest's
    exit code 66    the manifest cannot be used, or this program or COMMAND could not run

Standard library only, for any Python from 3.9 on: it runs on whatever base an image has.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from weight_files import FLAGS, Verified, WantedFile, count_cores, parents, verify
from weight_sample import BLOCK, BLOCKS, SAMPLED_ABOVE

WRONG_WEIGHTS = 65
CANNOT_START = 66

MAX_MANIFEST = 64 * 1024 * 1024
MODES = ("full", "quick", "off")  # from the most to the least
VERIFY = "MODELBAKE_VERIFY"
SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestError(Exception):
    """The manifest cannot be read, or is not one."""


class SettingError(Exception):
    """The environment asks for something that there is not."""


class Manifest(NamedTuple):
    """What has to be in the weights folder, whose it is, and how much of it is looked at."""

    model: str
    version: str
    files: dict[str, WantedFile]
    verify: str = "full"


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


def read_file(path: Path, limit: int) -> bytes:
    """Read a regular file of at most so many bytes; ManifestError says why it cannot be."""
    try:
        descriptor = os.open(path, FLAGS)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ManifestError("not a regular file")
            data = stream.read(limit + 1)
    except OSError as error:
        raise ManifestError(error.strerror or str(error)) from error
    if len(data) > limit:
        raise ManifestError(f"larger than {limit} bytes")
    return data


def read_samples(folder: Path, files: dict[str, WantedFile]) -> dict[str, str]:
    """Read the sample of each large file, by its sha256; ManifestError where one is missing, or is none."""
    samples = {}
    for wanted in files.values():
        if wanted.size > SAMPLED_ABOVE:
            try:
                text = read_file(folder / wanted.sha256, 65).decode("ascii", "replace")
            except ManifestError as error:
                raise ManifestError(
                    f"the sample of {wanted.path}, {folder / wanted.sha256}: {error}"
                ) from error
            if not SHA256.fullmatch(text.rstrip("\n")):
                raise ManifestError(f"{folder / wanted.sha256} is no sample of {wanted.path}")
            samples[wanted.sha256] = text.rstrip("\n")
    return samples


def read_manifest(path: Path) -> Manifest:
    """Read and check the manifest; ManifestError says what is wrong with it."""
    data = read_file(path, MAX_MANIFEST)
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
    mode = document.get("verify", "full")
    if mode not in MODES:
        raise ManifestError(f"expected verify to be one of {', '.join(MODES)}")
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
    return Manifest(model, version, files, mode)


def is_safe(path: str) -> bool:
    """Whether a path names something inside the folder it is joined to, in one way only."""
    return "\0" not in path and all(part not in ("", ".", "..") for part in path.split("/"))


def end_on_signals(log: Log) -> None:
    """Make SIGTERM and SIGINT end the verification: process 1 has to handle them to be ended."""

    def end(number: int, _frame: object) -> NoReturn:
        log("error", "stopped", signal=signal.Signals(number).name)
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def choose_mode(baked: str, log: Log) -> str:
    """How much to verify: what the image says, or the environment; SettingError where that is no mode."""
    asked = os.environ.get(VERIFY, baked)
    if asked not in MODES:
        raise SettingError(f"{VERIFY} has to be one of {', '.join(MODES)}, and is {asked!r}")
    if MODES.index(asked) > MODES.index(baked):
        log("warning", "verify_weakened", verify=asked, baked=baked, by=VERIFY)
    return asked


def check_weights(root: Path, manifest: Manifest, mode: str, log: Log, beside: Path) -> bool:
    """Verify the weights and log what was found; whether they may be served.

    ``beside`` is the folder of the manifest. ManifestError where samples are needed and cannot be read.
    """
    size = sum(wanted.size for wanted in manifest.files.values())
    if mode == "off":
        log("warning", "unverified", verify=mode, files=len(manifest.files), bytes=size)
        return True
    started = time.monotonic()
    threads = min(count_cores(), len(manifest.files))
    quick = "quick" in (mode, manifest.verify)
    samples = read_samples(beside / "samples", manifest.files) if quick else None
    verified = verify(root, manifest.files, threads, samples if mode == "quick" else None)
    problems = verified.problems
    if mode == "full" and samples is not None and not problems:
        # Other starts of this image compare samples: now that all bytes are right, so have to be these.
        problems = verify(root, manifest.files, threads, samples).problems
    for problem in problems:
        fields = {"file": problem.file, "expected": problem.expected, "actual": problem.actual}
        log("error", problem.event, **fields)
    if problems:
        return False
    seconds = time.monotonic() - started
    read = sum(wanted.size for wanted in verified.hashed) + len(verified.sampled) * BLOCKS * BLOCK
    log(
        "info",
        "verified",
        verify=mode,
        files=len(manifest.files),
        bytes=size,
        **unread(verified),
        seconds=round(seconds, 3),
        gigabytes_per_second=round(read / 1e9 / max(seconds, 1e-9), 2),
        threads=threads,
    )
    return True


def unread(verified: Verified) -> dict[str, int]:
    """What a log line says of the files of which only a sample was compared: nothing where none is such."""
    if not verified.sampled:
        return {}
    size = sum(wanted.size for wanted in verified.sampled)
    return {
        "files_sampled": len(verified.sampled),
        "bytes_not_compared": size - len(verified.sampled) * BLOCKS * BLOCK,
    }


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
        # Who asks for nothing but verification gets all of it.
        mode = "full" if argv == ["--verify"] else choose_mode(manifest.verify, log)
        weights = Path(os.environ.get("MODELBAKE_WEIGHTS", "/models"))
        if not check_weights(weights, manifest, mode, log, path.parent):
            return WRONG_WEIGHTS
        if argv == ["--verify"]:
            return 0
        os.execvp(command[0], command)  # noqa: S606
    except ManifestError as error:
        log("error", "manifest_unusable", file=str(path), error=str(error))
    except SettingError as error:
        log("error", "cannot_start", error=str(error))
    except Exception as error:  # Whatever it was, a log reader can use a JSON line and not a traceback.
        log("error", "cannot_start", command=command[:1], error=f"{type(error).__name__}: {error}")
    return CANNOT_START


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

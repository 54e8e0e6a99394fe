"""What the programs of the weights stages say: one JSON object a line, and the exit codes.

stdout: {"event": "progress", "file", "bytes", "total"}         about twice a second, then ever more rarely
        {"event": "fetched", "source", "file", "bytes", "attempts", "sha256", "seconds", "method", "host"}
        {"event": "converted", "file", "source", "bytes", "sha256", "message"}
        {"event": "note", "file"?, "message"}                   something unusual that did no harm
stderr: {"event": "error", "code", "file"?, "expected"?, "actual"?, "message"}      the last line, on failure

BuildKit keeps only the first 2 MiB that a step writes to a stream. The error therefore has the other stream
to itself, and progress keeps to a budget.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import TextIO

_PROGRESS_BUDGET = 768 * 1024  # bytes of progress lines in a run; leaves room for the audit lines
_QUICK = 0.5  # seconds between two rounds of progress, at first
_MASK = "***"
_URL_SECRETS = re.compile(r"(?P<kept>\bhttps?://[^\s?#'\"<>]*)[?#][^\s'\"<>]*", re.IGNORECASE)
_USERINFO = re.compile(r"(?P<scheme>\bhttps?://)[^\s/@'\"<>]+@", re.IGNORECASE)


class Code(IntEnum):
    """The exit codes of the programs: of `fetch`, from 28 on of `convert` and `admit`."""

    UNEXPECTED = 1
    TOKEN_REFUSED = 20
    GATED = 21
    NOT_FOUND = 22
    UNREACHABLE = 23
    WRONG_BYTES = 24
    TOKEN_MISSING = 25
    DISK_FULL = 26
    BAD_REQUEST = 27
    NOT_CONVERTIBLE = 28
    OTHER_CONVERSION = 29
    INTERRUPTED = 130


class FetchError(Exception):
    """An error that ends the program.

    Attributes:
        code: the exit code.
        file: the path, as in the manifest, of the file that it is about, or None.
        expected, actual: what the manifest says and what came, for wrong bytes.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        file: str | None = None,
        expected: str | None = None,
        actual: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.file = file
        self.expected = expected
        self.actual = actual


class Events:
    """Writes the lines. Safe to use from any thread.

    Args:
        secrets: values that no line may contain; a last guard, as no message is made from them.
    """

    def __init__(
        self, secrets: Iterable[str] = (), *, out: TextIO | None = None, err: TextIO | None = None
    ) -> None:
        self._secrets = sorted((secret for secret in secrets if len(secret) >= 6), key=len, reverse=True)
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._due = self._started
        self._budget = _PROGRESS_BUDGET

    def progress(self, files: Mapping[str, tuple[int, int]]) -> None:
        """Say how far each file is (path -> bytes there, bytes in all), unless that was said just now."""
        now = time.monotonic()
        if now < self._due or self._budget <= 0:
            return
        # Rounds grow rarer as time goes by: a download of ten hours makes some 1,500 of them, not 72,000.
        self._due = now + max(_QUICK, (now - self._started) / 200)
        for path, (done, total) in sorted(files.items()):
            self._budget -= self._write(
                self._out, {"event": "progress", "file": path, "bytes": done, "total": total}
            )

    def fetched(self, **facts: object) -> None:
        """Leave the audit line of a file."""
        self._write(self._out, {"event": "fetched", **facts})

    def converted(self, **facts: object) -> None:
        """Say what a file has become."""
        self._write(self._out, {"event": "converted", **facts})

    def note(self, message: str, *, file: str | None = None) -> None:
        """Say something unusual that did no harm."""
        about = {} if file is None else {"file": file}
        self._write(self._out, {"event": "note", **about, "message": message})

    def error(self, error: FetchError) -> None:
        """Say why the program ends."""
        details = {"file": error.file, "expected": error.expected, "actual": error.actual}
        known = {name: value for name, value in details.items() if value is not None}
        self._write(self._err, {"event": "error", "code": int(error.code), **known, "message": error.message})

    def _write(self, stream: TextIO, event: Mapping[str, object]) -> int:
        line = json.dumps({name: self._clean(value) for name, value in event.items()}, ensure_ascii=True)
        with self._lock:
            stream.write(line + "\n")
            stream.flush()
        return len(line) + 1

    def _clean(self, value: object) -> object:
        if not isinstance(value, str):
            return value
        for secret in self._secrets:
            value = value.replace(secret, _MASK)
        return _URL_SECRETS.sub(rf"\g<kept>?{_MASK}", _USERINFO.sub(rf"\g<scheme>{_MASK}@", value))

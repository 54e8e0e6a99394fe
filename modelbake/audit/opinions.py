"""Second opinions of pickles that a model allows by name: picklescan and fickling, if they are installed.

Both read opcodes and execute nothing. An opinion is an objection unless both call a pickle harmless; what
they cannot read is one as well. Sources: https://github.com/mmaitre314/picklescan,
https://github.com/trailofbits/fickling.
"""

from __future__ import annotations

import io
import logging
import os
import posixpath
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from modelbake.audit.pickled import HEAD, at_start
from modelbake.errors import UsageError

_LARGEST = 256 << 20  # bytes of pickled objects (tensors are beside them) that fickling gets at once


def opinions() -> Callable[[Any, str], list[str]]:
    """Return what takes a pickle, as a file that can be read again, and its path, and returns objections.

    Raises UsageError where one of the two is not installed.
    """
    try:
        from fickling.analysis import Severity, check_safety
        from fickling.fickle import StackedPickle
        from picklescan.scanner import scan_bytes
    except ImportError as error:
        raise UsageError(
            f"--strict asks picklescan and fickling, and {error.name} is not installed",
            hint="`make setup` in the clone of modelbake has them; elsewhere `pip install '.[audit]'` there",
        ) from error
    logging.getLogger("picklescan").setLevel(logging.CRITICAL)  # its words are for its own command

    def fickling_of(name: str, pickled: bytes | None) -> list[str]:
        if pickled is None:
            return [f"fickling is not given {name}: it is larger than {_LARGEST:,} bytes"]
        try:
            worst = max(
                (check_safety(each).severity for each in StackedPickle.load(io.BytesIO(pickled))),
                key=lambda severity: int(severity.severity),
            )
        except Exception as error:  # as below
            return [f"fickling cannot read {name} ({type(error).__name__})"]
        if worst > Severity.LIKELY_SAFE:
            return [f"fickling calls {name} {worst.name.lower().replace('_', ' ')}"]
        return []

    def look(file: Any, path: str) -> list[str]:
        said = []
        suffix = posixpath.splitext(path)[1].lower()
        try:
            scanned = scan_bytes(file, path, suffix)
        except Exception as error:  # of a foreign reader of hostile bytes: whatever it is, it is no consent
            said.append(f"picklescan cannot read it ({type(error).__name__})")
        else:
            worst = [
                f"{each.module}.{each.name}" for each in scanned.globals if each.safety.value != "innocuous"
            ]
            if scanned.issues_count or scanned.suspicious_count or scanned.scan_err:
                named = f": {', '.join(sorted(worst)[:3])}" if worst else " (it cannot be read to its end)"
                said.append(f"picklescan objects{named}")
        try:
            said += (objection for each in _pickles(file) for objection in fickling_of(*each))
        except Exception as error:  # as above; whoever wrote the archive wrote what is in its way
            said.append(f"its archive cannot be read ({type(error).__name__})")
        return said

    return look


def _pickles(file: Any) -> Iterator[tuple[str, bytes | None]]:
    """Yield the pickles of a file: itself, or those of a zip archive; None for one that is too large."""
    file.seek(0)
    if not zipfile.is_zipfile(file):
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        yield "it", file.read() if size <= _LARGEST else None
        return
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as member:
                head = member.read(HEAD)
            if entry.filename.endswith(".pkl") or at_start(head, whole=False):
                yield entry.filename, archive.read(entry) if entry.file_size <= _LARGEST else None

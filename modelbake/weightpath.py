"""The grammar of a weight file's path, which a stranger's repository chose and which we write to disk.

A path that passes stays below the folder it is written to, on every file system an image is unpacked on,
and shows in a log as what it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

MAX_BYTES = 1024  # of the whole path, UTF-8
MAX_PART_BYTES = 255  # ext4, xfs and overlayfs: NAME_MAX
MAX_PARTS = 64  # every folder above a file is looked at: what nests deeper only costs time

# Nearly every path is plain; the slow checks are for the others only. Full match, no leading dot.
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}){0,3}")
# Control, format (which hides or reorders text), surrogate, line and paragraph separator.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def path_problem(path: str) -> str | None:
    """Return what is wrong with a path, or None. The text does not repeat the path."""
    if _PLAIN.fullmatch(path):
        return None
    if not path:
        return "is empty"
    if len(path) > MAX_BYTES:  # the cheap question first: a character is a byte at least
        return f"is longer than {MAX_BYTES} bytes"
    if path.count("/") >= MAX_PARTS:
        return f"has more than {MAX_PARTS} parts"
    if any(unicodedata.category(char) in _UNSEEN for char in path):
        return "holds a control or invisible character"
    if "\\" in path:
        return "holds a backslash"
    if path.startswith("/"):
        return "is absolute"
    parts = path.split("/")
    if "" in parts:
        return "has an empty part"
    if "." in parts or ".." in parts:
        return "has a part `.` or `..`"
    if any(part.startswith(".wh.") for part in parts):
        return "has a part that begins with `.wh.`, which in an image's layer deletes something"
    if any(part.casefold() == ".git" for part in parts):
        return "has a part `.git`"
    if len(path.encode()) > MAX_BYTES:
        return f"is longer than {MAX_BYTES} bytes"
    if any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        return f"has a part longer than {MAX_PART_BYTES} bytes"
    return None


def conflicting_paths(paths: Iterable[str]) -> tuple[str, str] | None:
    """Return two paths that cannot both exist in one folder, or None.

    They conflict when they are equal but for case or Unicode normalisation (one file on macOS, Windows and
    some network file systems), or when one is a folder of the other.
    """
    files: dict[str, str] = {}
    for path in paths:
        folded = _folded(path)
        if folded in files:
            return files[folded], path
        files[folded] = path
    for folded, path in files.items():
        for end in (index for index, char in enumerate(folded) if char == "/"):
            if folded[:end] in files:
                return files[folded[:end]], path
    return None


def shown(text: str, limit: int = 120) -> str:
    """Return a stranger's text so that it can be printed: unseen characters escaped, at most `limit` long."""
    safe = "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _UNSEEN else char
        for char in text
    )
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def _folded(path: str) -> str:
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())

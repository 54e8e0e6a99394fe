"""Searching bytes and files for a secret that must not be there."""

from __future__ import annotations

import base64
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

_CHUNK = 1 << 20


def found_in_bytes(needle: bytes, data: bytes) -> bool:
    """Tell whether a secret is in some bytes: as it is, or as base64 at any alignment."""
    return any(form in data for form in _forms(needle))


def _forms(needle: bytes) -> list[bytes]:
    # Of base64, the characters that depend on the secret alone, at each of the three alignments.
    inner = [base64.b64encode(b"\0" * shift + needle)[(shift * 4 + 2) // 3 : -4] for shift in range(3)]
    return [needle, *inner]


def found_in_files(
    needle: bytes, root: Path, since: float = 0, *, largest: int | None = None, without: Collection[Path] = ()
) -> list[Path]:
    """Return the files below a folder that hold the secret, of those that were touched `since` a time.

    A secret made a moment ago is in no older file, and an engine that has been used holds many of them. What
    counts is the inode's own time, which nobody sets. Files of more than `largest` bytes, and the paths of
    `without`, are not looked at.
    """
    hits = []
    for path, state in _files(os.fspath(root), frozenset(map(os.fspath, without))):
        if state.st_ctime >= since and (largest is None or state.st_size <= largest):
            with suppress(OSError):  # a file that the engine removed meanwhile holds nothing
                if _file_holds(needle, Path(path)):
                    hits.append(Path(path))
    return hits


def _files(root: str, without: Collection[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the regular files below a folder. As texts: an engine has a million paths."""
    folders = [root]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.path in without:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    with suppress(OSError):
                        yield entry.path, entry.stat(follow_symlinks=False)


def _file_holds(needle: bytes, path: Path) -> bool:
    forms, tail = _forms(needle), b""
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            if any(form in tail + data for form in forms):
                return True
            tail = data[-200:]
    return False

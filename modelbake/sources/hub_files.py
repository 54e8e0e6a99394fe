"""The files a hub lists: whether what it says of them is sound, and how they differ from those of a lock."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from huggingface_hub import RepoFile

from modelbake.errors import SourceError
from modelbake.sources.hub_errors import Place
from modelbake.weightpath import shown

if TYPE_CHECKING:
    from modelbake.locked import LockedFile

_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ListedFile:
    """A file as the hub lists it: `sha256` if in Git LFS, `blob` (git's sha1) otherwise."""

    path: str
    size: int
    sha256: str | None
    blob: str | None


def check_listed(entry: RepoFile, place: Place) -> ListedFile:
    """Check the types and digits of what a hub says about a file."""
    path: Any = entry.path
    size: Any = entry.size
    sha256: Any = entry.lfs.sha256 if entry.lfs else None
    if not isinstance(path, str) or type(size) is not int or size < 0:
        raise SourceError("the hub's listing is garbled", subject=place.subject)
    if entry.lfs and (entry.lfs.size != size or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256)):
        raise SourceError(f"{shown(path)}: the hub lists no valid LFS sha256 and size", subject=place.subject)
    blob: Any = entry.blob_id
    if sha256 is None and (not isinstance(blob, str) or not _SHA1.fullmatch(blob)):
        raise SourceError(f"{shown(path)}: the hub lists neither sha256 nor git sha1", subject=place.subject)
    return ListedFile(path, size, sha256, None if sha256 else blob)


def differences(listed: Sequence[ListedFile], locked: Sequence[LockedFile]) -> list[str]:
    """Return how the files of a lock differ from those that a hub lists, one text a file, by path.

    Of a file outside Git LFS the hub lists no sha256: there the size alone is compared.
    """
    there = {file.path: file for file in listed}
    here = {file.path: file for file in locked}
    texts: list[str] = []
    for path in sorted({*there, *here}):
        upstream, ours = there.get(path), here.get(path)
        if ours is None:
            texts.append(f"{shown(path)} is upstream and not in the lock")
        elif upstream is None:
            texts.append(f"{shown(path)} is in the lock and not upstream")
        elif upstream.size != ours.size:
            texts.append(f"{shown(path)} has {upstream.size:,} bytes upstream, {ours.size:,} in the lock")
        elif upstream.sha256 not in (None, ours.sha256):
            texts.append(f"{shown(path)} has sha256 {upstream.sha256} upstream, {ours.sha256} in the lock")
    return texts

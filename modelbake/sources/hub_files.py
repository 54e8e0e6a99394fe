"""The files a hub lists: whether what it says of them is sound, and which of them a model takes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from huggingface_hub import RepoFile
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # public, see hub.py

from modelbake.errors import NoMatchingFiles, SourceError
from modelbake.sources.hub_errors import Place
from modelbake.weightpath import conflicting_paths, path_problem, shown

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.locked import LockedFile, LockedModel

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


def select_files(
    files: Sequence[ListedFile], spec: ModelSpec | LockedModel, place: Place
) -> list[ListedFile]:
    """Return the files that include and exclude select; every one of them has a path fit to be written."""
    # .gitattributes and its like say how git stores the repository. They change (a file moves to LFS)
    # without the model changing, no runtime reads them, and they must not make a new layer.
    candidates = [file for file in files if not any(part.startswith(".git") for part in file.path.split("/"))]
    chosen = list(
        filter_repo_objects(
            candidates,
            allow_patterns=list(spec.include) or None,
            ignore_patterns=list(spec.exclude) or None,
            key=lambda file: file.path,
        )
    )
    if not chosen:
        raise _no_match(candidates, spec, place)
    for file in chosen:
        if problem := path_problem(file.path):
            raise SourceError(
                f"the file name {shown(file.path)!r} {problem}",
                subject=place.subject,
                hint="leave it out with `exclude`, or have it renamed in the repository",
            )
    if clash := conflicting_paths(file.path for file in chosen):
        raise SourceError(
            f"the files {shown(clash[0])!r} and {shown(clash[1])!r} cannot both exist in one folder",
            subject=place.subject,
            hint="leave one of them out with `exclude`",
        )
    return chosen


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


def _no_match(files: Sequence[ListedFile], spec: ModelSpec | LockedModel, place: Place) -> NoMatchingFiles:
    names = [file.path for file in files]
    if not names:
        return NoMatchingFiles("the repository holds no files", subject=place.subject)
    included = list(filter_repo_objects(names, allow_patterns=list(spec.include) or None))
    if included:
        message = f"exclude {list(spec.exclude)} leaves out all {len(included)} files that include selects"
    else:
        message = f"include {list(spec.include)} selects none of the repository's {len(names)} files"
    close = {
        name
        for pattern in spec.include
        for name in difflib.get_close_matches(pattern, names, n=2, cutoff=0.5)
    }
    advice = f"did you mean {' or '.join(shown(name) for name in sorted(close))}? " if close else ""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    there = ", ".join(shown(name, 80) for name in sorted(names)[:20])
    return NoMatchingFiles(message, subject=place.subject, hint=f"{advice}there are: {there}{more}")

"""What `lock` may believe of a source: nothing that disagrees with what is locked of the very same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from modelbake.errors import WrongBytes
from modelbake.locked import LockedSource
from modelbake.weightpath import shown


def require_same(previous: LockedSource | None, locked: LockedSource, subject: str, source: str) -> None:
    """Refuse other facts at the commit that is locked already: a commit names its content for good.

    Hence neither is the lock believed instead of the source, nor a source that was tampered with instead of
    it. `source`: what it is called in the hint. Raises WrongBytes.
    """
    if previous is None or (previous.source, previous.commit) != (locked.source, locked.commit):
        return
    before = {file.path: file for file in previous.files}
    changed = [file.path for file in locked.files if before.get(file.path, file) != file]
    if changed:
        names = ", ".join(shown(path, 80) for path in changed[:5])
        raise WrongBytes(
            f"{names}: models.lock has another size or sha256 at the very same commit {locked.commit}",
            subject=subject,
            hint=f"models.lock was edited, or {source} was tampered with. Restore models.lock with git; or,"
            f" if you trust {source}, remove `{locked.name}` from it and lock again",
        )


def snapshot(files: Iterable[tuple[str, int, str]]) -> str:
    """Return 40 hex digits that name what a store has: of each file path, size in bytes, and version.

    They are the first of the sha256 of one line `<version> <size> <path>\\n` a file, sorted by path.
    """
    lines = "".join(f"{version} {size} {path}\n" for path, size, version in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()[:40]

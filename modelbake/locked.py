"""The facts of a lock: what every model's source held at one commit.

{"schema": 1, "models": {"minilm": {"source": "hf://org/name", "hub": "https://huggingface.co",
 "revision": "main", "commit": "<40 hex>", "include": [...], "exclude": [...],
 "files": [{"path": "...", "size": 1, "sha256": "<64 hex>"}, ...], "digest": "sha256:<64 hex>"}}}

The digest is that of the files, so that a merge which lost one, or an edit, is noticed wherever it is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelbake.config import ModelSpec


@dataclass(frozen=True, slots=True)
class LockedFile:
    """One weight file: `path` with forward slashes, `size` in bytes, `sha256` as 64 hex digits."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class LockedModel:
    """What a source held at one commit. `include`, `exclude` and `files` (by path) are sorted."""

    name: str
    source: str
    hub: str
    revision: str
    commit: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    files: tuple[LockedFile, ...]

    @classmethod
    def of(cls, spec: ModelSpec, commit: str, files: Iterable[LockedFile]) -> LockedModel:
        """Join what models.yaml asks for and what the source answered, in the one canonical order."""
        return cls(
            name=spec.name,
            source=spec.source,
            hub=spec.hub.rstrip("/"),
            revision=spec.revision,
            commit=commit,
            include=tuple(sorted(set(spec.include))),
            exclude=tuple(sorted(set(spec.exclude))),
            files=tuple(sorted(files, key=lambda file: file.path)),
        )

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        """`sha256:` + 64 hex digits naming the files' paths, sizes and contents, wherever they come from.

        It is the sha256 of one line `<sha256> <size> <path>\\n` a file, sorted by path.
        """
        lines = "".join(f"{file.sha256} {file.size} {file.path}\n" for file in self.files)
        return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Lock:
    """All locked models by name."""

    models: Mapping[str, LockedModel] = field(default_factory=dict)

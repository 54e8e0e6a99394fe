"""The facts of a lock: what every model's source held at one commit.

{"schema": 1, "models": {"minilm": {"source": "hf://org/name", "hub": "https://huggingface.co",
 "revision": "main", "commit": "<40 hex>", "include": [...], "exclude": [...],
 "files": [{"path": "...", "size": 1, "sha256": "<64 hex>"}, ...], "digest": "sha256:<64 hex>"}}}

A model with `convert` has, besides, what its pickles become:

 "converted": {"converter": "sha256:<64 hex>", "replaces": ["pytorch_model.bin"],
               "files": [{"path": "model.safetensors", "size": 1, "sha256": "<64 hex>"}]}

The digest is that of all files, so that a merge which lost one, or an edit, is noticed wherever it is read.
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
class Conversion:
    """What the image has in the place of some files: `files` for those that `replaces` names; both sorted.

    `converter` names the programs that made them, and their packages, as `sha256:` + 64 hex digits.
    """

    converter: str
    replaces: tuple[str, ...]
    files: tuple[LockedFile, ...]


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
    converted: Conversion | None = None

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
    def kept(self) -> tuple[LockedFile, ...]:
        """The files that the image has as the source has them."""
        replaced = frozenset(self.converted.replaces if self.converted else ())
        return tuple(file for file in self.files if file.path not in replaced)

    @property
    def replaced(self) -> tuple[LockedFile, ...]:
        """The files that are converted, and not in the image."""
        kept = {file.path for file in self.kept}
        return tuple(file for file in self.files if file.path not in kept)

    @property
    def weights(self) -> tuple[LockedFile, ...]:
        """The files that the image has, sorted by path."""
        converted = self.converted.files if self.converted else ()
        return tuple(sorted((*self.kept, *converted), key=lambda file: file.path))

    @property
    def size(self) -> int:
        """Bytes of all files that the image has."""
        return sum(file.size for file in self.weights)

    @property
    def digest(self) -> str:
        """`sha256:` + 64 hex digits naming the files' paths, sizes and contents, wherever they come from.

        It is the sha256 of one line `<sha256> <size> <path>\\n` a file, sorted by path; of a conversion there
        follow `converted by <converter>\\n`, `replaces <path>\\n` for each, and such lines of its files.
        """
        text = _lines(self.files)
        if self.converted is not None:
            text += f"converted by {self.converted.converter}\n"
            text += "".join(f"replaces {path}\n" for path in self.converted.replaces)
            text += _lines(self.converted.files)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Lock:
    """All locked models by name."""

    models: Mapping[str, LockedModel] = field(default_factory=dict)


def _lines(files: Iterable[LockedFile]) -> str:
    return "".join(f"{file.sha256} {file.size} {file.path}\n" for file in files)

"""The facts of a lock: what every model's sources held at one commit.

{"schema": 1, "models": {"minilm": {"source": "hf://org/name", "hub": "https://huggingface.co",
 "revision": "main", "commit": "<40 hex>", "include": [...], "exclude": [...],
 "files": [{"path": "...", "size": 1, "sha256": "<64 hex>"}, ...], "digest": "sha256:<64 hex>"}}}

A model with `convert` has, besides, what its pickles become:

 "converted": {"converter": "sha256:<64 hex>", "replaces": ["pytorch_model.bin"],
               "files": [{"path": "model.safetensors", "size": 1, "sha256": "<64 hex>"}]}

One of a store has `endpoint` in the place of `hub`, "" for the cloud's own, and no `revision`. Its commit is
the digest of what the store lists (`snapshot`), and each file has besides the store's own, immutable name of
these very bytes: {"path": "...", "size": 1, "sha256": "<64 hex>", "version": "..."}.

A model of several sources has besides, for each further one, the same keys, in the order of models.yaml:

 "added": [{"source": "s3://bucket/adapter", "into": "adapter", "endpoint": "", "commit": ..., "files": ...}]

The digest is that of all files, so that a merge which lost one, or an edit, is noticed wherever it is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from modelbake.sourceuri import kind_of

if TYPE_CHECKING:
    from modelbake.config import ModelSpec, SourceSpec


@dataclass(frozen=True, slots=True)
class LockedFile:
    """One weight file: `path` with forward slashes, `size` in bytes, `sha256` as 64 hex digits.

    `version`: the store's immutable name of these very bytes, "" where the source's commit says it all.
    """

    path: str
    size: int
    sha256: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What the image has in the place of some files: `files` for those that `replaces` names; both sorted.

    `converter` names the programs that made them, and their packages, as `sha256:` + 64 hex digits.
    """

    converter: str
    replaces: tuple[str, ...]
    files: tuple[LockedFile, ...]


@dataclass(frozen=True, slots=True)
class LockedSource:
    """What a source held at one commit. `include`, `exclude` and `files` (by path) are sorted.

    `hub`: the server, a hub's URL or a store's endpoint. `files` have their paths in the image: those of the
    source below `into`, if that is given.
    """

    name: str
    source: str
    hub: str
    revision: str
    commit: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    files: tuple[LockedFile, ...]
    into: str = ""

    @classmethod
    def at(cls, spec: SourceSpec, commit: str, files: Iterable[LockedFile]) -> LockedSource:
        """Join what models.yaml asks for and what the source answered, in the one canonical order.

        `files`: with the paths that the source gives them.
        """
        prefix = f"{spec.into}/" if spec.into else ""
        placed = (replace(file, path=prefix + file.path) for file in files)
        return cls(
            name=spec.name,
            source=spec.source,
            hub=spec.server,
            revision=spec.revision,
            commit=commit,
            include=tuple(sorted(set(spec.include))),
            exclude=tuple(sorted(set(spec.exclude))),
            files=tuple(sorted(placed, key=lambda file: file.path)),
            into=spec.into,
        )

    @property
    def kind(self) -> str:
        """Of its address: `hf`, `s3`, ..."""
        return kind_of(self.source)

    @property
    def server(self) -> str:
        """The hub or the store's endpoint; as `SourceSpec` calls it."""
        return self.hub

    @property
    def origin(self) -> str:
        """The address and the commit, for logs."""
        return f"{self.source}@{self.commit}"

    def path_there(self, file: LockedFile) -> str:
        """Return the path that a file has at the source."""
        return file.path.removeprefix(f"{self.into}/") if self.into else file.path


@dataclass(frozen=True, slots=True)
class LockedModel(LockedSource):
    """What a model's sources held. The keys of a source are those of the first; `files` are those of all."""

    converted: Conversion | None = None
    added: tuple[LockedSource, ...] = ()

    @classmethod
    def of(cls, spec: ModelSpec, commit: str, files: Iterable[LockedFile]) -> LockedModel:
        """Return a model of one source. `files`: with the paths that the source gives them."""
        return cls.join([LockedSource.at(spec.sources[0], commit, files)])

    @classmethod
    def join(cls, sources: Sequence[LockedSource], converted: Conversion | None = None) -> LockedModel:
        """Return the model of some sources, the first of which everything else is added to."""
        first = {each.name: getattr(sources[0], each.name) for each in fields(LockedSource)}
        files = sorted((file for each in sources for file in each.files), key=lambda file: file.path)
        return cls(**{**first, "files": tuple(files)}, converted=converted, added=tuple(sources[1:]))

    @property
    def sources(self) -> tuple[LockedSource, ...]:
        """Every source with its own files, the first one first."""
        elsewhere = {file.path for each in self.added for file in each.files}
        first = {each.name: getattr(self, each.name) for each in fields(LockedSource)}
        own = tuple(file for file in self.files if file.path not in elsewhere)
        return (LockedSource(**{**first, "files": own}), *self.added)

    def source_of(self, path: str) -> LockedSource:
        """Return the source that a file comes from; of what was converted, the one of the pickles."""
        return next(
            (each for each in self.added if any(file.path == path for file in each.files)), self.sources[0]
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

"""What the layers of an image or artifact hold as files of a model. Pure.

    ModelPack      application/vnd.cncf.model.*: a file a layer, as it is or in a tar; named by an annotation
    ORAS           any artifact whose layers have a title: a file each, or a folder in a tar
    image          a file system in layers: what is below /models once all of them are applied (modelcar, the
                   images of weights and of models that modelbake makes)

Sources: https://github.com/modelpack/model-spec (docs/spec.md, specs-go/v1), https://oras.land/docs
(concepts/artifact), https://kserve.github.io/website (modelcars),
https://github.com/opencontainers/image-spec/blob/main/layer.md (whiteouts)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from modelbake.errors import SourceError
from modelbake.manifest import Manifest
from modelbake.plan import LABEL_PREFIX
from modelbake.sources.selecting import MOST_FILES
from modelbake.sources.store import StoredFile
from modelbake.weightpath import shown

ROOT = "models"  # where images have the weights
_PATHS = ("org.cncf.model.filepath", "org.cnai.model.filepath")  # the second: its name until version 0.0.6
_TITLE = "org.opencontainers.image.title"
_UNPACK = "io.deis.oras.content.unpack"
_GROUP = LABEL_PREFIX + "group"
_IMAGE_CONFIGS = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_TAR = re.compile(r"[.+]tar(?:[.+](gzip|zstd))?$")
_VERSION = re.compile(r"(sha256:[0-9a-f]{64})(?:(/models)?!(?:tar\+([0-9]{1,18})|(gzip|zstd)))?")
_HIDDEN, _OPAQUE = ".wh.", ".wh..wh..opq"


@dataclass(frozen=True)
class Content:
    """A layer: `digest` and `size` (bytes) of its blob, and what it is.

    `path`: of the one file that the blob is, "" where it is a tar. `compression`: of the tar, as `archives`
    has it. `rooted`: the tar is of a file system, of which the folder /models counts.
    """

    digest: str
    size: int
    path: str = ""
    compression: str = "tar"
    rooted: bool = False

    def version(self, offset: int = 0) -> str:
        """Return what `StoredFile.version` is for a file in it; `offset`: of its bytes in a plain tar."""
        if self.path:
            return self.digest
        packed = f"tar+{offset}" if self.compression == "tar" else self.compression
        return f"{self.digest}{f'/{ROOT}' if self.rooted else ''}!{packed}"


@dataclass(frozen=True)
class Place:
    """What a version says: the blob, `start` bytes into it, or a member of a tar packed by `compression`."""

    digest: str
    rooted: bool
    start: int | None
    compression: str


def place_of(version: str) -> Place | None:
    """Return where the bytes of a version are; None where no version looks like this."""
    found = _VERSION.fullmatch(version)
    if found is None:
        return None
    return Place(found[1], bool(found[2]), int(found[3]) if found[3] else None, found[4] or "")


def contents_of(manifest: Manifest, subject: str) -> list[Content]:
    """Return the layers that hold files of the model, bottom first. Raises SourceError."""
    entries: list[Any] = manifest.document().get("layers") or []
    blobs = list(zip(manifest.layers, map(_annotations, entries), strict=True))
    config = manifest.config.media_type
    if config in _IMAGE_CONFIGS and not any(set(notes) & {*_PATHS, _TITLE} for _, notes in blobs):
        if any(_GROUP in notes for _, notes in blobs):  # ours: no other layer has anything of the weights
            blobs = [(blob, notes) for blob, notes in blobs if _GROUP in notes]
        return [
            Content(blob.digest, blob.size, compression=_compression(blob.media_type, subject), rooted=True)
            for blob, _ in blobs
        ]
    found = []
    for blob, notes in blobs:
        path = next((notes[key] for key in _PATHS if notes.get(key)), "")
        title = notes.get(_TITLE, "")
        if (path and not _TAR.search(blob.media_type)) or (
            title and not path and notes.get(_UNPACK) != "true"
        ):
            found.append(Content(blob.digest, blob.size, path or title))
        else:
            packed = _compression(blob.media_type, subject)
            found.append(Content(blob.digest, blob.size, compression=packed))
    return found


def _annotations(entry: Any) -> dict[str, str]:
    notes = entry.get("annotations") if isinstance(entry, dict) else None
    if not isinstance(notes, dict):
        return {}
    return {key: value for key, value in notes.items() if isinstance(value, str)}


def _compression(media_type: str, subject: str) -> str:
    if (found := _TAR.search(media_type)) is None:
        raise SourceError(
            f"a layer of the type {shown(media_type)!r} names no file, and is no tar",
            subject=subject,
            hint="ModelPack artifacts, ORAS artifacts whose files have titles, and images with files below"
            " /models are read",
        )
    return found[1] or "tar"


class FileTree:
    """The files of layers that are applied one after the other, bottom first."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._files: dict[str, StoredFile | None] = {}  # by path in the image; None: a link

    def apply(
        self, content: Content, files: Iterable[tuple[str, int, int]], links: Callable[[], Iterable[str]]
    ) -> None:
        """Apply a layer. `files`: name, size and offset of each, whiteouts too; `links`: told after them."""
        added: dict[str, StoredFile | None] = {}
        for name, size, offset in files:
            parent, _, last = name.rpartition("/")
            if not content.rooted:
                added[name] = StoredFile(name, size, content.version(offset))
            elif last == _OPAQUE:
                self._remove(parent)
            elif last.startswith(_HIDDEN):
                self._remove("/".join(filter(None, (parent, last.removeprefix(_HIDDEN)))), itself=True)
            elif name.startswith(f"{ROOT}/"):
                added[name] = StoredFile(name[len(ROOT) + 1 :], size, content.version(offset))
            if len(added) > MOST_FILES:
                raise SourceError(f"a layer holds more than {MOST_FILES:,} files", subject=self._subject)
        for name in links():
            if not content.rooted or name == ROOT or name.startswith(f"{ROOT}/"):
                added[name] = None
        self._replace(added)

    def add(self, content: Content) -> None:
        """Take in a layer that is one file."""
        digest = content.digest.partition(":")[2]
        checksum = ("sha256", digest)
        self._files[content.path] = StoredFile(content.path, content.size, content.version(), checksum)

    def files(self) -> list[StoredFile]:
        """Return the files, sorted by path. Raises SourceError where a link is among them."""
        links = sorted(name for name, file in self._files.items() if file is None)
        if links:
            raise SourceError(
                f"{shown(links[0])!r} is a link, or something else that is no file",
                subject=self._subject,
                hint="put the file itself there, or make the tar with -h, which follows links",
            )
        found = [file for file in self._files.values() if file is not None]
        return sorted(found, key=lambda file: file.path)

    def _remove(self, path: str, *, itself: bool = False) -> None:
        below = f"{path}/" if path else ""
        gone = [name for name in self._files if name.startswith(below) or (itself and name == path)]
        for name in gone:
            del self._files[name]

    def _replace(self, added: dict[str, StoredFile | None]) -> None:
        """Put entries in the place of files above them, and of what was below one that is no folder now."""
        parents = {name[: match.start()] for name in added for match in re.finditer("/", name)}
        gone = [
            name
            for name in self._files
            if name in parents or any(name[: match.start()] in added for match in re.finditer("/", name))
        ]
        for name in gone:
            del self._files[name]
        self._files.update(added)

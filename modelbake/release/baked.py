"""The manifest that is baked into an image: the weight files that it has, by a few requests.

Both lanes put it into one of the last layers, which are small: no layer of weights is read for it.
"""

from __future__ import annotations

import io
import json
import posixpath
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelbake.audit.layer import MANIFEST
from modelbake.errors import RegistryError, ReleaseError
from modelbake.imagetar import UNREADABLE, as_file, unpacked, whiteout
from modelbake.locked import LockedFile
from modelbake.manifest import Manifest
from modelbake.plan import LABEL_PREFIX
from modelbake.stream.repository import RegistryRepository, Repository, read_document
from modelbake.tables import printable

_LARGEST_LAYER = 64 << 20  # bytes as they are pulled; a larger one has something else
_LARGEST = 64 << 20  # bytes of the manifest
_LARGEST_TAR = 1 << 30  # bytes that are unpacked of one layer
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Baked:
    """What an image says of itself: its labels, and its weights' files, sorted by path.

    `lock`: the digest of the locked model, as `LockedModel.digest`. Texts are "" where they are not said.
    """

    labels: Mapping[str, str]
    model: str
    version: str
    lock: str
    files: tuple[LockedFile, ...]


def read_labels(repository: Repository, image: Manifest) -> dict[str, str]:
    """Return the labels of an image. Raises RegistryError where its configuration is none."""
    try:
        config = json.loads(read_document(repository, image.config))
        labels = config.get("config", {}).get("Labels") or {}
        return {str(name): str(value) for name, value in labels.items()}
    except (ValueError, RecursionError, AttributeError) as error:
        raise RegistryError(
            "the configuration is not that of an image", subject=image.config.digest
        ) from error


def require_said(repository: RegistryRepository, manifest: Manifest, model: str, version: str) -> None:
    """Raise ReleaseError unless an image says of itself that it is this version of this model.

    Its labels are covered by its digest, and so by a signature; a tag is not. Else an older version, or
    another model, that the same key has signed would pass under any version tag.
    """
    subject = f"{repository.name}:{version}"
    images = [manifest]
    if manifest.is_index:
        listed = [each.digest for each in manifest.manifests if each.platform != "unknown/unknown"]
        images = [found for found in map(repository.manifest, listed) if found is not None]
        if not images or len(images) != len(listed):
            raise ReleaseError(f"{manifest.digest} lists an image that is not there", subject=subject)
    for image in images:
        labels = read_labels(repository, image)
        said = tuple(labels.get(LABEL_PREFIX + key, "") for key in ("model", "version"))
        if said != (model, version):
            words = " ".join(printable(each) for each in said if each) or "nothing"
            raise ReleaseError(
                f"the version tag names {manifest.digest}, whose labels say {words}: somebody has put the tag"
                " by hand",
                subject=subject,
                hint=f"`build.py release {model}` makes versions; find out who may push to this repository",
            )


def read_baked(repository: Repository, image: Manifest) -> Baked | None:
    """Return what the manifest in an image says; None where no small layer has one.

    Raises RegistryError and its subclasses where it cannot be read or is not what the toolkit writes.
    """
    labels = read_labels(repository, image)
    for layer in reversed(image.layers):
        if layer.size > _LARGEST_LAYER:
            continue
        pieces = as_file(repository.read(layer))
        try:
            raw, hidden = _manifest_in(pieces)
            while pieces.read(1 << 20):  # to its end, so that the digest of all of it is compared
                pass
        except UNREADABLE as error:
            raise RegistryError(f"cannot be read ({error})", subject=layer.digest) from error
        if raw is not None:
            return _parsed(raw, labels, layer.digest)
        if hidden:
            return None
    return None


def _manifest_in(content: io.BufferedReader) -> tuple[bytes | None, bool]:
    """Return the manifest of a layer, if it has one, and whether it takes away one that lies below."""
    found, hidden = None, False
    with tarfile.open(fileobj=_Bounded(unpacked(content)), mode="r|") as archive:  # type: ignore[call-overload]
        for member in archive:
            path = posixpath.normpath(member.name.lstrip("/"))
            hidden = hidden or whiteout(path) in (MANIFEST, "modelbake", "modelbake/")
            if path == MANIFEST and member.isfile() and member.size <= _LARGEST:
                read = archive.extractfile(member)
                found = read.read() if read is not None else None
    return found, hidden


def _parsed(raw: bytes, labels: Mapping[str, str], subject: str) -> Baked:
    try:
        document: Any = json.loads(raw)
        files = tuple(_file(each) for each in document["files"])
        texts = {key: document.get(key, "") for key in ("model", "version", "lock")}
        if not all(isinstance(each, str) for each in texts.values()):
            raise TypeError
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise RegistryError(f"its /{MANIFEST} is none of this toolkit's", subject=subject) from error
    return Baked(labels, files=tuple(sorted(files, key=lambda file: file.path)), **texts)


def _file(entry: Any) -> LockedFile:
    path, size, sha256 = entry["path"], entry["size"], entry["sha256"]
    if not (isinstance(path, str) and isinstance(size, int) and isinstance(sha256, str)):
        raise TypeError
    if not _SHA256.fullmatch(sha256):
        raise ValueError
    return LockedFile(path, size, sha256)


class _Bounded:
    """What tarfile reads of a layer: not more than some bytes, whatever a few packed ones unpack to."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left = _LARGEST_TAR

    def read(self, size: int = -1) -> bytes:
        piece: bytes = self._stream.read(size)
        self._left -= len(piece)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {_LARGEST_TAR:,} bytes")
        return piece

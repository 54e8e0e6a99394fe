"""An OCI image layout in a folder: images carried to where no registry can be reached.

    DIR/oci-layout, DIR/index.json      the standard's own; `skopeo`, `crane` and `docker load` read them
    DIR/blobs/sha256/HEX                every blob and manifest
    DIR/manifest.json                   what `docker load` reads where the engine has its classic image store
    DIR/.modelbake/index.json           what `publish` remembers of finished layers; not part of the standard

Source: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from modelbake.diskspace import saying_full
from modelbake.errors import LayoutError
from modelbake.manifest import Descriptor, Manifest, digest_of
from modelbake.smallfile import read_small
from modelbake.stream.flow import LayerFlow
from modelbake.stream.repository import Repository, checked
from modelbake.writing import exclusively, new_file, remove_abandoned

REF_NAME = "org.opencontainers.image.ref.name"
_IMAGE_NAME = "io.containerd.image.name"  # how containerd, and `docker load` with its store, call an image
_NEW = ".new-"  # how files are called until they are complete
_MARKER = {"imageLayoutVersion": "1.0.0"}
_PIECE = 1 << 20  # bytes
_LARGEST_INDEX = 16 << 20  # bytes
_LARGEST_MARKER = 1 << 16  # bytes
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class LayoutRepository:
    """The images of one layout.

    Args:
        folder: where it is.
        index: the file that lists the images, relative to the folder.
        image: `registry/name` that `docker load` is to call them by, with their tag.
    """

    def __init__(self, folder: Path, index: str = "index.json", image: str = "") -> None:
        self.folder = folder
        self._index = folder / index
        self._image = image
        self._lock = threading.Lock()

    @classmethod
    def create(cls, folder: Path, index: str = "index.json", image: str = "") -> Self:
        """Make a layout of a new or empty folder, or go on with one that is there.

        Raises LayoutError where the folder holds anything else, or cannot be written; DiskFull without room.
        """
        with _translating(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with exclusively(folder):
                remove_abandoned(folder, _NEW)
                marker = folder / "oci-layout"
                if not marker.exists():
                    if any(folder.iterdir()):
                        raise LayoutError(
                            "holds something else than an OCI layout",
                            subject=str(folder),
                            hint="name a new folder",
                        )
                    _write(marker, json.dumps(_MARKER).encode())
                (folder / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        return cls.open(folder, index, image)

    @classmethod
    def open(cls, folder: Path, index: str = "index.json", image: str = "") -> Self:
        """Return the layout in a folder. Raises LayoutError where there is none."""
        with _translating(folder):
            try:
                marker = json.loads(read_small(folder / "oci-layout", _LARGEST_MARKER))
            except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
                marker = None
        if not isinstance(marker, dict) or marker.get("imageLayoutVersion") != "1.0.0":
            raise LayoutError(
                "is not an OCI layout: its file oci-layout is missing or says another version",
                subject=str(folder),
                hint="`build.py publish NAME --output oci:DIR` writes one",
            )
        return cls(folder, index, image)

    @property
    def name(self) -> str:
        """`oci:DIR`."""
        return f"oci:{self.folder}"

    def tags(self) -> list[str]:
        """Return the names under which the index lists images, sorted."""
        names = (entry.get("annotations", {}).get(REF_NAME) for entry in self._entries())
        return sorted(name for name in names if isinstance(name, str))

    def manifest(self, reference: str) -> Manifest | None:
        """See Repository."""
        for entry in self._entries():
            if reference in (entry.get("digest"), entry.get("annotations", {}).get(REF_NAME)):
                path = self._path(str(entry.get("digest")))
                with _translating(path):
                    if not path.is_file():
                        raise LayoutError("the manifest is missing", subject=str(path))
                    manifest = Manifest.of(str(entry.get("mediaType")), path.read_bytes())
                if manifest.digest != entry["digest"]:
                    raise LayoutError("the manifest has other bytes than its digest says", subject=str(path))
                return manifest
        return None

    def put_manifest(self, tag: str, manifest: Manifest) -> None:
        """See Repository. Another manifest that had the name is not listed any more."""
        with self._lock, _translating(self._index), exclusively(self.folder):
            _write(self._path(manifest.digest), manifest.body)
            notes = {REF_NAME: tag} | ({_IMAGE_NAME: f"{self._image}:{tag}"} if self._image else {})
            entry = {
                "mediaType": manifest.media_type,
                "digest": manifest.digest,
                "size": len(manifest.body),
                "annotations": notes,
            }
            taken = [each for each in self._entries() if each.get("annotations", {}).get(REF_NAME) == tag]
            for each in taken if self._image else ():
                if (other := each["annotations"].get(_IMAGE_NAME)) != notes.get(_IMAGE_NAME):
                    raise LayoutError(
                        f"holds another model under this version: {other}",
                        subject=str(self.folder),
                        hint="give each model a folder of its own",
                    )
            kept = [each for each in self._entries() if each.get("annotations", {}).get(REF_NAME) != tag]
            kept.append(entry)
            kept.sort(key=lambda each: str(each.get("annotations", {}).get(REF_NAME)))
            self._index.parent.mkdir(exist_ok=True)
            self._write_index(kept)
            if self._image:
                _write(self.folder / "manifest.json", _encode([self._for_docker(each) for each in kept]))

    def entries(self) -> list[dict[str, Any]]:
        """Return what the index lists: descriptors, with their annotations. Raises LayoutError."""
        return self._entries()

    def relist(self, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        """Put what `change` makes of the index's entries in their place, all of it or nothing."""
        with self._lock, _translating(self._index), exclusively(self.folder):
            self._write_index(change(self._entries()))

    def has(self, blob: Descriptor) -> bool:
        """See Repository."""
        path = self._path(blob.digest)
        with _translating(path):
            return path.is_file() and path.stat().st_size == blob.size

    def read(self, blob: Descriptor) -> Iterator[bytes]:
        """See Repository."""
        path = self._path(blob.digest)
        with _translating(path):
            if not path.is_file():
                raise LayoutError("the blob is missing", subject=str(path), hint="was all of it copied?")
            with path.open("rb") as file:
                yield from checked(blob, iter(lambda: file.read(_PIECE), b""), str(path))

    def read_part(self, blob: Descriptor, start: int, size: int) -> bytes | None:
        """See Repository."""
        path = self._path(blob.digest)
        with _translating(path), path.open("rb") as file:
            file.seek(start)
            part = file.read(size)
        return part if len(part) == size else None

    def put(self, content: bytes, media_type: str) -> Descriptor:
        """See Repository."""
        blob = Descriptor(media_type, digest_of(content), len(content))
        if not self.has(blob):
            self._store((content,), lambda: blob.digest, blob.size)
        return blob

    def upload(self, flow: LayerFlow) -> None:
        """See Repository."""
        self._store(flow.read(), lambda: flow.digest, flow.size)

    def bring(self, blob: Descriptor, source: Repository) -> int:
        """See Repository."""
        if self.has(blob):
            return 0
        self._store(source.read(blob), lambda: blob.digest, blob.size)
        return blob.size

    def _store(self, pieces: Iterable[bytes], digest: Callable[[], str], size: int | None) -> None:
        """Write a file and give it its name when it is complete; `size` is None where it is not known."""
        folder = self.folder / "blobs/sha256"
        with _translating(self.folder, size), new_file(folder, _NEW) as (file, temporary):
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(self._path(digest()))

    def _write_index(self, entries: list[dict[str, Any]]) -> None:
        document = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries,
        }
        _write(self._index, _encode(document))

    def _for_docker(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return one entry of manifest.json: https://github.com/moby/docker-image-spec, v1.2."""
        manifest = self.manifest(str(entry["digest"]))
        assert manifest is not None
        where = [self._path(blob.digest).relative_to(self.folder).as_posix() for blob in manifest.layers]
        name = entry.get("annotations", {}).get(_IMAGE_NAME)
        return {
            "Config": self._path(manifest.config.digest).relative_to(self.folder).as_posix(),
            "RepoTags": [name] if name else None,
            "Layers": where,
        }

    def _path(self, digest: str) -> Path:
        found = _DIGEST.fullmatch(digest)
        if found is None:
            raise LayoutError(f"{digest!r} is not a sha256 digest", subject=str(self._index))
        return self.folder / "blobs/sha256" / found[1]

    def _entries(self) -> list[dict[str, Any]]:
        with _translating(self._index):
            try:
                raw = read_small(self._index, _LARGEST_INDEX)
            except FileNotFoundError:
                return []
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError):
            document = None
        entries = document.get("manifests") if isinstance(document, dict) else None
        well_formed = isinstance(entries, list) and all(
            isinstance(entry, dict) and isinstance(entry.get("annotations", {}), dict) for entry in entries
        )
        if not well_formed:
            raise LayoutError("is not the index of an OCI layout", subject=str(self._index))
        assert isinstance(entries, list)
        return entries


@contextmanager
def _translating(path: Path, size: int | None = None) -> Iterator[None]:
    """Raise LayoutError, or DiskFull, for what the system says of a file; `size`: bytes to be written."""
    try:
        with saying_full(path, size):
            yield
    except OSError as error:
        raise LayoutError(
            f"cannot be used ({error.strerror})", subject=str(error.filename or path)
        ) from error


def _encode(document: Any) -> bytes:
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def _write(path: Path, content: bytes) -> None:
    """Put a complete file in its place, or leave everything as it was."""
    with _translating(path, len(content)), new_file(path.parent, _NEW) as (file, temporary):
        file.write(content)
        file.flush()
        temporary.chmod(0o644)
        temporary.replace(path)

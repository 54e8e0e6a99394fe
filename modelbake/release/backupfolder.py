"""A backup in a folder: one OCI layout with the releases of any number of models.

    index.json      an entry `NAME/TAG` for each tag of each model; attachments without a name, listed as the
                    model's by an annotation
    blobs/sha256    every blob and manifest once, whichever models have it

The index is written last and as a whole, so that it never names what is not there. `skopeo` and `oras` read
it: `skopeo inspect oci:DIR:NAME/1.4.2`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from modelbake.errors import BackupError, LayoutError, ReadBackMismatch, RegistryError
from modelbake.manifest import Descriptor, Manifest
from modelbake.plan import LABEL_PREFIX
from modelbake.registry import TAG
from modelbake.release.contents import Contents, gathered
from modelbake.stream.layout import REF_NAME, LayoutRepository
from modelbake.stream.repository import LARGEST_DOCUMENT

_MODEL = LABEL_PREFIX + "model"
_DAMAGED = (
    "this backup is damaged: remove that file, and run `backup` again while the registry has it; or restore"
    " from another copy. Nothing was tagged"
)


class BackupFolder(LayoutRepository):
    """The backup; `create` as that of a layout."""

    @classmethod
    def open(cls, folder: Path, index: str = "index.json", image: str = "") -> Self:
        """Return the backup in a folder. Raises LayoutError where there is none."""
        try:
            return super().open(folder, index, image)
        except LayoutError as error:
            error.hint = "`build.py backup NAME --output oci:DIR` writes one"
            raise

    def require_backup(self) -> None:
        """Raise BackupError where the layout lists anything but backups."""
        notes = [entry.get("annotations", {}) for entry in self.entries()]
        if any(_MODEL not in each or not all(isinstance(v, str) for v in each.values()) for each in notes):
            raise BackupError(
                "holds images that are no backup", subject=str(self.folder), hint="name another folder"
            )

    def digests(self, model: str) -> dict[str, str]:
        """Return the digest of each tag of a model, as the index says. Raises LayoutError."""
        named = ((str(entry.get("digest")), _tag_of(entry, model)) for entry in self.entries())
        return {tag: digest for digest, tag in named if tag}

    def contents(self, model: str) -> Contents:
        """Return what the backup holds of a model; no tags where it holds nothing.

        Raises LayoutError where the index cannot be read, BackupError for a manifest that is damaged.
        """
        tags: dict[str, Manifest] = {}
        others: list[Manifest] = []
        for entry in self.entries():
            tag = _tag_of(entry, model)
            if tag is None:
                continue
            if tag and not TAG.fullmatch(tag):  # it becomes part of an address at the registry
                raise BackupError(
                    f"the index lists {tag[:200]!r}, which is no tag", subject=str(self.folder), hint=_DAMAGED
                )
            manifest = self._manifest(_descriptor(entry, str(self.folder)))
            if tag:
                tags[tag] = manifest
            else:
                others.append(manifest)
        return gathered(tags, others, self._manifest)

    def keep(self, model: str, contents: Contents) -> None:
        """List what is here by now as a model's; what the source has no more stays listed."""

        def change(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
            named = {f"{model}/{tag}": manifest for tag, manifest in contents.tags.items()}
            tagged = {manifest.digest for manifest in contents.tags.values()}
            about = [
                each
                for each in contents.manifests
                if each.digest not in tagged and each.document().get("subject")
            ]
            unnamed = {each.digest for each in about}

            def stays(entry: dict[str, Any]) -> bool:
                notes = entry.get("annotations", {})
                if notes.get(_MODEL) != model:
                    return True
                name = notes.get(REF_NAME)
                return name not in named if name else entry.get("digest") not in unnamed

            kept = [entry for entry in entries if stays(entry)]
            kept += [_entry(each, {_MODEL: model, REF_NAME: name}) for name, each in named.items()]
            kept += [_entry(each, {_MODEL: model}) for each in about]
            return sorted(kept, key=_order)

        self.relist(change)

    def read(self, blob: Descriptor) -> Iterator[bytes]:
        """Yield a blob's bytes. Raises BackupError, with the file, where it is missing or damaged."""
        try:
            yield from super().read(blob)
        except (ReadBackMismatch, LayoutError) as error:
            raise BackupError(error.message, subject=error.subject, hint=_DAMAGED) from error

    def _manifest(self, entry: Descriptor) -> Manifest:
        subject = str(self._path(entry.digest))
        if entry.size > LARGEST_DOCUMENT:
            raise BackupError(f"a manifest of {entry.size:,} bytes is not read", subject=subject)
        raw = b"".join(self.read(entry))
        try:
            return Manifest.of(entry.media_type, raw)
        except RegistryError as error:
            raise BackupError(error.message, subject=subject, hint=_DAMAGED) from error


def _tag_of(entry: dict[str, Any], model: str) -> str | None:
    """Return the tag that an entry of a model has, "" for one without; None for another model's."""
    notes = entry.get("annotations", {})
    if notes.get(_MODEL) != model:
        return None
    return str(notes.get(REF_NAME, "")).removeprefix(f"{model}/")


def _entry(manifest: Manifest, notes: dict[str, str]) -> dict[str, Any]:
    return {
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": len(manifest.body),
        "annotations": notes,
    }


def _order(entry: dict[str, Any]) -> tuple[str, str, str]:
    notes = entry.get("annotations", {})
    return str(notes.get(_MODEL)), str(notes.get(REF_NAME, "")), str(entry.get("digest"))


def _descriptor(entry: dict[str, Any], subject: str) -> Descriptor:
    media_type, digest, size = (entry.get(key) for key in ("mediaType", "digest", "size"))
    if not isinstance(media_type, str) or not isinstance(digest, str) or type(size) is not int or size < 0:
        raise BackupError("the index lists what is no descriptor", subject=subject, hint=_DAMAGED)
    return Descriptor(media_type, digest, size)

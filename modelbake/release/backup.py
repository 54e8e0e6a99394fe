"""Releases copied to a folder or another registry, and back: same digests, same tags.

    blobs, eight at once  -->  manifests, each after what it lists  -->  tags, channels last

What is there is not sent again, and every byte is compared with its digest on the way. A run that ends early
leaves blobs, and no tag that names something incomplete; the next one goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelbake.diskspace import require_free
from modelbake.errors import BackupError, RegistryError
from modelbake.manifest import Descriptor, Manifest
from modelbake.parallel import parallel
from modelbake.referrers import list_by_tag, referrers_tag
from modelbake.release.attachments import COSIGN_SUFFIXES, DIGEST, subject_of_tag
from modelbake.release.contents import AT_ONCE, Contents, never_moves, registry_contents
from modelbake.stream.repository import RegistryRepository, Repository

if TYPE_CHECKING:
    from modelbake.output import Output
    from modelbake.release.backupfolder import BackupFolder

_TOLD = 64 << 20  # bytes of a blob that is worth a line
_NAMED = 5  # tags that an error names


@dataclass(frozen=True)
class Copied:
    """What a run did. `blobs` and `size` (bytes) count what was sent, `seconds` is wall time."""

    tags: int
    manifests: int
    blobs: int
    size: int
    seconds: float


def back_up(
    model: str, source: RegistryRepository, target: BackupFolder | RegistryRepository, output: Output
) -> Copied | None:
    """Copy a model's releases to a folder or another repository; None where it has none.

    Raises:
        BackupError: a version or a channel's record has another digest there.
        RegistryError, LayoutError, DiskFull: it cannot be read or written.
    """
    contents = registry_contents(source)
    if not contents.tags:
        return None
    if isinstance(target, RegistryRepository):
        return _into_registry(contents, source, target, _may_move, output)
    began = time.monotonic()
    target.require_backup()
    _require_same(target.name, contents.tags, target.digests(model), _may_move)
    require_free(target.folder, sum(blob.size for blob in contents.blobs if not target.has(blob)))
    blobs, size = _bring(contents, source, target, threading.Event(), output)
    for manifest in contents.manifests:
        target.put(manifest.body, manifest.media_type)
    target.keep(model, contents)
    return _copied(contents, blobs, size, began)


def restore(
    model: str, source: BackupFolder | RegistryRepository, target: RegistryRepository, output: Output
) -> Copied | None:
    """Put a model's releases back into its repository; None where the backup holds nothing of it.

    Raises:
        BackupError: the backup is damaged, or a tag names something else.
        RegistryError: the registry cannot be read or written.
    """
    if isinstance(source, RegistryRepository):
        contents = registry_contents(source)
    else:
        source.require_backup()
        contents = source.contents(model)
    return _into_registry(contents, source, target, _stays, output) if contents.tags else None


def _may_move(tag: str) -> bool:
    return not never_moves(tag)


def _stays(tag: str) -> bool:
    return False


def _into_registry(
    contents: Contents,
    source: Repository,
    target: RegistryRepository,
    movable: Callable[[str], bool],
    output: Output,
) -> Copied:
    began = time.monotonic()
    stop = threading.Event()
    target = RegistryRepository(target.registry, target.path, stop)
    names = sorted(contents.tags, key=_last_is_what_moves)
    found = zip(names, parallel(names, target.manifest, AT_ONCE), strict=True)
    there = {name: manifest.digest for name, manifest in found if manifest is not None}
    _require_same(target.name, contents.tags, there, movable)
    blobs, size = _bring(contents, source, target, stop, output)
    for manifest in contents.manifests:
        _put(target, manifest, contents.tags)
    by_digest = {manifest.digest: manifest for manifest in contents.manifests}
    for name in names:
        _tag(target, name, contents.tags[name], by_digest, movable)
    return _copied(contents, blobs, size, began)


def _require_same(
    place: str, wanted: Mapping[str, Manifest], there: Mapping[str, str], movable: Callable[[str], bool]
) -> None:
    """Raise BackupError where a tag that must not be moved names another digest already."""
    other = [
        f"{tag} is {there[tag]}, and here {manifest.digest}"
        for tag, manifest in sorted(wanted.items())
        if there.get(tag, manifest.digest) != manifest.digest and not movable(tag) and not _is_list(tag)
    ]
    if other:
        more = f", and {len(other) - _NAMED} more" if len(other) > _NAMED else ""
        raise BackupError(
            f"names something else already: {'; '.join(other[:_NAMED])}{more}",
            subject=place,
            hint="nothing was changed. Find out which of them is right, and remove the other tag",
        )


def _bring(
    contents: Contents, source: Repository, target: Repository, stop: threading.Event, output: Output
) -> tuple[int, int]:
    """Copy the blobs that are not there yet; return how many were sent, and their bytes."""

    def bring(blob: Descriptor) -> int:
        sent = target.bring(blob, source)
        if sent >= _TOLD:
            output.event(
                "blob_copied", f"copied {blob.digest} ({sent:,} bytes)", digest=blob.digest, bytes=sent
            )
        return sent

    sent = parallel(contents.blobs, bring, AT_ONCE, stop=stop)
    return sum(each > 0 for each in sent), sum(sent)


def _put(target: RegistryRepository, manifest: Manifest, tags: Mapping[str, Manifest]) -> None:
    subject = manifest.document().get("subject")
    about = subject.get("digest") if isinstance(subject, dict) else None
    if not isinstance(about, str) or not DIGEST.fullmatch(about):  # a list of it has no name then
        if target.manifest(manifest.digest) is None:
            target.put_manifest(manifest.digest, manifest)
    elif not target.registry.put_referrer(target.path, manifest) and referrers_tag(about) not in tags:
        list_by_tag(target, about, manifest)  # it came from a registry that lists by itself


def _tag(
    target: RegistryRepository,
    tag: str,
    manifest: Manifest,
    known: Mapping[str, Manifest],
    movable: Callable[[str], bool],
) -> None:
    """Put a tag, and look once more before that: somebody may have released meanwhile."""
    found = target.manifest(tag)
    if found == manifest:
        return
    subject = subject_of_tag(tag)
    if found is not None and subject is not None and _is_list(tag) and manifest.is_index:
        for entry in manifest.manifests:  # what has been attached there meanwhile stays listed
            list_by_tag(target, subject, known[entry.digest])
        return
    if found is not None:
        _require_same(target.name, {tag: manifest}, {tag: found.digest}, movable)
    try:
        target.put_manifest(tag, manifest)
    except RegistryError as error:
        error.hint = error.hint or "run it again: it goes on where it ended"
        raise


def _is_list(tag: str) -> bool:
    """Tell whether a tag is the list of what refers to a manifest."""
    return subject_of_tag(tag) is not None and not tag.endswith(COSIGN_SUFFIXES)


def _last_is_what_moves(tag: str) -> tuple[int, str]:
    """Return what tags are put in order by: what is attached, then versions and records, then what moves."""
    if subject_of_tag(tag) is not None:
        return 0, tag
    return (1 if never_moves(tag) else 2), tag


def _copied(contents: Contents, blobs: int, size: int, began: float) -> Copied:
    seconds = round(time.monotonic() - began, 3)
    return Copied(len(contents.tags), len(contents.manifests), blobs, size, seconds)

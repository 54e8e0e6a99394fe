"""What belongs to a model's releases: tags, the manifests under them, all that is attached, and the blobs.

Candidates do not, and neither does what is only about them. Everything is found from the tags; nothing is
copied or changed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from modelbake.errors import BackupError
from modelbake.grammar import VERSION
from modelbake.manifest import Descriptor, Manifest
from modelbake.parallel import parallel
from modelbake.release.attachments import attachments, subject_of_tag
from modelbake.stream.repository import RegistryRepository
from modelbake.versiontag import CANDIDATE

AT_ONCE = 8  # what is asked or sent at the same time
_DEEPEST = 8  # of indexes in indexes
_RECORD = re.compile(r"[a-z][a-z0-9-]*-[0-9]{4,}")


@dataclass(frozen=True)
class Contents:
    """One model's releases. `manifests`: each after those that it lists; `blobs`: each once."""

    tags: Mapping[str, Manifest]
    manifests: tuple[Manifest, ...]
    blobs: tuple[Descriptor, ...]


def never_moves(tag: str) -> bool:
    """Tell whether a tag is a version, or the numbered record of a channel's move."""
    return VERSION.matches(tag) or _RECORD.fullmatch(tag) is not None


def gathered(
    tags: Mapping[str, Manifest], others: Iterable[Manifest], fetch: Callable[[Descriptor], Manifest]
) -> Contents:
    """Follow manifests to all that they list; `fetch` returns a manifest that an index lists.

    Raises what `fetch` does, RegistryError for what is no manifest, BackupError for indexes without end.
    """
    ordered: dict[str, Manifest] = {}
    blobs: dict[str, Descriptor] = {}

    def add(manifest: Manifest, depth: int) -> None:
        if manifest.digest in ordered:
            return
        if depth > _DEEPEST:
            raise BackupError(f"indexes list indexes more than {_DEEPEST} deep", subject=manifest.digest)
        if manifest.is_index:
            for child in manifest.manifests:
                if child.digest not in ordered:
                    add(fetch(child), depth + 1)
        else:
            blobs.update((blob.digest, blob) for blob in (manifest.config, *manifest.layers))
        ordered[manifest.digest] = manifest

    for each in (*tags.values(), *others):
        add(each, 0)
    return Contents(dict(tags), tuple(ordered.values()), tuple(blobs.values()))


def registry_contents(repository: RegistryRepository) -> Contents:
    """Return the releases that a registry's repository has; no tags where it has none.

    Raises RegistryError and its subclasses; BackupError where an index lists what is not there.
    """

    def fetch(entry: Descriptor) -> Manifest:
        found = repository.manifest(entry.digest)
        if found is None:
            raise BackupError(
                "an index lists it, and it is not there", subject=f"{repository.name}@{entry.digest}"
            )
        return found

    def tagged(names: list[str]) -> dict[str, Manifest]:
        found = parallel(names, repository.manifest, AT_ONCE)
        return {name: manifest for name, manifest in zip(names, found, strict=True) if manifest is not None}

    names = repository.registry.tags(repository.path)
    released = tagged([tag for tag in names if not tag.startswith(CANDIDATE) and subject_of_tag(tag) is None])
    images = gathered(released, (), fetch).manifests
    found = parallel(images, lambda image: attachments(repository, image, names), AT_ONCE)
    attached = {each.digest: each.manifest for several in found for each in several}
    known = {image.digest for image in images} | attached.keys()
    about = tagged([tag for tag in names if subject_of_tag(tag) in known])
    return gathered({**released, **about}, attached.values(), fetch)

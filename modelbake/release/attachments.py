"""All that is kept about an image: documents that name it as their subject, signatures, what is about these.

    image  <--subject--  report, audit, SBOM, provenance   (listed by the registry, or by the tag sha256-HEX)
    image  <--name of the tag--  sha256-HEX.sig, .att, .sbom          (cosign's own scheme)
    and the same again of each of them: a signature of an SBOM is about that SBOM's manifest

Sources: https://github.com/opencontainers/distribution-spec/blob/main/spec.md ("Referrers Tag Schema") and
https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md ("Storage").
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelbake.errors import RegistryError
from modelbake.referrers import artifact_type_of, referrers_tag

if TYPE_CHECKING:
    from modelbake.manifest import Manifest
    from modelbake.stream.repository import RegistryRepository

COSIGN_SUFFIXES = (".sig", ".att", ".sbom")
_ABOUT = re.compile(r"(sha256)-([0-9a-f]{64})(?:\.sig|\.att|\.sbom)?")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Attachment:
    """One manifest that is about another.

    Attributes:
        manifest: it.
        subject: the digest of what it is about.
        artifact_type: what it says that it is.
        tag: cosign's tag, "" where it is listed as a referrer.
    """

    manifest: Manifest
    subject: str
    artifact_type: str
    tag: str = ""

    @property
    def digest(self) -> str:
        """Its digest: what a signature of it signs."""
        return self.manifest.digest


def subject_of_tag(tag: str) -> str | None:
    """Return the digest that a tag is about, `sha256-HEX` or one of cosign's; None for any other tag."""
    match = _ABOUT.fullmatch(tag)
    return f"{match[1]}:{match[2]}" if match else None


def attachments(
    repository: RegistryRepository, manifest: Manifest, tags: Collection[str] | None = None
) -> list[Attachment]:
    """Return everything that is about a manifest, and what is about that, each after what it is about.

    Args:
        repository: where it is.
        manifest: the image, or any other manifest.
        tags: the repository's tags, where they are known already.

    Raises:
        RegistryError: a list cannot be had, or names what is not there.
    """
    known = frozenset(repository.registry.tags(repository.path) if tags is None else tags)
    found: list[Attachment] = []
    seen = {manifest.digest}
    waiting = [manifest]
    while waiting:
        for attachment in _about(repository, waiting.pop(0), known):
            if attachment.digest not in seen:
                seen.add(attachment.digest)
                found.append(attachment)
                waiting.append(attachment.manifest)
    return found


def _about(repository: RegistryRepository, subject: Manifest, tags: Collection[str]) -> Iterator[Attachment]:
    """Yield what is directly about a manifest."""
    for digest in dict.fromkeys(_listed(repository, subject, tags)):
        found = repository.manifest(digest)
        if found is None:
            raise RegistryError(
                f"is listed as being about {subject.digest}, and is not there",
                subject=f"{repository.name}@{digest}",
                hint=f"something has deleted what is attached to an image that stays. Remove the tag"
                f" {referrers_tag(subject.digest)}, and attach it again: `build.py release` for an image",
            )
        yield Attachment(found, subject.digest, artifact_type_of(found))
    for tag in (referrers_tag(subject.digest) + suffix for suffix in COSIGN_SUFFIXES):
        if tag in tags and (found := repository.manifest(tag)) is not None:
            yield Attachment(found, subject.digest, artifact_type_of(found), tag)


def _listed(repository: RegistryRepository, subject: Manifest, tags: Collection[str]) -> Iterator[str]:
    """Yield the digests of both lists: a registry may have learned to list after the tag was written."""
    entries: list[Any] = repository.registry.referrers(repository.path, subject.digest) or []
    tag = referrers_tag(subject.digest)
    index = repository.manifest(tag) if tag in tags else None
    if index is not None and index.is_index:
        listed = index.document().get("manifests")
        entries = [*entries, *(listed if isinstance(listed, list) else [])]
    for entry in entries:
        digest = entry.get("digest") if isinstance(entry, dict) else None
        if isinstance(digest, str) and DIGEST.fullmatch(digest):
            yield digest

"""Documents kept beside an image: small manifests of their own that name the image as their `subject`.

    image manifest  <--subject--  artifact manifest  --layers[0]-->  the document

A registry that knows the referrers API lists them by itself. For all others the specification has a tag,
`sha256-HEX` of the subject's digest: an index which whoever attaches something has to keep. Two clients may
write that index at the same time, so it is read again after it was written.

Sources: https://github.com/opencontainers/distribution-spec/blob/main/spec.md ("Pushing Manifests with
Subject", "Listing Referrers", "Referrers Tag Schema") and
https://github.com/opencontainers/image-spec/blob/main/manifest.md ("Guidelines for Artifact Usage").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelbake.errors import ReadBackMismatch, RegistryError
from modelbake.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest, digest_of

if TYPE_CHECKING:
    from modelbake.stream.repository import RegistryRepository

EMPTY = "application/vnd.oci.empty.v1+json"
_EMPTY_BODY = b"{}"
_TITLE = "org.opencontainers.image.title"  # what `oras pull` calls the file
_TURNS = 5  # at the index of the referrers tag, while others write it as well


@dataclass(frozen=True)
class Referrer:
    """An entry of the list of what refers to an image; `annotations` are those of its manifest."""

    digest: str
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """What is attached: its bytes, their media type (of the artifact as well), its file name and notes."""

    content: bytes
    media_type: str
    name: str
    annotations: Mapping[str, str] = field(default_factory=dict)


def referrers_tag(digest: str) -> str:
    """Return the tag under which a registry without the referrers API keeps the list for a digest."""
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm[:32]}-{encoded[:64]}"


def artifact_manifest(subject: Manifest, document: Document) -> Manifest:
    """Return the manifest of a document about `subject`. Pure; the same parts give the same bytes."""
    layer = _descriptor(document.media_type, document.content)
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": document.media_type,
        "config": _descriptor(EMPTY, _EMPTY_BODY),
        "layers": [{**layer, "annotations": {_TITLE: document.name}}],
        "subject": _descriptor(subject.media_type, subject.body),
        "annotations": dict(document.annotations),
    }
    return Manifest.of(OCI_MANIFEST, _encode(body))


def attach(repository: RegistryRepository, subject: Manifest, document: Document) -> str:
    """Keep a document beside an image, and make sure that it is listed; return its manifest's digest.

    The same document about the same image is there once, however often it is attached.

    Raises:
        RegistryError and its subclasses: it is not known to be there.
        ReadBackMismatch: others write the list again and again, so that it never is in it.
    """
    manifest = artifact_manifest(subject, document)
    repository.put(_EMPTY_BODY, EMPTY)
    repository.put(document.content, document.media_type)
    if not repository.registry.put_referrer(repository.path, manifest):
        list_by_tag(repository, subject.digest, manifest)
    return manifest.digest


def referrers(repository: RegistryRepository, subject: Manifest, artifact_type: str) -> list[Referrer]:
    """Return what is listed as documents of one type about an image. Raises RegistryError."""
    listed: Sequence[Any] | None = repository.registry.referrers(
        repository.path, subject.digest, artifact_type
    )
    if listed is None:
        index = repository.manifest(referrers_tag(subject.digest))
        listed = _entries(index) if index is not None and index.is_index else []
    return [
        Referrer(str(entry.get("digest")), _texts(entry.get("annotations")))
        for entry in listed
        if isinstance(entry, dict) and entry.get("artifactType") == artifact_type
    ]


def read(repository: RegistryRepository, subject: Manifest, digest: str, media_type: str, most: int) -> bytes:
    """Return the document of a listed manifest; `most`: bytes that are read of it.

    Raises RegistryError where it is not one document of this type about this very image: whoever may push to
    the repository may list anything.
    """
    where = f"{repository.name}@{digest}"
    manifest = repository.manifest(digest) if digest.startswith("sha256:") else None
    if manifest is None:
        raise RegistryError("is listed, and is not there", subject=where)
    about = manifest.document().get("subject")
    if not isinstance(about, dict) or about.get("digest") != subject.digest:
        raise RegistryError(f"is not about {subject.digest}", subject=where)
    layers = manifest.layers
    if len(layers) != 1 or layers[0].media_type != media_type or layers[0].size > most:
        raise RegistryError(f"does not hold one {media_type} of at most {most:,} bytes", subject=where)
    return b"".join(repository.read(layers[0]))


def artifact_type_of(manifest: Manifest) -> str:
    """Return what a manifest that refers to another is: its own word, else its configuration's type.

    Source: "Listing Referrers" of the specification.
    """
    document = manifest.document()
    if isinstance(said := document.get("artifactType"), str) and said:
        return said
    return "" if manifest.is_index else manifest.config.media_type


def list_by_tag(repository: RegistryRepository, subject: str, manifest: Manifest) -> None:
    """Add a manifest to the index of the referrers tag, where it is not in it; what others have put stays.

    `subject`: the digest that the list is about. Raises RegistryError and its subclasses.
    """
    tag = referrers_tag(subject)
    where = f"{repository.name}:{tag}"
    entry = {
        **_descriptor(manifest.media_type, manifest.body),
        "artifactType": artifact_type_of(manifest),
        "annotations": _texts(manifest.document().get("annotations")),
    }
    for _ in range(_TURNS):
        index = repository.manifest(tag)
        if index is not None and index.media_type != OCI_INDEX:
            raise RegistryError(
                f"the tag is reserved for the list of what refers to {subject}, and names something else"
                f" ({index.media_type})",
                subject=where,
                hint="remove that tag",
            )
        entries = [] if index is None else _entries(index)
        if any(isinstance(each, dict) and each.get("digest") == manifest.digest for each in entries):
            return
        kept = {} if index is None else index.document()
        body = {"schemaVersion": 2, "mediaType": OCI_INDEX, **kept, "manifests": [*entries, entry]}
        try:
            repository.registry.put_manifest(repository.path, tag, Manifest.of(OCI_INDEX, _encode(body)))
        except RegistryError as error:
            error.hint = error.hint or (
                "who releases needs the right to move tags that begin with sha256-; and retention must not"
                " delete what these tags list"
            )
            raise
    raise ReadBackMismatch(
        f"others write this list as well: after {_TURNS} turns {manifest.digest} is not in it",
        subject=where,
        hint="run it again",
    )


def _entries(index: Manifest) -> Sequence[Any]:
    listed = index.document().get("manifests")
    return listed if isinstance(listed, list) else []


def _texts(notes: object) -> dict[str, str]:
    items = notes.items() if isinstance(notes, dict) else ()
    return {name: text for name, text in items if isinstance(text, str)}


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    blob = Descriptor(media_type, digest_of(content), len(content))
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

"""The signatures that a registry keeps of an image, and whether one of them is by a given key.

Two forms are read, both of cosign's:

    tag sha256-HEX.sig   by cosign 1 and 2, and 3 if asked: a manifest whose layers are "simple signing"
                         documents that name the image's digest; each one's signature is an annotation
    referrers            by cosign 3: bundles with a DSSE envelope of an in-toto statement about the digest

Whoever may push to the repository may put anything there. So what cannot be read is passed over, and one
valid signature by the key is enough. `docker-reference` in the payload is not compared: an image that was
copied to another registry, signatures included, stays signed.

Sources: https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md and BUNDLE_SPEC.md,
https://github.com/containers/image/blob/main/docs/containers-signature.5.md,
https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_bundle.proto
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelbake.errors import RegistryAuthError, RegistryError, RegistryUnavailable, SignatureError
from modelbake.manifest import Manifest
from modelbake.referrers import EMPTY, read, referrers, referrers_tag
from modelbake.release.publickey import PublicKey, envelope_content

if TYPE_CHECKING:
    from modelbake.stream.repository import RegistryRepository

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT = "application/vnd.in-toto+json"
_SIGNATURE = "dev.cosignproject.cosign/signature"
_SIMPLE_KIND = "cosign container image signature"
_STATEMENT_KINDS = ("https://in-toto.io/Statement/v0.1", "https://in-toto.io/Statement/v1")
_SIGNED = "https://sigstore.dev/cosign/sign/v1"  # the predicate of an image's signature
_MOST = 100  # signatures of one image that are looked at
_LARGEST = 1 << 20  # bytes of a payload or a bundle
UNSIGNED_HINT = "`build.py sign` signs a version that was released without"


@dataclass(frozen=True)
class Signature:
    """One signature: `content` is what was signed, `digest` the image that this content is about."""

    content: bytes
    signature: bytes
    digest: str


def signature_tag(digest: str) -> str:
    """Return the tag under which cosign keeps the signatures of a digest."""
    return f"{referrers_tag(digest)}.sig"


def verify_by_key(repository: RegistryRepository, manifest: Manifest, key: PublicKey) -> int:
    """Return how many of an image's signatures are by a key: one or more.

    Raises:
        SignatureError: there is none, or none by this key about this image.
        RegistryError and its subclasses: the registry does not say.
    """
    return verified(list(kept_signatures(repository, manifest)), manifest.digest, key, repository.name)


def verified(signatures: list[Signature], digest: str, key: PublicKey, name: str) -> int:
    """Return how many signatures of a list are by a key and about a digest. Pure; see `verify_by_key`."""
    subject = f"{name}@{digest}"
    if not signatures:
        raise SignatureError("it is not signed", subject=subject, hint=UNSIGNED_HINT)
    by_key = [each for each in signatures if key.signed(each.content, each.signature)]
    about = sum(each.digest == digest for each in by_key)
    if about:
        return about
    if by_key:
        raise SignatureError(
            f"its signature by this key is about another image ({by_key[0].digest})",
            subject=subject,
            hint="somebody copied another image's signature here: find out who may push to this repository",
        )
    raise SignatureError(
        f"none of its {len(signatures)} signatures is by the key {key.fingerprint[:12]}",
        subject=subject,
        hint="is `signing: public_key` the key that this image was signed with?",
    )


def kept_signatures(repository: RegistryRepository, manifest: Manifest) -> Iterator[Signature]:
    """Yield what can be read as signatures of an image, whoever made them.

    Raises RegistryUnavailable, RegistryAuthError, and RegistryError where the lists themselves cannot be had.
    """
    found = repository.manifest(signature_tag(manifest.digest))
    if found is not None and not found.is_index:
        yield from _simple(repository, found)
    # Where a registry keeps no such lists, cosign writes the type of the empty configuration into its own.
    listed = (*referrers(repository, manifest, BUNDLE), *referrers(repository, manifest, EMPTY))
    for referrer in listed[:_MOST]:
        try:
            raw = read(repository, manifest, referrer.digest, BUNDLE, _LARGEST)
        except (RegistryUnavailable, RegistryAuthError):
            raise
        except RegistryError:
            continue
        if (signature := _of_bundle(raw)) is not None:
            yield signature


def _simple(repository: RegistryRepository, found: Manifest) -> Iterator[Signature]:
    try:
        layers, entries = found.layers, found.document()["layers"]
    except RegistryError:
        return
    for layer, entry in list(zip(layers, entries, strict=True))[:_MOST]:
        notes = entry.get("annotations")
        signature = _decoded(notes.get(_SIGNATURE) if isinstance(notes, dict) else None)
        if layer.media_type != SIMPLE_SIGNING or layer.size > _LARGEST or signature is None:
            continue
        try:
            payload = b"".join(repository.read(layer))
        except (RegistryUnavailable, RegistryAuthError):
            raise
        except RegistryError:
            continue
        digest = claimed(payload)
        if digest is not None:
            yield Signature(payload, signature, digest)


def claimed(payload: bytes) -> str | None:
    """Return the digest of the image that a simple signing document is about, None where it is none such."""
    critical = _object(payload).get("critical")
    if not isinstance(critical, dict) or critical.get("type") != _SIMPLE_KIND:
        return None
    image = critical.get("image")
    digest = image.get("docker-manifest-digest") if isinstance(image, dict) else None
    return digest if isinstance(digest, str) else None


def _of_bundle(raw: bytes) -> Signature | None:
    opened = open_bundle(raw)
    if opened is None:
        return None
    payload, signature = opened
    statement = _object(payload)
    subjects = statement.get("subject")
    if statement.get("_type") not in _STATEMENT_KINDS or statement.get("predicateType") != _SIGNED:
        return None
    if not isinstance(subjects, list) or len(subjects) != 1 or not isinstance(subjects[0], dict):
        return None
    digests = subjects[0].get("digest")
    digest = digests.get("sha256") if isinstance(digests, dict) else None
    return Signature(envelope_content(STATEMENT, payload), signature, f"sha256:{digest}")


def open_bundle(raw: bytes) -> tuple[bytes, bytes] | None:
    """Return the payload and the signature of a bundle's envelope of one in-toto statement, else None."""
    envelope = _object(raw).get("dsseEnvelope")
    if not isinstance(envelope, dict) or envelope.get("payloadType") != STATEMENT:
        return None
    payload, signatures = _decoded(envelope.get("payload")), envelope.get("signatures")
    if payload is None or not isinstance(signatures, list) or len(signatures) != 1:
        return None
    signature = _decoded(signatures[0].get("sig")) if isinstance(signatures[0], dict) else None
    return None if signature is None else (payload, signature)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _decoded(text: object) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        return None

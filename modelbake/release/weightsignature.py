"""A signature over an image's weights by themselves, in the form of OpenSSF model signing.

It lists every weight file with its sha256, which the image's manifest has: no weight is read to sign them. It
is kept beside the image, and verifies a folder with the files by `model_signing verify key`: whoever takes
weights out of an image, or mounts them, can tell whose they are.

Sources: https://github.com/sigstore/model-transparency (docs and the package's `_signing`), predicate
https://model_signing/signature/v1.0; https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelbake.errors import (
    RegistryAuthError,
    RegistryError,
    RegistryUnavailable,
    SignatureError,
    SigningFailed,
)
from modelbake.history import single_image
from modelbake.referrers import Document, attach, read, referrers
from modelbake.release.baked import read_baked
from modelbake.release.publickey import PublicKey, envelope_content
from modelbake.release.signatures import BUNDLE, STATEMENT, open_bundle

if TYPE_CHECKING:
    from modelbake.locked import LockedFile
    from modelbake.manifest import Manifest
    from modelbake.release.signing import Signing
    from modelbake.stream.repository import RegistryRepository

WEIGHTS_TYPE = "application/vnd.modelbake.model-signing.v1+json"
# model_signing leaves these out of any folder, unless it is told not to; then they cannot be listed here.
IGNORED = (".git", ".gitattributes", ".github", ".gitignore")
_PREDICATE = "https://model_signing/signature/v1.0"
_LARGEST = 64 << 20  # bytes; some hundred a file


def sign_weights(repository: RegistryRepository, manifest: Manifest, signing: Signing) -> bool:
    """Keep a signature over the weights beside an image, unless one is there; return whether that was made.

    Only a key that is verified by a PEM file signs them: keyless and KMS-only signatures leave them unsigned,
    and say so.

    Raises:
        SigningFailed: it could not be made.
        RegistryError and its subclasses: it is not known to be there, or the image cannot be read.
    """
    subject = f"{repository.name}@{manifest.digest}"
    if signing.key is None:
        signing.output.event(
            "weights_not_signed",
            f"{subject}: its weights have no signature of their own: that takes a key file",
        )
        return False
    image = single_image(repository, manifest)
    baked = read_baked(repository, image) if image is not None else None
    if baked is None:
        raise SigningFailed("the image has no manifest of weights", subject=subject)
    try:
        kept_bundle(repository, manifest, signing.key, baked.files)
    except SignatureError:
        pass
    else:
        return False
    payload = statement(baked.model, baked.files)
    signature = signing.signature_of(envelope_content(STATEMENT, payload), subject)
    content = bundle(payload, signature, signing.key)
    attach(
        repository, manifest, Document(content, WEIGHTS_TYPE, f"{baked.model}-{baked.version}-weights.sig")
    )
    signing.output.event("weights_signed", f"{subject}: the signature of its weights is kept beside it")
    return True


def kept_bundle(
    repository: RegistryRepository, manifest: Manifest, key: PublicKey, files: Sequence[LockedFile]
) -> bytes:
    """Return the kept bundle that is signed by a key and lists exactly these files.

    Raises:
        SignatureError: there is none.
        RegistryError and its subclasses: the registry does not say.
    """
    subject = f"{repository.name}@{manifest.digest}"
    problem = "its weights have no signature of their own"
    for referrer in referrers(repository, manifest, WEIGHTS_TYPE):
        try:
            raw = read(repository, manifest, referrer.digest, WEIGHTS_TYPE, _LARGEST)
        except (RegistryUnavailable, RegistryAuthError):
            raise
        except RegistryError as error:
            problem = str(error)
            continue
        opened = open_bundle(raw)
        if opened is None or not key.signed(envelope_content(STATEMENT, opened[0]), opened[1]):
            problem = "the signature of its weights is by another key"
        elif _resources(opened[0]) != [_resource(file) for file in _listed(files)]:
            problem = "the signature of its weights is about other files"
        else:
            return raw
    raise SignatureError(problem, subject=subject, hint="`build.py sign` makes one")


def statement(model: str, files: Sequence[LockedFile]) -> bytes:
    """Return the in-toto statement about weights. Pure; the same files give the same bytes."""
    listed = _listed(files)
    root = hashlib.sha256(b"".join(bytes.fromhex(file.sha256) for file in listed)).hexdigest()
    document = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": model, "digest": {"sha256": root}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(IGNORED),
            },
            "resources": [_resource(file) for file in listed],
        },
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def bundle(payload: bytes, signature: bytes, key: PublicKey) -> bytes:
    """Return the Sigstore bundle of a signed statement."""
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": STATEMENT,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }
    material = {"publicKey": {"hint": key.fingerprint}, "tlogEntries": []}
    document = {"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope}
    return (json.dumps(document, indent=1) + "\n").encode()


def _listed(files: Sequence[LockedFile]) -> list[LockedFile]:
    kept = (file for file in files if file.path.partition("/")[0] not in IGNORED)
    return sorted(kept, key=lambda file: file.path)


def _resource(file: LockedFile) -> dict[str, str]:
    return {"name": file.path, "algorithm": "sha256", "digest": file.sha256}


def _resources(payload: bytes) -> Any:
    try:
        document = json.loads(payload)
        if document["predicateType"] != _PREDICATE:
            return None
        return document["predicate"]["resources"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None

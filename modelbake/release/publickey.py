"""Public keys that signatures are verified with, and what a DSSE envelope signs.

Keys that `cosign generate-key-pair` makes are of the curve P-256, and sign the SHA-256 of a content. Keys of
other kinds are left to the cosign program.

Sources: https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md,
https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from modelbake.errors import SignatureError

_LARGEST = 1 << 16  # bytes of a PEM file
_HINT = "`cosign generate-key-pair` makes cosign.key and cosign.pub: name the second one"


@dataclass(frozen=True)
class PublicKey:
    """A key of the curve P-256; `pem` is the one way in which it is written."""

    pem: bytes
    key: ec.EllipticCurvePublicKey

    @property
    def fingerprint(self) -> str:
        """64 hex digits that name it: the SHA-256 of its PEM."""
        return hashlib.sha256(self.pem).hexdigest()

    def signed(self, content: bytes, signature: bytes) -> bool:
        """Tell whether a signature (ASN.1 DER) is that of this key's owner over a content."""
        try:
            self.key.verify(signature, content, ec.ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True


def read_key(path: Path) -> PublicKey | None:
    """Return the key of a PEM file; None where it is of a kind that only the cosign program knows.

    Raises SignatureError where the file cannot be read or is no public key.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST)
    except OSError as error:
        raise SignatureError(
            f"the public key {path} cannot be read ({error.strerror})", subject=str(path), hint=_HINT
        ) from error
    return parse_key(content, str(path))


def parse_key(content: bytes, subject: str) -> PublicKey | None:
    """Return the key of a PEM text; see `read_key`."""
    if b"PRIVATE KEY" in content:
        raise SignatureError(
            "this is a private key, and a public one is asked for", subject=subject, hint=_HINT
        )
    try:
        key = load_pem_public_key(content)
    except UnsupportedAlgorithm:
        return None
    except ValueError as error:
        raise SignatureError("this is no public key in PEM form", subject=subject, hint=_HINT) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        return None
    return PublicKey(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), key)


def envelope_content(payload_type: str, payload: bytes) -> bytes:
    """Return what the signatures of a DSSE envelope are made over: its "pre-authentication encoding"."""
    kind = payload_type.encode()
    return b" ".join((b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload))

"""Signing an image, and finding out whether it is signed by whom models.yaml says.

    sign      always the cosign program: private keys are its business, and never read here
    verify    a public key in a file: here, by what the registry keeps, no program needed
              a key in a cloud, an identity, the transparency log: the cosign program

It is the digest that is signed, never a tag. A signature is verified after it was made, by the same rule as
on a host, so that nothing is called signed which a host would refuse.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from modelbake.errors import ModelbakeError, RegistryError, SignatureError, SigningFailed
from modelbake.process import environment
from modelbake.release.cosign import (
    UNLOCKS,
    UNLOCKS_BY_FILE,
    Cosign,
    content_file,
    find_cosign,
    key_password,
    said,
)
from modelbake.release.publickey import PublicKey, parse_key, read_key
from modelbake.release.signatures import UNSIGNED_HINT, verify_by_key

if TYPE_CHECKING:
    import subprocess

    from modelbake.credentials import Secret
    from modelbake.manifest import Manifest
    from modelbake.output import Output
    from modelbake.release.entries import SigningEntry
    from modelbake.stream.repository import RegistryRepository

KEY = "MODELBAKE_SIGNING_KEY"
_CLOUD = re.compile(r"(?:awskms|gcpkms|azurekms|hashivault|k8s)://\S+")
# Else cosign 3 asks the network for services, and writes what older readers do not know.
_AS_BEFORE = {"new-bundle-format": "false", "use-signing-config": "false"}


@dataclass(frozen=True)
class Signing:
    """Whose signature counts, and how one is made here.

    `public_key`: a file or a KMS URI; None: `identity`, as `issuer` says. `log`: the transparency log is
    written, and asked.
    """

    output: Output = field(repr=False)
    public_key: Path | str | None = None
    identity: str = ""
    issuer: str = ""
    log: bool = False

    @classmethod
    def of(cls, entry: SigningEntry, folder: Path, output: Output) -> Self:
        """Return what `signing:` of the models.yaml in a folder says."""
        key: Path | str | None = entry.public_key
        if isinstance(key, str) and not _CLOUD.fullmatch(key):
            key = folder / key
        return cls(output, key, entry.identity or "", entry.issuer or "", entry.transparency_log)

    @classmethod
    def by_key(cls, given: str, output: Output) -> Self:
        """Return verification by a key alone: a file or a KMS URI."""
        return cls(output, given if _CLOUD.fullmatch(given) else Path(given))

    @property
    def whose(self) -> str:
        """Who has to have signed, in words."""
        return f"the key {self.public_key}" if self.public_key is not None else self.identity

    @cached_property
    def key(self) -> PublicKey | None:
        """The public key, None where it takes the program to know it. Raises SignatureError."""
        return read_key(self.public_key) if isinstance(self.public_key, Path) else None

    def verify(self, repository: RegistryRepository, manifest: Manifest) -> None:
        """Return if a manifest of a repository is signed.

        Raises:
            SignatureError: it is not, or not by them; or it cannot be found out.
            RegistryError and its subclasses: the registry does not say.
        """
        if self.key is not None:
            verify_by_key(repository, manifest, self.key)
            if not self.log:
                return
        self._verify_by_program(repository, manifest)

    def prepare(self, repository: RegistryRepository, manifest: Manifest) -> None:
        """Find out whether `sign` has what it needs, before anything is written. Raises as `sign` does."""
        if not self._is_signed(repository, manifest):
            self.require_means()

    def sign(self, repository: RegistryRepository, manifest: Manifest) -> bool:
        """Sign a manifest of a repository; return whether it was not signed before.

        Raises:
            SigningFailed: there is no key or program, they refuse, or what they made is not valid.
            SignatureError: `public_key` cannot be used.
            RegistryError and its subclasses: the registry does not say.
        """
        subject = f"{repository.name}@{manifest.digest}"
        if self._is_signed(repository, manifest):
            self.output.event("signed_already", f"{subject} is signed by {self.whose}", subject=subject)
            return False
        cosign, key, password = self._means
        wanted = {**_AS_BEFORE, "tlog-upload": "true" if self.log else "false", "yes": "true"}
        arguments = ["sign", *([f"--key={key}"] if key else []), *cosign.options("sign", wanted), subject]
        host = repository.registry.host
        done = cosign.run(arguments, host=host, password=password, cloud=_in_cloud(key))
        if done.returncode:
            raise _failed(done, subject)
        try:
            self.verify(repository, manifest)
        except (SignatureError, RegistryError) as error:
            raise SigningFailed(
                f"cosign has signed it, and yet: {error.message}",
                subject=subject,
                hint=error.hint or f"is {self.whose} the public half of what {KEY} names?",
            ) from error
        self.output.event("signed", f"{subject} is signed by {self.whose}", subject=subject)
        return True

    def signature_of(self, content: bytes, subject: str) -> bytes:
        """Return the key's signature (ASN.1 DER) over a content of which `subject` says what it is.

        Raises SigningFailed, also where `public_key` is no file: this is for signatures that are verified by
        a key alone.
        """
        if self.key is None:
            raise SigningFailed(
                "only a key whose public half is a PEM file of P-256 signs this", subject=subject
            )
        cosign, key, password = self._means
        with content_file(content) as path:
            bundle = path.with_name("signature.json")
            wanted = {**_AS_BEFORE, "tlog-upload": "false", "yes": "true", "bundle": str(bundle)}
            arguments = ["sign-blob", f"--key={key}", *cosign.options("sign-blob", wanted), str(path)]
            done = cosign.run(arguments, password=password, cloud=_in_cloud(key))
            if done.returncode:
                raise _failed(done, subject)
            signature = _blob_signature(bundle)
        if signature is None or not self.key.signed(content, signature):
            raise SigningFailed(
                f"cosign has signed it, and {self.whose} does not verify that", subject=subject
            )
        return signature

    def has_signed(self, repository: RegistryRepository, digest: str) -> bool:
        """Tell whether a manifest is there and signed. Raises RegistryError and its subclasses."""
        manifest = repository.manifest(digest)
        return manifest is not None and self._is_signed(repository, manifest)

    def require_means(self) -> None:
        """Find out whether `sign` has what it needs; raises as `sign` does."""
        _ = self._means

    def _is_signed(self, repository: RegistryRepository, manifest: Manifest) -> bool:
        try:
            self.verify(repository, manifest)
        except SignatureError:
            return False
        return True

    @cached_property
    def _means(self) -> tuple[Cosign, str, Secret | None]:
        """Program, private key ("" for none) and its password, once they are known to fit."""
        key = _private_key(self.public_key)
        try:
            cosign = find_cosign(self.output.redactor)
        except SignatureError as error:
            raise SigningFailed(error.message, subject=error.subject, hint=error.hint) from error
        password = key_password()
        if password is not None:
            self.output.redactor.add(password)
        if key and self.key is not None:
            self._require_pair(cosign, key, password, self.key)
        return cosign, key, password

    def _require_pair(self, cosign: Cosign, key: str, password: Secret | None, public: PublicKey) -> None:
        """Raise SigningFailed unless a private key is that of the public one: before anything is written."""
        done = cosign.run(["public-key", f"--key={key}"], password=password, cloud=_in_cloud(key))
        if done.returncode:
            raise _failed(done, f"{KEY}={key}")
        try:
            found = parse_key(done.stdout.encode(), key)
        except SignatureError as error:
            raise SigningFailed(error.message, subject=f"{KEY}={key}") from error
        if found is None or found.pem != public.pem:
            raise SigningFailed(
                f"this is the key of another public key than {self.public_key}",
                subject=f"{KEY}={key}",
                hint="hosts verify with `signing: public_key`: name the private key that belongs to it",
            )

    def _verify_by_program(self, repository: RegistryRepository, manifest: Manifest) -> None:
        subject = f"{repository.name}@{manifest.digest}"
        try:
            cosign = find_cosign(self.output.redactor)
        except SignatureError as error:
            what = "the transparency log" if self.key is not None else self.whose
            raise SignatureError(
                f"a signature by {what} is verified by cosign, and {error.message}",
                subject=subject,
                hint=error.hint,
            ) from error
        if self.public_key is not None:
            arguments = ["verify", f"--key={self.public_key}"]
        else:
            arguments = [
                "verify",
                f"--certificate-identity={self.identity}",
                f"--certificate-oidc-issuer={self.issuer}",
            ]
        if not self.log:
            arguments.append("--insecure-ignore-tlog=true")
        cloud = isinstance(self.public_key, str)
        done = cosign.run([*arguments, subject], host=repository.registry.host, cloud=cloud)
        if done.returncode:
            words = said(done)
            unsigned = re.search(r"no (?:matching )?signatures|no signatures found", words)
            raise SignatureError(
                f"it is not signed by {self.whose}: {words}",
                subject=subject,
                hint=UNSIGNED_HINT if unsigned else "",
            )


def _private_key(public_key: Path | str | None) -> str:
    """Return what cosign signs with, "" for an identity. Raises SigningFailed where that is nothing."""
    if public_key is None:
        return ""
    named = environment().get(KEY, "")
    if not named and isinstance(public_key, str):
        return public_key  # a key in a cloud has one name for both halves
    if not named:
        raise SigningFailed(
            "no private key is named",
            subject=KEY,
            hint=f"set {KEY} to the file that `cosign generate-key-pair` has made, or to a KMS URI",
        )
    if _CLOUD.fullmatch(named):
        return named
    try:
        with Path(named).open("rb") as file:
            head = file.read(1 << 12)
    except OSError as error:
        raise SigningFailed(
            f"the private key cannot be read ({error.strerror})",
            subject=f"{KEY}={named}",
            hint="name a file that `cosign generate-key-pair` has made, or a KMS URI such as awskms:///alias/name",
        ) from error
    if not re.search(rb"ENCRYPTED (?:SIGSTORE|COSIGN) PRIVATE KEY", head):
        raise SigningFailed(
            "this is no private key of cosign's",
            subject=f"{KEY}={named}",
            hint="`cosign import-key-pair --key FILE` makes one of a PEM file",
        )
    return named


def _in_cloud(key: str) -> bool:
    return not key or bool(_CLOUD.fullmatch(key))


def _failed(done: subprocess.CompletedProcess[str], subject: str) -> ModelbakeError:
    words = said(done)
    hint = ""
    if "decrypt" in words:
        hint = f"is {UNLOCKS}, or the file that {UNLOCKS_BY_FILE} names, the password of this key?"
    elif re.search(r"UNAUTHORIZED|DENIED|401|403", words):
        hint = "who signs needs the right to push tags that begin with sha256- to this repository"
    elif "tlog" in words or "rekor" in words:
        hint = "the transparency log cannot be reached; without it: `signing: {transparency_log: false}`"
    return SigningFailed(f"cosign: {words}", subject=subject, hint=hint)


def _blob_signature(bundle: Path) -> bytes | None:
    import base64

    try:
        return base64.b64decode(json.loads(bundle.read_bytes())["base64Signature"], validate=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None

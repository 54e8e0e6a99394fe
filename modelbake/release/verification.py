"""Is an image in its registry what it should be: one check after the other, each ok, failed, or not checked.

Nothing of it needs an engine or reads a layer of weights: digests, signatures and documents are asked of the
registry by small requests. That the weights' bytes are the listed ones is what the image itself compares at
every start, and `audit` reads all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from modelbake.dockerconfig import split_reference
from modelbake.errors import (
    LockError,
    RegistryAuthError,
    RegistryError,
    RegistryUnavailable,
    SignatureError,
    UsageError,
)
from modelbake.grammar import VERSION
from modelbake.history import opened, single_image
from modelbake.manifest import Descriptor, Manifest
from modelbake.parallel import parallel
from modelbake.plan import LABEL_PREFIX, LOCK_LABEL
from modelbake.release.aliases import ALIAS, aliases_of
from modelbake.release.audits import kept_audits
from modelbake.release.baked import Baked, read_baked, read_labels
from modelbake.release.documents import SBOM_TYPE, usable_documents
from modelbake.release.evidence import audit_problem, seen
from modelbake.release.provenance import PROVENANCE_TYPE
from modelbake.release.quarantine import quarantines
from modelbake.release.weightsignature import kept_bundle
from modelbake.reportstore import kept_reports
from modelbake.tables import table

if TYPE_CHECKING:
    from modelbake.locked import LockedModel
    from modelbake.output import Output
    from modelbake.release.entries import ChannelEntry
    from modelbake.release.signing import Signing
    from modelbake.report import Report
    from modelbake.stream.repository import RegistryRepository

State = Literal["ok", "failed", "note", "not checked"]
_BASE_NAME, _BASE_DIGEST = "org.opencontainers.image.base.name", "org.opencontainers.image.base.digest"
_DOCUMENTS = {"sbom": SBOM_TYPE, "provenance": PROVENANCE_TYPE}
_AT_ONCE = 8
_SIGNED = "; signed"
_FOREIGN = "it is no image of this toolkit"


@dataclass(frozen=True)
class Check:
    """One check. `note`: worth knowing, and nothing wrong; `said`: what was found, or why nobody looked."""

    name: str
    state: State
    said: str


@dataclass(frozen=True)
class Locked:
    """What models.lock says of the model and version; `facts` is an error where it says nothing of use."""

    version: str
    facts: Callable[[], LockedModel] = field(repr=False)


@dataclass(frozen=True)
class Verification:
    """An image that is to be verified.

    Attributes:
        repository: where it is.
        reference: the tag or digest under which it was found.
        manifest: what was found.
        output: where what is passed over is named.
        signing: whose signature counts, None where nobody says.
        locked: what its weights should be, None where no models.yaml says.
        channel: a channel that it is to be in, with what that requires.
    """

    repository: RegistryRepository
    reference: str
    manifest: Manifest
    output: Output
    signing: Signing | None = None
    locked: Locked | None = None
    channel: tuple[str, ChannelEntry] | None = None

    def checks(self) -> list[Check]:
        """Return every check with its result.

        Raises RegistryUnavailable, RegistryAuthError: nothing can be said.
        """
        steps: dict[str, Callable[[], Iterator[Check]]] = {
            "digest": self._digest,
            "content": self._content,
            "quarantine": self._quarantine,
            "version": self._version,
            "signature": self._signature,
            "lock": self._lock,
            "weights signature": self._weights,
            "report": self._report,
            "audit": self._audit,
            **{name: self._document(name, kind) for name, kind in _DOCUMENTS.items()},
        }
        found: list[Check] = []
        for name, step in steps.items():
            found += self._made(name, step)
        found += self._made("base", lambda: self._base(found))
        return [*found, *self._made("channel", lambda: self._in_channel(found))]

    def _made(self, name: str, step: Callable[[], Iterator[Check]]) -> list[Check]:
        """Make a check; what it cannot read of the image has failed."""
        try:
            return list(step())
        except (RegistryUnavailable, RegistryAuthError):
            raise
        except (RegistryError, SignatureError) as error:
            return [Check(name, "failed", error.message)]

    @cached_property
    def image(self) -> Manifest | None:
        """The manifest of the image; None where an index lists several."""
        return single_image(self.repository, self.manifest)

    @cached_property
    def labels(self) -> dict[str, str]:
        """The image's labels."""
        return {} if self.image is None else read_labels(self.repository, self.image)

    @cached_property
    def baked(self) -> Baked | None:
        """What the image says of its weights."""
        return None if self.image is None else read_baked(self.repository, self.image)

    @cached_property
    def reports(self) -> list[Report]:
        """The reports that are kept beside it."""
        model, version = (self.labels.get(LABEL_PREFIX + key, "") for key in ("model", "version"))
        return kept_reports(self.repository, self.manifest, model, version, self.output)

    def _digest(self) -> Iterator[Check]:
        # The registry's client has computed it of the bytes, and compared it with whatever asked or answered.
        yield Check("digest", "ok", f"the manifest's bytes are {self.manifest.digest}")

    def _content(self) -> Iterator[Check]:
        if self.image is None:
            yield Check("content", "failed", "it is an index of several images, or of none")
            return
        blobs = list(dict.fromkeys((self.image.config, *self.image.layers)))
        sizes = parallel(blobs, self._size, _AT_ONCE)
        wrong = [
            f"{blob.digest} is missing"
            if size is None
            else f"{blob.digest} has {size:,} bytes, not {blob.size:,}"
            for blob, size in zip(blobs, sizes, strict=True)
            if size != blob.size
        ]
        total = sum(blob.size for blob in blobs)
        if wrong:
            yield Check("content", "failed", "; ".join(wrong))
        else:
            layers = len(self.image.layers)
            yield Check("content", "ok", f"configuration and {layers} layers are there, {total:,} bytes")

    def _quarantine(self) -> Iterator[Check]:
        for each in quarantines(self.repository, self.manifest):
            yield Check("quarantine", "failed", each.words)

    def _size(self, blob: Descriptor) -> int | None:
        return self.repository.registry.blob_size(self.repository.path, blob.digest)

    def _version(self) -> Iterator[Check]:
        version = self.labels.get(LABEL_PREFIX + "version", "")
        if not VERSION.matches(version):
            yield Check("version", "not checked", _FOREIGN)
            return
        if self._is_tag_of_another(version):
            yield Check("version", "failed", f"the tag {self.reference} names an image of version {version}")
            return
        model, here = self.labels.get(LABEL_PREFIX + "model", ""), self.repository.path.rpartition("/")[2]
        if model and model != here:
            # Its key may have signed it as what it is. Where a models.yaml names `here`, it is none of that.
            yield Check(
                "version", "failed" if self.locked else "note", f"it says that it is {model}, not {here}"
            )
            return
        tagged = self.repository.manifest(version)
        if tagged is None:
            yield Check("version", "note", f"{version} is not released: there is no such tag")
        elif tagged.digest != self.manifest.digest:
            yield Check("version", "failed", f"{version} was released as another image, {tagged.digest}")
        else:
            yield Check("version", "ok", f"it is what was released as {version}")

    def _is_tag_of_another(self, version: str) -> bool:
        if VERSION.matches(self.reference):
            return self.reference != version
        return bool(ALIAS.fullmatch(self.reference)) and self.reference not in aliases_of(version)

    def _signature(self) -> Iterator[Check]:
        if self.signing is None:
            yield Check("signature", "not checked", "nobody says whose counts: --public-key, or `signing:`")
            return
        self.signing.verify(self.repository, self.manifest)
        yield Check("signature", "ok", f"signed by {self.signing.whose}")

    def _weights(self) -> Iterator[Check]:
        name = "weights signature"
        key = self.signing.key if self.signing is not None else None
        if key is None:
            yield Check(name, "not checked", "that takes a public key in a file")
        elif self.baked is None:
            yield Check(name, "not checked", _FOREIGN)
        else:
            try:
                kept_bundle(self.repository, self.manifest, key, self.baked.files)
            except SignatureError as error:
                # Images are signed by other tools as well, and these do not sign weights by themselves.
                absent = "no signature of their own" in error.message
                yield Check(name, "not checked" if absent else "failed", error.message)
            else:
                yield Check(name, "ok", f"it lists {len(self.baked.files)} files, and is by the same key")

    def _lock(self) -> Iterator[Check]:
        baked = self.baked
        if baked is None:
            said = _FOREIGN if not self.labels.get(LOCK_LABEL) else "the image has no manifest of its weights"
            yield Check("lock", "failed" if self.labels.get(LOCK_LABEL) else "not checked", said)
            return
        label = self.labels.get(LOCK_LABEL, "")
        if label != baked.lock:
            yield Check("lock", "failed", f"its label says {label or 'nothing'}, its manifest {baked.lock}")
            return
        size = sum(file.size for file in baked.files)
        what = f"{len(baked.files)} files of {size:,} bytes, lock {baked.lock}"
        if self.locked is None:
            yield Check("lock", "not checked", f"no models.lock here is about it; it says {what}")
            return
        if self.locked.version != baked.version:
            now = self.locked.version
            yield Check(
                "lock", "not checked", f"models.yaml is at {now}, this is {baked.version}; it says {what}"
            )
            return
        try:
            locked = self.locked.facts()
        except LockError as error:
            yield Check("lock", "not checked", error.message)
            return
        weights = tuple(replace(file, version="") for file in locked.weights)  # an image says no versions
        if locked.digest != baked.lock or weights != baked.files:
            differing = sorted(file.path for file in {*weights} ^ {*baked.files})
            named = ", ".join(dict.fromkeys(differing[:5])) or "where they come from"
            yield Check("lock", "failed", f"it differs from models.lock ({locked.digest}): {named}")
        else:
            yield Check("lock", "ok", f"{what}, as models.lock says")

    def _report(self) -> Iterator[Check]:
        if not self.reports:
            yield Check("report", "not checked", "there is none beside it")
            return
        each = (f"{report.device} on {report.started_at[:10]}" for report in self.reports)
        yield Check("report", "ok", f"passed its smoke test: {', '.join(each)}")

    def _audit(self) -> Iterator[Check]:
        audits = kept_audits(self.repository, self.manifest)
        if not audits:
            yield Check("audit", "not checked", "there is no clean one beside it")
            return
        audit = next((each for each in audits if self._signed([each.digest]) == _SIGNED), audits[0])
        rules = "today's rules" if audit.is_current else "rules that are not today's"
        yield Check("audit", "ok", f"clean on {audit.created[:10]}, by {rules}{self._signed([audit.digest])}")

    def _signed(self, digests: Sequence[str]) -> str:
        """Return in words whether documents are signed as well; "" where that takes a program for each."""
        if self.signing is None or self.signing.key is None or self.signing.log:
            return ""
        for digest in digests:
            manifest = self.repository.manifest(digest)
            try:
                if manifest is not None:
                    self.signing.verify(self.repository, manifest)
                    return _SIGNED
            except SignatureError:
                continue
        return "; not signed itself"

    def _document(self, name: str, kind: str) -> Callable[[], Iterator[Check]]:
        def check() -> Iterator[Check]:
            usable = usable_documents(self.repository, self.manifest, kind, self.output)
            listed = [digest for digest, _ in usable]
            if listed:
                yield Check(name, "ok", f"beside it ({kind}){self._signed(listed)}")
            else:
                yield Check(name, "not checked", "there is none beside it")

        return check

    def _base(self, found: Sequence[Check]) -> Iterator[Check]:
        # A base's registry is asked because the image says so: of an image that anybody could have made, no.
        signed = any(each.name == "signature" and each.state == "ok" for each in found)
        if not signed and self.locked is None:
            yield Check("base", "not checked", "what an unsigned image says of it is not followed")
            return
        name, digest = self.labels.get(_BASE_NAME, ""), self.labels.get(_BASE_DIGEST, "")
        try:
            base = split_reference(name)
        except UsageError:
            base = None
        if base is None or base.tag is None or not digest:
            said = (
                f"its base is {name}, and no tag says what is newer" if name else "it does not say its base"
            )
            yield Check("base", "not checked", said)
            return
        shown = f"{base.name}:{base.tag}"
        try:
            with opened(base.registry, base.repository, self.output) as repository:
                now = repository.manifest(base.tag)
        except (RegistryError, UsageError) as error:
            yield Check("base", "not checked", f"{shown}: {error.message}")
            return
        if now is None:
            yield Check("base", "note", f"{shown} is no longer in its registry")
        elif now.digest != digest:
            yield Check("base", "note", f"{shown} is {now.digest} now, newer than its {digest}: rebuild it")
        else:
            yield Check("base", "ok", f"{shown} is still {digest}")

    def _in_channel(self, found: Sequence[Check]) -> Iterator[Check]:
        if self.channel is None:
            return
        name, entry = self.channel
        tagged = self.repository.manifest(name)
        if tagged is None:
            yield Check("channel", "failed", f"there is nothing in {name}")
        elif tagged.digest != self.manifest.digest:
            yield Check("channel", "failed", f"{name} is at another image, {tagged.digest}")
        elif seen(self.repository, name, self.output).by_hand:
            yield Check("channel", "note", f"{name} is at this image, and no record says who put it there")
        else:
            yield Check("channel", "ok", f"{name} is at this image")
        states = {check.name: check.state for check in found}
        for requirement in entry.require:
            if requirement == "gpu_report":
                met = any(report.gpu and report.passed for report in self.reports)
            elif requirement == "audit":
                signed = self.signing is not None and "signature" in entry.require
                verify = self.signing.verify if signed and self.signing else None
                met = audit_problem(self.repository, self.manifest, verify) is None
            else:
                met = states.get(requirement) == "ok"
            said = f"{name} requires {requirement}"
            yield Check("policy", "ok" if met else "failed", said if met else f"{said}, and it has none")
        if entry.soak is not None:
            said = f"{name} requires {entry.soak.hours:g} h in {entry.soak.channel}"
            yield Check("policy", "not checked", f"{said}: `promote` asks for that, when it is moved")


def as_lines(checks: Sequence[Check]) -> list[str]:
    """Return checks as a table for people."""
    return table(("CHECK", "RESULT", "WHAT"), [(each.name, each.state, each.said) for each in checks])


def as_document(verification: Verification, checks: Sequence[Check]) -> dict[str, Any]:
    """Return checks as JSON."""
    return {
        "image": f"{verification.repository.name}@{verification.manifest.digest}",
        "passed": not any(each.state == "failed" for each in checks),
        "checks": [{"check": each.name, "result": each.state, "what": each.said} for each in checks],
    }

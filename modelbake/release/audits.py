"""Audits kept beside an image: what was looked for, and that nothing of it is there.

An audit reads every byte of an image. What it has found in one digest does not change, as long as the same is
looked for; so a clean audit is attached to the image, and a later release of that digest reads nothing again.
One that found something is never kept: the image is not released.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError

import modelbake.audit
import modelbake.layertar
from modelbake import __version__
from modelbake.errors import RegistryAuthError, RegistryError, RegistryUnavailable
from modelbake.plan import LABEL_PREFIX
from modelbake.records import Digest, Record, json_digest, parse
from modelbake.referrers import Document, attach, read, referrers
from modelbake.report import Moment

if TYPE_CHECKING:
    from modelbake.audit.findings import Findings
    from modelbake.audit.judging import Expected
    from modelbake.manifest import Manifest
    from modelbake.output import Output
    from modelbake.stream.repository import RegistryRepository

AUDIT_TYPE = "application/vnd.modelbake.audit.v1+json"
LARGEST_AUDIT = 16 << 20  # bytes
_CREATED = "org.opencontainers.image.created"


class _AuditDocument(Record):
    """What is attached. `audit` is what `build.py audit --json` prints."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    rules: Digest
    expected: Digest
    created: Moment
    toolkit_version: Annotated[str, Field(max_length=100)]
    audit: dict[str, JsonValue]


@dataclass(frozen=True)
class KeptAudit:
    """A clean audit of an image.

    Attributes:
        digest: of the manifest that it is attached by.
        created: when it was made, as RFC 3339.
        rules: `sha256:...` of what was looked for, and how.
        expected: `sha256:...` of the files, and of the pickles, that the image was to have.
        audit: what was found: notes alone.
    """

    digest: str
    created: str
    rules: str
    expected: str
    audit: dict[str, Any]

    @property
    def is_current(self) -> bool:
        """Whether an audit of today would look for the same."""
        return self.rules == rules_digest()


@functools.cache
def rules_digest() -> str:
    """Return `sha256:...` of everything that decides what an audit finds: the programs of `modelbake.audit`.

    Not of the rules' list alone: what is found under an old rule changes with the program that looks.
    """
    folder = Path(modelbake.audit.__path__[0])
    paths = [*folder.glob("*.py"), Path(modelbake.layertar.__file__)]
    programs = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return json_digest(programs)


def expected_digest(expected: Expected) -> str:
    """Return `sha256:...` of what an image should hold. Pure."""
    return json_digest(
        {
            "files": {path: list(facts) for path, facts in expected.files.items()},
            "allow_pickle": sorted(expected.allow_pickle),
        }
    )


def kept_audit(repository: RegistryRepository, manifest: Manifest) -> KeptAudit | None:
    """Return the newest clean audit kept beside an image, None without one.

    Rules may have come since (`is_current`). Raises RegistryError where the list of what is attached, or the
    registry itself, cannot be had; what is attached under this type and is none is passed over.
    """
    return next(iter(kept_audits(repository, manifest)), None)


def kept_audits(repository: RegistryRepository, manifest: Manifest) -> list[KeptAudit]:
    """Return all clean audits kept beside an image, the newest first. Raises as `kept_audit` does."""
    found = []
    for referrer in referrers(repository, manifest, AUDIT_TYPE):
        try:
            raw = read(repository, manifest, referrer.digest, AUDIT_TYPE, LARGEST_AUDIT)
        except (RegistryUnavailable, RegistryAuthError):
            raise
        except RegistryError:
            continue
        if (audit := decode_audit(raw, manifest, referrer.digest)) is not None:
            found.append(audit)
    return sorted(found, key=lambda each: (each.created, each.digest), reverse=True)


def decode_audit(raw: bytes, manifest: Manifest, digest: str) -> KeptAudit | None:
    """Return a clean audit of an image, None where these bytes are none. Pure."""
    try:
        document = _AuditDocument.model_validate(parse(raw))
    except (ValidationError, ValueError, RecursionError):
        return None
    audit = document.audit
    listed = audit.get("findings")
    if audit.get("digest") != manifest.digest or audit.get("passed") is not True:
        return None
    if not isinstance(listed, list) or any(
        not isinstance(each, dict) or each.get("severity") != "note" for each in listed
    ):
        return None
    return KeptAudit(digest, document.created, document.rules, document.expected, audit)


def audit_image(
    repository: RegistryRepository,
    manifest: Manifest,
    expected: Expected,
    output: Output,
    is_signed: Callable[[str], bool] | None = None,
) -> Findings | None:
    """Audit an image; return what was found, None where a clean audit of today's rules is kept.

    `is_signed`: tells of a digest whether those have signed it whose signature counts; only audits of theirs
    are believed then, for whoever may push could have written one. None: nobody signs here.

    Raises AuditFailed where anything but notes was found, after a line for each of it; and what
    `audit.auditing.audit` raises.
    """
    from modelbake.audit.auditing import audit, telling_layers
    from modelbake.audit.findings import in_words, require_passed
    from modelbake.audit.images import RepositoryImage

    wanted = expected_digest(expected)
    for kept in kept_audits(repository, manifest):
        if kept.is_current and kept.expected == wanted and (is_signed is None or is_signed(kept.digest)):
            output.event(
                "audit_kept", f"audited on {kept.created[:10]}, by the same rules", digest=kept.digest
            )
            return None
    image = RepositoryImage(repository, manifest.digest)
    output.event("audit_started", f"reading all of {image.name}", digest=manifest.digest)
    findings = audit(image, expected, on_layer=telling_layers(output))
    lines = in_words(findings)
    for line in lines[-1:] if findings.passed else lines:
        output.event("audited", line, level="info" if findings.passed else "warning")
    require_passed(findings)
    return findings


def keep_audit(
    repository: RegistryRepository, manifest: Manifest, expected: Expected, findings: Findings
) -> str:
    """Attach a clean audit to the image that it is about; return the digest of its manifest."""
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    content = encode_audit(findings, expected, created)
    notes = {_CREATED: created, LABEL_PREFIX + "audit-rules": rules_digest()}
    return attach(repository, manifest, Document(content, AUDIT_TYPE, "audit.json", notes))


def encode_audit(findings: Findings, expected: Expected, created: str) -> bytes:
    """Return the document of a clean audit; the same audit has the same bytes. Pure."""
    from modelbake.audit.findings import as_document

    document = {
        "schema": 1,
        "rules": rules_digest(),
        "expected": expected_digest(expected),
        "created": created,
        "toolkit_version": __version__,
        "audit": as_document(findings),
    }
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

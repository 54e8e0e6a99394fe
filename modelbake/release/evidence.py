"""What the registry has to say of a released image, before a channel may name it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from modelbake.errors import (
    RegistryError,
    ReleaseError,
    SignatureError,
    SigningFailed,
)
from modelbake.release.audits import kept_audits
from modelbake.release.parts import missing_parts
from modelbake.release.policy import Facts
from modelbake.release.promotion import carry_out, look
from modelbake.reportstore import kept_reports
from modelbake.stream.repository import read_document

if TYPE_CHECKING:
    from modelbake.manifest import Manifest
    from modelbake.output import Output
    from modelbake.release.channels import Channel
    from modelbake.release.entries import ChannelEntry
    from modelbake.report import Report
    from modelbake.stream.repository import RegistryRepository

Verify = Callable[["RegistryRepository", "Manifest"], None]  # raises SignatureError
_MOST_NAMED = 5  # blobs that a message names


def gather(
    repository: RegistryRepository,
    manifest: Manifest,
    named: tuple[str, str],
    entry: ChannelEntry,
    verify: Verify | None,
    now: datetime,
    output: Output,
    soaked: Channel | None = None,
) -> Facts:
    """Return what a channel's requirements are judged by; what is not required is not looked at.

    `named`: the model and the version that the manifest is released as. `now`: in UTC. `soaked`: the channel
    in which it has to have been.

    Raises RegistryError, and SigningFailed where a signature is required and cannot be verified here.
    """
    signature = audit = None
    reports: list[Report] = []
    if "gpu_report" in entry.require:
        reports = kept_reports(repository, manifest, *named, output)
    if "signature" in entry.require:
        signature = signature_problem(repository, manifest, verify)
    if "audit" in entry.require:
        audit = audit_problem(repository, manifest, verify if "signature" in entry.require else None)
    return Facts(manifest.digest, now, tuple(reports), audit, signature, soaked)


def seen(repository: RegistryRepository, channel: str, output: Output) -> Channel:
    """Return a channel's state; a record that cannot be read is passed over with a warning."""

    def passed_over(error: RegistryError) -> None:
        output.event("record_unusable", f"a record of the channel is passed over: {error}", level="warning")

    return carry_out(repository, look(channel, passed_over))


def signature_problem(
    repository: RegistryRepository, manifest: Manifest, verify: Verify | None
) -> str | None:
    """Return why an image does not count as signed, None where it does.

    Raises SigningFailed without `verify`: what is required is never passed over.
    """
    if verify is None:
        raise SigningFailed(
            "a signature is required, and nobody has said whose",
            subject=f"{repository.name}@{manifest.digest}",
            hint="add `signing:` to models.yaml",
        )
    try:
        verify(repository, manifest)
    except SignatureError as error:
        return error.message
    return None


def audit_problem(
    repository: RegistryRepository, manifest: Manifest, verify: Verify | None = None
) -> str | None:
    """Return why there is no clean audit of an image, None where one is kept beside it.

    With `verify` the audit itself has to be signed: whoever may push could have written one.
    """
    audits = kept_audits(repository, manifest)
    if not audits:
        return "no clean audit of this image is kept beside it"
    if verify is None:
        return None
    for audit in audits:
        document = repository.manifest(audit.digest)
        if document is not None and signature_problem(repository, document, verify) is None:
            return None
    return "a clean audit is kept beside it, and is not signed itself: `release` makes one that is"


def configuration(repository: RegistryRepository, manifest: Manifest) -> bytes | None:
    """Return the configuration of an image of one platform, None for an index."""
    return None if manifest.is_index else read_document(repository, manifest.config)


def require_whole(repository: RegistryRepository, manifest: Manifest) -> None:
    """Raise ReleaseError unless the registry has everything that a host would pull."""
    if gone := missing_parts(repository, manifest):
        more = f" and {len(gone) - _MOST_NAMED} more" if len(gone) > _MOST_NAMED else ""
        raise ReleaseError(
            f"the registry lacks what it is made of: {', '.join(gone[:_MOST_NAMED])}{more}",
            subject=f"{repository.name}@{manifest.digest}",
            hint="release it anew, or choose another version; `restore` brings it back from a backup",
        )

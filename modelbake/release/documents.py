"""The SBOM and the provenance of a released image: made once, kept beside it, read back.

What is read back is believed only as far as it is about this very image: whoever may push to the repository
may attach anything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelbake.errors import (
    NotReleased,
    RegistryAuthError,
    RegistryError,
    RegistryUnavailable,
    ReleaseError,
)
from modelbake.manifest import digest_of
from modelbake.plan import LABEL_PREFIX
from modelbake.process import environment
from modelbake.referrers import Document, attach, read, referrers
from modelbake.release.checkout import checkout_of
from modelbake.release.inventory import read_inventory
from modelbake.release.provenance import PREDICATE, PROVENANCE_TYPE, builder_of, make_provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from modelbake.manifest import Manifest
    from modelbake.output import Output
    from modelbake.plan import BuildPlan
    from modelbake.stream.repository import RegistryRepository

SBOM_TYPE = "application/vnd.cyclonedx+json"
PREDICATE_NOTE = "in-toto.io/predicate-type"  # how BuildKit tells statements apart without reading them
_LARGEST = 64 << 20  # bytes


def keep_documents(
    repository: RegistryRepository,
    manifest: Manifest,
    plan: BuildPlan,
    *,
    folder: Path,
    context: str,
    output: Output,
    started: str = "",
    finished: str = "",
    is_signed: Callable[[str], bool] | None = None,
) -> list[str]:
    """Attach the SBOM and the provenance to an image that has none yet; return the digests of what was made.

    Args:
        repository: where the image is.
        manifest: the image.
        plan: what it was built of.
        folder: where models.yaml is.
        context: the digest of the build context.
        output: where progress goes.
        started, finished: when the run began and ended, in RFC 3339; "" where that is not known.
        is_signed: tells of a digest whether those have signed it whose signature counts: only documents of
            theirs are taken for there, as whoever may push could have written others. None: nobody signs.

    Raises:
        RegistryError and its subclasses: the image cannot be read, or they are not known to be there.
        ReleaseError: the image is of several platforms.
    """
    made: list[str] = []

    def is_there(media_type: str) -> bool:
        found = usable_documents(repository, manifest, media_type, output)
        return any(is_signed is None or is_signed(digest) for digest, _ in found)

    if not is_there(SBOM_TYPE):
        from modelbake.release.sbom import make_sbom  # its library takes a moment to load

        output.event("sbom_started", f"reading what {plan.name} {plan.version} is made of")
        sbom = make_sbom(plan.name, plan.version, manifest.digest, read_inventory(repository, manifest))
        made.append(_attach(repository, manifest, plan, sbom, SBOM_TYPE, "cdx.json", {}, output))
    if not is_there(PROVENANCE_TYPE):
        known = environment()
        statement = make_provenance(
            plan,
            repository.name,
            manifest.digest,
            builder=builder_of(known),
            checkout=checkout_of(folder, known),
            context=context,
            requirements=_requirements(plan),
            started=started,
            finished=finished,
        )
        notes = {PREDICATE_NOTE: PREDICATE}
        kind, suffix = PROVENANCE_TYPE, "provenance.json"
        made.append(_attach(repository, manifest, plan, statement, kind, suffix, notes, output))
    return made


def find_sbom(repository: RegistryRepository, manifest: Manifest, output: Output) -> bytes | None:
    """Return the image's SBOM, None where there is none. Raises RegistryError."""
    return _find(repository, manifest, SBOM_TYPE, output)


def find_provenance(repository: RegistryRepository, manifest: Manifest, output: Output) -> bytes | None:
    """Return the image's provenance, None where there is none. Raises RegistryError."""
    return _find(repository, manifest, PROVENANCE_TYPE, output)


def released_document(
    repository: RegistryRepository,
    model: str,
    version: str,
    media_type: str,
    output: Output,
    is_signed: Callable[[str], bool] | None = None,
) -> bytes:
    """Return the SBOM or the provenance of a released version.

    `is_signed`: as in `keep_documents`; a signed one goes before others, and without one that is said.

    Raises:
        NotReleased: there is no such version, or it has none.
        RegistryError: the registry cannot be read.
    """
    manifest = repository.manifest(version)
    subject = f"{repository.name}:{version}"
    if manifest is None:
        raise NotReleased(
            "the registry has no such version",
            subject=subject,
            hint=f"`build.py history {model}` lists the versions that it has",
        )
    found = list(usable_documents(repository, manifest, media_type, output))
    if not found:
        raise NotReleased(
            "it has no such document: it was released without",
            subject=subject,
            hint=f"`build.py release {model}` attaches what is missing, for the version of models.yaml",
        )
    if is_signed is None:
        return found[0][1]
    signed = next((raw for digest, raw in found if is_signed(digest)), None)
    if signed is None:
        output.event(
            "document_unsigned",
            "it is not signed: whoever may push to the repository could have written it",
            level="warning",
            subject=subject,
        )
    return found[0][1] if signed is None else signed


def _find(
    repository: RegistryRepository, manifest: Manifest, media_type: str, output: Output
) -> bytes | None:
    return next((raw for _, raw in usable_documents(repository, manifest, media_type, output)), None)


def usable_documents(
    repository: RegistryRepository, manifest: Manifest, media_type: str, output: Output
) -> Iterator[tuple[str, bytes]]:
    """Yield the documents of one type that can be read and are about this image, by their manifests' digests.

    Raises RegistryUnavailable, RegistryAuthError, and RegistryError where the list itself cannot be had.
    """
    for referrer in referrers(repository, manifest, media_type):
        try:
            raw = read(repository, manifest, referrer.digest, media_type, _LARGEST)
        except (RegistryUnavailable, RegistryAuthError):
            raise
        except RegistryError as error:
            output.event(
                "document_unusable", f"passed over: {error}", level="warning", digest=referrer.digest
            )
            continue
        if _is_about(raw, manifest.digest):
            yield referrer.digest, raw


def _is_about(raw: bytes, digest: str) -> bool:
    """Tell whether a document is an SBOM, or a provenance, of this image."""
    try:
        document = json.loads(raw)
        if document.get("bomFormat") == "CycloneDX":
            named: list[Any] = [each["content"] for each in document["metadata"]["component"]["hashes"]]
        else:
            named = [each["digest"]["sha256"] for each in document["subject"]]
            if document["predicateType"] != PREDICATE:
                return False
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return False
    return digest.removeprefix("sha256:") in named


def _attach(
    repository: RegistryRepository,
    manifest: Manifest,
    plan: BuildPlan,
    content: bytes,
    media_type: str,
    suffix: str,
    notes: Mapping[str, str],
    output: Output,
) -> str:
    known = {"org.opencontainers.image.version": plan.version, LABEL_PREFIX + "model": plan.name, **notes}
    name = f"{plan.name}-{plan.version}.{suffix}"
    digest = attach(repository, manifest, Document(content, media_type, name, known))
    output.event(
        "document_kept",
        f"{name} is kept beside the image",
        subject=f"{repository.name}@{manifest.digest}",
        digest=digest,
        artifact_type=media_type,
    )
    return digest


def _requirements(plan: BuildPlan) -> dict[str, str]:
    if plan.requirements is None:
        return {}
    path = plan.runtime.directory / plan.requirements
    try:
        return {plan.requirements: digest_of(path.read_bytes())}
    except OSError as error:
        raise ReleaseError(f"cannot be read ({error.strerror})", subject=str(path)) from error

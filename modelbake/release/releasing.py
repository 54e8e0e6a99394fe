"""Finish a version: find its image, hold it to what a release needs, tag it, move what follows the newest.

    find it -> lock, report, aliases are in order          nothing has been changed up to here
    DOCUMENTS, one after the other                         each is there once, however often it is attached
    SIGNING                                                of the digest; the tag names the same digest
    the version tag -> `1.4` -> `1`                        each is read back

Whatever ends it before the version tag leaves no release; whatever ends it later leaves one whose aliases
are behind, which the next `release` of it brings up. A version that has its tag already goes the same way, so
that one which `push` or `publish` tagged gets what it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from modelbake.errors import ReadBackMismatch
from modelbake.regression import Gate
from modelbake.release.aliases import aliases_to_move, move_alias, require_ours
from modelbake.release.audits import audit_image, keep_audit
from modelbake.release.choosing import (
    Wanted,
    choose_report,
    find_image,
    report_missing,
    require_whole,
    tag_of,
)
from modelbake.release.documents import keep_documents
from modelbake.release.quarantine import require_none
from modelbake.release.weightsignature import sign_weights
from modelbake.report import find_report
from modelbake.reportstore import is_about, keep_report, kept_reports
from modelbake.versiontag import released_versions

if TYPE_CHECKING:
    from modelbake.manifest import Manifest
    from modelbake.output import Output
    from modelbake.plan import BuildPlan
    from modelbake.release.signing import Signing
    from modelbake.report import Report
    from modelbake.stream.repository import RegistryRepository
    from modelbake.workspace import Workspace


@dataclass(frozen=True)
class Releasing:
    """An image that may be released, while that goes on.

    `report`: the one that lets it; `kept`: it is beside the image already. `signing`: how it is signed,
    None where models.yaml asks for no signature; `made`: digests of the documents that this release has made,
    whether or not somebody had attached the same bytes before.
    """

    workspace: Workspace
    plan: BuildPlan
    repository: RegistryRepository
    manifest: Manifest
    report: Report
    kept: bool
    output: Output
    signing: Signing | None = None
    made: set[str] = field(default_factory=set)

    @property
    def is_signed(self) -> Callable[[str], bool] | None:
        """What tells of a digest whether it is signed; None where nobody signs."""
        return None if self.signing is None else partial(self.signing.has_signed, self.repository)


Step = Callable[[Releasing], None]


def attach_audit(image: Releasing) -> None:
    """Audit the image, and keep the result beside it. Raises AuditFailed.

    Where releases are signed, an audit that is there counts if it is signed as well.
    """
    from modelbake.audit.auditing import expected_of

    expected = expected_of(image.plan.spec, image.plan.locked)
    signing, repository = image.signing, image.repository
    findings = audit_image(repository, image.manifest, expected, image.output, image.is_signed)
    if findings is None:
        return
    if signing is not None:
        signing.require_means()  # else another unsigned one would be left there
    image.made.add(keep_audit(repository, image.manifest, expected, findings))


def attach_report(image: Releasing) -> None:
    """Keep the report beside the image, where it is one of this machine."""
    if not image.kept:
        image.made.add(keep_report(image.repository, image.manifest, image.report, image.output))


def attach_documents(image: Releasing) -> None:
    """Keep the SBOM and the provenance beside the image, where it has none yet; signed ones, as of audits."""
    made = keep_documents(
        image.repository,
        image.manifest,
        image.plan,
        folder=image.workspace.file.absolute().parent,
        context=image.workspace.context(image.plan).digest,
        output=image.output,
        is_signed=image.is_signed,
    )
    image.made.update(made)


DOCUMENTS: Sequence[Step] = (attach_audit, attach_report, attach_documents)


def sign_image(image: Releasing) -> None:
    """Sign the image's digest, its weights, and the documents that this release has made; see `signing:`.

    What else is attached, before or meanwhile, is not signed: whoever may push could have put it there.
    """
    if image.signing is None:
        return
    image.signing.sign(image.repository, image.manifest)
    sign_weights(image.repository, image.manifest, image.signing)
    for digest in sorted(image.made):
        document = image.repository.manifest(digest)
        if document is None:
            raise ReadBackMismatch(
                "the registry took it, but does not have it",
                subject=f"{image.repository.name}@{digest}",
                hint="run it again",
            )
        image.signing.sign(image.repository, document)


SIGNING: Sequence[Step] = (sign_image,)


@dataclass(frozen=True)
class ReleasedImage:
    """A released version. `reference` is `registry/name@sha256:...`; `moved`: the aliases that name it."""

    reference: str
    digest: str
    version: str
    moved: tuple[str, ...]


def release(
    repository: RegistryRepository,
    workspace: Workspace,
    plan: BuildPlan,
    *,
    plan_digest: str,
    asked: str,
    output: Output,
    digest: str | None = None,
    signer: Signing | None = None,
    documents: Sequence[Step] = DOCUMENTS,
    signing: Sequence[Step] = SIGNING,
) -> ReleasedImage:
    """Release the image of a plan.

    Args:
        repository: of the model.
        workspace: where models.yaml and the reports are.
        plan: the model version.
        plan_digest: of its build context, as images are labelled with it.
        asked: what the model declares for its smoke run now (`report.asked_of`).
        output: where progress goes.
        digest: the image, where several could be meant.
        signer: how it is signed; None: not at all.
        documents: what is attached to it before the version tag.
        signing: what signs its digest then.

    Raises:
        ReleaseError, TagConflict: see `choosing.find_image` and `aliases.require_ours`.
        PolicyRefused: it is in quarantine.
        ReportMissing: no passing report about it, or none of a GPU where that is asked for.
        PerformanceRegressed: it is a candidate, and worse than tolerated.
        AuditFailed: something must not be in it.
        SigningFailed, SignatureError: it cannot be signed as models.yaml says.
        RegistryError and its subclasses: it is not known to be released.
    """
    wanted = Wanted(plan.name, plan.version, plan.locked.digest, plan_digest)
    found = find_image(repository, wanted, digest)
    manifest, tagged = found.manifest, found.tagged
    require_none(repository, manifest, wanted.subject)
    require_whole(repository, manifest)
    report, kept = _require_report(
        repository, workspace, plan, wanted, manifest, None if tagged else asked, output
    )
    if not tagged:
        Gate(repository, plan.name, plan.version, plan.spec.smoke.tolerance, output).require(report)
    versions = released_versions(repository.registry, repository.path)
    aliases = aliases_to_move(plan.version, versions)
    for alias in aliases:
        require_ours(repository, alias, versions, manifest)
    if signer is not None:
        signer.prepare(repository, manifest)
    image = Releasing(workspace, plan, repository, manifest, report, kept, output, signer)
    for step in (*documents, *signing):
        step(image)
    tag_of(repository, plan.version, manifest).put(manifest)
    for alias in aliases:
        move_alias(repository, alias, plan.version, manifest, output)
    output.event(
        "released",
        f"{plan.repository}:{plan.version} is {manifest.digest}" + (", as before" if tagged else ""),
        repository=plan.repository,
        tag=plan.version,
        digest=manifest.digest,
        aliases=aliases,
        already=tagged,
    )
    return ReleasedImage(
        f"{plan.repository}@{manifest.digest}", manifest.digest, plan.version, tuple(aliases)
    )


def needs_gpu(plan: BuildPlan) -> bool:
    """Tell whether only a run on a GPU lets a version be released. Pure.

    What serves nothing only verifies its weights, and never uses one.
    """
    return plan.spec.smoke.require_gpu or (plan.spec.device == "cuda" and plan.runtime.serves)


def _require_report(
    repository: RegistryRepository,
    workspace: Workspace,
    plan: BuildPlan,
    wanted: Wanted,
    manifest: Manifest,
    asked: str | None,
    output: Output,
) -> tuple[Report, bool]:
    """Return the report that lets an image be released, and whether it is kept beside it already."""
    gpu = needs_gpu(plan)
    kept = kept_reports(repository, manifest, plan.name, plan.version, output)
    if report := choose_report(kept, wanted, gpu=gpu, asked=asked):
        return report, True
    local = find_report(workspace.reports, plan.name, plan.version)
    ours = [local] if local is not None and local.passed and is_about(local, manifest) else []
    if report := choose_report(ours, wanted, gpu=gpu, asked=asked):
        return report, False
    raise report_missing([*kept, *ours], wanted, gpu=gpu)

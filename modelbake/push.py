"""From a smoke-tested image to a release in the registry, with the version tag as the very last step.

The engine pushes under a candidate tag. What the registry then holds is read back and compared with the
image, and the report is kept beside it; only when all of it is right the same manifest bytes are put under
the version tag. So whatever fails before that leaves no version tag. What becomes of the tag itself is
`versiontag`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.candidate import push_candidate
from modelbake.dockerconfig import RegistryAuth, split_reference
from modelbake.engine_stream import telling
from modelbake.errors import ReadBackMismatch, ReportMissing
from modelbake.manifest import Manifest, choose_manifest, is_image
from modelbake.registry import Registry
from modelbake.regression import Gate
from modelbake.report import Report, read_report
from modelbake.reportstore import add_report, keep_report
from modelbake.smokeentry import ToleranceEntry
from modelbake.stream.repository import RegistryRepository
from modelbake.versiontag import VersionTag, candidate_tag

if TYPE_CHECKING:
    from modelbake.engine import Engine, EngineInfo, LocalImage
    from modelbake.output import Output


@dataclass(frozen=True)
class PushedImage:
    """An image that passed. `reference` is `registry/name@sha256:...`; `already`: it was there before.

    `tag`: the version, or the candidate's tag where no version tag was asked for.
    """

    reference: str
    digest: str
    tag: str
    already: bool


def push(
    engine: Engine,
    registry_auth: RegistryAuth,
    *,
    repository: str,
    version: str,
    image: LocalImage,
    asked: str,
    require_gpu: bool,
    reports: Path,
    output: Output,
    tolerance: ToleranceEntry | None = None,
    untagged: bool = False,
) -> PushedImage:
    """Push an image that passed its smoke run, check what the registry holds, and tag it last.

    Args:
        engine: has the image.
        registry_auth: where the registry's credentials are found.
        repository: `host[:port]/namespace/model`; its last part is the model's name.
        version: the release tag.
        image: the very image that the report is about.
        asked: what the model declares for its smoke run now (`report.asked_of`).
        require_gpu: a report of a run on a CPU is not enough.
        reports: the folder of all reports.
        output: where progress goes.
        tolerance: how much worse than the last released version it may be (default: as much as you like).
        untagged: put no version tag: `release` does.

    Raises:
        ReportMissing: no passing report for this image id and these checks.
        PerformanceRegressed: the report is worse than tolerated; nothing was uploaded.
        TagConflict: the version tag names another image, or somebody moved it meanwhile.
        RegistryAuthError, RegistryUnavailable, PushFailed, RegistryError: it could not be pushed.
        ReadBackMismatch: the registry holds something else than the image.
    """
    reference = split_reference(f"{repository}:{version}")
    model = repository.rpartition("/")[2]
    report = require_passing_report(reports, model, version, image, asked, require_gpu=require_gpu)
    credentials = registry_auth.for_registry(reference.registry)
    if credentials is not None:
        for secret in credentials.secrets:
            output.redactor.add(secret)
    with Registry(reference.registry, credentials) as registry:
        release = _Release(registry, reference.repository, reference.name, image, engine.info)
        tag = VersionTag(
            registry,
            reference.repository,
            version,
            same=lambda manifest: is_image(manifest, image.id, engine.info.store),
        )
        kept = RegistryRepository(registry, reference.repository)
        if (there := tag.current()) is not None:
            release.require_blobs(there)
            add_report(kept, there, report, output)
            output.event("already_pushed", f"{repository}:{version} is there already: {there.digest}")
            return PushedImage(f"{repository}@{there.digest}", there.digest, version, already=True)
        Gate(kept, model, version, tolerance or ToleranceEntry(), output).require(report)
        candidate = candidate_tag(image.id)
        output.event(
            "push_started",
            f"pushing {reference.name}:{candidate}",
            repository=repository,
            image_id=image.id,
        )
        told = telling(output, "push_progress", "pushed")
        path = reference.repository
        pushed = push_candidate(engine, registry, image.id, path, candidate, credentials, told)
        manifest = release.read_back(pushed.digest, candidate)
        release.require_blobs(manifest)
        keep_report(kept, manifest, report, output)
        if untagged:
            output.event(
                "pushed_untagged",
                f"{repository}:{candidate} is {manifest.digest}: `build.py release {model}` gives it its"
                " version tag",
                repository=repository,
                tag=candidate,
                digest=manifest.digest,
                image_id=image.id,
            )
            return PushedImage(f"{repository}@{manifest.digest}", manifest.digest, candidate, already=False)
        tagged = tag.put(manifest)
        if tagged != manifest:  # somebody else has released the same image meanwhile
            add_report(kept, tagged, report, output)
        manifest = tagged
    output.event(
        "pushed",
        f"{repository}:{version} is {manifest.digest}",
        repository=repository,
        tag=version,
        digest=manifest.digest,
        image_id=image.id,
    )
    return PushedImage(f"{repository}@{manifest.digest}", manifest.digest, version, already=False)


def require_passing_report(
    reports: Path, model: str, version: str, image: LocalImage, asked: str, *, require_gpu: bool
) -> Report:
    """Return the report; raise ReportMissing unless this very image passed what models.yaml asks now."""
    report = read_report(reports, model, version)
    subject, hint = f"{model} {version}", f"run `build.py smoke {model}`"
    if not report.passed:
        failed = ", ".join(check.name for check in report.checks if not check.passed)
        raise ReportMissing(f"the smoke run failed ({failed})", subject=subject, hint=hint)
    if report.image_id != image.id:
        raise ReportMissing(
            f"the smoke report is about another image ({report.image_id}, this one is {image.id})",
            subject=subject,
            hint=hint,
        )
    if require_gpu and not report.gpu:
        raise ReportMissing(
            "the smoke run was on a CPU, and models.yaml says `require_gpu: true`",
            subject=subject,
            hint=f"{hint} with DOCKER_HOST set to an engine that has a GPU",
        )
    if report.asked != asked:
        raise ReportMissing(
            "the smoke report is about another device, other checks or other goldens than are named now",
            subject=subject,
            hint=hint,
        )
    return report


@dataclass(frozen=True)
class _Release:
    """One version of one image in one repository of a registry."""

    registry: Registry
    repository: str
    name: str
    image: LocalImage
    engine: EngineInfo

    def read_back(self, digest: str, candidate: str) -> Manifest:
        """Return the pushed manifest, the same by digest and by tag, and that of the image."""
        by_digest = self.registry.manifest(self.repository, digest)
        by_tag = self.registry.manifest(self.repository, candidate)
        for how, found in ((digest, by_digest), (candidate, by_tag)):
            if found is None:
                raise self._mismatch(f"the engine pushed {digest}, but the registry has no {how}")
        assert by_digest is not None and by_tag is not None
        if by_tag != by_digest:
            raise self._mismatch(f"the engine pushed {digest}, but {candidate} is {by_tag.digest}")
        if not is_image(by_digest, self.image.id, self.engine.store):
            raise self._mismatch(f"{digest} is not the image {self.image.id}")
        return by_digest

    def require_blobs(self, manifest: Manifest) -> None:
        """Raise ReadBackMismatch unless the registry has the configuration and all layers, of right size."""
        if manifest.is_index:
            entry = choose_manifest(manifest, f"{self.engine.os}/{self.engine.arch}")
            found = self.registry.manifest(self.repository, entry.digest)
            if found is None:
                raise self._mismatch(f"the registry has no manifest {entry.digest}")
            manifest = found
        for blob in dict.fromkeys((manifest.config, *manifest.layers)):
            size = self.registry.blob_size(self.repository, blob.digest)
            if size != blob.size:
                there = "it is not there" if size is None else f"the registry has {size} bytes"
                raise self._mismatch(f"blob {blob.digest} should be {blob.size} bytes, but {there}")

    def _mismatch(self, problem: str) -> ReadBackMismatch:
        return ReadBackMismatch(
            problem,
            subject=self.name,
            hint="the version tag has not been set; push again, or look for what changes content on the way",
        )

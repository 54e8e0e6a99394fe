"""Which image is to be released, and which report speaks for it.

The version tag's image, where there is one. Else the candidate that says of itself (by labels, which its
digest covers) that it is this model and version, made of this lock and this build context. A name that a
person could have put by hand decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelbake.errors import (
    ReadBackMismatch,
    RegistryAuthError,
    RegistryError,
    RegistryUnavailable,
    ReleaseError,
    ReportMissing,
    TagConflict,
)
from modelbake.history import single_image
from modelbake.manifest import labels_in
from modelbake.parallel import parallel
from modelbake.plan import LABEL_PREFIX, LOCK_LABEL, PLAN_LABEL
from modelbake.registryreply import document_of
from modelbake.release.parts import missing_parts
from modelbake.stream.repository import read_document
from modelbake.versiontag import CANDIDATE, VersionTag

if TYPE_CHECKING:
    from modelbake.manifest import Manifest
    from modelbake.report import Report
    from modelbake.stream.repository import RegistryRepository

_AT_ONCE = 8  # candidates that the registry is asked about at the same time
_SHOWN = 10  # candidates that an error lists


@dataclass(frozen=True)
class Wanted:
    """What an image has to say of itself to be released; digests as `sha256:...`."""

    model: str
    version: str
    lock: str
    plan: str

    @property
    def subject(self) -> str:
        """What errors call it."""
        return f"{self.model} {self.version}"

    def is_named_by(self, labels: Mapping[str, str]) -> bool:
        """Tell whether labels are of this model and version, of whichever lock."""
        named = labels.get(LABEL_PREFIX + "model"), labels.get(LABEL_PREFIX + "version")
        return named == (self.model, self.version)

    def is_made_by(self, labels: Mapping[str, str]) -> bool:
        """Tell whether labels are of this very plan."""
        made = labels.get(LOCK_LABEL), labels.get(PLAN_LABEL)
        return self.is_named_by(labels) and made == (self.lock, self.plan)


@dataclass(frozen=True)
class Found:
    """An image of the repository: its manifest, its configuration's labels, the tag that it was found by.

    `tagged`: it has the version tag already.
    """

    manifest: Manifest
    labels: Mapping[str, str]
    tag: str = ""
    tagged: bool = False


def tag_of(repository: RegistryRepository, version: str, manifest: Manifest | None = None) -> VersionTag:
    """Return a version tag, which may name nothing but this manifest."""
    return VersionTag(repository.registry, repository.path, version, lambda found: found == manifest)


def labels_of(repository: RegistryRepository, manifest: Manifest) -> Mapping[str, str]:
    """Return an image's labels; none of an index of several platforms. Raises RegistryError."""
    image = single_image(repository, manifest)
    return {} if image is None else labels_in(document_of(read_document(repository, image.config)))


def find_image(repository: RegistryRepository, wanted: Wanted, digest: str | None) -> Found:
    """Return the image to release.

    Args:
        repository: of the model.
        wanted: what it has to say of itself.
        digest: names the image explicitly.

    Raises:
        TagConflict: the version tag names another image than is meant.
        ReleaseError: there is no such image, or there are several, or it is of other weights.
        RegistryError: the registry cannot be asked.
    """
    tag = tag_of(repository, wanted.version)
    tagged = repository.manifest(wanted.version)
    if digest is not None:
        return _explicit(repository, wanted, tag, digest, tagged)
    if tagged is None:
        return only(find_candidates(repository, wanted), wanted)
    found = Found(tagged, labels_of(repository, tagged), wanted.version, tagged=True)
    if not wanted.is_named_by(found.labels):
        raise ReleaseError(
            f"the version tag names {tagged.digest}, which says that it is something else: somebody has put"
            " the tag by hand",
            subject=tag.name,
            hint=tag.remedy(),
        )
    if found.labels.get(PLAN_LABEL) != wanted.plan:
        others = [each for each in find_candidates(repository, wanted) if each.manifest != tagged]
        if any(wanted.is_made_by(each.labels) for each in others):
            raise TagConflict(
                f"the version is released as {tagged.digest}, which was made of another models.yaml,"
                " models.lock or runtime than the candidate that is there",
                subject=tag.name,
                hint=tag.remedy(),
            )
    require_lock(found, wanted, tag)
    return found


def _explicit(
    repository: RegistryRepository, wanted: Wanted, tag: VersionTag, digest: str, tagged: Manifest | None
) -> Found:
    if tagged is not None and tagged.digest != digest:
        raise TagConflict(f"the version is released as {tagged.digest}", subject=tag.name, hint=tag.remedy())
    manifest = repository.manifest(digest)
    if manifest is None:
        raise ReleaseError("there is no such image", subject=f"{repository.name}@{digest}")
    found = Found(manifest, labels_of(repository, manifest), tagged=tagged is not None)
    if not wanted.is_named_by(found.labels):
        said = (found.labels.get(LABEL_PREFIX + key, "nothing") for key in ("model", "version"))
        raise ReleaseError(
            f"it is not {wanted.subject}: its labels say {' '.join(said)}",
            subject=f"{repository.name}@{digest}",
        )
    require_lock(found, wanted, tag)
    return found


def require_lock(found: Found, wanted: Wanted, tag: VersionTag) -> None:
    """Raise ReleaseError unless an image has the weights that models.lock names now."""
    lock = found.labels.get(LOCK_LABEL)
    if lock != wanted.lock:
        raise ReleaseError(
            f"{found.manifest.digest} has other weights (their lock was {lock or 'not written down'}, and"
            f" models.lock says {wanted.lock})",
            subject=tag.name,
            hint=f"check out the commit that it was made of; or, to release these weights: {tag.remedy()}",
        )


def find_candidates(repository: RegistryRepository, wanted: Wanted) -> list[Found]:
    """Return the candidates of a model and version, of whichever plan, each once. Raises RegistryError."""
    tags = [tag for tag in repository.registry.tags(repository.path) if tag.startswith(CANDIDATE)]

    def look(tag: str) -> Found | None:
        try:
            manifest = repository.manifest(tag)
            return None if manifest is None else Found(manifest, labels_of(repository, manifest), tag)
        except (RegistryUnavailable, RegistryAuthError):
            raise
        except RegistryError:
            return None  # broken, or deleted just now: nothing that could be released

    found = {each.manifest.digest: each for each in parallel(tags, look, _AT_ONCE) if each is not None}
    return [found[digest] for digest in sorted(found) if wanted.is_named_by(found[digest].labels)]


def only(candidates: Sequence[Found], wanted: Wanted) -> Found:
    """Return the one candidate that was made of this plan. Pure. Raises ReleaseError for none and several."""
    ours = [each for each in candidates if wanted.is_made_by(each.labels)]
    if len(ours) == 1:
        return ours[0]
    ways = (
        f"`build.py publish {wanted.model} --untagged` makes and tests one, and so do `build`, `smoke` and"
        f" `build.py push {wanted.model} --untagged`"
    )
    if not candidates:
        raise ReleaseError("the registry has no image of it", subject=wanted.subject, hint=ways)
    if not ours:
        raise ReleaseError(
            f"the registry has {len(candidates)} of it, of another models.yaml, models.lock or runtime:\n"
            + _listed(candidates),
            subject=wanted.subject,
            hint=f"{ways}; or name one with --digest, where its weights are those of models.lock",
        )
    raise ReleaseError(
        f"the registry has {len(ours)} images of it:\n{_listed(ours)}",
        subject=wanted.subject,
        hint="name the one that is meant with --digest",
    )


def _listed(candidates: Sequence[Found]) -> str:
    lines = [f"  {each.manifest.digest}  {each.tag}" for each in candidates[:_SHOWN]]
    return "\n".join([*lines, *(["  ..."] if len(candidates) > _SHOWN else [])])


def require_whole(repository: RegistryRepository, manifest: Manifest) -> None:
    """Raise ReadBackMismatch where the registry lacks a manifest, a configuration or a layer of an image."""
    if missing := missing_parts(repository, manifest):
        raise ReadBackMismatch(
            f"the registry lacks {len(missing)} of its parts, {missing[0]} for one",
            subject=f"{repository.name}@{manifest.digest}",
            hint="publish or push it again",
        )


def choose_report(
    reports: Iterable[Report], wanted: Wanted, *, gpu: bool, asked: str | None
) -> Report | None:
    """Return the report that lets an image be released: of a GPU rather than a CPU, then the newest. Pure.

    Args:
        reports: passing ones about this image.
        wanted: what is to be released.
        gpu: only a run on a GPU counts.
        asked: only a run of these checks counts; None: whatever was asked of it.
    """
    enough = [
        each
        for each in reports
        if each.passed
        and (each.model, each.version) == (wanted.model, wanted.version)
        and (each.gpu or not gpu)
        and asked in (None, each.asked)
    ]
    return max(enough, key=lambda each: (each.gpu, each.started_at), default=None)


def report_missing(reports: Sequence[Report], wanted: Wanted, *, gpu: bool) -> ReportMissing:
    """Return the error for an image whose reports are not enough. Pure."""
    hint = (
        f"`build.py publish {wanted.model} --untagged` tests it by its digest;"
        f" `smoke` and `build.py push {wanted.model} --untagged` test what `build` has made"
    )
    devices = ", ".join(sorted({each.device for each in reports}))
    if not reports:
        return ReportMissing("no passing report is kept beside the image", subject=wanted.subject, hint=hint)
    if gpu and not any(each.gpu for each in reports):
        return ReportMissing(
            f"a run on a GPU is asked for, and its reports are of {devices}",
            subject=wanted.subject,
            hint=f"set DOCKER_HOST to an engine that has a GPU; {hint}",
        )
    return ReportMissing(
        f"its reports ({devices}) are about other checks, goldens or another device than are asked for now",
        subject=wanted.subject,
        hint=hint,
    )

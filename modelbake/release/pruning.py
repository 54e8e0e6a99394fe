"""Read what the repositories of a models.yaml hold, and delete what `retention` says may go.

All of it is read before anything is deleted, and what cannot be read stops it: it might protect something. A
tag that has come since then stops it too. The registry's own garbage collection frees the bytes afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelbake.errors import (
    ModelbakeError,
    RegistryAuthError,
    RegistryError,
    RegistryUnavailable,
    ReleaseError,
)
from modelbake.manifest import Manifest
from modelbake.parallel import parallel
from modelbake.plan import LABEL_PREFIX, weight_groups
from modelbake.referrers import artifact_type_of, referrers_tag
from modelbake.registryreply import document_of
from modelbake.release.attachments import COSIGN_SUFFIXES, subject_of_tag
from modelbake.release.retention import (
    CANDIDATES,
    MEMORY,
    RUNTIME,
    Holding,
    Removal,
    Wanted,
    blobs_of,
    candidates_to_remove,
    freed,
    is_foreign,
    memory_to_remove,
    remaining,
    runtimes_to_remove,
)
from modelbake.schema import RUNTIMES_REPOSITORY, WEIGHTS_REPOSITORY
from modelbake.stream.repository import RegistryRepository, read_document
from modelbake.stream.weights import group_tag
from modelbake.tables import table

if TYPE_CHECKING:
    from modelbake.output import Output
    from modelbake.workspace import Workspace

_AT_ONCE = 8  # tags that the registry is asked about at the same time
_MOMENT = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]+)?Z")
_CREATED = "org.opencontainers.image.created"
_HEADER = ("REPOSITORY", "TAG", "DIGEST", "MADE", "WHY")
_DIGITS = 12  # of a digest


@dataclass(frozen=True)
class Surveyed:
    """What a repository holds, and which of it has a signature or something else that is not modelbake's."""

    repository: RegistryRepository
    holding: Holding
    signed: frozenset[str]


@dataclass(frozen=True)
class Pruning:
    """What is to go: `freed` in bytes, once the registry has collected its garbage."""

    removals: tuple[Removal, ...]
    freed: int
    surveyed: Mapping[str, Surveyed]


class _Survey:
    """Reads one repository. Each manifest is asked for once."""

    def __init__(self, repository: RegistryRepository, may_go: re.Pattern[str]) -> None:
        """`may_go`: the tags of what may go; only of these it is asked what is attached."""
        self._repository = repository
        self._may_go = may_go
        self._tags: dict[str, str] = {}
        self._manifests: dict[str, Manifest] = {}
        self._listed: dict[str, tuple[str, ...]] = {}
        self._about: dict[str, tuple[str, ...]] = {}
        self._created: dict[str, str] = {}
        self._versions: dict[str, str] = {}
        self._signed: set[str] = set()
        self._lists = True  # whether the registry lists referrers by itself

    def read(self) -> Surveyed:
        """Raise RegistryError where anything that is named cannot be read."""
        repository = self._repository
        names = repository.registry.tags(repository.path)
        for tag, manifest in zip(names, parallel(names, repository.manifest, _AT_ONCE), strict=True):
            if manifest is not None:
                self._tags[tag] = manifest.digest
                self._manifests[manifest.digest] = manifest
        for digest in list(self._manifests):
            self._read_listed(digest)
        for digest in sorted({each for tag, each in self._tags.items() if self._may_go.fullmatch(tag)}):
            self._read_about(digest, digest)
            if self._may_go is CANDIDATES:
                self._read_image(digest)
        # What is attached to the rest is needed only where a tag says that there is something.
        for tag in self._tags:
            if (subject := subject_of_tag(tag)) is not None and subject in self._manifests:
                self._read_about(subject, subject, ask=False)
        holding = Holding(
            repository.path, self._tags, self._manifests, self._listed, self._about, self._created,
            self._versions,
        )  # fmt: skip
        return Surveyed(repository, holding, frozenset(self._signed))

    def _manifest(self, digest: str) -> Manifest | None:
        if digest not in self._manifests and (found := self._repository.manifest(digest)) is not None:
            self._manifests[digest] = found
        return self._manifests.get(digest)

    def _read_listed(self, digest: str) -> None:
        """Read what an index lists; of a part that is gone already nothing is left to protect."""
        manifest = self._manifests[digest]
        if not manifest.is_index or digest in self._listed:
            return
        there = [each.digest for each in manifest.manifests if self._manifest(each.digest) is not None]
        self._listed[digest] = tuple(there)
        for each in there:
            self._read_listed(each)

    def _read_about(self, digest: str, image: str, *, ask: bool = True) -> None:
        """Read what is attached to a manifest, and to that; note where somebody else has attached it."""
        if digest in self._about:
            return
        self._about[digest] = ()
        found: dict[str, None] = {}
        for entry in self._ask(digest) if ask else []:
            if isinstance(entry, dict) and isinstance(entry.get("digest"), str):
                found[entry["digest"]] = None
        tag = referrers_tag(digest)
        if (index := self._tags.get(tag)) is not None:
            for each in self._listed.get(index, ()):
                found[each] = None
        there = [each for each in found if (self._manifest(each)) is not None]
        for each in there:
            self._note(self._manifests[each], image)
        signatures = [self._tags[tag + end] for end in COSIGN_SUFFIXES if tag + end in self._tags]
        if signatures:
            self._signed.add(image)
        there += [each for each in (*signatures, *([index] if index else [])) if each not in there]
        self._about[digest] = tuple(there)
        for each in there:
            self._read_about(each, image, ask=ask)

    def _ask(self, digest: str) -> list[Any]:
        if not self._lists:
            return []
        listed = self._repository.registry.referrers(self._repository.path, digest)
        self._lists = listed is not None
        return listed or []

    def _note(self, attached: Manifest, image: str) -> None:
        if is_foreign(artifact_type_of(attached)):
            self._signed.add(image)
        notes = attached.document().get("annotations")
        self._made(image, notes.get(_CREATED) if isinstance(notes, dict) else None)

    def _read_image(self, digest: str) -> None:
        """Read when an image was made, and of which version it is."""
        for each in (digest, *self._listed.get(digest, ())):
            manifest = self._manifests[each]
            if manifest.is_index:
                continue
            try:
                config = document_of(read_document(self._repository, manifest.config))
            except (RegistryUnavailable, RegistryAuthError):
                raise
            except RegistryError:
                continue  # it is broken: the first to go
            self._made(digest, config.get("created"))
            settings = config.get("config")
            labels = settings.get("Labels") if isinstance(settings, dict) else None
            version = labels.get(LABEL_PREFIX + "version") if isinstance(labels, dict) else None
            if isinstance(version, str):
                self._versions[digest] = version

    def _made(self, digest: str, moment: object) -> None:
        match = _MOMENT.fullmatch(moment) if isinstance(moment, str) else None
        if match:
            self._created[digest] = max(self._created.get(digest, ""), f"{match[1]}Z")


def survey(repository: RegistryRepository, may_go: re.Pattern[str]) -> Surveyed:
    """Read what a repository holds; `may_go`: the tags of what may go. Raises RegistryError."""
    return _Survey(repository, may_go).read()


def wanted_now(workspace: Workspace) -> Wanted:
    """Return what models.yaml and models.lock ask for now; of a model that is not locked nothing."""
    from modelbake.stream.runtimes import runtime_tag

    locks, layers, runtimes = set(), set(), set()
    for spec in workspace.config.models.values():
        with suppress(ModelbakeError):
            plan = workspace.plan(spec)
            locks.add(plan.locked.digest)
            layers |= {group_tag(group, spec.compression) for group in weight_groups(plan.locked)}
            runtimes.add(runtime_tag(plan.runtime.name, workspace.runtime_context(plan)))
    return Wanted(frozenset(locks), frozenset(layers), frozenset(runtimes))


def plan_pruning(
    models: Mapping[str, RegistryRepository],
    weights: RegistryRepository,
    runtimes: RegistryRepository,
    *,
    names: Iterable[str],
    keep: int,
    wanted: Wanted,
    output: Output,
) -> Pruning:
    """Read everything, and return what is to go. Nothing is changed.

    Args:
        models: the repository of every model of models.yaml: what remains there decides what is of use.
        weights, runtimes: the repositories that all models share.
        names: the models whose candidates may go.
        keep: how many candidates of each stay.
        wanted: what is kept though no image has it.
        output: where progress goes.

    Raises RegistryError and its subclasses.
    """
    chosen = set(names)
    surveyed: dict[str, Surveyed] = {}
    removals: list[Removal] = []
    used: set[str] = set()
    for name, repository in models.items():
        output.event("prune_reading", f"reading what {repository.name} has")
        found = survey(repository, CANDIDATES)
        surveyed[repository.path] = found
        if name in chosen:
            removals += candidates_to_remove(found.holding, keep, found.signed)
        used |= blobs_of(remaining(found.holding, removals)).keys()
    for repository, decide, may_go in (
        (weights, memory_to_remove, MEMORY),
        (runtimes, runtimes_to_remove, RUNTIME),
    ):
        output.event("prune_reading", f"reading what {repository.name} has")
        found = survey(repository, may_go)
        surveyed[repository.path] = found
        removals += decide(found.holding, used, wanted, found.signed)
    size = freed((each.holding for each in surveyed.values()), removals)
    return Pruning(tuple(removals), size, surveyed)


def carry_out(pruning: Pruning, output: Output) -> None:
    """Delete what is to go.

    Raises:
        DeleteRefused: the registry does not delete.
        ReleaseError: somebody has tagged something since it was read: it may be what was to go.
        RegistryError: it is not known to be gone; the next run goes on.
    """
    done: set[tuple[str, str]] = set()
    for removal in pruning.removals:
        found = pruning.surveyed[removal.path]
        repository = found.repository
        if new := set(repository.registry.tags(removal.path)) - set(found.holding.tags):
            raise ReleaseError(
                f"somebody has put {', '.join(sorted(new))} here meanwhile: it may name what was to go",
                subject=repository.name,
                hint="run it again; prune when nobody publishes or releases",
            )
        for digest in removal.deletes:
            if (removal.path, digest) not in done:
                repository.registry.delete_manifest(removal.path, digest)
                done.add((removal.path, digest))
        output.event(
            "pruned",
            f"{repository.name}: {', '.join(removal.tags)} is gone",
            repository=repository.name,
            tags=removal.tags,
            digest=removal.digest,
        )


def in_words(pruning: Pruning, *, dry: bool) -> list[str]:
    """Return what goes as a table, and how many bytes that frees. Pure."""
    rows = [
        (
            pruning.surveyed[each.path].repository.name,
            ", ".join(each.tags),
            each.digest.removeprefix("sha256:")[:_DIGITS],
            each.created[:10] or "-",
            each.why,
        )
        for each in pruning.removals
    ]
    verb = "would go" if dry else "went"
    summary = (
        f"{len(rows)} {verb}: {pruning.freed:,} bytes that nothing else has;"
        " the registry's own garbage collection frees them"
    )
    return [*table(_HEADER, rows), summary] if rows else ["nothing may go"]


def shared_repositories(
    models: Mapping[str, RegistryRepository],
) -> tuple[RegistryRepository, RegistryRepository]:
    """Return REGISTRY/weights and REGISTRY/runtimes, beside the models' repositories."""
    any_ = next(iter(models.values()))
    prefix = any_.path.rpartition("/")[0]
    paths: Sequence[str] = [
        f"{prefix}/{name}" if prefix else name for name in (WEIGHTS_REPOSITORY, RUNTIMES_REPOSITORY)
    ]
    weights, runtimes = (RegistryRepository(any_.registry, path) for path in paths)
    return weights, runtimes

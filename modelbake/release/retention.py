"""What may go from a registry, and what has to stay. Pure.

A registry deletes manifests, by their digests, and every tag of a manifest goes with it. So it is digests
that are protected: all that a tag names which is neither a candidate nor about something else (versions,
aliases, channels and their records, whatever somebody has put there), what an index among these lists, and
what is attached to any of it. A candidate that somebody has signed, or to which somebody has attached what
modelbake does not make, stays as well: it means something to them.

What remains decides what of the shared memory is of use: the layers in REGISTRY/weights and REGISTRY/runtimes
that spare a publish its uploads. Deleting there never takes anything from an image, for every repository
holds its own images' layers; at worst they are sent again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from modelbake.grammar import VERSION
from modelbake.manifest import Manifest
from modelbake.plan import LOCK_LABEL
from modelbake.release.attachments import subject_of_tag
from modelbake.versiontag import CANDIDATE, precedence

# The tags of what may go: of a model's repository, of REGISTRY/weights, of REGISTRY/runtimes.
CANDIDATES = re.compile(f"{CANDIDATE}.+")
MEMORY = re.compile(r"(?:group|weights)-[a-z0-9-]*[0-9a-f]{64}")
RUNTIME = re.compile(rf"[a-z0-9._-]+-[0-9a-f]{{32}}|{CANDIDATE}[0-9a-f]{{12}}")
_OURS = ("application/vnd.modelbake.", "application/vnd.cyclonedx+json", "application/vnd.in-toto+json")


@dataclass(frozen=True)
class Holding:
    """What one repository has.

    Attributes:
        path: of the repository, without the registry's host.
        tags: the digest that each tag names.
        manifests: all that is known of, by digest.
        listed: the digests that an index lists, by the index's digest.
        about: the digests of what is attached to a manifest, by that manifest's digest: artifacts, the list
            that a referrers tag names, cosign's signatures.
        created: when an image was made or tested last, in RFC 3339; "" where nothing says so.
        versions: what an image's label says of its version.
    """

    path: str
    tags: Mapping[str, str]
    manifests: Mapping[str, Manifest]
    listed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    about: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    created: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The tags of each digest."""
        found: dict[str, list[str]] = {}
        for tag, digest in sorted(self.tags.items()):
            found.setdefault(digest, []).append(tag)
        return {digest: tuple(tags) for digest, tags in found.items()}

    def with_parts(self, digests: Iterable[str]) -> set[str]:
        """Return digests with what they list and what is attached to them, and so on."""
        found: set[str] = set()
        waiting = list(digests)
        while waiting:
            digest = waiting.pop()
            if digest not in found:
                found.add(digest)
                waiting += [*self.listed.get(digest, ()), *self.about.get(digest, ())]
        return found

    def in_order(self, digest: str, among: set[str]) -> tuple[str, ...]:
        """Return the parts of a manifest, and itself, such that it is found again until all of it is gone.

        What is attached comes before what it is about, and a list after what it lists: whoever is interrupted
        finds the rest by the tags that are left.
        """
        ordered: dict[str, None] = {}

        def add(each: str, above: frozenset[str]) -> None:
            if each in above or each in ordered or each not in among:
                return
            for part in (*self.about.get(each, ()), *self.listed.get(each, ())):
                add(part, above | {each})
            ordered[each] = None

        add(digest, frozenset())
        return tuple(ordered)


@dataclass(frozen=True)
class Removal:
    """One thing to remove: its tags, its digest, and the manifests to delete for it, in their order."""

    path: str
    tags: tuple[str, ...]
    digest: str
    why: str
    created: str
    deletes: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What is asked for now, so that it is kept though no image has it yet.

    `locks`: digests of models.lock; `layers`, `runtimes`: tags in REGISTRY/weights and REGISTRY/runtimes.
    """

    locks: frozenset[str] = frozenset()
    layers: frozenset[str] = frozenset()
    runtimes: frozenset[str] = frozenset()


def is_foreign(artifact_type: str) -> bool:
    """Tell whether an attachment is none of those that modelbake makes of every image."""
    return not artifact_type.startswith(_OURS)


def protected(holding: Holding, signed: Iterable[str] = ()) -> set[str]:
    """Return the digests that stay in a model's repository, whatever is asked for.

    `signed`: digests of candidates with a signature or with something else that is not modelbake's.
    """
    named = {
        digest
        for tag, digest in holding.tags.items()
        if not CANDIDATES.fullmatch(tag) and subject_of_tag(tag) is None
    }
    return holding.with_parts([*named, *signed])


def candidates_to_remove(holding: Holding, keep: int, signed: Iterable[str] = ()) -> list[Removal]:
    """Return the candidates beyond the `keep` newest of a model's repository.

    Those that have been released, or are protected otherwise, neither go nor count.
    """
    stays = protected(holding, signed)
    open_ = {
        digest for tag, digest in holding.tags.items() if CANDIDATES.fullmatch(tag) and digest not in stays
    }

    def age(digest: str) -> tuple[object, ...]:
        version = holding.versions.get(digest, "")
        known = VERSION.matches(version)
        return holding.created.get(digest, ""), known, precedence(version) if known else (), digest

    newest_first = sorted(open_, key=age, reverse=True)
    stays |= holding.with_parts(newest_first[:keep])
    return [_removal(holding, digest, "candidate", stays) for digest in newest_first[keep:]]


def memory_to_remove(
    holding: Holding, used: set[str], wanted: Wanted, signed: Iterable[str] = ()
) -> list[Removal]:
    """Return what REGISTRY/weights remembers of layers that no image has, and models.lock does not name.

    `used`: the digests of all blobs of the images that remain.
    """
    asked = {
        digest
        for tag, digest in holding.tags.items()
        if tag in wanted.layers or _lock_of(holding.manifests[digest]) in wanted.locks
    }
    used = used | {layer.digest for digest in asked for layer in holding.manifests[digest].layers}
    return _unused(holding, MEMORY, used, asked.union(signed), "weights of no image")


def runtimes_to_remove(
    holding: Holding, used: set[str], wanted: Wanted, signed: Iterable[str] = ()
) -> list[Removal]:
    """Return the images of REGISTRY/runtimes that no image was made of, and none would be now."""
    asked = {digest for tag, digest in holding.tags.items() if tag in wanted.runtimes}
    return _unused(holding, RUNTIME, used, asked.union(signed), "runtime of no image")


def _unused(
    holding: Holding, tags: re.Pattern[str], used: set[str], keep: Iterable[str], why: str
) -> list[Removal]:
    named = {
        digest
        for tag, digest in holding.tags.items()
        if not tags.fullmatch(tag) and subject_of_tag(tag) is None
    }
    of_use = {digest for digest in holding.names if _layers(holding, digest) <= used}
    gone = [
        digest
        for digest, names in holding.names.items()
        if any(tags.fullmatch(tag) for tag in names) and digest not in {*named, *of_use, *keep}
    ]
    stays = holding.with_parts({*named, *keep, *(of_use - set(gone))})
    return [_removal(holding, digest, why, stays) for digest in sorted(gone) if digest not in stays]


def _layers(holding: Holding, digest: str) -> set[str]:
    """Return the layers of an image, or of all that an index lists; attestations are none of them."""
    manifest = holding.manifests[digest]
    if not manifest.is_index:
        return {layer.digest for layer in manifest.layers}
    images = {each.digest for each in manifest.manifests if each.platform != "unknown/unknown"}
    return {
        blob for each in holding.listed.get(digest, ()) if each in images for blob in _layers(holding, each)
    }


def _lock_of(manifest: Manifest) -> object:
    notes = manifest.document().get("annotations")
    return notes.get(LOCK_LABEL) if isinstance(notes, dict) else None


def _removal(holding: Holding, digest: str, why: str, stays: set[str]) -> Removal:
    deletes = holding.in_order(digest, holding.with_parts([digest]) - stays)
    return Removal(holding.path, holding.names[digest], digest, why, holding.created.get(digest, ""), deletes)


def blobs_of(manifests: Iterable[Manifest]) -> dict[str, int]:
    """Return the bytes of every blob of some manifests, and of these themselves, by digest."""
    found: dict[str, int] = {}
    for manifest in manifests:
        found[manifest.digest] = len(manifest.body)
        if not manifest.is_index:
            found |= {blob.digest: blob.size for blob in (manifest.config, *manifest.layers)}
    return found


def remaining(holding: Holding, removals: Iterable[Removal]) -> list[Manifest]:
    """Return the manifests of a repository that stay."""
    gone = {digest for removal in removals if removal.path == holding.path for digest in removal.deletes}
    return [manifest for digest, manifest in holding.manifests.items() if digest not in gone]


def freed(holdings: Iterable[Holding], removals: Iterable[Removal]) -> int:
    """Return the bytes of blobs that only what is removed has, of all that is known of."""
    removals, holdings = list(removals), list(holdings)
    by_path = {holding.path: holding for holding in holdings}
    gone = [by_path[each.path].manifests[digest] for each in removals for digest in each.deletes]
    stays = blobs_of(manifest for holding in holdings for manifest in remaining(holding, removals))
    return sum(size for digest, size in blobs_of(gone).items() if digest not in stays)

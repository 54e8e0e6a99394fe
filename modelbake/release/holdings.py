"""What a model's repository has: its images by digest, and every name that leads to one of them.

    versions    1.4.2                   channels    production: what it names now
    aliases     1.4, 1                  records     production-0007: what it named once
    candidates  candidate-...           others      put there by hand

Tags that are documents about an image (`sha256-...`) or claims of a move are left out. An image without any
name is not found: a registry does not list what no tag leads to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelbake.grammar import VERSION
from modelbake.parallel import parallel
from modelbake.release.aliases import ALIAS
from modelbake.release.promotion import carry_out, look
from modelbake.release.records import channels_of, parse_tag
from modelbake.versiontag import CANDIDATE, precedence

if TYPE_CHECKING:
    from modelbake.errors import RegistryError
    from modelbake.manifest import Manifest
    from modelbake.output import Output
    from modelbake.release.channels import Channel
    from modelbake.stream.repository import RegistryRepository

_AT_ONCE = 8  # tags that are asked for at the same time
_ABOUT = re.compile(r"sha256-[0-9a-f]{64}(?:\..+)?")


@dataclass(frozen=True)
class Holding:
    """One image of a model, and what leads to it; each list sorted, versions and records the newest first."""

    digest: str
    versions: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The version, or what else it is called."""
        return (*self.versions, *self.records, *self.channels, *self.candidates, *self.others, "-")[0]


@dataclass(frozen=True)
class Holdings:
    """All of one model. `manifests`: of the images, by digest; `commits`: those that moved an image there."""

    model: str
    images: tuple[Holding, ...] = ()
    channels: tuple[Channel, ...] = ()
    manifests: Mapping[str, Manifest] = field(default_factory=dict)

    @property
    def released(self) -> list[str]:
        """The released versions, the newest first."""
        found = (version for image in self.images for version in image.versions)
        return sorted(found, key=precedence, reverse=True)


def read_holdings(
    repository: RegistryRepository, model: str, channels: Iterable[str], output: Output
) -> Holdings:
    """Read what a model's repository has.

    Args:
        repository: where the model is released.
        model: its name.
        channels: those of models.yaml; others that have records are found as well.
        output: where it is said what is passed over.

    Raises RegistryError and its subclasses.
    """
    tags = repository.registry.tags(repository.path)

    def passed_over(error: RegistryError) -> None:
        output.event("record_unusable", f"{model}: passed over: {error}", level="warning")

    names = sorted({*channels, *channels_of(tags)})
    known = [carry_out(repository, look(name, passed_over)) for name in names]
    direct = [tag for tag in tags if tag not in names and _leads_to_an_image(tag)]
    found = parallel(direct, lambda tag: (tag, repository.manifest(tag)), _AT_ONCE)
    by_digest: dict[str, list[str]] = {}
    manifests: dict[str, Manifest] = {}
    for tag, manifest in found:
        if manifest is not None:
            by_digest.setdefault(manifest.digest, []).append(tag)
            manifests[manifest.digest] = manifest
    images = gather(by_digest, known)
    missing = [image.digest for image in images if image.digest not in manifests]
    for digest, manifest in parallel(missing, lambda each: (each, repository.manifest(each)), _AT_ONCE):
        if manifest is not None:
            manifests[digest] = manifest
    return Holdings(model, images, tuple(known), manifests)


def gather(tags: Mapping[str, Sequence[str]], channels: Sequence[Channel]) -> tuple[Holding, ...]:
    """Return the images, the newest version first; `tags`: by the digest that they name. Pure."""
    digests = list(tags)
    for channel in channels:
        digests += [entry.record.digest for entry in channel.history]
        digests += [channel.digest] if channel.digest else []
    found = [_holding(digest, tags.get(digest, ()), channels) for digest in dict.fromkeys(digests)]
    return tuple(sorted(found, key=_order, reverse=True))


def _holding(digest: str, tags: Sequence[str], channels: Sequence[Channel]) -> Holding:
    versions = sorted((tag for tag in tags if VERSION.matches(tag)), key=precedence, reverse=True)
    aliases = sorted(tag for tag in tags if ALIAS.fullmatch(tag))
    candidates = sorted(tag for tag in tags if tag.startswith(CANDIDATE))
    named = {*versions, *aliases, *candidates}
    records = [
        entry.record for channel in channels for entry in channel.history if entry.record.digest == digest
    ]
    return Holding(
        digest,
        tuple(versions),
        tuple(aliases),
        tuple(channel.name for channel in channels if channel.digest == digest),
        tuple(each.tag for each in sorted(records, key=lambda each: (each.date, each.tag), reverse=True)),
        tuple(candidates),
        tuple(sorted(tag for tag in tags if tag not in named)),
    )


def _order(image: Holding) -> tuple[bool, object, str]:
    version = image.versions[0] if image.versions else "0.0.0-0"
    return bool(image.versions), precedence(version), image.digest


def _leads_to_an_image(tag: str) -> bool:
    return parse_tag(tag) is None and not _ABOUT.fullmatch(tag)

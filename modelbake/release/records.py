"""The numbered records of a channel's moves, as OCI indexes, and the tags that they have. Pure.

    production-0007                the record of the seventh move: an index that lists the image which the
                                   channel was to name, and says in its annotations who moved it, when, why
    production-0007.3f2a9c1b0d4e   a claim of that number: the same index under the first digits of its own
                                   digest, put before the record (`promotion` says what for)

Both are written once and never again. The index lists the image with its platform, so that it can be pulled
by the record's tag, and so that no garbage collection takes away what a rollback needs.

Source: https://github.com/opencontainers/image-spec/blob/main/image-index.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from modelbake.errors import RegistryError, ReleaseError
from modelbake.grammar import CHANNEL, NAME, VERSION
from modelbake.manifest import OCI_INDEX, Manifest
from modelbake.plan import LABEL_PREFIX
from modelbake.registryreply import document_of
from modelbake.tables import printable

Kind = Literal["promote", "rollback"]
RECORD_TYPE = "application/vnd.modelbake.channel.v1+json"
MOST_MOVES = 9999  # what four digits can count
LONGEST_CHANGES = 2000  # characters
_LONGEST_NAME = 200  # characters of who moved it
_CLAIM_DIGITS = 12  # of the digest
_CREATED = "org.opencontainers.image.created"
_CHANNEL = LABEL_PREFIX + "channel"
_TAG = re.compile(rf"([a-z0-9-]{{1,32}})-([0-9]{{4}})(?:\.([0-9a-f]{{{_CLAIM_DIGITS}}}))?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
# What Docker and containerd pass over when they look for their own platform, as with attestations.
_NO_PLATFORM = {"os": "unknown", "architecture": "unknown"}


@dataclass(frozen=True)
class Record:
    """One move of a channel, as it was meant: whether it took effect, `channels` finds out.

    `digest` is what the channel was to name, `previous` what it named before (None: nothing). `date` is RFC
    3339 in UTC. `commit` is that of the repository that models.yaml lies in, None where it lies in none.
    `over`: the channel had been moved by hand before, and this was known.
    """

    channel: str
    number: int
    kind: Kind
    model: str
    version: str
    digest: str
    previous: str | None
    date: str
    who: str
    commit: str | None = None
    changes: str = ""
    over: bool = False

    @property
    def tag(self) -> str:
        """`production-0007`."""
        return record_tag(self.channel, self.number)


@dataclass(frozen=True)
class RecordTag:
    """What a tag says: the record of a move or, with digits of its digest, a claim of its number."""

    channel: str
    number: int
    claim: str | None = None


def record_tag(channel: str, number: int) -> str:
    """Return the tag of a channel's record; a channel's name itself never ends like that."""
    return f"{channel}-{number:04d}"


def claim_tag(channel: str, number: int, digest: str) -> str:
    """Return the tag under which somebody claims a number, with what the record of it would be."""
    return f"{record_tag(channel, number)}.{digest.partition(':')[2][:_CLAIM_DIGITS]}"


def parse_tag(tag: str) -> RecordTag | None:
    """Return what a tag says of a channel's move, None for a tag of any other kind."""
    found = _TAG.fullmatch(tag)
    if found is None or not CHANNEL.matches(found[1]) or int(found[2]) == 0:
        return None
    return RecordTag(found[1], int(found[2]), found[3])


def tags_of(channel: str, tags: Iterable[str]) -> dict[str, RecordTag]:
    """Return those of a repository's tags that are records or claims of one channel."""
    parsed = ((tag, parse_tag(tag)) for tag in tags)
    return {tag: said for tag, said in parsed if said is not None and said.channel == channel}


def channels_of(tags: Iterable[str]) -> list[str]:
    """Return the channels that have ever been moved, by a repository's tags, sorted."""
    return sorted({said.channel for tag in tags if (said := parse_tag(tag))})


def next_number(channel: str, tags: Iterable[str]) -> int:
    """Return the number of the next move. Raises ReleaseError where four digits cannot count it."""
    number = 1 + max((said.number for said in tags_of(channel, tags).values()), default=0)
    if number > MOST_MOVES:
        raise ReleaseError(
            f"the channel has been moved {MOST_MOVES} times, and records have four digits",
            subject=channel,
            hint="use another channel",
        )
    return number


def listing(image: Manifest, config: bytes | None) -> list[dict[str, Any]]:
    """Return the entries of an index that lists an image.

    `config`: the configuration of an image of one platform; None for an index, whose own entries come first
    and then itself: nothing pulls it from there, but it is not collected either.
    """
    entry: dict[str, Any] = {
        "mediaType": image.media_type,
        "digest": image.digest,
        "size": len(image.body),
    }
    if config is None:
        inner = [each for each in image.document().get("manifests", ()) if isinstance(each, dict)]
        return [*inner, {**entry, "platform": dict(_NO_PLATFORM)}]
    document = document_of(config)
    platform = {
        name: document[name]
        for name in ("os", "architecture", "variant")
        if isinstance(document.get(name), str) and document[name]
    }
    return [{**entry, "platform": platform} if {"os", "architecture"} <= platform.keys() else entry]


def encode(record: Record, entries: list[dict[str, Any]]) -> Manifest:
    """Return the index that keeps a record; the same record has the same bytes."""
    said = {
        _CHANNEL: record.channel,
        f"{_CHANNEL}.number": str(record.number),
        f"{_CHANNEL}.kind": record.kind,
        f"{_CHANNEL}.model": record.model,
        f"{_CHANNEL}.version": record.version,
        f"{_CHANNEL}.digest": record.digest,
        f"{_CHANNEL}.previous": record.previous or "",
        f"{_CHANNEL}.who": printable(record.who)[:_LONGEST_NAME],
        f"{_CHANNEL}.changes": printable(record.changes)[:LONGEST_CHANGES],
        _CREATED: record.date,
    }
    if record.commit:
        said[f"{_CHANNEL}.commit"] = record.commit
    if record.over:
        said[f"{_CHANNEL}.over"] = record.previous or "none"
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "artifactType": RECORD_TYPE,
        "manifests": entries,
        "annotations": said,
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return Manifest.of(OCI_INDEX, text.encode())


def decode(manifest: Manifest, channel: str, number: int) -> Record:
    """Return the record under the tag of a channel's move.

    Raises RegistryError where it is none of this very move: whoever may push may put anything there.
    """
    document = manifest.document()
    said = document.get("annotations")
    if manifest.media_type != OCI_INDEX or not isinstance(said, Mapping):
        raise _unusable(channel, number, "is no record of a channel")

    def text(name: str, longest: int) -> str:
        value = said.get(name, "")
        if not isinstance(value, str) or len(value) > longest:
            raise _unusable(channel, number, f"has no usable {name}")
        return value

    if text(_CHANNEL, 64) != channel or text(f"{_CHANNEL}.number", 9) != str(number):
        raise _unusable(channel, number, "is the record of another move")
    kind, version, model = (text(f"{_CHANNEL}.{name}", 128) for name in ("kind", "version", "model"))
    digest, previous = (text(f"{_CHANNEL}.{name}", 71) for name in ("digest", "previous"))
    date, commit = text(_CREATED, 20), text(f"{_CHANNEL}.commit", 64)
    if (
        not (VERSION.matches(version) and NAME.matches(model))
        or not (_DIGEST.fullmatch(digest) and (not previous or _DIGEST.fullmatch(previous)))
        or not _is_moment(date)
        or (commit and not _COMMIT.fullmatch(commit))
    ):
        raise _unusable(channel, number, "has values that no move writes")
    if all(each.digest != digest for each in manifest.manifests):
        raise _unusable(channel, number, f"does not list {digest}")
    return Record(
        channel=channel,
        number=number,
        kind="rollback" if kind == "rollback" else "promote",
        model=model,
        version=version,
        digest=digest,
        previous=previous or None,
        date=date,
        who=printable(text(f"{_CHANNEL}.who", _LONGEST_NAME)),
        commit=commit or None,
        changes=printable(text(f"{_CHANNEL}.changes", LONGEST_CHANGES)),
        over=bool(text(f"{_CHANNEL}.over", 71)),
    )


def _is_moment(text: str) -> bool:
    try:
        return _DATE.fullmatch(text) is not None and bool(datetime.fromisoformat(text))
    except ValueError:  # the 31st of February
        return False


def _unusable(channel: str, number: int, problem: str) -> RegistryError:
    return RegistryError(problem, subject=record_tag(channel, number))

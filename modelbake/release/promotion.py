"""Moving a channel where a registry has no compare-and-swap: at most one of two writers believes it did.

The steps are generators that ask for one request to the registry after the other, so that tests can try all
orders of two writers' requests; `carry_out` sends them to a real one.

    look    the tags, the channel's tag, its records: do they agree?
    1. put  production-0008.CLAIM     a tag that nobody else writes
    2. list the tags                  no other claim or record of this number or a higher one? else give up
    3. put  production-0008, read it back
    4. read production                still what it was? else give up
    5. put  production
    6. read production, list the tags: ours, and no higher record? else say so

Of two who claim one number, the second to list sees both claims and gives up (maybe the first as well): so a
record has one writer, and is never overwritten. Who takes a higher number has seen our claim, and goes on
because it may be what a killed run has left. Then its step 4 finds our tag and it gives up; or it read the
tag before we put ours, and then its record was there before that and our step 6 finds it. In that case the
higher record is right: we put the tag to what it says, and fail.

A run that is killed leaves a claim and perhaps a record whose digest the tag does not have: unfinished, and
passed over by the next one, which takes the next number.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from modelbake.errors import ChannelMoved, ReadBackMismatch, RegistryError
from modelbake.parallel import parallel
from modelbake.release.channels import Channel, read_channel
from modelbake.release.records import Record, claim_tag, decode, record_tag, tags_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelbake.manifest import Manifest
    from modelbake.stream.repository import RegistryRepository

_TURNS = 3  # at a channel that is being moved while it is looked at
_AT_ONCE = 8  # records that are read at the same time
_LOOK = "`build.py channels NAME` says what is so now; then run it again"


@dataclass(frozen=True)
class Ask:
    """One request to the registry: list all tags, read what some references name, or put a manifest."""

    kind: Literal["tags", "read", "put"]
    references: tuple[str, ...] = ()
    manifest: Manifest | None = None


@dataclass(frozen=True)
class Answer:
    """What it answered: the tags, or the manifests that were read (None for one that is not there)."""

    tags: tuple[str, ...] = ()
    manifests: tuple[Manifest | None, ...] = ()


Result = TypeVar("Result")
Steps: TypeAlias = Generator[Ask, Answer, Result]


def carry_out(repository: RegistryRepository, steps: Steps[Result]) -> Result:
    """Send the requests of some steps to a registry; a registry's error is raised where it was asked."""
    try:
        ask = next(steps)
        while True:
            try:
                answer = perform(repository, ask)
            except RegistryError as error:
                ask = steps.throw(error)
            else:
                ask = steps.send(answer)
    except StopIteration as finished:
        result: Result = finished.value
        return result


def perform(repository: RegistryRepository, ask: Ask) -> Answer:
    """Send one request; reading several references sends several. Raises RegistryError, DiskFull."""
    match ask.kind:
        case "tags":
            return Answer(tags=tuple(repository.registry.tags(repository.path)))
        case "read":
            return Answer(manifests=tuple(parallel(ask.references, repository.manifest, _AT_ONCE)))
        case "put":
            assert ask.manifest is not None
            repository.registry.put_manifest(repository.path, ask.references[0], ask.manifest)
            return Answer()


def look(name: str, passed_over: Callable[[RegistryError], None]) -> Steps[Channel]:
    """Return a channel's state; `passed_over` is told of a record that cannot be read."""
    tags = yield from _tags()
    for turn in range(_TURNS):
        found = yield from _read(name)
        records = yield from _records(name, tags, passed_over)
        state = read_channel(name, found.digest if found else None, tags, records)
        if not state.by_hand or turn == _TURNS - 1:
            break
        again = yield from _tags()
        if tags_of(name, again) == tags_of(name, tags):
            break
        tags = again  # it was moved while we looked, and has a record of that
    return state


def move(seen: Channel, image: Manifest, record: Record, index: Manifest, where: str) -> Steps[None]:
    """Make a channel name an image, with a record of that.

    Args:
        seen: the channel as it was looked at: nothing else may have moved it since.
        image: what it is to name.
        record: the move, with the number after the highest that was seen.
        index: that record, encoded.
        where: `host/path`, for errors.

    Raises:
        ChannelMoved: somebody else moves it as well, or has moved it.
        ReadBackMismatch: the registry does not have what it took.
        RegistryError and its subclasses: it was not moved; where it may have been, the message says so.
    """
    subject, name = f"{where}:{seen.name}", seen.name
    mine = claim_tag(name, record.number, index.digest)
    yield from _put(mine, index)
    tags = yield from _tags()
    if mine not in tags:
        raise ReadBackMismatch(
            f"the registry took the tag {mine} and does not list it: nothing was moved",
            subject=subject,
            hint="a list of tags that comes from a cache is of no use here: ask the registry itself",
        )
    said = tags_of(name, tags)
    rivals = sorted(tag for tag in said if tag != mine and said[tag].number >= record.number)
    if rivals:
        raise ChannelMoved(
            f"somebody else moves it at the same time ({rivals[-1]}): nothing was moved",
            subject=subject,
            hint=_LOOK,
        )
    yield from _put(record.tag, index)
    if (yield from _read(record.tag)) != index:
        raise ReadBackMismatch(
            f"the registry took the record {record.tag} and gives something else back: nothing was moved",
            subject=subject,
            hint="run it again",
        )
    before = yield from _read(name)
    now = before.digest if before else None
    if now not in (seen.digest, image.digest):
        raise ChannelMoved(
            f"somebody moved it to {now or 'nothing'} meanwhile; it was at {seen.digest or 'nothing'}."
            " Nothing was moved by this run",
            subject=subject,
            hint=_LOOK,
        )
    lost: RegistryError | None = None
    try:
        yield from _put(name, image)
    except RegistryError as error:
        lost = error  # it may have been taken nevertheless; what counts is what is there now
    yield from _confirm(seen, image, record, subject, lost)


def _confirm(
    seen: Channel, image: Manifest, record: Record, subject: str, lost: RegistryError | None
) -> Steps[None]:
    """Make sure that the channel is ours now, or raise."""
    name = seen.name
    try:
        after = yield from _read(name)
        tags = yield from _tags()
    except RegistryError as error:
        raise (type(lost) if lost else type(error))(
            f"the channel's tag was sent, but could not be read back: {(lost or error).message}",
            subject=subject,
            hint="`build.py channels NAME` says whether it was moved",
        ) from error
    if after is None or after.digest != image.digest:
        if lost is not None and (after.digest if after else None) == seen.digest:
            raise lost
        if after is None:
            raise ReadBackMismatch(
                "the registry took the channel's tag, but does not have it", subject=subject, hint=_LOOK
            )
        raise ChannelMoved(
            f"somebody moved it to {after.digest} while this run made it {image.digest}",
            subject=subject,
            hint=_LOOK,
        )
    said = tags_of(name, tags)
    if record.tag not in said:
        raise ReadBackMismatch(
            f"the channel's tag was sent, but could not be read back: its record {record.tag} is not listed",
            subject=subject,
            hint="`build.py channels NAME` says whether it was moved",
        )
    higher = max(each.number for each in said.values() if each.claim is None)
    if higher > record.number:
        yield from _give_way(name, higher, image, subject)


def _give_way(name: str, number: int, image: Manifest, subject: str) -> Steps[None]:
    """Put the channel to what a higher record than ours says, and raise; nothing where that is the same."""
    tag = record_tag(name, number)
    failure = ChannelMoved(
        f"somebody else moved it at the same time ({tag}), and that is what counts",
        subject=subject,
        hint=_LOOK,
    )
    try:
        index = yield from _read(tag)
        theirs = decode(index, name, number).digest if index else None
        if theirs == image.digest:
            return
        wanted = (yield from _read(theirs)) if theirs else None
        if wanted is not None:
            yield from _put(name, wanted)
    except RegistryError as error:
        raise failure from error
    raise failure


def _records(
    name: str, tags: Sequence[str], passed_over: Callable[[RegistryError], None]
) -> Steps[list[Record]]:
    numbers = {tag: said.number for tag, said in tags_of(name, tags).items() if said.claim is None}
    if not numbers:
        return []
    found = (yield Ask("read", tuple(numbers))).manifests
    records = []
    for number, manifest in zip(numbers.values(), found, strict=True):
        try:
            if manifest is None:
                raise RegistryError("is listed, and is not there", subject=record_tag(name, number))
            records.append(decode(manifest, name, number))
        except RegistryError as error:
            passed_over(error)
    return records


def _tags() -> Steps[tuple[str, ...]]:
    return (yield Ask("tags")).tags


def _read(reference: str) -> Steps[Manifest | None]:
    return (yield Ask("read", (reference,))).manifests[0]


def _put(tag: str, manifest: Manifest) -> Steps[None]:
    yield Ask("put", (tag,), manifest)

"""What a channel is: a pure function of its tag and its records.

The tag is the truth of what runs. A record says what somebody meant to make of it; the next record's
`previous` says whether that took effect, and for the last one the tag does:

    tag is its digest      it took effect: this is the current entry
    tag is its previous    it was begun and not finished (or lost to another one): nothing has changed
    anything else          somebody moved the tag by hand

Moves that were begun at the same time have the same `previous`: at most one of them took effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby

from modelbake.errors import ChannelMoved, ReleaseError
from modelbake.release.records import Record, record_tag, tags_of

_MOST_NAMED = 10  # versions in a hint


@dataclass(frozen=True)
class Entry:
    """A record, and whether what it meant came to be."""

    record: Record
    took_effect: bool


@dataclass(frozen=True)
class Channel:
    """A channel of one model. `digest`: what its tag names, None without a tag. `history`: oldest first.

    `highest`: the highest number that a record or a claim has; 0 before the first.
    """

    name: str
    digest: str | None
    history: tuple[Entry, ...] = ()
    highest: int = 0

    @property
    def moves(self) -> tuple[Record, ...]:
        """The records of the moves that took effect, oldest first."""
        return tuple(each.record for each in self.history if each.took_effect)

    @property
    def recorded(self) -> str | None:
        """The digest that the records say the tag has."""
        return self.moves[-1].digest if self.moves else None

    @property
    def by_hand(self) -> bool:
        """Whether somebody moved the tag without a record."""
        return self.digest != self.recorded

    @property
    def current(self) -> Record | None:
        """The move that made the channel what it is; None where it is empty or was moved by hand."""
        return self.moves[-1] if self.moves and not self.by_hand else None

    @property
    def unfinished(self) -> int | None:
        """The number of the last move, where it was begun and not finished."""
        done = self.moves[-1].number if self.moves else 0
        return self.highest if self.highest > done else None


def read_channel(name: str, digest: str | None, tags: Iterable[str], records: Iterable[Record]) -> Channel:
    """Return a channel's state.

    Args:
        name: the channel.
        digest: what its tag names.
        tags: the repository's tags.
        records: those that could be read, in any order.
    """
    ordered = sorted(records, key=lambda record: record.number)
    groups = [tuple(group) for _, group in groupby(ordered, key=lambda record: record.previous)]
    history: list[Entry] = []
    for place, group in enumerate(groups):
        after = groups[place + 1][0].previous if place + 1 < len(groups) else digest
        done = _took_effect(group, after)
        history += (Entry(record, record is done) for record in group)
    highest = max((said.number for said in tags_of(name, tags).values()), default=0)
    return Channel(name, digest, tuple(history), highest)


def _took_effect(group: Sequence[Record], after: str | None) -> Record | None:
    """Return the one of some moves from the same digest that came to be, by what was found afterwards.

    Several of them were begun at the same time, or after others that were killed. Where none is what was
    found, the tag was moved by hand; the last one is then taken to have been there before that.
    """
    if after == group[-1].digest:
        return group[-1]
    if after == group[-1].previous:
        return None
    return next((each for each in reversed(group) if each.digest == after), group[-1])


def require_known(channel: Channel, subject: str, over: str | None) -> None:
    """Raise ChannelMoved unless the tag is what the records say, or what `over` says that it is.

    `over`: the digest that whoever moves the channel knows it to have, `none` for no tag, None where it was
    not said.
    """
    now = channel.digest or "none"
    if over is not None and over != now:
        raise ChannelMoved(f"--over says {over}, and the channel is at {now}", subject=subject)
    if over is None and channel.by_hand:
        last = f"its last move made it {channel.recorded}" if channel.moves else "no move of it is recorded"
        raise ChannelMoved(
            f"somebody moved the tag by hand: it is at {now}, and {last}",
            subject=subject,
            hint=f"find out who and why; then `--over {now}` replaces what is there, and records that",
        )


def rollback_target(channel: Channel, version: str | None, subject: str) -> Record:
    """Return the move whose image a rollback goes back to.

    Without a version: what was there before the current one. What was rolled back from does not count: a
    second rollback goes further back, and not to where the first one came from.

    Raises ReleaseError where nothing was there before, or not this version.
    """
    before = [move for move in reversed(channel.moves) if move.digest != channel.digest]
    known = ", ".join(list(dict.fromkeys(move.version for move in before))[:_MOST_NAMED])
    named = f"it has been at {known}: choose with --to VERSION" if known else "promote a version first"
    if channel.moves and not known:
        named = f"it has been at {channel.moves[-1].version} alone"
    if version is not None:
        found = next((move for move in before if move.version == version), None)
        if found is None:
            raise ReleaseError(f"{version} has never been in this channel", subject=subject, hint=named)
        return found
    if not channel.moves:
        raise ReleaseError("the channel is empty: nothing to go back to", subject=subject, hint=named)
    below = [move for move in standing(channel.moves) if move.digest != channel.digest]
    if not below:
        raise ReleaseError("no earlier version has been in this channel", subject=subject, hint=named)
    return below[-1]


def standing(moves: Sequence[Record]) -> list[Record]:
    """Return the moves that no rollback has undone, oldest first."""
    left: list[Record] = []
    for move in moves:
        if move.kind == "rollback":
            at = [place for place, each in enumerate(left) if each.digest == move.digest]
            if at:
                del left[at[-1] + 1 :]
                continue
        left.append(move)
    return left


def hours_in(channel: Channel, digest: str, now: datetime) -> float | None:
    """Return for how many hours the channel has named a digest without a break; None where it does not."""
    if channel.current is None or channel.current.digest != digest:
        return None
    since = datetime.strptime(channel.current.date, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return (now - since).total_seconds() / 3600


def unfinished_words(channel: Channel) -> str | None:
    """Return what is to be said of a move that was begun and not finished; None without one."""
    number = channel.unfinished
    if number is None:
        return None
    tag = record_tag(channel.name, number)
    meant = next((each.record for each in channel.history if each.record.number == number), None)
    what = f" ({meant.kind} to {meant.version} by {meant.who})" if meant else ""
    return f"{tag}{what} was begun and not finished: the channel was not moved"

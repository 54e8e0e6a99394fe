"""Promotions and rollbacks of one model: what has to hold before, and what is said of it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from modelbake.comparison import read_image
from modelbake.errors import ModelbakeError, NotReleased, RegistryError, ReleaseError, TagConflict, UsageError
from modelbake.grammar import VERSION
from modelbake.history import Version, described
from modelbake.release.baked import require_said
from modelbake.release.changes import changes
from modelbake.release.channels import (
    Channel,
    require_known,
    rollback_target,
    unfinished_words,
)
from modelbake.release.evidence import (
    Verify,
    configuration,
    gather,
    require_whole,
    seen,
    signature_problem,
)
from modelbake.release.policy import require
from modelbake.release.promotion import carry_out, move
from modelbake.release.quarantine import require_none
from modelbake.release.records import Kind, Record, encode, listing, next_number, record_tag
from modelbake.validation import did_you_mean
from modelbake.versiontag import precedence, released_versions

if TYPE_CHECKING:
    from modelbake.manifest import Manifest
    from modelbake.output import Output
    from modelbake.release.entries import ChannelEntry
    from modelbake.stream.repository import RegistryRepository

_MOST_NAMED = 5  # versions in a hint
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Mover:
    """Moves one channel of one model.

    Args:
        repository: where the model is released.
        model: its name.
        channel: the channel's name.
        output: where it is said what changes.
        who: who moves it.
        commit: of the repository that models.yaml lies in.
        verify: raises SignatureError for an image whose signature does not count.
        now: the time, in UTC.
        others: the model's other channels: what was in one of them is known by its digest.
    """

    repository: RegistryRepository
    model: str
    channel: str
    output: Output
    who: str
    commit: str | None = None
    verify: Verify | None = None
    now: Callable[[], datetime] = _now
    others: Sequence[str] = ()

    @property
    def subject(self) -> str:
        """What errors call the channel: `host/path:channel`."""
        return f"{self.repository.name}:{self.channel}"

    def promote(self, version: str, entry: ChannelEntry, over: str | None = None) -> str:
        """Make the channel name a released version; return its digest.

        `entry`: what the channel requires. `over`: see `channels.require_known`. Where the channel names it
        already nothing is written.

        Raises:
            NotReleased: the registry has no such version.
            ChannelMoved: the channel was moved by hand, or by somebody else at the same time.
            PolicyRefused: the version is in quarantine, or lacks what the channel requires.
            SigningFailed: a signature is required and cannot be verified.
            ReleaseError: the registry lacks a part of the image, or it says that it is something else.
            TagConflict: the version is another image than when it was in a channel.
            RegistryError and its subclasses.
        """
        image = self._released(version)
        require_none(self.repository, image, f"{self.model} {version}")
        state = self._look(over)
        others = {name: seen(self.repository, name, self.output) for name in self.others}
        _require_unmoved(self.repository.name, version, image, [state, *others.values()])
        if self._is_there(state, image.digest, version):
            return image.digest
        require_said(self.repository, image, self.model, version)
        named = (self.model, version)
        soaked = None
        if entry.soak is not None:
            soak = entry.soak.channel
            soaked = others[soak] if soak in others else seen(self.repository, soak, self.output)
        facts = gather(self.repository, image, named, entry, self.verify, self.now(), self.output, soaked)
        require(entry, facts, f"{self.model} {version}", self.channel)
        return self._move("promote", state, image, version, over)

    def rollback(self, version: str | None = None, over: str | None = None) -> str:
        """Make the channel name what it named before, or a version that it has named; return the digest.

        What the channel requires is not asked again: it was fulfilled, or nobody had asked, when that
        version was there, and a rollback must not wait for anything.

        Raises:
            ReleaseError: nothing was there before, or not this version; or a part of it is gone.
            PolicyRefused: that version is in quarantine.
            ChannelMoved and RegistryError as `promote` does.
        """
        state = self._look(over)
        if version is not None and state.current and state.current.version == version:
            self._is_there(state, state.current.digest, version)
            return state.current.digest
        target = rollback_target(state, version, self.subject)
        image = self.repository.manifest(target.digest)
        if image is None:
            raise ReleaseError(
                f"the registry has no manifest {target.digest} any more, which {target.version} was",
                subject=self.subject,
                hint="choose another version with --to; `restore` brings it back from a backup",
            )
        try:
            require_none(self.repository, image, f"{self.model} {target.version}")
        except RegistryError as error:  # a rollback waits for nothing that is not needed to carry it out
            self.output.event(
                "quarantine_unknown",
                f"whether {target.version} is in quarantine could not be found out: {error}",
                level="warning",
                version=target.version,
            )
        digest = self._move("rollback", state, image, target.version, over)
        self._warn_of(target, image)
        return digest

    def _warn_of(self, target: Record, image: Manifest) -> None:
        """Say where a record, which whoever may push can write, led to what nobody has released or signed.

        Afterwards: a rollback waits for nothing, and cosign may have to ask a network that is not there.
        """
        doubts = []
        try:
            tagged = self.repository.manifest(target.version)
            if tagged is not None and tagged.digest != image.digest:
                doubts.append(f"the version tag names another image, {tagged.digest}")
            if self.verify is not None and (
                problem := signature_problem(self.repository, image, self.verify)
            ):
                doubts.append(f"signature: {problem}")
        except ModelbakeError as error:
            doubts.append(str(error))
        for doubt in doubts:
            self.output.event(
                "rollback_doubtful",
                f"{self.channel} is at {image.digest} now, which {target.tag} calls"
                f" {target.version}: {doubt}",
                level="warning",
                version=target.version,
                digest=image.digest,
            )

    def _look(self, over: str | None) -> Channel:
        state = seen(self.repository, self.channel, self.output)
        require_known(state, self.subject, over)
        if words := unfinished_words(state):
            self.output.event("move_unfinished", f"{self.subject}: {words}", level="warning")
        return state

    def _is_there(self, state: Channel, digest: str, version: str) -> bool:
        if state.current is None or state.current.digest != digest:
            return False
        self.output.event(
            "channel_unchanged",
            f"{self.model} {version} is in {self.channel} already, since {state.current.date}",
            channel=self.channel,
            version=version,
            digest=digest,
        )
        return True

    def _released(self, version: str) -> Manifest:
        image = self.repository.manifest(version) if VERSION.matches(version) else None
        if image is None:
            there = released_versions(self.repository.registry, self.repository.path)
            near = nearest(version, there)
            raise NotReleased(
                f"there is no released version {version}",
                subject=self.repository.name,
                hint=f"released are {', '.join(near)}"
                if near
                else f"`build.py publish {self.model} --untagged`, then `build.py release {self.model}`",
            )
        return image

    def _move(self, kind: Kind, state: Channel, image: Manifest, version: str, over: str | None) -> str:
        require_whole(self.repository, image)
        told = self._changes(state, image, version)
        for line in told:
            self.output.event("channel_changes", f"{self.channel}: {line}", channel=self.channel)
        known = [record_tag(self.channel, state.highest)] if state.highest else []
        record = Record(
            channel=self.channel,
            number=next_number(self.channel, known),
            kind=kind,
            model=self.model,
            version=version,
            digest=image.digest,
            previous=state.digest,
            date=self.now().strftime("%Y-%m-%dT%H:%M:%SZ"),
            who=self.who,
            commit=self.commit,
            changes="; ".join(told),
            over=over is not None and state.by_hand,
        )
        index = encode(record, listing(image, configuration(self.repository, image)))
        carry_out(self.repository, move(state, image, record, index, self.repository.name))
        self.output.event(
            "channel_moved",
            f"{self.model}: {self.channel} is {version} now ({record.tag}, {kind} by {self.who})",
            channel=self.channel,
            version=version,
            digest=image.digest,
            previous=state.digest,
            record=record.tag,
        )
        return image.digest

    def _changes(self, state: Channel, image: Manifest, version: str) -> list[str]:
        """Return what the move changes; a registry that does not say so keeps nobody from a rollback."""
        try:
            return self._compared(state, image, version)
        except RegistryError as error:
            self.output.event(
                "channel_changes",
                f"{self.channel}: what changes could not be found out: {error}",
                level="warning",
                channel=self.channel,
            )
            return [f"to {version}; what changes could not be found out"]

    def _compared(self, state: Channel, image: Manifest, version: str) -> list[str]:
        if state.digest is None:
            return changes(None, Version(version, image.digest, None, ()), None, None)
        there = self.repository.manifest(state.digest)
        if there is None or state.current is None:
            return [f"{state.digest}, which was put there by hand -> {version}"]
        before, now = (
            described(self.repository, self.model, name, manifest, self.output)
            for name, manifest in ((state.current.version, there), (version, image))
        )
        images = [read_image(self.repository, digest) for digest in (state.digest, image.digest)]
        return changes(before, now, *images)


def _require_unmoved(repository: str, version: str, image: Manifest, channels: Sequence[Channel]) -> None:
    """Raise TagConflict where a version was another image when it was in any of the channels. Pure."""
    moves = (move for each in channels for move in reversed(each.moves) if move.version == version)
    earlier = next((move for move in moves if move.digest != image.digest), None)
    if earlier is not None:
        raise TagConflict(
            f"{version} was {earlier.digest} when it was in {earlier.channel} ({earlier.tag}), and its tag"
            f" names {image.digest} now: somebody has moved it",
            subject=f"{repository}:{version}",
            hint="released versions never change: release a new one",
        )


def nearest(version: str, released: Sequence[str]) -> list[str]:
    """Return the released versions that somebody may have meant, the likeliest first. Pure."""
    close = difflib.get_close_matches(version, released, n=_MOST_NAMED, cutoff=0.7)
    newest = sorted(released, key=precedence, reverse=True)
    return list(dict.fromkeys([*close, *newest]))[:_MOST_NAMED]


def require_channel(channel: str, known: Sequence[str], option: str) -> None:
    """Raise UsageError for a channel that models.yaml does not name."""
    if channel not in known:
        raise UsageError(
            f"no channel {channel!r}{did_you_mean(channel, known)}",
            subject=option,
            hint=f"channels are {', '.join(known)}; models.yaml names them under `channels`",
        )


def require_digest(over: str | None) -> None:
    """Raise UsageError where `--over` is neither a digest nor `none`."""
    if over is not None and over != "none" and not _DIGEST.fullmatch(over):
        raise UsageError(
            f"expected sha256: and 64 hexadecimal digits, or none, got {over!r}",
            subject="--over",
            hint="`build.py channels NAME` says what the channel is at now",
        )

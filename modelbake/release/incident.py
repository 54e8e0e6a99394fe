"""What an incident means: what is affected, where each channel can go back to, what to do next. Pure.

A channel that names an affected image goes back to the last image that it named before and that is known to
be free of it: one of which nothing could be told is not a place to go to.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelbake.release.channels import standing
from modelbake.release.questions import CommitQuestion, FileQuestion, PackageQuestion, Question, TokenQuestion
from modelbake.release.searching import Answer
from modelbake.tables import printable, table
from modelbake.versiontag import precedence

if TYPE_CHECKING:
    from modelbake.release.channels import Channel
    from modelbake.release.holdings import Holding, Holdings
    from modelbake.release.records import Record

_HEADER = ("MODEL", "VERSION", "DIGEST", "STATE", "CHANNELS", "SINCE", "FOUND")
_DIGITS = 12  # of a digest
_MOST_PLACES = 3  # that a row of the table names


@dataclass(frozen=True)
class Escape:
    """A channel that names an affected image. `target`: the move to go back to, None where there is none."""

    model: str
    channel: str
    digest: str
    version: str
    since: str
    target: Record | None
    by_hand: bool = False


@dataclass(frozen=True)
class Incident:
    """All that was found. `answers`: by model and digest; `quarantined`: digests, by model."""

    question: Question
    models: tuple[Holdings, ...]
    answers: Mapping[tuple[str, str], Answer]
    quarantined: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def of(self, state: str) -> list[tuple[Holdings, Holding, Answer]]:
        """Return the images of one state, by model, the newest version first."""
        return [
            (model, image, answer)
            for model in self.models
            for image in model.images
            if (answer := self.answers[model.model, image.digest]).state == state
        ]

    @property
    def escapes(self) -> list[Escape]:
        """Return what is to become of every channel that names an affected image."""
        return [
            _escape(self, model, channel)
            for model in self.models
            for channel in model.channels
            if channel.digest and self.answers[model.model, channel.digest].state == "affected"
        ]

    def is_safe(self, model: str, digest: str) -> bool:
        """Tell whether an image is known to be free of it, and of every earlier incident."""
        answer = self.answers.get((model, digest))
        good = answer is not None and answer.state == "clean"
        return good and digest not in self.quarantined.get(model, frozenset())


def _escape(incident: Incident, model: Holdings, channel: Channel) -> Escape:
    digest = channel.digest or ""
    now = channel.current
    version = now.version if now else next((i.name for i in model.images if i.digest == digest), "-")
    return Escape(
        model.model,
        channel.name,
        digest,
        version,
        now.date if now else "",
        target_of(channel, lambda each: incident.is_safe(model.model, each)),
        channel.by_hand,
    )


def target_of(channel: Channel, is_safe: Callable[[str], bool]) -> Record | None:
    """Return the last move whose image is safe and not the one that the channel names; None without one.

    What was rolled back from is none: somebody had a reason, which need not be this incident's.
    """
    before = (move for move in reversed(standing(channel.moves)) if move.digest != channel.digest)
    return next((move for move in before if is_safe(move.digest)), None)


def next_version(released: Iterable[str]) -> str:
    """Return the version to release next: the patch after the highest one; `1.0.0` before the first."""
    highest = max(released, key=precedence, default="0.9.9")
    if highest == "0.9.9":
        return "1.0.0"
    core, _, prerelease = highest.partition("-")
    major, minor, patch = (int(part) for part in core.split("."))
    return core if prerelease else f"{major}.{minor}.{patch + 1}"


def steps(
    incident: Incident, *, quarantined: bool = False, moved: Collection[tuple[str, str]] = ()
) -> list[str]:
    """Return what to do, in order, with command lines for this very case.

    `quarantined`: the images are in quarantine now; `moved`: model and name of each channel that was.
    """
    affected = incident.of("affected")
    unknown = incident.of("unknown")
    lines = []
    if affected and not quarantined:
        names = " ".join(dict.fromkeys(model.model for model, _, _ in affected))
        lines.append(f"quarantine: `build.py incident {_option(incident.question)} {names} --quarantine`")
    for escape in incident.escapes:
        if (escape.model, escape.channel) in moved:
            continue
        if escape.target is not None:
            over = f" --over {escape.digest}" if escape.by_hand else ""
            lines.append(
                f"roll back: `build.py rollback {escape.model} --channel {escape.channel}"
                f" --to {escape.target.version}{over}`"
                + ("" if quarantined else " (--quarantine does that as well)")
            )
        else:
            lines.append(
                f"{escape.model}: {escape.channel} names {escape.version}, and no earlier version of it is"
                " known to be free of this: stop its servers, or release one and promote that"
            )
    if affected or unknown:
        lines.append(_revoke(incident.question))
    rebuilt = {model.model: model for model, image, _ in affected if image.versions}
    for model in rebuilt.values():
        lines.append(
            f"rebuild: `version: {next_version(model.released)}` of {model.model} in models.yaml, then"
            f" `build.py lock {model.model}`, `build.py publish {model.model} --untagged`,"
            f" `build.py release {model.model}`, and promote it"
        )
    if affected:
        lines.append("hosts: those that run one of these digests keep it until they are given another")
    for model, image, answer in unknown:
        lines.append(
            f"look by hand at {model.model} {image.name} ({image.digest}): {'; '.join(answer.found)}"
        )
    return [f"{number}. {line}" for number, line in enumerate(lines, start=1)]


def _option(question: Question) -> str:
    match question:
        case CommitQuestion():
            return f"--commit {question.commit}"
        case FileQuestion():
            return f"--file-sha256 {question.sha256}"
        case PackageQuestion():
            return f"--package {question.name}" + (f"=={question.version}" if question.version else "")
        case TokenQuestion():
            return f"--token-file {shlex.quote(question.source)}"


def _revoke(question: Question) -> str:
    match question:
        case CommitQuestion():
            return "revoke: take the commit out of what `revision:` in models.yaml leads to, and lock again"
        case FileQuestion():
            return (
                "revoke: have the file taken from the source, or leave it out (`exclude:`), and lock again;"
                " `publish` takes a layer from REGISTRY/weights only for files that models.lock names"
            )
        case PackageQuestion():
            return (
                "revoke: raise or leave out the package in the runtime's requirements.in (or take"
                " another `base:`), and pin again"
            )
        case TokenQuestion():
            return "revoke: withdraw the token where it was issued, now; whoever could pull an image has it"


def as_table(incident: Incident) -> list[str]:
    """Return a line for each image that is affected or of which nothing can be told."""
    rows = []
    for model, image, answer in [*incident.of("affected"), *incident.of("unknown")]:
        since = [
            channel.current.date
            for channel in model.channels
            if channel.name in image.channels and channel.current
        ]
        places = list(answer.found[:_MOST_PLACES])
        more = len(answer.found) - len(places)
        rows.append(
            (
                model.model,
                image.name,
                image.digest.removeprefix("sha256:")[:_DIGITS],
                answer.state
                + (", quarantined" if image.digest in incident.quarantined.get(model.model, ()) else ""),
                ", ".join(image.channels) or "-",
                min(since, default="-"),
                "; ".join([*places, *([f"and {more} more"] if more else [])]),
            )
        )
    return table(_HEADER, rows) if rows else []


def as_document(
    incident: Incident, told: Sequence[str], moved: Mapping[tuple[str, str], str]
) -> dict[str, Any]:
    """Return all of it as JSON; `moved`: the version that each model's channel was moved to."""
    return {
        "asked": incident.question.words,
        "images": [
            {
                "model": model.model,
                "digest": image.digest,
                "state": answer.state,
                "quarantined": image.digest in incident.quarantined.get(model.model, ()),
                "versions": list(image.versions),
                "aliases": list(image.aliases),
                "channels": list(image.channels),
                "records": list(image.records),
                "candidates": list(image.candidates),
                "other_tags": list(image.others),
                "found": [printable(place) for place in answer.found],
                "by": answer.by,
            }
            for state in ("affected", "unknown", "clean")
            for model, image, answer in incident.of(state)
        ],
        "channels": [
            {
                "model": each.model,
                "channel": each.channel,
                "version": each.version,
                "digest": each.digest,
                "since": each.since or None,
                "back_to": each.target.version if each.target else None,
                "moved_to": moved.get((each.model, each.channel)),
            }
            for each in incident.escapes
        ],
        "steps": list(told),
    }

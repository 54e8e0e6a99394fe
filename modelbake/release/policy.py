"""What a version lacks of what a channel requires: a pure function over facts that others have gathered."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from modelbake.errors import PolicyRefused
from modelbake.release.channels import Channel, hours_in
from modelbake.release.entries import ChannelEntry
from modelbake.report import Report


@dataclass(frozen=True)
class Facts:
    """What is known of a released image; only what the channel requires has to have been gathered.

    `reports`: those kept beside it. `audit`: why there is no clean audit of it, None where there is one.
    `signature`: what is wrong with its signature, None for a valid one. `soaked`: the channel it has to have
    been in before. `now`: in UTC.
    """

    digest: str
    now: datetime
    reports: tuple[Report, ...] = field(default=())
    audit: str | None = "has not been looked for"
    signature: str | None = "has not been verified"
    soaked: Channel | None = None


def missing(entry: ChannelEntry, facts: Facts) -> list[str]:
    """Return a line for each requirement that is not met, with what to do about it."""
    lines = []
    if "signature" in entry.require and facts.signature is not None:
        lines.append(f"signature: {facts.signature}")
    if "gpu_report" in entry.require and not any(report.gpu and report.passed for report in facts.reports):
        devices = ", ".join(sorted(report.device for report in facts.reports))
        lines.append(
            "gpu_report: no passing report of a run on a GPU is kept beside it"
            f" (there is one of: {devices or 'no device'}); raise `version`, and test it on a GPU"
        )
    if "audit" in entry.require and facts.audit is not None:
        lines.append(f"audit: {facts.audit}")
    if entry.soak is not None:
        lines += _soak(entry.soak.channel, entry.soak.hours, facts)
    return lines


def require(entry: ChannelEntry, facts: Facts, subject: str, channel: str) -> None:
    """Raise PolicyRefused with all that is missing; nothing else is looked at afterwards."""
    lines = missing(entry, facts)
    if lines:
        raise PolicyRefused(
            f"{channel} requires what it does not have\n" + "\n".join(f"  {line}" for line in lines),
            subject=subject,
            hint=f"`channels: {channel}` of models.yaml requires it; `build.py release` audits and signs",
        )


def _soak(channel: str, hours: float, facts: Facts) -> list[str]:
    asked = f"soak: {hours:g} h in {channel} up to now are asked"
    been = hours_in(facts.soaked, facts.digest, facts.now) if facts.soaked else None
    if been is None:
        return [f"{asked}, and it is not there now; promote it to {channel} first"]
    if been < hours:
        return [f"{asked}, and it has been there for {max(been, 0):.1f} h"]
    return []

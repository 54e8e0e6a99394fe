"""The channels of a model for people and for programs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelbake.release.channels import Channel, unfinished_words
from modelbake.release.records import Record
from modelbake.tables import table

HEADER = ("MODEL", "CHANNEL", "VERSION", "DIGEST", "SINCE", "BY", "COMMIT", "RECORD")
_DIGITS = 12  # of a digest and a commit


def rows(model: str, channels: Sequence[Channel], *, history: bool) -> list[tuple[str, ...]]:
    """Return a row a channel; with `history` one a move besides, the newest first."""
    made = []
    for channel in channels:
        current = channel.current
        if current is not None:
            made.append(_row(model, channel.name, current, current.version))
        elif channel.by_hand:
            made.append((model, channel.name, "moved by hand", _short(channel.digest), *_NOTHING))
        else:
            made.append((model, channel.name, "empty", "-", *_NOTHING))
        if not history:
            continue
        for entry in reversed(channel.history):
            if entry.record is current:
                continue
            how = "" if entry.took_effect else " (not finished)"
            made.append(_row(model, channel.name, entry.record, f"was {entry.record.version}{how}"))
    return made


def as_table(made: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of the table."""
    return table(HEADER, made)


def as_document(model: str, channel: Channel, *, history: bool) -> dict[str, Any]:
    """Return a channel as JSON; `state` is `set`, `empty` or `moved by hand`."""
    current = channel.current
    document: dict[str, Any] = {
        "model": model,
        "channel": channel.name,
        "state": "set" if current else "moved by hand" if channel.by_hand else "empty",
        "digest": channel.digest,
        "recorded_digest": channel.recorded,
        "current": _record(current) if current else None,
        "unfinished": channel.unfinished,
    }
    if history:
        document["history"] = [
            {**_record(entry.record), "took_effect": entry.took_effect} for entry in reversed(channel.history)
        ]
    return document


def warnings(model: str, channel: Channel) -> list[str]:
    """Return what is not as it should be, a line each."""
    lines = []
    if channel.by_hand:
        lines.append(
            f"{model}: somebody moved {channel.name} by hand: it is at {channel.digest or 'nothing'},"
            f" and its records say {channel.recorded or 'nothing'}"
        )
    if words := unfinished_words(channel):
        lines.append(f"{model}: {words}")
    return lines


_NOTHING = ("-", "-", "-", "-")


def _row(model: str, channel: str, record: Record, version: str) -> tuple[str, ...]:
    return (
        model,
        channel,
        version,
        _short(record.digest),
        record.date,
        record.who,
        _short(record.commit),
        f"{record.number:04d} {record.kind}{' over' if record.over else ''}",
    )


def _record(record: Record) -> dict[str, Any]:
    return {
        "number": record.number,
        "tag": record.tag,
        "kind": record.kind,
        "version": record.version,
        "digest": record.digest,
        "previous": record.previous,
        "since": record.date,
        "by": record.who,
        "commit": record.commit,
        "changes": record.changes,
        "over": record.over,
    }


def _short(text: str | None) -> str:
    return text.removeprefix("sha256:")[:_DIGITS] if text else "-"

"""What a channel is, by its tag and its records, and where a rollback goes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from modelbake.errors import ChannelMoved, ReleaseError
from modelbake.release.channels import (
    Channel,
    hours_in,
    read_channel,
    require_known,
    rollback_target,
    unfinished_words,
)
from modelbake.release.channeltable import as_document, as_table, rows, warnings
from modelbake.release.records import Record
from tests.unit.release.moving_channels import IMAGES, NAME, NAMES, record

HAND = f"sha256:{'9' * 64}"


def history(moves: str) -> list[Record]:
    """Return records: `z a b<a` is z, then a, then b, then a rollback to a; `(d)` is never finished."""
    records: list[Record] = []
    at: str | None = None
    for number, word in enumerate(moves.split(), 1):
        name = word.strip("()<")
        made = record(name, number, at, "me", kind="rollback" if word.startswith("<") else "promote")
        records.append(replace(made, version=f"1.0.{'zabcd'.index(name)}"))
        at = at if word.startswith("(") else made.digest
    return records


def channel(moves: str, tag: str | None = "") -> Channel:
    records = history(moves)
    done = [IMAGES[word.strip("<")].digest for word in moves.split() if not word.startswith("(")]
    digest = (done[-1] if done else None) if tag == "" else tag
    return read_channel(NAME, digest, [each.tag for each in records], reversed(records))


def names(state: Channel) -> str:
    return "".join(NAMES[move.digest] for move in state.moves)


class TestState:
    @pytest.mark.parametrize(
        ("moves", "effective", "unfinished"),
        [
            ("", "", None),
            ("z", "z", None),
            ("z a <z", "zaz", None),
            ("(z)", "", 1),
            ("z (a)", "z", 2),
            ("z (a) (b)", "z", 3),
            ("z (a) b", "zb", None),
            ("(a) (b) z (a) b", "zb", None),
        ],
    )
    def test_what_took_effect(self, moves: str, effective: str, unfinished: int | None) -> None:
        state = channel(moves)
        assert names(state) == effective and state.unfinished == unfinished and not state.by_hand
        assert (state.current is None) == (effective == "")

    def test_of_two_at_once_the_one_that_the_tag_names(self) -> None:
        for winner in "ab":
            state = channel("z (a) (b)", IMAGES[winner].digest)
            assert names(state) == f"z{winner}" and not state.by_hand
            assert state.current and state.current.digest == IMAGES[winner].digest
        followed = [*history("z (a) (b)"), record("c", 4, IMAGES["a"].digest, "me")]
        state = read_channel(NAME, IMAGES["c"].digest, [], followed)
        assert names(state) == "zac"

    @pytest.mark.parametrize(("moves", "tag"), [("z a", HAND), ("z a", None), ("", HAND), ("z (a)", HAND)])
    def test_moved_by_hand(self, moves: str, tag: str | None) -> None:
        state = channel(moves, tag)
        assert state.by_hand and state.current is None
        with pytest.raises(ChannelMoved) as caught:
            require_known(state, "where", None)
        assert (tag or "none") in caught.value.message and f"--over {tag or 'none'}" in caught.value.hint
        assert not moves or str(state.recorded) in caught.value.message
        require_known(state, "where", tag or "none")
        with pytest.raises(ChannelMoved, match="--over says"):
            require_known(state, "where", IMAGES["c"].digest)

    def test_a_move_over_what_was_put_by_hand_explains_it(self) -> None:
        over = record("b", 3, HAND, "me", over=True)
        state = read_channel(NAME, over.digest, [], [*history("z a"), over])
        assert names(state) == "zab" and not state.by_hand
        state = read_channel(NAME, HAND, ["production-0003"], [*history("z a"), over])
        assert state.by_hand, "begun over what was put by hand, and not finished"
        adopted = record("b", 3, IMAGES["b"].digest, "me", over=True)
        state = read_channel(NAME, IMAGES["b"].digest, [], [*history("z a"), adopted])
        assert names(state) == "zab" and state.current == adopted

    def test_a_claim_alone_is_unfinished(self) -> None:
        state = read_channel(NAME, None, ["production-0001.0123456789ab"], [])
        assert state.unfinished == 1 and "production-0001 was begun" in str(unfinished_words(state))
        told = unfinished_words(channel("z (a)"))
        assert told and "promote to 1.0.1 by me" in told
        assert unfinished_words(channel("z")) is None

    def test_how_long(self) -> None:
        state = channel("z a")
        noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
        assert hours_in(state, IMAGES["a"].digest, noon.replace(hour=18)) == 6
        assert hours_in(state, IMAGES["z"].digest, noon) is None
        assert hours_in(channel(""), IMAGES["z"].digest, noon) is None


class TestRollback:
    @pytest.mark.parametrize(
        ("moves", "target"),
        [
            ("z a", "z"),
            ("z a b", "a"),
            ("z a b <a", "z"),  # not b again
            ("z a b <a c", "a"),
            ("z a b <a <z c", "z"),
            ("z a z", "a"),  # promoted, not rolled back
            ("z (b) a", "z"),
            ("z a (b)", "z"),
        ],
    )
    def test_it_goes_to_what_was_there_before(self, moves: str, target: str) -> None:
        assert NAMES[rollback_target(channel(moves), None, "where").digest] == target

    @pytest.mark.parametrize(
        ("moves", "message", "hint"),
        [
            ("", "is empty", "promote a version first"),
            ("z", "no earlier version", " alone"),
            ("z a <z", "no earlier version", "it has been at 1.0.1: choose with --to"),
            ("(a)", "is empty", "promote"),
        ],
    )
    def test_nothing_to_go_back_to(self, moves: str, message: str, hint: str) -> None:
        with pytest.raises(ReleaseError, match=message) as caught:
            rollback_target(channel(moves), None, "where")
        assert hint in caught.value.hint

    def test_to_a_version_that_was_there(self) -> None:
        state = channel("z a b <a")
        assert NAMES[rollback_target(state, "1.0.2", "where").digest] == "b"
        with pytest.raises(ReleaseError, match="has never been") as caught:
            rollback_target(state, "9.9.9", "where")
        assert "1.0.2, 1.0.0" in caught.value.hint
        with pytest.raises(ReleaseError, match="never been"):
            rollback_target(channel("z (a)"), "1.0.1", "where")

    def test_of_a_channel_that_was_moved_by_hand_it_goes_to_what_is_recorded(self) -> None:
        assert NAMES[rollback_target(channel("z a", HAND), None, "where").digest] == "a"


class TestShown:
    def test_the_table(self) -> None:
        made = rows("minilm", [channel("z (b) a"), channel("", HAND), channel("")], history=True)
        lines = as_table(made)
        assert lines[0].split() == [
            "MODEL",
            "CHANNEL",
            "VERSION",
            "DIGEST",
            "SINCE",
            "BY",
            "COMMIT",
            "RECORD",
        ]
        assert lines[1].split()[2] == "1.0.1" and lines[1].endswith("0003 promote")
        assert "was 1.0.2 (not finished)" in lines[2] and "was 1.0.0" in lines[3]
        assert "moved by hand" in lines[4] and "999999999999" in lines[4] and "empty" in lines[5]
        assert len(rows("minilm", [channel("z a")], history=False)) == 1

    def test_the_document(self) -> None:
        document = as_document("minilm", channel("z (b) a"), history=True)
        assert (document["state"], document["current"]["version"]) == ("set", "1.0.1")
        assert [each["took_effect"] for each in document["history"]] == [True, False, True]
        assert as_document("minilm", channel("", HAND), history=False)["state"] == "moved by hand"
        assert as_document("minilm", channel(""), history=False)["state"] == "empty"

    def test_what_is_not_as_it_should_be(self) -> None:
        assert warnings("minilm", channel("z a")) == []
        assert "by hand" in warnings("minilm", channel("z", HAND))[0]
        assert "begun and not finished" in warnings("minilm", channel("z (a)"))[0]

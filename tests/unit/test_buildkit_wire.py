from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbake.buildkit import wire


@given(st.lists(st.tuples(st.integers(1, 2**29 - 1), st.integers(1, 2**64 - 1) | st.binary(min_size=1))))
def test_what_is_written_is_read(message: list[tuple[int, int | bytes]]) -> None:
    encoded = b"".join(
        wire.varint_field(number, value) if isinstance(value, int) else wire.bytes_field(number, value)
        for number, value in message
    )
    assert list(wire.fields(encoded)) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(message: bytes) -> None:
    try:
        total = sum(len(value) for _, value in wire.fields(message) if isinstance(value, bytes))
    except wire.WireError:
        return
    assert total <= len(message)


@given(st.binary(min_size=1, max_size=50), st.data())
def test_a_cut_message_is_refused(value: bytes, data: st.DataObject) -> None:
    message = wire.bytes_field(3, value)
    cut = data.draw(st.integers(1, len(message) - 1))
    with pytest.raises(wire.WireError):
        list(wire.fields(message[:cut]))


def test_known_encodings() -> None:
    # From https://protobuf.dev/programming-guides/encoding/
    assert list(wire.fields(bytes.fromhex("089601"))) == [(1, 150)]
    assert list(wire.fields(bytes.fromhex("120774657374696e67"))) == [(2, b"testing")]
    assert wire.varint_field(1, 150) == bytes.fromhex("089601")
    assert wire.bytes_field(2, b"testing") == bytes.fromhex("120774657374696e67")
    assert list(wire.fields(b"\x09" + (7).to_bytes(8, "little") + b"\x15" + (8).to_bytes(4, "little"))) == [
        (1, 7),
        (2, 8),
    ]


def test_zero_and_empty_are_left_out() -> None:
    assert wire.varint_field(1, 0) == b"" == wire.bytes_field(1, b"")


@pytest.mark.parametrize(
    "message",
    [
        b"\x00\x01",  # field number 0
        b"\x0b",  # a group, which proto3 does not have
        b"\x08" + b"\xff" * 10 + b"\x01",  # a number without an end
        b"\x08" + b"\xff" * 9 + b"\x7f",  # more than 64 bits
        b"\x0a\xff\xff\xff\xff\x0f",  # 4 GiB claimed, none there
        b"\x09\x01",  # half a fixed64
    ],
)
def test_malformed(message: bytes) -> None:
    with pytest.raises(wire.WireError):
        list(wire.fields(message))


def test_types_are_checked() -> None:
    assert wire.as_int(2**64 - 1) == -1
    assert wire.as_text(b"a\xff") == "a�"
    with pytest.raises(wire.WireError):
        wire.as_bytes(1)
    with pytest.raises(wire.WireError):
        wire.as_int(b"1")

"""Protocol buffers on the wire: enough to read BuildKit's progress and to answer its requests.

The format: https://protobuf.dev/programming-guides/encoding/. Every length is checked against the bytes
that are there; nothing is allocated on the word of a length field.
"""

from __future__ import annotations

from collections.abc import Iterator

_LONGEST_VARINT = 10  # bytes: 64 bits, 7 a byte
_FIXED = {1: 8, 5: 4}  # wire type -> bytes


class WireError(ValueError):
    """The bytes are not a protocol buffer message of the expected shape."""


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) in order: an int (unsigned) for numbers, bytes for anything with a length.

    Raises:
        WireError: truncated, or a wire type that proto3 does not have.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise WireError(f"field number 0 at byte {position}")
        if wire_type == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = _varint(message, position)
        elif wire_type in _FIXED:
            length = _FIXED[wire_type]
        else:
            raise WireError(f"wire type {wire_type} at byte {position}")
        if length > len(message) - position:
            raise WireError(f"field {number} claims {length} bytes, {len(message) - position} are left")
        chunk = message[position : position + length]
        position += length
        yield number, chunk if wire_type == 2 else int.from_bytes(chunk, "little")


def as_bytes(value: int | bytes) -> bytes:
    """Return a length-delimited value.

    Raises:
        WireError: it is a number.
    """
    if isinstance(value, int):
        raise WireError("a number where bytes were expected")
    return value


def as_text(value: int | bytes) -> str:
    """Return a string value; bytes that are not UTF-8 become replacement characters (WireError: a number)."""
    return as_bytes(value).decode(errors="replace")


def as_int(value: int | bytes) -> int:
    """Return an int64 value: two's complement in 64 bits.

    Raises:
        WireError: it is not a number.
    """
    if not isinstance(value, int):
        raise WireError("bytes where a number was expected")
    return value - (1 << 64) if value >> 63 else value


def bytes_field(number: int, value: bytes) -> bytes:
    """Encode one length-delimited field; an empty value is left out, as proto3 does."""
    return _encode_varint(number << 3 | 2) + _encode_varint(len(value)) + value if value else b""


def varint_field(number: int, value: int) -> bytes:
    """Encode one non-negative number; zero is left out, as proto3 does."""
    return _encode_varint(number << 3) + _encode_varint(value) if value else b""


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index in range(_LONGEST_VARINT):
        if position + index >= len(message):
            raise WireError(f"the message ends inside a number at byte {position}")
        byte = message[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >> 64:
                raise WireError(f"a number of more than 64 bits at byte {position}")
            return value, position + index + 1
    raise WireError(f"a number of more than {_LONGEST_VARINT} bytes at byte {position}")


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)

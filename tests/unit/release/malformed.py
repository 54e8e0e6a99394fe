"""Signatures that are wrong in ways that some verifier has taken for right, as Wycheproof collects."""

from __future__ import annotations

from collections.abc import Iterator

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
PRIME = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF


def integer(value: int) -> bytes:
    """Encode an integer, negative ones as well, by DER."""
    size = max(1, (value if value >= 0 else ~value).bit_length() // 8 + 1)
    return bytes((2, size)) + value.to_bytes(size, "big", signed=True)


def pair(r: int, s: int) -> bytes:
    """Encode a signature."""
    body = integer(r) + integer(s)
    return bytes((0x30, len(body))) + body


def malformed(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield names and signatures that nobody may take, made of one that is good."""
    r, s = decode_dss_signature(good)
    assert pair(r, s) == good
    values = {
        "zero": 0,
        "one": 1,
        "minus one": -1,
        "order": ORDER,
        "order and one": ORDER + 1,
        "order less one": ORDER - 1,
        "prime": PRIME,
        "256 bits": (1 << 256) - 1,
        "264 bits": 1 << 263,
    }
    for name, value in values.items():
        yield f"r is {name}", pair(value, s)
        yield f"s is {name}", pair(r, value)
        yield f"both are {name}", pair(value, value)
    yield "r and the order", pair(r + ORDER, s)
    yield "s and the order", pair(r, s + ORDER)
    yield "r is negative", pair(-r, s)
    yield "s is negative", pair(r, -s)
    yield "r less the order", pair(r - ORDER, s)
    yield "exchanged", pair(s, r)
    yield "empty", b""
    yield "an empty sequence", b"\x30\x00"
    yield "one integer", bytes((0x30, len(integer(r)))) + integer(r)
    yield "three integers", bytes((0x30, len(good) - 2 + 3)) + good[2:] + integer(1)
    yield "an empty integer", b"\x30\x06\x02\x00\x02\x02\x00\x01"
    yield "bytes behind it", good + b"\0"
    yield "cut off", good[:-1]
    yield "indefinite length", b"\x30\x80" + good[2:] + b"\0\0"
    yield "length in two bytes", bytes((0x30, 0x81, len(good) - 2)) + good[2:]
    padded = b"\0" + integer(r)[2:]
    body = bytes((2, len(padded))) + padded + integer(s)
    yield "a zero too many", bytes((0x30, len(body))) + body
    yield "r and s without DER", r.to_bytes(32, "big") + s.to_bytes(32, "big")
    flipped = bytearray(good)
    flipped[-1] ^= 1
    yield "a bit flipped", bytes(flipped)

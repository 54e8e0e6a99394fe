"""Files that compress like real bf16 weights: the same bytes on every machine. Standard library only.

A bf16 number is a sign, 8 bits of exponent and 7 of mantissa. Mantissas are random, exponents those of a
normal distribution: gzip saves 20% of them, as it does of trained weights.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

_PIECE = 8 << 20  # bytes
_SIGMA = 0.02  # of the weights; it moves the exponents, not how they are spread


def _high_bytes() -> bytes:
    """Map a random byte to a number's first byte: its sign, and its exponent without the last bit."""
    below = [math.erf(2.0 ** (2 * half - 127) / _SIGMA / math.sqrt(2)) for half in range(129)]
    share = [below[half + 1] - below[half] for half in range(128)]
    likely = sorted(range(128), key=lambda half: -share[half])
    slots = [half for half in likely for _ in range(round(share[half] * 128))]
    slots = (slots + likely[:1] * 128)[:128]
    return bytes(slots + [half | 0x80 for half in slots])


_TABLE = _high_bytes()


def write_weights(path: Path, size: int, seed: int) -> Path:
    """Write a file of `size` bytes, an even number; each seed gives other bytes."""
    source = random.Random(seed)  # noqa: S311  # not for secrets
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for start in range(0, size, _PIECE):
            count = min(_PIECE, size - start) // 2
            piece = bytearray(2 * count)
            piece[0::2] = source.randbytes(count)
            piece[1::2] = source.randbytes(count).translate(_TABLE)
            file.write(piece)
    return path


def write_hole(path: Path, size: int) -> Path:
    """Write a file of zeros that takes no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path

"""A sample of a file that is too large to be read whole: 64 blocks of 64 KiB, the first and last among them.

They are evenly spread, so that damage which runs over more than 1/63 of a file is found for certain, and a
single changed byte hardly ever: it lies in one of these 4 MiB or it does not. Everybody who knows a file's
size knows the places; they are the same at every start. What is kept is one sha256 of all 64 blocks in a row.

modelbake/sample.py takes the same sample of bytes on their way. Standard library only, any Python from 3.9.
"""

from __future__ import annotations

import hashlib
import os

BLOCKS = 64
BLOCK = 64 * 1024  # bytes
# What is no larger is read whole, and has no sample.
SAMPLED_ABOVE = BLOCKS * BLOCK


def places(size: int) -> list[int]:
    """Where the blocks of a file of that size begin; no two of them overlap."""
    return [number * (size - BLOCK) // (BLOCKS - 1) for number in range(BLOCKS)]


def sample_of(descriptor: int, size: int) -> str:
    """The sha256 of the sample of an open file; OSError where it cannot be read, or is shorter than that."""
    digest = hashlib.sha256()
    for place in places(size):
        wanted = BLOCK
        while wanted:
            piece = os.pread(descriptor, wanted, place + BLOCK - wanted)
            if not piece:
                raise OSError(0, f"no more bytes at {place + BLOCK - wanted}")
            digest.update(piece)
            wanted -= len(piece)
    return digest.hexdigest()

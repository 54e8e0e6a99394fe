"""The sample of a large weight file that `verify: quick` compares: taken from its bytes as they pass. Pure.

64 blocks of 64 KiB, evenly spread from a file's first byte to its last, and one sha256 of them all in a row.
The lock does not know it, for it takes the bytes, and the manifest is made of the lock alone. So an image has
a file `/modelbake/samples/SHA256` for each large weight file of that sha256. The docker lane makes it where
it has fetched the file, the stream lane where the file flows.

images/start/weight_sample.py does the same with files on a disk; it runs within images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelbake.locked import LockedFile

FOLDER = "modelbake/samples"  # in an image
BLOCKS = 64
BLOCK = 64 * 1024  # bytes
SAMPLED_ABOVE = BLOCKS * BLOCK  # bytes; what is no larger is read whole at every start


def sampled(files: Sequence[LockedFile]) -> list[LockedFile]:
    """Return the files that have a sample."""
    return [file for file in files if file.size > SAMPLED_ABOVE]


def sample_files(samples: Mapping[str, str]) -> dict[str, bytes]:
    """Return the files of an image that hold samples; `samples`: a file's sha256 -> its sample."""
    return {f"{FOLDER}/{sha256}": f"{sample}\n".encode() for sha256, sample in samples.items()}


class Sampler:
    """Takes a file's sample out of its bytes, which come in order and each once. `size`: of the file."""

    def __init__(self, size: int) -> None:
        self._places = [number * (size - BLOCK) // (BLOCKS - 1) for number in range(BLOCKS)]
        self._next = 0  # the first block that is not complete
        self._position = 0
        self._digest = hashlib.sha256()

    def update(self, piece: memoryview) -> None:
        """Take the next bytes of the file."""
        end = self._position + len(piece)
        while self._next < BLOCKS and (place := self._places[self._next]) < end:
            start = max(place, self._position)
            self._digest.update(piece[start - self._position : place + BLOCK - self._position])
            if place + BLOCK > end:
                break
            self._next += 1
        self._position = end

    def hexdigest(self) -> str:
        """Return the sample: 64 hex digits."""
        return self._digest.hexdigest()

"""An image of any size that takes no room: its layer is made up while it is read."""

from __future__ import annotations

import hashlib
import io
import itertools
import random
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import zstandard

from modelbake.audit.auditing import audit
from modelbake.audit.findings import Findings
from modelbake.audit.images import ReadImage, ReadLayer
from modelbake.audit.judging import Expected
from modelbake.imagetar import as_file

_PIECE = 1 << 20
_BLOCKS = [random.Random(seed).randbytes(_PIECE) for seed in range(8)]  # random bytes, as weights are


def _weights(megabytes: int) -> Iterator[bytes]:
    yield from itertools.islice(itertools.cycle(_BLOCKS), megabytes)


def _tar(megabytes: int) -> Iterator[bytes]:
    entry = tarfile.TarInfo("models/model.safetensors")
    entry.size, entry.mode = megabytes * _PIECE, 0o444
    yield entry.tobuf()
    yield from _weights(megabytes)
    yield bytes(1024)


def _compressed(pieces: Iterator[bytes], compression: str) -> Iterator[bytes]:
    if compression == "none":
        yield from pieces
        return
    machine = (
        zlib.compressobj(1, wbits=31) if compression == "gzip" else zstandard.ZstdCompressor(1).compressobj()
    )
    for piece in pieces:
        yield machine.compress(piece)
    yield machine.flush()


@dataclass(frozen=True)
class MadeUp:
    """See the module."""

    megabytes: int
    compression: str
    name: str = "made-up:1"
    digest: str = ""

    def read(self, read_layer: ReadLayer) -> Iterator[ReadImage]:
        weights = as_file(_compressed(_tar(self.megabytes), self.compression))
        layers = (read_layer(weights), read_layer(as_file(iter((self._manifest(),)))))
        yield ReadImage("", {}, {"config": {"User": "65532"}}, layers, ("", ""))

    def expected(self) -> Expected:
        sha256 = hashlib.sha256()
        for piece in _weights(self.megabytes):
            sha256.update(piece)
        return Expected({"model.safetensors": (self.megabytes * _PIECE, sha256.hexdigest())})

    def _manifest(self) -> bytes:
        ((path, (size, sha256)),) = self.expected().files.items()
        raw = f'{{"files": [{{"path": "{path}", "size": {size}, "sha256": "{sha256}"}}]}}'.encode()
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo("modelbake/manifest.json")
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
        return buffer.getvalue()


def audit_of(megabytes: int, compression: str) -> Findings:
    """Audit an image of so many MiB of random weights."""
    image = MadeUp(megabytes, compression)
    return audit(image, image.expected())

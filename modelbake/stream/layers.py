"""Weight layers: the tar of a group of files, the same bytes on every machine and every day. Pure.

A layer holds `models/`, the folders below it and the files, sorted by path, with nothing of the machine that
made it: owner 0:0 without names, time 0, modes 0444 and 0555. Everything but the files' content follows from
the lock, so a layer's size is known, and can be continued at any offset, before its first byte is read.

Uncompressed, a layer's digest is its diffID: nothing is hashed twice, and bf16 weights hardly compress.

Source: https://github.com/opencontainers/image-spec/blob/main/layer.md; pax headers: POSIX.1-2017, pax.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from modelbake.locked import LockedFile
from modelbake.plan import WeightGroup

ROOT = "models"  # where the weights are in an image, without the leading slash
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_FILE_MODE, _FOLDER_MODE = 0o444, 0o555


@dataclass(frozen=True)
class Segment:
    """A part of a layer, `start` bytes from its beginning: literal bytes, or the whole content of a file."""

    start: int
    size: int
    literal: bytes | None = None
    file: LockedFile | None = None


@dataclass(frozen=True)
class WeightLayer:
    """The uncompressed tar of one group of weight files."""

    group: WeightGroup

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """All parts in order; they touch each other and cover the layer."""
        made: list[Segment] = []
        position = 0
        pending = b"".join(_header(folder, 0, folder=True) for folder in _folders(self.group))
        for file in self.group.files:
            pending += _header(f"{ROOT}/{file.path}", file.size, folder=False)
            made.append(Segment(position, len(pending), literal=pending))
            position += len(pending)
            made.append(Segment(position, file.size, file=file))
            position += file.size
            pending = bytes(-file.size % _BLOCK)
        pending += _END
        made.append(Segment(position, len(pending), literal=pending))
        return tuple(made)

    @cached_property
    def size(self) -> int:
        """Bytes of the whole layer."""
        last = self.segments[-1]
        return last.start + last.size

    def parts(self, offset: int = 0) -> Iterator[tuple[Segment, int]]:
        """Yield what a reader needs to continue at `offset`: each segment, and the offset within it."""
        for segment in self.segments:
            if segment.start + segment.size > offset:
                yield segment, max(0, offset - segment.start)


def small_layer(files: Mapping[str, bytes]) -> bytes:
    """Return the tar of a few small files (path -> content) as the docker lane's COPY makes it: mode 0644."""
    folders = sorted({parent for path in files for parent in _parents(path)})
    made = b"".join(_header(folder, 0, folder=True, mode=0o755) for folder in folders)
    for path, content in sorted(files.items()):
        made += (
            _header(path, len(content), folder=False, mode=0o644) + content + bytes(-len(content) % _BLOCK)
        )
    return made + _END


def _folders(group: WeightGroup) -> list[str]:
    return sorted({parent for file in group.files for parent in _parents(f"{ROOT}/{file.path}")})


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _header(path: str, size: int, *, folder: bool, mode: int | None = None) -> bytes:
    """Return a member's header; a path over 100 bytes or a size over 8 GiB gets pax records of its own."""
    info = tarfile.TarInfo(f"{path}/" if folder else path)
    info.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    info.size = size
    info.mode = mode if mode is not None else (_FOLDER_MODE if folder else _FILE_MODE)
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0
    return info.tobuf(format=tarfile.PAX_FORMAT, encoding="utf-8", errors="strict")

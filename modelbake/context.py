"""A build context: an explicit list of files and their bytes, as a folder or as a reproducible tar.

The list is made by `render` from what it names; no folder is ever walked, so a stray weight file or an
`.env` beside models.yaml cannot travel to an engine.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from modelbake.diskspace import saying_full
from modelbake.errors import RenderError

if TYPE_CHECKING:
    from modelbake.locked import LockedFile
    from modelbake.stream.flow import Reader

_END = bytes(2 * tarfile.BLOCKSIZE)
_INDEX = ".context-files"  # what `write` wrote, so that the next one knows what it may replace


@dataclass(frozen=True)
class Context:
    """Files of a context by their relative path with forward slashes.

    `digest` names what is built of them: `sha256:...`, also in the image's label `io.modelbake.plan`.
    `carried` are weight files that travel with it, read only while it is sent.
    """

    files: Mapping[str, bytes]
    digest: str = ""
    carried: Mapping[str, LockedFile] = field(default_factory=dict)

    def tar(self) -> bytes:
        """Return the tar the engine is sent: sorted, owned by 0:0, modes 0644, times 0. Carries nothing."""
        made = b"".join(
            _header(path, len(content)) + content + _padding(len(content))
            for path, content in sorted(self.files.items())
        )
        return made + _END

    def open(self, reader: Reader | None = None) -> bytes | IO[bytes]:
        """Return what an engine is sent: the tar, with what is carried in it as `reader` reads it."""
        if not self.carried:
            return self.tar()
        assert reader is not None, "who carries files says who reads them"
        return CarryingTar(self, reader)

    def write(self, directory: Path) -> None:
        """Write the context to a new or empty folder, or over one that an earlier `write` made.

        Raises RenderError when the folder holds anything else: a context is complete and nothing more,
        and what we did not write is not ours to remove. Raises DiskFull where it has no room.
        """
        try:
            present = _files_below(directory) if directory.exists() else set()
            earlier = _listed(directory / _INDEX)
            # What a run that was killed in the middle of a file has left.
            unfinished = present & {_temporary(path) for path in (*earlier, _INDEX)}
            if foreign := sorted(present - earlier - unfinished - {_INDEX}):
                raise RenderError(
                    f"holds files that `render` did not write: {', '.join(foreign[:5])}",
                    subject=str(directory),
                    hint="name a new folder, or remove this one first",
                )
            # Written down before the files, so that a run which was cut short can be run again.
            index = "".join(f"{path}\n" for path in sorted(earlier | set(self.files))).encode()
            with saying_full(directory, sum(map(len, self.files.values()))):
                _write(directory, _INDEX, index)
                for stale in sorted((present & earlier | unfinished) - set(self.files)):
                    (directory / stale).unlink(missing_ok=True)
                for path, content in sorted(self.files.items()):
                    _write(directory, path, content)
                _write(directory, _INDEX, "".join(f"{path}\n" for path in sorted(self.files)).encode())
        except OSError as error:
            raise RenderError(
                f"cannot write ({error.strerror})", subject=str(error.filename or directory)
            ) from error


class CarryingTar(io.BufferedIOBase, IO[bytes]):
    """The tar of a context with weight files in it, which are read from their source as they are sent.

    A file object: it can be read from any position, and read again. Errors of the source are raised as they
    are, from `read`.
    """

    def __init__(self, context: Context, reader: Reader) -> None:
        self._reader = reader
        self._parts: list[tuple[int, int, bytes | LockedFile]] = []  # start, size, content
        self._size = 0
        for path, content in sorted(context.files.items()):
            self._add(_header(path, len(content)) + content + _padding(len(content)))
        for path, file in sorted(context.carried.items()):
            self._add(_header(path, file.size))
            self._add(file)
            self._add(_padding(file.size))
        self._add(_END)
        self._position = 0
        self._pieces: Iterator[bytes] = iter(())
        self._next = -1  # where the next piece begins
        self._rest = b""

    def _add(self, content: bytes | LockedFile) -> None:
        size = len(content) if isinstance(content, bytes) else content.size
        if size:
            self._parts.append((self._size, size, content))
            self._size += size

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; sources are asked again only when it is not where reading has come to."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes, `size` of them but at the end. Raises what the reader of the source does."""
        wanted = self._size - self._position if size is None or size < 0 else size
        if self._next - len(self._rest) != self._position:
            self._pieces, self._next, self._rest = self._from(self._position), self._position, b""
        got = bytearray()
        while len(got) < wanted:
            if not self._rest:
                piece = next(self._pieces, b"")
                if not piece:
                    break
                self._rest, self._next = piece, self._next + len(piece)
            taken = self._rest[: wanted - len(got)]
            self._rest = self._rest[len(taken) :]
            got += taken
        self._position += len(got)
        return bytes(got)

    def _from(self, position: int) -> Iterator[bytes]:
        for start, size, content in self._parts:
            if start + size <= position:
                continue
            inner = max(0, position - start)
            if isinstance(content, bytes):
                yield content[inner:]
            else:
                yield from self._reader.read(content, inner)


def _header(path: str, size: int) -> bytes:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape")


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _write(directory: Path, path: str, content: bytes) -> None:
    """Write one file that is no link, in folders that everyone may enter whatever the umask is."""
    target = directory / path
    for folder in reversed([target.parent, *target.parent.parents]):
        if folder.is_relative_to(directory) and not folder.is_dir():
            folder.mkdir(parents=True)
            folder.chmod(0o755)
    temporary = directory / _temporary(path)
    temporary.unlink(missing_ok=True)
    with temporary.open("xb") as file:
        file.write(content)
    temporary.chmod(0o644)
    temporary.replace(target)


def _temporary(path: str) -> str:
    """Return how the file of a path is called until it is complete."""
    folder, name = posixpath.split(path)
    return posixpath.join(folder, f".{name}.new")


def _files_below(directory: Path) -> set[str]:
    """Return everything below a folder that is no folder; a link to one is not followed, and counts."""
    if not directory.is_dir():
        raise RenderError("is not a folder", subject=str(directory))
    return {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def _listed(index: Path) -> set[str]:
    """Return what an earlier `write` listed; a link or an unreadable file lists nothing."""
    if index.is_symlink() or not index.is_file():
        return set()
    try:
        listed = index.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return set()
    # A link in the place of a file that was written is not that file any more.
    return {path for path in listed if not (index.parent / path).is_symlink()}

"""A build context: an explicit list of files and their bytes, as a folder or as a reproducible tar.

The list is made by `render` from what it names; no folder is ever walked, so a stray weight file or an
`.env` beside models.yaml cannot travel to an engine.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelbake.diskspace import saying_full
from modelbake.errors import RenderError

_INDEX = ".context-files"  # what `write` wrote, so that the next one knows what it may replace


@dataclass(frozen=True)
class Context:
    """Files of a context by their relative path with forward slashes.

    `digest` names what is built of them: `sha256:...`, also in the image's label `io.modelbake.plan`.
    """

    files: Mapping[str, bytes]
    digest: str = ""

    def tar(self) -> bytes:
        """Return the tar the engine is sent: sorted, owned by 0:0, modes 0644, times 0."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path, content in sorted(self.files.items()):
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                entry.mode = 0o644
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()

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

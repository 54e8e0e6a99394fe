"""A build context: an explicit list of files and their bytes, as a folder or as a reproducible tar.

The list is made by `render` from what it names; no folder is ever walked, so a stray weight file or an
`.env` beside models.yaml cannot travel to an engine.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
        and what we did not write is not ours to remove.
        """
        try:
            present = _files_below(directory) if directory.exists() else set()
            earlier = _listed(directory / _INDEX)
            foreign = sorted(present - set(self.files) - earlier - {_INDEX})
            if foreign:
                raise RenderError(
                    f"holds files that are not of this context: {', '.join(foreign[:5])}",
                    subject=str(directory),
                    hint="name a new folder, or remove this one first",
                )
            for stale in sorted((present & earlier) - set(self.files)):
                (directory / stale).unlink()
            index = "".join(f"{path}\n" for path in sorted(self.files)).encode()
            for path, content in sorted({**self.files, _INDEX: index}.items()):
                target = directory / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                target.chmod(0o644)
        except OSError as error:
            raise RenderError(
                f"cannot write ({error.strerror})", subject=str(error.filename or directory)
            ) from error


def _files_below(directory: Path) -> set[str]:
    if not directory.is_dir():
        raise RenderError("is not a folder", subject=str(directory))
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}


def _listed(index: Path) -> set[str]:
    return set(index.read_text(encoding="utf-8").splitlines()) if index.is_file() else set()

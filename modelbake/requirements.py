"""A hash-pinned requirements file, and how it is cut into layers by the names of its packages. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from modelbake.errors import RenderError

_NAME = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:$|[\[=<>!~;@ \\])")
_COMMENT = re.compile(r"(?:^|\s)#.*$", re.M)
_HASH = re.compile(r"\s--hash(?:=|\s+)sha(?:256|384|512):")
_CONTINUES = re.compile(r"(?<!\\)(?:\\\\)*\\$")


@dataclass(frozen=True)
class Requirement:
    """One entry: the package's normalised name, None for an option of pip; its lines; where it begins."""

    name: str | None
    text: str
    line: int


def read_requirements(text: str, subject: str) -> list[Requirement]:
    """Return the entries of a requirements file, without comments between them.

    Raises RenderError, with `subject:line`, for one that does not begin with a package's name.
    """
    found = []
    for number, entry in _entries(text):
        if entry.startswith("-"):
            found.append(Requirement(None, entry, number))
        elif match := _NAME.match(entry):
            found.append(Requirement(normalised(match[1]), entry, number))
        else:
            raise RenderError(
                f"no package's name at the beginning of {entry.splitlines()[0][:60]!r}",
                subject=f"{subject}:{number}",
                hint="a file that is cut into layers has lines such as name==1.0 --hash=sha256:...",
            )
    return found


def unhashed(text: str) -> list[tuple[int, str]]:
    """Return the entries that no hash pins, each with its line number: pip is told to refuse them."""
    return [
        (number, _COMMENT.sub("", entry).strip().removesuffix("\\").strip())
        for number, entry in _entries(text)
        if not entry.startswith("-") and not _HASH.search(_COMMENT.sub("", entry))
    ]


def split_requirements(text: str, layers: Sequence[Sequence[str]], subject: str) -> tuple[str, ...]:
    """Cut a requirements file into one for each layer, bottom first; the last has what no pattern names.

    A package is in the first layer that names it. Layers without packages are left out, and where one is
    left the file stays as it is. Options of pip are in every layer.

    Raises as `read_requirements` does.
    """
    if not layers:
        return (text,)
    entries = read_requirements(text, subject)
    options = [entry.text for entry in entries if entry.name is None]
    cut: list[list[str]] = [[] for _ in range(len(layers) + 1)]
    for entry in entries:
        if entry.name is not None:
            cut[layer_of(entry.name, layers)].append(entry.text)
    filled = [each for each in cut if each]
    return tuple("".join([*options, *each]) for each in filled) if len(filled) > 1 else (text,)


def layer_of(name: str, layers: Sequence[Sequence[str]]) -> int:
    """Return the number of the first layer with a pattern for a package, else that of the rest."""
    for number, patterns in enumerate(layers):
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return number
    return len(layers)


def normalised(name: str) -> str:
    """Return a package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _entries(text: str) -> Iterator[tuple[int, str]]:
    """Yield each entry with all lines that it goes on to, and the number of its first line."""
    began, lines = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if not lines and (not line.strip() or line.lstrip().startswith("#")):
            continue
        began = began if lines else number
        lines.append(line.rstrip() if lines else line.strip())
        if not _CONTINUES.search(lines[-1]):
            yield began, "\n".join(lines) + "\n"
            lines = []
    if lines:
        yield began, "\n".join(lines) + "\n"

"""Which of the files that a source lists a model takes, and whether an image can have them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from modelbake.errors import NoMatchingFiles, SourceError
from modelbake.fitness import selects
from modelbake.weightpath import conflicting_paths, path_problem, shown

if TYPE_CHECKING:
    from modelbake.config import SourceSpec
    from modelbake.locked import LockedSource


MOST_FILES = 100_000  # that one source may list


class _Listed(Protocol):
    @property
    def path(self) -> str: ...


_File = TypeVar("_File", bound=_Listed)


def select_files(files: Sequence[_File], spec: SourceSpec | LockedSource, subject: str) -> list[_File]:
    """Return the files that include and exclude select; every one of them has a path fit to be written.

    Raises NoMatchingFiles, and SourceError for names that no image can have; `subject` is of both.
    """
    candidates = [file for file in files if not is_of_git(file.path)]
    included = [file for file in candidates if not spec.include or matches(file.path, spec.include)]
    chosen = [file for file in included if not matches(file.path, spec.exclude)]
    if not chosen:
        raise _no_match([file.path for file in candidates], len(included), spec, subject)
    for file in chosen:
        if problem := path_problem(file.path):
            raise SourceError(
                f"the file name {shown(file.path)!r} {problem}",
                subject=subject,
                hint="leave it out with `exclude`, or have it renamed in the repository",
            )
    if clash := conflicting_paths(file.path for file in chosen):
        raise SourceError(
            f"the files {shown(clash[0])!r} and {shown(clash[1])!r} cannot both exist in one folder",
            subject=subject,
            hint="leave one of them out with `exclude`",
        )
    return chosen


def is_selected(path: str, spec: SourceSpec | LockedSource) -> bool:
    """Tell whether `select_files` takes a path."""
    included = not spec.include or matches(path, spec.include)
    return included and not is_of_git(path) and not matches(path, spec.exclude)


def is_of_git(path: str) -> bool:
    """Tell whether a path is git's own: .gitattributes and its like say how git stores the repository.

    They change (a file moves to LFS) without the model changing, no runtime reads them, and they must not
    make a new layer.
    """
    return any(part.startswith(".git") for part in path.split("/"))


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Tell whether one of several patterns takes a path; see `fitness.selects`."""
    return any(selects(each, path) for each in patterns)


def _no_match(
    names: Sequence[str], included: int, spec: SourceSpec | LockedSource, subject: str
) -> NoMatchingFiles:
    what = "repository" if spec.kind == "hf" else "source"
    if not names:
        return NoMatchingFiles(f"the {what} holds no files", subject=subject)
    if included:
        message = f"exclude {list(spec.exclude)} leaves out all {included} files that include selects"
    else:
        message = f"include {list(spec.include)} selects none of the {what}'s {len(names)} files"
    close = {
        name
        for pattern in spec.include
        for name in difflib.get_close_matches(pattern, names, n=2, cutoff=0.5)
    }
    advice = f"did you mean {' or '.join(shown(name) for name in sorted(close))}? " if close else ""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    there = ", ".join(shown(name, 80) for name in sorted(names)[:20])
    return NoMatchingFiles(message, subject=subject, hint=f"{advice}there are: {there}{more}")

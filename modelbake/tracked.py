"""What git knows of files that are to leave its repository, and how they leave its history. It is only asked.

git-filter-repo: https://github.com/newren/git-filter-repo. It removes the files from the working tree too:
so nobody is told to run it before the files are elsewhere.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from modelbake.errors import UsageError
from modelbake.gitprogram import run_git
from modelbake.weightpath import shown

_SECONDS = 300.0  # a long history on a slow disk


@dataclass(frozen=True)
class GitState:
    """What git knows of some files; all paths are below `root`, the top of the working tree, and sorted.

    `prefix`: the folder that they are in, with a slash at its end, or "". `tracked`: in the index.
    `in_history`: in a commit of any branch, tag or stash. `unignored`: neither tracked nor ignored, so that
    the next `git add .` takes them.
    """

    root: Path
    prefix: str = ""
    tracked: tuple[str, ...] = ()
    in_history: tuple[str, ...] = ()
    unignored: tuple[str, ...] = ()

    def only(self, paths: Iterable[str]) -> GitState:
        """Return what git knows of some of the files; `paths` are below the folder that was asked about."""
        ours = {f"{self.prefix}{path}" for path in paths}
        lists = (self.tracked, self.in_history, self.unignored)
        return GitState(self.root, self.prefix, *(tuple(filter(ours.__contains__, each)) for each in lists))

    @property
    def known(self) -> tuple[str, ...]:
        """What git keeps a copy of."""
        return tuple(sorted({*self.tracked, *self.in_history}))


def git_state(folder: Path, paths: Iterable[str]) -> GitState | None:
    """Return what git knows of files below a folder; None where that is in no repository.

    Raises UsageError where it lies in one and git cannot be asked.
    """
    folder = folder.resolve()
    if not any((each / ".git").exists() for each in (folder, *folder.parents)):
        return None
    root = Path(_git(folder, "rev-parse", "--show-toplevel").decode(errors="surrogateescape").rstrip("\n"))
    place = folder.relative_to(root.resolve()).as_posix()
    prefix = "" if place == "." else f"{place}/"
    ours = {f"{prefix}{path}" for path in paths}

    def named(*arguments: str) -> tuple[str, ...]:
        answer = _git(root, *arguments, "-z", "--", place).decode(errors="surrogateescape")
        return tuple(sorted(ours.intersection(each.lstrip("\n") for each in answer.split("\0"))))

    has_commits = _git(root, "for-each-ref", "--count=1").strip()
    return GitState(
        root=root,
        prefix=prefix,
        tracked=named("ls-files", "--cached"),
        in_history=named("log", "--all", "-m", "--no-renames", "--format=", "--name-only")
        if has_commits
        else (),
        unignored=named("ls-files", "--others", "--exclude-standard"),
    )


def removal_steps(state: GitState) -> list[str]:
    """Return the lines that say how what git keeps is removed, in the order in which it is safe."""
    if not state.known:
        return []
    root, beside = shlex.quote(str(state.root)), shlex.quote(f"{state.root}.rewritten")
    lines = []
    listed = " ".join(shlex.quote(path) for path in state.tracked)
    if state.tracked:
        lines += [f"cd {root} && git rm --cached -- {listed}    # and a line in .gitignore; commit both"]
    if state.in_history:
        paths = " ".join(f"--path {shlex.quote(path)}" for path in state.in_history)
        lines += [
            f"git clone --no-local {root} {beside} && cd {beside}    # a fresh clone: filter-repo insists",
            f"git filter-repo --invert-paths {paths}",
            "git push --force --all REMOTE && git push --force --tags REMOTE    # new ids for all since",
            "# Until then the remote keeps them, and so does every clone, fork and pull request. Afterwards"
            " everybody clones anew, and the host's support removes what it has cached.",
        ]
    return lines


def ignore_lines(state: GitState) -> list[str]:
    """Return the lines for .gitignore that keep `git add` from taking these files."""
    return [
        "/" + "".join(f"\\{each}" if each in "*?[\\# !" else each for each in path)
        for path in state.unignored
    ]


def _git(folder: Path, *arguments: str) -> bytes:
    try:
        done = run_git(folder, *arguments, seconds=_SECONDS)
    except FileNotFoundError as error:
        raise _unasked("git is not installed", folder) from error
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise _unasked(type(error).__name__, folder) from error
    if done.returncode:
        raise _unasked(shown(done.stderr.decode(errors="replace").strip().partition("\n")[0], 300), folder)
    return done.stdout


def _unasked(why: str, folder: Path) -> UsageError:
    return UsageError(
        f"lies in a git repository, and git does not say whether it tracks these files: {why}",
        subject=str(folder),
        hint="make `git -C FOLDER status` work, or move the folder out of the repository",
    )

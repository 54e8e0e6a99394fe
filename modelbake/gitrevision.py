"""The files of an earlier revision of the git repository that models.yaml lies in, by the program `git`.

Nothing of the work tree, the index or the configuration is changed: objects are read by their names.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelbake.errors import UsageError
from modelbake.gitprogram import run_git

OPTION = "--changed-since"
_SECONDS = 120.0  # a partial clone may have to fetch what is asked for
_NOBODY = re.compile(r"0{40}(?:0{24})?")  # what a CI gives as the commit before a branch's first one
_REGULAR = ("100644", "100755")


@dataclass(frozen=True)
class Revision:
    """A commit of the git repository whose top folder is `root`, without symbolic links on the way to it."""

    root: Path
    commit: str

    @classmethod
    def of(cls, folder: Path, name: str) -> Revision:
        """Find the commit that a name stands for where a folder lies.

        Raises UsageError: git is missing, this is no repository, or it knows no such commit.
        """
        root = top_of(folder)
        wanted = f"{name}^{{commit}}"
        found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", wanted)
        if found.returncode == 0 and name:
            return cls(root, found.stdout.decode().strip())
        raise UsageError("names no commit that is here", subject=f"{OPTION} {name}", hint=_remedy(root, name))

    def holds(self, path: Path) -> bool:
        """Tell whether a path is in this repository, and in no other one inside of it."""
        try:
            return path.resolve().is_relative_to(self.root) and top_of(path) == self.root
        except UsageError:
            return False

    def place(self, path: Path, below: Path) -> Path:
        """Return where `write` puts what is at a path now. Raises UsageError for one outside."""
        try:
            return below / path.resolve().relative_to(self.root)
        except ValueError as error:
            raise UsageError(
                f"{path} leads out of the git repository {self.root}",
                subject=OPTION,
                hint=f"keep it in one repository, or leave {OPTION} out: all models are listed then",
            ) from error

    def write(self, paths: Iterable[Path], target: Path) -> None:
        """Write the files that the commit has at and below `paths` to the same places below `target`.

        Paths that it lacks are none; neither are links and submodules. Raises UsageError.
        """
        names = [self.place(path, Path()).as_posix() for path in paths]
        entries = [entry for entry in self._entries(names) if entry[1] in _REGULAR]
        for (place, _, _), content in zip(
            entries, self._contents([each[2] for each in entries]), strict=True
        ):
            file = target / place
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    def _entries(self, names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
        """Yield the path, the mode and the object of each file."""
        if not names:
            return
        named = [] if "." in names else names
        done = _git(self.root, "ls-tree", "-r", "-z", "--full-tree", self.commit, "--", *named)
        if done.returncode:
            raise _unreadable(self.commit, done.stderr)
        for entry in done.stdout.split(b"\0")[:-1]:
            facts, _, place = entry.partition(b"\t")
            mode, _, name = facts.decode().split(" ")
            yield os.fsdecode(place), mode, name

    def _contents(self, objects: Sequence[str]) -> Iterator[bytes]:
        if not objects:
            return
        with tempfile.TemporaryFile() as asked:  # a pipe would fill while git waits for us to read
            asked.write("".join(f"{each}\n" for each in objects).encode())
            asked.seek(0)
            done = _git(self.root, "cat-file", "--batch", stdin=asked.fileno())
        if done.returncode:
            raise _unreadable(self.commit, done.stderr)
        at = 0
        for _ in objects:
            end = done.stdout.index(b"\n", at)
            header = done.stdout[at:end].split(b" ")
            if len(header) != 3:
                raise _unreadable(self.commit, done.stdout[at:end])
            at = end + 1 + int(header[2])
            yield done.stdout[end + 1 : at]
            at += 1  # the line's end behind it


def top_of(folder: Path) -> Path:
    """Return the top folder of the repository that a folder lies in. Raises UsageError."""
    done = _git(folder, "rev-parse", "--show-toplevel")
    if done.returncode == 0 and (said := os.fsdecode(done.stdout).removesuffix("\n")):
        return Path(said).resolve()
    why = done.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
    if "safe.directory" in why or "dubious ownership" in why:
        raise UsageError(
            "git does not trust this folder: it belongs to another user",
            subject=OPTION,
            hint=f"`git config --global --add safe.directory {folder.resolve()}`, in a job of CI",
        )
    raise UsageError(
        f"{folder.resolve()} is in no work tree of git ({why or 'a bare repository'})",
        subject=OPTION,
        hint=f"run it in a clone of your repository, or leave {OPTION} out: all models are listed then",
    )


def _git(
    folder: Path, *arguments: str, stdin: int = subprocess.DEVNULL
) -> subprocess.CompletedProcess[bytes]:
    try:
        return run_git(folder, *arguments, stdin=stdin, seconds=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"git has not answered for {_SECONDS:.0f} s", subject=OPTION) from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the program git cannot be run ({getattr(error, 'strerror', None) or error})",
            subject=OPTION,
            hint=f"install git, or leave {OPTION} out: all models are listed then",
        ) from error


def _remedy(root: Path, name: str) -> str:
    if _NOBODY.fullmatch(name):
        return f"CI says so of a branch's first commit: leave {OPTION} out there, or name the branch it left"
    shallow = _git(root, "rev-parse", "--is-shallow-repository")
    if shallow.stdout.strip() == b"true":
        return (
            "this is a shallow clone: check out all commits (`fetch-depth: 0` of actions/checkout,"
            " `GIT_DEPTH: 0` of GitLab), or run `git fetch --unshallow`"
        )
    return "`git log --oneline` lists commits; one of a remote has to be fetched first (`git fetch origin`)"


def _unreadable(commit: str, said: bytes) -> UsageError:
    why = said.decode(errors="replace").strip().removeprefix("fatal: ")[:200]
    return UsageError(f"git cannot read {commit[:12]}: {why}", subject=OPTION, hint="try `git fsck`")

"""Bring a folder of loose weights into a store or a hub, and into models.yaml and models.lock.

Everything is checked first. The files are uploaded, none over another; then all of them are read back, and
only where every sha256 is that of the file here are models.yaml and models.lock written. A run that was
interrupted is started again: what is there already is not sent twice. Nothing of PATH is ever changed, and
git is only asked.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.errors import UsageError
from modelbake.output import Output
from modelbake.verbs import secret_arguments
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.adoption import Adoption
    from modelbake.tracked import GitState

SUMMARY = "bring a folder of loose weights into a store or a hub, and into models.yaml and models.lock"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("path", type=Path, metavar="PATH", help="the folder")
    parser.add_argument(
        "--to", required=True, metavar="ADDRESS", help="hf://org/name, s3://, gs://, az://, or file:///folder"
    )
    parser.add_argument("--name", required=True, help="of the model in models.yaml")
    parser.add_argument("--runtime", help="what serves it (default: that of `defaults`)")
    parser.add_argument("--version", default="1.0.0", help="of the image (default: 1.0.0)")
    parser.add_argument("--device", choices=("cuda", "any", "cpu"), help="default: that of `defaults`")
    parser.add_argument("--include", action="append", metavar="PATTERN", help="take these files only")
    parser.add_argument("--exclude", action="append", metavar="PATTERN", help="leave these files out")
    parser.add_argument(
        "--allow-pickle", action="append", default=[], metavar="FILE", help="take this pickle, as it is"
    )
    parser.add_argument(
        "--convert", action="store_true", help="take the pickles, and convert them where the image is built"
    )
    parser.add_argument("--endpoint", metavar="URL", help="of an S3, GCS or Azure store of your own")
    parser.add_argument("--hub", metavar="URL", help="of a hub of your own")
    parser.add_argument("--create", action="store_true", help="make a private repository at the hub")
    parser.add_argument("--registry", help="of a models.yaml that does not exist yet")
    parser.add_argument("--dry-run", action="store_true", help="check everything, and change nothing")
    secret_arguments(parser)


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print `path sha256 verified` for each file; with --dry-run the entry, and what would be done."""
    from modelbake import adopting
    from modelbake.adoption import prepare
    from modelbake.credentials import hub_token
    from modelbake.tracked import git_state
    from modelbake.trust import VARIABLE

    if args.pip_config and not args.convert:
        raise UsageError("--pip-config goes with --convert: nothing else is installed")
    if args.ca_bundle:
        os.environ[VARIABLE] = str(args.ca_bundle)
    adoption = prepare(_wish(args), workspace)
    git = git_state(adoption.folder, [*(file.path for file in adoption.files), *adoption.left_out])
    _warn(adoption, git, output)
    if args.convert and not args.dry_run:
        from modelbake import engine as engines

        engines.connect().close()  # before anything is uploaded
    token = hub_token() if adoption.source.kind == "hf" else None
    if token:
        output.redactor.add(token)
    if args.dry_run:
        adopting.rehearse(adoption, token, output, create=args.create)
        return
    adopting.adopt(adoption, args, token, workspace, output)
    _conclude(adoption, git, output)


def _wish(args: argparse.Namespace) -> dict[str, object]:
    return {name: value for name, value in vars(args).items() if name not in ("verb", "file", "images")}


def _warn(adoption: Adoption, git: GitState | None, output: Output) -> None:
    """Say before anything is done what the user has to know of the folder."""
    from modelbake.tracked import ignore_lines

    for text in adoption.remarks:
        output.event("remark", text, level="warning", model=adoption.spec.name)
    if git is None:
        return
    if git.known:
        output.event(
            "tracked_by_git",
            f"git keeps {_some(git.known)}: how to remove from its history what is adopted is said at the"
            " end, once that is safe elsewhere",
            level="warning",
            tracked=list(git.tracked),
            in_history=list(git.in_history),
        )
    if git.unignored:
        output.event(
            "not_ignored",
            f"git does not ignore {_some(git.unignored)}: `git add .` would take {_them(git.unignored)}; put"
            f" into {git.root}/.gitignore: {' '.join(ignore_lines(git))}",
            level="warning",
            files=list(git.unignored),
        )


def _conclude(adoption: Adoption, git: GitState | None, output: Output) -> None:
    """Say what may be deleted, and what does not go away with it."""
    from modelbake.loose import not_taken
    from modelbake.tracked import removal_steps

    spec, count = adoption.spec, len(adoption.files)
    size = sum(file.size for file in adoption.files)
    # Asked again: somebody may have put another file there since the folder was listed.
    left = tuple(not_taken(adoption.folder, {file.path for file in adoption.files}))
    if left:
        may = (
            f"These may be deleted now: {_some(tuple(file.path for file in adoption.files))}. Not uploaded,"
            f" and nowhere but in {adoption.folder}: {_some(left)}"
        )
    else:
        may = f"{adoption.folder} may be deleted now"
    output.event(
        "adopted",
        f"{spec.name}: {count} file{'s' if count > 1 else ''} of {size:,} bytes, read back from {spec.source}"
        f" with the sha256 of the file here; models.yaml and models.lock are written. {may}",
        model=spec.name,
        source=spec.source,
        files=count,
        bytes=size,
        left_out=list(left),
    )
    ours = [file.path for file in adoption.files]
    if git is not None and (steps := removal_steps(git.only(ours))):
        output.event(
            "remove_from_git",
            "git still has copies, and every clone gets them; to remove these, agree on a moment with all who"
            " push, and:\n" + "\n".join(f"  {step}" for step in steps),
            level="warning",
            steps=steps,
        )


def _some(paths: tuple[str, ...]) -> str:
    from modelbake.weightpath import shown

    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(shown(path) for path in paths[:5]) + more


def _them(paths: tuple[str, ...]) -> str:
    return "it" if len(paths) == 1 else "them"

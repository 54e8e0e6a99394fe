"""Copy released versions, channels and their records, with all that is attached, to a folder or a registry.

Only what is not there yet is sent. A folder is an OCI layout that holds any number of models; in a registry
each model is a repository below REF. Candidates are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from modelbake.output import Output
from modelbake.verbs import for_each, model_arguments
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.release.backup import Copied

SUMMARY = "copy releases, channels and all that is attached to them to a folder or another registry"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)
    parser.add_argument(
        "--output", required=True, metavar="oci:DIR|REF", help="a folder, or the path of a registry"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print for each model what was copied."""
    from modelbake.errors import NotReleased
    from modelbake.history import opened
    from modelbake.release.backup import back_up
    from modelbake.release.backupfolder import BackupFolder
    from modelbake.release.places import folder_of, opened_place

    specs = workspace.declared.select(args.names, all=args.all)
    registry = workspace.declared.registry
    path = folder_of(args.output, "--output", registry)
    folder = BackupFolder.create(path) if path else None

    def back_up_one(spec: ModelSpec) -> Copied | None:
        with (
            opened(registry, spec.name, output) as source,
            opened_place(folder, args.output, spec.name, output) as target,
        ):
            done = back_up(spec.name, source, target, output)
            if done is None and not args.all:
                raise NotReleased(
                    "has no released version",
                    subject=source.name,
                    hint=f"`build.py release {spec.name}` makes one",
                )
            if done is None:
                output.event("nothing_to_back_up", f"{source.name} has no released version", model=spec.name)
            return done

    copy_each(specs, back_up_one, args.json, output)


def copy_each(
    specs: Sequence[ModelSpec], copy: Callable[[ModelSpec], Copied | None], as_json: bool, output: Output
) -> None:
    """Copy each model's part of a place, and print what was copied, also where one of them fails."""
    from modelbake.errors import ModelbakeError
    from modelbake.release.places import show

    copied: dict[str, Copied] = {}

    def copy_one(spec: ModelSpec) -> None:
        if done := copy(spec):
            copied[spec.name] = done

    try:
        for_each(specs, copy_one, output)
    except ModelbakeError:
        if copied:
            show(copied, as_json, output)
        raise
    show(copied, as_json, output)

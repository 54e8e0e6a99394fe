"""Put what `backup` has copied back into the registry of models.yaml: same digests, same tags.

A tag that names something else there is an error, and nothing is changed. Tags come last: a restore that ends
early has tagged nothing that is not whole, and the next one goes on.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from modelbake.output import Output
from modelbake.verbs import model_arguments
from modelbake.verbs.backup import copy_each
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.release.backup import Copied

SUMMARY = "put releases back into the registry from what `backup` has written"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)
    parser.add_argument(
        "--from", dest="source", required=True, metavar="oci:DIR|REF", help="what `backup --output` named"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print for each model what was put back."""
    from modelbake.errors import BackupError
    from modelbake.history import opened
    from modelbake.release.backup import restore
    from modelbake.release.backupfolder import BackupFolder
    from modelbake.release.places import folder_of, opened_place

    specs = workspace.declared.select(args.names, all=args.all)
    registry = workspace.declared.registry
    path = folder_of(args.source, "--from", registry)
    folder = BackupFolder.open(path) if path else None

    def restore_one(spec: ModelSpec) -> Copied | None:
        with (
            opened(registry, spec.name, output) as target,
            opened_place(folder, args.source, spec.name, output) as source,
        ):
            done = restore(spec.name, source, target, output)
            if done is None and not args.all:
                raise BackupError(
                    f"holds nothing of {spec.name}",
                    subject=source.name,
                    hint=f"`build.py backup {spec.name} --output {args.source}` writes it",
                )
            if done is None:
                output.event(
                    "nothing_to_restore", f"{source.name} holds nothing of {spec.name}", model=spec.name
                )
            return done

    copy_each(specs, restore_one, args.json, output)

"""Check models.yaml and the runtimes it names; nothing is fetched and nothing is changed."""

from __future__ import annotations

import argparse
from pathlib import Path

from modelbake.errors import UsageError
from modelbake.output import Output
from modelbake.workspace import Workspace

SUMMARY = "check models.yaml"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print the models with all defaults applied")
    parser.add_argument("--schema", type=Path, metavar="FILE", help="also write the JSON schema for editors")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print one line a model: name, version, source, runtime, device."""
    config = workspace.config
    if args.schema:
        from modelbake.config import schema_text

        try:
            args.schema.write_text(schema_text(), encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"cannot write ({error.strerror})",
                subject=f"--schema={args.schema}",
                hint="name a file in a folder that is there, and that you may write to",
            ) from error
    if args.json:
        output.result_json(
            {
                "registry": config.registry,
                "models": {name: spec.model_dump(mode="json") for name, spec in config.models.items()},
            }
        )
        return
    for spec in config.models.values():
        source = f"{spec.source}@{spec.revision}"
        output.result(f"{spec.name} {spec.version} {source} runtime={spec.runtime} device={spec.device}")

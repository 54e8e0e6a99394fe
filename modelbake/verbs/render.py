"""Write a model's complete build context, which plain `docker build --secret` can build."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from modelbake.output import Output
from modelbake.workspace import Workspace

SUMMARY = "write the Dockerfile and its whole context to a folder"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="a model of models.yaml")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="a folder: new, empty, or of an earlier render",
    )


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print the path of the rendered Dockerfile."""
    (spec,) = workspace.config.select([args.name], all=False)
    workspace.context(workspace.plan(spec)).write(args.output)
    command = [
        *("docker", "build"),
        *("--secret", f"id=sources,src={args.output}/sources.json"),
        *("--secret", "id=hf_token,env=HF_TOKEN"),
        str(args.output),
    ]
    output.event("rendered", f"build it by hand: {shlex.join(command)}")
    output.result(str(args.output / "Dockerfile"))

"""Finish a version: tag its image with the version, and move `1.4` and `1` to it.

The image is the version tag's, or the one candidate in the registry that was made of this very models.yaml,
models.lock and runtime. It needs a passing report beside it (of a GPU where the model asks for one) and a
clean audit, which is kept beside it too. Nothing is built, run or uploaded again.
"""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from modelbake.errors import UsageError
from modelbake.output import Output
from modelbake.scalars import quoted
from modelbake.verbs import for_each, model_arguments, signing_of
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.config import ModelSpec

SUMMARY = "give a tested and audited image its version tag, and move 1.4 and 1 to it"

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)
    parser.add_argument(
        "--digest", metavar="sha256:...", help="the image, where the registry has several that could be meant"
    )


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print `REGISTRY/NAME@sha256:...` for each model."""
    from modelbake.goldens import read_goldens
    from modelbake.history import opened
    from modelbake.release.releasing import release
    from modelbake.report import asked_of

    specs = workspace.config.select(args.names, all=args.all)
    if args.digest is not None and not _DIGEST.fullmatch(args.digest):
        raise UsageError(f"--digest takes sha256: and 64 hexadecimal digits, got {quoted(args.digest)}")
    if args.digest is not None and len(specs) != 1:
        raise UsageError("--digest names the image of one model", hint="name one model")
    signer = signing_of(workspace, output)
    plans = {spec.name: workspace.plan(spec) for spec in specs}

    def release_one(spec: ModelSpec) -> None:
        plan = plans[spec.name]
        with opened(workspace.config.registry, spec.name, output) as repository:
            released = release(
                repository,
                workspace,
                plan,
                plan_digest=workspace.context(plan).digest,
                asked=asked_of(spec, read_goldens(workspace.goldens, spec.name).values),
                output=output,
                digest=args.digest,
                signer=signer,
            )
        output.result(released.reference)

    for_each(specs, release_one, output)

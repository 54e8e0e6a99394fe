"""Make a channel name what it named before: the version before the current one, or one that was there.

Nothing is asked of the version again but that the registry still has all of it. The move is recorded.
"""

from __future__ import annotations

import argparse

from modelbake.output import Output
from modelbake.verbs.promote import mover_of, over_argument
from modelbake.workspace import Workspace

SUMMARY = "make a channel name what it named before"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="a model of models.yaml")
    parser.add_argument("--channel", metavar="CHANNEL", required=True, help="staging, production, ...")
    parser.add_argument("--to", metavar="VERSION", help="a version that has been in the channel")
    over_argument(parser)


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print `REGISTRY/NAME@sha256:...`."""
    from modelbake.errors import UsageError
    from modelbake.grammar import VERSION
    from modelbake.history import opened
    from modelbake.release.moving import require_channel, require_digest

    config = workspace.declared
    (spec,) = config.select([args.name], all=False)
    require_channel(args.channel, list(config.channels), "--channel")
    require_digest(args.over)
    if args.to is not None and not VERSION.matches(args.to):
        raise UsageError(f"expected {VERSION.expected}, got {args.to!r}", subject="--to")
    with opened(config.registry, spec.name, output) as repository:
        mover = mover_of(workspace, repository, spec.name, args.channel, output)
        output.result(f"{repository.name}@{mover.rollback(args.to, args.over)}")

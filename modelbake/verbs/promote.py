"""Make a channel name a released version: `production` is 1.4.2 from now on.

What the channel requires (`channels` of models.yaml) is asked first, and what changes is said. The move is
recorded in the registry beside the channel, so that `rollback` and `channels` know of it.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from modelbake.output import Output
from modelbake.verbs import signing_of
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.release.moving import Mover
    from modelbake.stream.repository import RegistryRepository

SUMMARY = "make a channel name a released version; says what changes"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="a model of models.yaml")
    parser.add_argument("version", metavar="VERSION", help="a released version")
    parser.add_argument("--to", metavar="CHANNEL", required=True, help="staging, production, ...")
    over_argument(parser)


def over_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--over`."""
    parser.add_argument(
        "--over",
        metavar="DIGEST",
        help="go on only if the channel is at this digest now (or at `none`), even if somebody put it there"
        " by hand",
    )


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print `REGISTRY/NAME@sha256:...`."""
    from modelbake.errors import UsageError
    from modelbake.grammar import VERSION
    from modelbake.history import opened
    from modelbake.release.moving import require_channel, require_digest

    config = workspace.declared
    (spec,) = config.select([args.name], all=False)
    require_channel(args.to, list(config.channels), "--to")
    require_digest(args.over)
    if not VERSION.matches(args.version):
        raise UsageError(f"expected {VERSION.expected}, got {args.version!r}")
    with opened(config.registry, spec.name, output) as repository:
        mover = mover_of(workspace, repository, spec.name, args.to, output)
        digest = mover.promote(args.version, config.channels[args.to], args.over)
        output.result(f"{repository.name}@{digest}")


def mover_of(
    workspace: Workspace, repository: RegistryRepository, model: str, channel: str, output: Output
) -> Mover:
    """Return what moves a channel, in the name of whoever runs this."""
    from modelbake.release.moving import Mover
    from modelbake.release.origin import commit_of, who

    folder, signing = workspace.file.absolute().parent, signing_of(workspace, output)
    return Mover(
        repository,
        model,
        channel,
        output,
        who(),
        commit_of(folder),
        None if signing is None else signing.verify,
        others=[name for name in workspace.declared.channels if name != channel],
    )

"""Remove candidates beyond the newest ones, and remembered layers that no image has any more.

What a version, an alias, a channel, a record of one or a signature names stays. --dry-run prints what would
go. The registry has to allow deletes; its own garbage collection frees the bytes.
"""

from __future__ import annotations

import argparse

from modelbake.errors import UsageError
from modelbake.output import Output
from modelbake.verbs import model_arguments
from modelbake.workspace import Workspace

SUMMARY = "remove old candidates, and remembered layers that no image has, from the registry"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)
    parser.add_argument(
        "--keep", type=int, required=True, metavar="N", help="how many candidates of each model stay"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would go, and remove nothing")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print a table of what goes, and how many bytes that frees."""
    from modelbake.history import opened
    from modelbake.release.pruning import (
        carry_out,
        in_words,
        plan_pruning,
        shared_repositories,
        wanted_now,
    )
    from modelbake.stream.repository import RegistryRepository

    config = workspace.config
    specs = config.select(args.names, all=args.all)
    if args.keep < 0:
        raise UsageError(f"--keep takes a whole number of 0 or more, got {args.keep}")
    wanted = wanted_now(workspace)
    with opened(config.registry, specs[0].name, output) as first:
        prefix = first.path.removesuffix(specs[0].name)
        models = {name: RegistryRepository(first.registry, prefix + name) for name in config.models}
        weights, runtimes = shared_repositories(models)
        pruning = plan_pruning(
            models,
            weights,
            runtimes,
            names=[spec.name for spec in specs],
            keep=args.keep,
            wanted=wanted,
            output=output,
        )
        if not args.dry_run:
            carry_out(pruning, output)
    for line in in_words(pruning, dry=args.dry_run):
        output.result(line)

"""Say what is in which channel, since when, by whom and from which commit; `--history` lists earlier moves.

The registry is asked and nothing else: its tags are the truth, and a channel that was moved by hand is said
to be so.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from modelbake.output import Output
from modelbake.verbs import for_each, model_arguments
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.config import ModelSpec

SUMMARY = "say what is in which channel, since when and by whom"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)
    parser.add_argument("--history", action="store_true", help="list earlier moves as well")
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print one line a channel, and one an earlier move with `--history`."""
    from modelbake.history import opened
    from modelbake.release.channeltable import as_document, as_table, rows, warnings
    from modelbake.release.evidence import seen
    from modelbake.release.quarantine import quarantines
    from modelbake.release.records import channels_of

    config = workspace.declared
    made: list[tuple[str, ...]] = []
    documents: list[dict[str, Any]] = []

    def tell(spec: ModelSpec) -> None:
        with opened(config.registry, spec.name, output) as repository:
            moved = channels_of(repository.registry.tags(repository.path))
            names = dict.fromkeys([*config.channels, *moved])
            found = [seen(repository, name, output) for name in names]
            images = {each.digest: repository.manifest(each.digest) for each in found if each.digest}
            marked = {digest: quarantines(repository, image) for digest, image in images.items() if image}
        made.extend(rows(spec.name, found, history=args.history))
        documents.extend(as_document(spec.name, each, history=args.history) for each in found)
        for channel in found:
            marks = [
                f"{spec.name}: {channel.name} is {each.words}"
                for each in marked.get(channel.digest or "", ())
            ]
            for line in [*warnings(spec.name, channel), *marks]:
                output.event("channel_warning", line, level="warning", channel=channel.name)

    try:
        for_each(config.select(args.names, all=args.all), tell, output)
    finally:
        # What could be read is said, also where one model of several could not.
        if args.json and documents:
            output.result_json(documents)
        elif made and not args.json:
            for line in as_table(made):
                output.result(line)

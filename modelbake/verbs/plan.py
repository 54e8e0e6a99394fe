"""Say what `publish` would move, where its layers would lie and what hosts would pull; nothing is changed."""

from __future__ import annotations

import argparse

from modelbake.output import Output
from modelbake.verbs import model_arguments
from modelbake.workspace import Workspace

SUMMARY = "say what `publish` would move, and what hosts would pull"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list of all of it, sizes in bytes")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print some lines a model. It asks the registry what is there, and no hub."""
    from modelbake.stream.forecast import forecast, in_words
    from modelbake.stream.lane import Lane
    from modelbake.stream.publish import JOBS

    documents = []
    for spec in workspace.config.select(args.names, all=args.all):
        with Lane(workspace, workspace.plan(spec), secrets={}, output=output, jobs=JOBS) as lane:
            facts = lane.facts()
        document = forecast(facts)
        documents.append(document)
        if not args.json:
            for line in in_words(document, facts.host):
                output.result(line)
    if args.json:
        output.result_json(documents)

"""Say what `publish` would move, where its layers would lie and what hosts would pull; nothing is changed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from modelbake.output import Output
from modelbake.verbs import for_each, model_arguments
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.config import ModelSpec

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

    specs = workspace.config.select(args.names, all=args.all)
    documents = []

    def plan_one(spec: ModelSpec) -> None:
        with Lane(workspace, workspace.plan(spec), secrets={}, output=output, jobs=JOBS) as lane:
            facts = lane.facts()
        document = forecast(facts)
        documents.append(document)
        if not args.json:
            for line in in_words(document, facts.host):
                output.result(line)

    try:
        for_each(specs, plan_one, output)
    finally:
        # What could be planned is said, also where one model of several could not.
        if args.json and (documents or len(specs) > 1):
            output.result_json(documents)

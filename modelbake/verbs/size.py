"""Say where a built image's bytes are: by layer, by Python package, and which CUDA libraries it has."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from modelbake.output import Output
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.engine import Engine
    from modelbake.plan import BuildPlan

SUMMARY = "say where a built image's bytes are"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="a model of models.yaml")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON, in bytes")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print a table of the image, unpacked. The engine exports all of it for that; nothing is written."""
    from modelbake import engine as engines
    from modelbake.naive import naive_size
    from modelbake.sizetable import document, in_words
    from modelbake.sizing import measure
    from modelbake.verbs import built_image

    (spec,) = workspace.config.select([args.name], all=False)
    plan = workspace.plan(spec)
    engine = engines.connect()
    image = built_image(engine, plan, workspace.context(plan))
    sizes = measure(engine, image.id)
    previous = _previous(engine, plan)
    before = (previous, measure(engine, f"modelbake/{plan.name}:{previous}")) if previous else None
    told: dict[str, Any] = document(plan, image.id, sizes, before, naive_size(plan))
    if args.json:
        output.result_json(told)
    else:
        for line in in_words(told):
            output.result(line)


def _previous(engine: Engine, plan: BuildPlan) -> str | None:
    """Return the newest version before this one that the engine has, None without one."""
    from modelbake.grammar import VERSION
    from modelbake.versiontag import precedence

    there = [tag for tag in engine.names(f"modelbake/{plan.name}") if VERSION.matches(tag)]
    older = [tag for tag in there if precedence(tag) < precedence(plan.version)]
    return max(older, key=precedence) if older else None

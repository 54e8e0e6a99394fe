"""Push an image to the registry, only with a passing report for that very image id; tag it last."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from modelbake.output import Output
from modelbake.verbs import built_image, for_each, model_arguments
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.config import ModelSpec

SUMMARY = "push a smoke-tested image and print its digest reference"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print `REGISTRY/NAME@sha256:...` for each model."""
    from modelbake import engine as engines
    from modelbake.dockerconfig import RegistryAuth
    from modelbake.push import push
    from modelbake.report import asked_of

    specs = workspace.config.select(args.names, all=args.all)
    plans = {spec.name: workspace.plan(spec) for spec in specs}
    engine = engines.connect()

    def push_one(spec: ModelSpec) -> None:
        plan = plans[spec.name]
        image = built_image(engine, plan, workspace.context(plan))
        pushed = push(
            engine,
            RegistryAuth(),
            repository=plan.repository,
            version=plan.version,
            image=image,
            asked=asked_of(spec),
            reports=workspace.reports,
            output=output,
        )
        output.result(pushed.reference)

    for_each(specs, push_one, output)

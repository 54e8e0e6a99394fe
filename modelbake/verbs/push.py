"""Push an image to the registry, only with a passing report for that very image id; tag it last."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from modelbake.output import Output
from modelbake.verbs import for_each_image, model_arguments, untagged_argument
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.engine import Engine, LocalImage
    from modelbake.plan import BuildPlan

SUMMARY = "push a smoke-tested image and print its digest reference"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)
    untagged_argument(parser)


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print `REGISTRY/NAME@sha256:...` for each model."""
    from modelbake.dockerconfig import RegistryAuth
    from modelbake.push import push
    from modelbake.sizing import require_image_size
    from modelbake.trial import Trial

    trial = Trial(workspace.reports, workspace.goldens)

    def push_one(engine: Engine, plan: BuildPlan, image: LocalImage) -> None:
        require_image_size(engine, plan.spec, image)
        pushed = push(
            engine,
            RegistryAuth(),
            repository=plan.repository,
            version=plan.version,
            image=image,
            asked=trial.asked(plan.spec),
            require_gpu=plan.spec.smoke.require_gpu,
            reports=workspace.reports,
            output=output,
            tolerance=plan.spec.smoke.tolerance,
            untagged=args.untagged,
        )
        output.result(pushed.reference)

    for_each_image(args, workspace, output, push_one)

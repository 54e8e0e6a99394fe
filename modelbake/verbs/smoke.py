"""Run a built image as production would, ask it the declared requests, and write a report bound to its id."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from modelbake.output import Output
from modelbake.verbs import for_each_image, model_arguments, trial_arguments, trial_of
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.engine import Engine, LocalImage
    from modelbake.plan import BuildPlan

SUMMARY = "test a built image on the GPU (or CPU) and write its report"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)
    trial_arguments(parser)


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print `NAME passed DEVICE reports/NAME/VERSION.json` for each model."""
    from modelbake.report import report_path

    trial = trial_of(args, workspace, workspace.config.select(args.names, all=args.all))

    def smoke_one(engine: Engine, plan: BuildPlan, image: LocalImage) -> None:
        report = trial.run(engine, plan, image, output)
        path = report_path(workspace.reports, plan.name, plan.version)
        output.result(f"{plan.name} passed {report.device} {path}")

    for_each_image(args, workspace, output, smoke_one)

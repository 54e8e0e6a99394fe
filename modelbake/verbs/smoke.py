"""Run a built image as production would, ask it the declared requests, and write a report bound to its id."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from modelbake.output import Output
from modelbake.verbs import built_image, for_each, model_arguments
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.config import ModelSpec

SUMMARY = "test a built image on the GPU (or CPU) and write its report"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print `NAME passed DEVICE reports/NAME/VERSION.json` for each model."""
    from modelbake import engine as engines
    from modelbake.report import report_path
    from modelbake.smoke import smoke

    specs = workspace.config.select(args.names, all=args.all)
    plans = {spec.name: workspace.plan(spec) for spec in specs}
    engine = engines.connect()

    def smoke_one(spec: ModelSpec) -> None:
        plan = plans[spec.name]
        image = built_image(engine, plan, workspace.context(plan))
        report = smoke(
            engine,
            spec,
            image,
            runtime_port=plan.runtime.port,
            health=plan.runtime.health,
            lock=plan.locked.digest,
            reports=workspace.reports,
            output=output,
        )
        path = report_path(workspace.reports, plan.name, plan.version)
        output.result(f"{plan.name} passed {report.device} {path}")

    for_each(specs, smoke_one, output)

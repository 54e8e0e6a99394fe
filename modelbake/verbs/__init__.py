"""The verbs of the command line, one module each, and the arguments that several of them take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from modelbake.errors import ImageNotFound, ModelbakeError

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.context import Context
    from modelbake.engine import Engine, LocalImage
    from modelbake.output import Output
    from modelbake.plan import BuildPlan
    from modelbake.workspace import Workspace


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `NAME...` and `--all`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="a model of models.yaml")
    parser.add_argument("--all", action="store_true", help="every model of models.yaml")


def for_each(specs: Sequence[ModelSpec], action: Callable[[ModelSpec], None], output: Output) -> None:
    """Run `action` for every model; one model's error does not keep the others from being tried.

    Where there are several models each error is logged as it comes, and the first one's class decides the
    exit code.
    """
    failed: list[tuple[str, ModelbakeError]] = []
    for spec in specs:
        try:
            action(spec)
        except ModelbakeError as error:
            if len(specs) == 1:
                raise
            output.event("model_failed", f"{spec.name}: {error}", level="error", model=spec.name)
            failed.append((spec.name, error))
    if failed:
        first = failed[0][1]
        names = ", ".join(name for name, _ in failed)
        raise type(first)(
            f"{len(failed)} of {len(specs)} models failed: {names}", hint="see the errors above"
        )


def for_each_image(
    args: argparse.Namespace,
    workspace: Workspace,
    output: Output,
    action: Callable[[Engine, BuildPlan, LocalImage], None],
) -> None:
    """Run `action` for the built image of every model that `args` names, as `for_each` does."""
    from modelbake import engine as engines

    specs = workspace.config.select(args.names, all=args.all)
    plans = {spec.name: workspace.plan(spec) for spec in specs}
    engine = engines.connect()

    def act(spec: ModelSpec) -> None:
        plan = plans[spec.name]
        action(engine, plan, _built_image(engine, plan, workspace.context(plan)))

    for_each(specs, act, output)


def _built_image(engine: Engine, plan: BuildPlan, context: Context) -> LocalImage:
    """Return the image that `build` made of this very plan.

    Raises ImageNotFound where there is none, or where models.yaml, models.lock or the runtime say otherwise
    now than when it was built.
    """
    from modelbake.plan import PLAN_LABEL

    remedy = f"run `build.py build {plan.name}`"
    image = engine.image(plan.local_tag)
    if image is None:
        raise ImageNotFound("has not been built on this engine", subject=plan.local_tag, hint=remedy)
    if image.labels.get(PLAN_LABEL) != context.digest:
        raise ImageNotFound(
            "was built of another models.yaml, models.lock or runtime", subject=plan.local_tag, hint=remedy
        )
    return image

"""Build images with the Docker SDK over BuildKit; the token reaches the weights stages as a secret mount."""

from __future__ import annotations

import argparse
import threading
from typing import TYPE_CHECKING

from modelbake.errors import DiskFull, ImageNotFound, UsageError
from modelbake.output import Output
from modelbake.verbs import build_secrets, for_each, model_arguments, secret_arguments
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.config import ModelSpec

SUMMARY = "build images"

# While BuildKit copies a fetched file into the image's layer, the weights are there twice.
_DISK_PER_WEIGHT_BYTE = 2


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)
    parser.add_argument("--no-cache", action="store_true", help="run every step again")
    parser.add_argument(
        "--builder",
        metavar="NAME",
        help="build on this builder of `docker buildx`, and load the image into the engine",
    )
    secret_arguments(parser)


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print `NAME sha256:...`, the image id, for each built model."""
    from modelbake import engine as engines
    from modelbake.budget import require_budget
    from modelbake.buildkit.solve import build
    from modelbake.buildview import BuildView
    from modelbake.credentials import HUB_TOKEN
    from modelbake.diskspace import telling_need
    from modelbake.dockerconfig import RegistryAuth
    from modelbake.plan import LOCK_LABEL
    from modelbake.sizing import require_image_size
    from modelbake.sources import reader_for
    from modelbake.sources.delivery import source_secrets

    if args.builder == "":
        raise UsageError("names no builder", subject="--builder", hint="`docker buildx ls` lists them")
    specs = workspace.config.select(args.names, all=args.all)
    plans = {spec.name: workspace.plan(spec) for spec in specs}
    for spec in specs:
        require_budget(spec, plans[spec.name].locked.size, None)
    secrets = build_secrets(args)
    for secret in secrets.values():
        output.redactor.add(secret)
    engine = engines.connect()
    if args.builder is None:
        engine.require_buildkit()

    def build_one(spec: ModelSpec) -> None:
        plan = plans[spec.name]
        free = engine.disk_free()
        needed = _DISK_PER_WEIGHT_BYTE * plan.locked.size
        if converted := plan.locked.converted:
            # The pickles, and what they have become, before it is compared and taken in.
            needed += sum(file.size for file in (*plan.locked.replaced, *converted.files))
        image = engine.image(plan.local_tag)
        there = image is not None and image.labels.get(LOCK_LABEL) == plan.locked.digest
        if free is not None and free < needed and not there:
            raise DiskFull(
                f"the engine's disk has {free / 1e9:.1f} GB free, this build needs {needed / 1e9:.1f} GB",
                subject=spec.name,
                hint="`docker system df` says what uses it, `docker builder prune` drops the build cache",
            )
        need = f"the weights need {needed:,} bytes, the base image and the runtime's packages come on top"
        stop = threading.Event()
        with telling_need(engine, need), BuildView(output) as view:
            where = source_secrets(plan.locked, plan.fetched_groups, plan.documents, output.redactor)
            built = build(
                engine,
                workspace.context(plan).open(reader_for(plan.locked, secrets.get(HUB_TOKEN), stop)),
                secrets={**secrets, **where},
                registries=RegistryAuth(),
                target="image",
                # What turns out too large does not take the place of what was built before.
                tags=[] if spec.max_size else [plan.local_tag],
                labels={},
                no_cache=args.no_cache,
                builder=args.builder,
                on_event=view,
            )
        if spec.max_size:
            image = engine.image(built.id)
            if image is None:
                raise ImageNotFound(
                    "the engine says that it built it, and does not have it", subject=built.id
                )
            require_image_size(engine, spec, image)
            engine.tag(built.id, plan.local_tag)
        output.event(
            "built",
            f"built {plan.local_tag} ({_fetched(view.fetched_bytes)})",
            model=plan.name,
            version=plan.version,
            image_id=built.id,
            fetched_bytes=view.fetched_bytes,
        )
        output.result(f"{plan.name} {built.id}")

    for_each(specs, build_one, output)


def _fetched(size: int) -> str:
    return f"{size:,} bytes fetched" if size else "all weights were in the build cache"

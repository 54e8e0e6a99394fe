"""Let weights flow from the hub into the registry as layers, put an image together there, test it, tag it.

No weight touches this machine's disk, and what the registry has is not moved again. The image is published by
digest first; an engine (DOCKER_HOST) pulls and tests that digest, and only then it gets its version tag.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.errors import ModelbakeError, UsageError
from modelbake.output import Output
from modelbake.verbs import (
    build_secrets,
    for_each,
    model_arguments,
    secret_arguments,
    trial_arguments,
    trial_of,
    untagged_argument,
)
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.stream.lane import Lane
    from modelbake.stream.pool import LayerPool

SUMMARY = "stream weights into the registry as layers, test the image, tag it"

_LAYOUT = "oci:"
_MOST_JOBS = 64


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)
    parser.add_argument(
        "--candidate",
        action="store_true",
        help="stop before the test and the version tag: no engine is needed once the runtime is there",
    )
    untagged_argument(parser)
    parser.add_argument(
        "--output", metavar="oci:DIR", help="write the image to an OCI layout instead of the registry"
    )
    parser.add_argument(
        "--from", dest="source", metavar="oci:DIR", help="publish an image from an OCI layout"
    )
    trial_arguments(parser)
    parser.add_argument(
        "--on",
        metavar="dask://HOST:PORT",
        help="let the workers of a Dask cluster stream the layers; dasks:// with TLS",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="how many layers flow at once (default: 8; --on: as many as the cluster has threads)",
    )
    secret_arguments(parser)


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print `REGISTRY/NAME@sha256:...` (or `oci:DIR@sha256:...`) for each model."""
    from modelbake.stream.lane import Lane
    from modelbake.stream.publish import JOBS
    from modelbake.trust import VARIABLE

    specs = workspace.config.select(args.names, all=args.all)
    destination, source = _folder(args.output, "--output"), _folder(args.source, "--from")
    if destination and (source or args.candidate):
        raise UsageError("--output writes a folder: it goes with neither --from nor --candidate")
    if args.untagged and (destination or args.candidate):
        raise UsageError(
            "--untagged tests the image: it goes with neither --output nor --candidate, which test none"
        )
    if (destination or args.candidate) and (args.gpus or args.update_goldens):
        option = "--output" if destination else "--candidate"
        raise UsageError(f"{option} tries no image: it goes with neither --gpus nor --update-goldens")
    if args.on and (destination or source):
        raise UsageError("--on: workers share no folder with this machine; leave out --output and --from")
    trial = trial_of(args, workspace, specs)
    if (destination or source) and len(specs) != 1:
        raise UsageError(
            "an OCI layout holds one model", hint="name one model, and give each a folder of its own"
        )
    jobs = JOBS if args.jobs is None else args.jobs
    if not 1 <= jobs <= _MOST_JOBS:
        raise UsageError(f"--jobs takes a whole number from 1 to {_MOST_JOBS}, got {jobs}")
    if args.ca_bundle:
        # In this lane the hub and the registry are spoken to from here, and not only from inside a build.
        os.environ[VARIABLE] = str(args.ca_bundle)
    secrets = build_secrets(args)
    for secret in secrets.values():
        output.redactor.add(secret)
    plans = {spec.name: workspace.plan(spec) for spec in specs}

    def open_lane(spec: ModelSpec) -> Lane:
        return Lane(
            workspace, plans[spec.name], secrets=secrets, output=output, jobs=jobs, trial=trial, pool=pool
        )

    def publish_one(spec: ModelSpec) -> None:
        if error := failed.get(spec.name):
            raise error
        with open_lane(spec) as lane:
            if destination:
                reference = lane.write_layout(destination)
            elif source:
                reference = lane.publish_layout(source, candidate_only=args.candidate, untagged=args.untagged)
            else:
                reference = lane.publish(candidate_only=args.candidate, untagged=args.untagged)
        output.result(reference)

    with ExitStack() as ending:
        pool: LayerPool | None = None
        failed: dict[str, ModelbakeError] = {}
        if args.on:
            from modelbake.cluster import connect

            pool = ending.enter_context(connect(args.on, output, args.jobs))
            if len(specs) > 1:
                failed = _stream_ahead(specs, open_lane, pool, output, candidate_only=args.candidate)
        for_each(specs, publish_one, output)


def _stream_ahead(
    specs: Sequence[ModelSpec],
    open_lane: Callable[[ModelSpec], Lane],
    pool: LayerPool,
    output: Output,
    *,
    candidate_only: bool,
) -> dict[str, ModelbakeError]:
    """Stream what all models lack; return these errors by model. Others are told when its turn comes."""
    from modelbake.stream.ahead import Wanted, stream_ahead
    from modelbake.stream.view import TransferView

    with ExitStack() as lanes:
        wanted = []
        for spec in specs:
            with suppress(ModelbakeError):
                lane = lanes.enter_context(open_lane(spec))
                if weights := lane.missing_weights(candidate_only=candidate_only):
                    wanted.append(Wanted(weights, lane.weights))
        return stream_ahead(wanted, pool, TransferView(output))


def _folder(given: str | None, option: str) -> Path | None:
    if given is None:
        return None
    if not given.startswith(_LAYOUT) or given == _LAYOUT:
        raise UsageError(
            f"expected oci: and a folder, got {given!r}", subject=option, hint=f"{option} oci:DIR"
        )
    return Path(given.removeprefix(_LAYOUT))

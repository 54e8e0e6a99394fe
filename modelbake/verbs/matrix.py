"""List the models to build as JSON that CI systems make jobs of; with --changed-since the changed ones."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from modelbake.errors import UsageError
from modelbake.matrix import MOST_JOBS, USUAL_TEMPLATES
from modelbake.output import Output
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.matrix import Job
    from modelbake.plan import BuildPlan

SUMMARY = "list the models to build, as jobs for GitHub Actions or GitLab CI"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--changed-since", metavar="REV", help="only the models that differ from this revision of git"
    )
    parser.add_argument(
        "--format",
        choices=("github", "gitlab"),
        default="github",
        help="a matrix of GitHub Actions (default), or a child pipeline of GitLab",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=MOST_JOBS,
        metavar="N",
        help=f"at most so many: more models share jobs (default {MOST_JOBS}, what GitHub takes)",
    )
    parser.add_argument(
        "--templates",
        metavar="FILE",
        help=f"gitlab: the repository's file with .publish and .publish-gpu (default {USUAL_TEMPLATES})",
    )


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print one line of JSON. Every model of models.yaml is planned first, also what has not changed."""
    with _without_collections():
        _run(args, workspace, output)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Look for no garbage: nearly all objects live to the end, and looking takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    from modelbake.matrix import github, gitlab, shared_out

    if args.jobs < 1:
        raise UsageError("at least one job is needed", subject=f"--jobs {args.jobs}")
    if args.templates is not None and args.format != "gitlab":
        raise UsageError("goes with --format gitlab", subject="--templates")
    plans = workspace.plan_all()
    if args.changed_since is not None:
        reasons = _reasons(args.changed_since, plans, workspace)
        for name, why in reasons.items():
            output.event("model_changed", f"{name}: {why}", model=name)
        output.event(
            "matrix",
            f"{len(reasons)} of {len(plans)} models differ from {args.changed_since}",
            changed=len(reasons),
            models=len(plans),
        )
        plans = [plan for plan in plans if plan.name in reasons]
    jobs = shared_out(map(_job, plans), args.jobs)
    document = github(jobs) if args.format == "github" else gitlab(jobs, args.templates or USUAL_TEMPLATES)
    # One line: `echo "matrix=$(build.py matrix)" >> "$GITHUB_OUTPUT"` takes no more.
    output.result(json.dumps(document, separators=(",", ":")))


def _reasons(name: str, plans: list[BuildPlan], workspace: Workspace) -> dict[str, str]:
    from modelbake.changed import Snapshot, changes, snapshot_at
    from modelbake.gitrevision import Revision

    revision = Revision.of(workspace.file.absolute().parent, name)
    with snapshot_at(revision, workspace) as then:
        return changes(plans, Snapshot.of(workspace), then)


def _job(plan: BuildPlan) -> Job:
    from modelbake.matrix import Job

    spec, serves = plan.spec, plan.runtime.serves
    gpu = serves and (spec.device == "cuda" or spec.smoke.require_gpu)
    return Job((spec.name,), (spec.version,), spec.runtime, spec.device, gpu)

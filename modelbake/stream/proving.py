"""Proving a candidate: an engine pulls the very digest that was published, and its smoke run passes there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.engine_stream import telling
from modelbake.errors import NotReady, ReportMissing
from modelbake.probing import WRONG_WEIGHTS_HINT
from modelbake.push import require_passing_report
from modelbake.report import asked_of
from modelbake.smoke import smoke
from modelbake.stream.flow import TAR_ZSTD
from modelbake.stream.weights import GROUP, group_tag

if TYPE_CHECKING:
    from modelbake.dockerconfig import RegistryCredentials
    from modelbake.engine import Engine
    from modelbake.manifest import Manifest
    from modelbake.output import Output
    from modelbake.plan import BuildPlan


def prove(
    engine: Engine,
    plan: BuildPlan,
    reference: str,
    manifest: Manifest,
    *,
    credentials: RegistryCredentials | None,
    reports: Path,
    weights: str,
    output: Output,
) -> None:
    """Let an engine pull and test a candidate, unless its report says that it has passed before.

    Args:
        engine: where it runs.
        plan: what it was published of.
        reference: `host/path@sha256:...`.
        manifest: what is there.
        credentials: the registry's, for the engine.
        reports: the folder of all reports.
        weights: the repository that remembers layers, for a hint.
        output: where progress goes.

    Raises what `Engine.pull` and `smoke` raise.
    """
    image = engine.image(reference)
    if image is not None:
        try:
            require_passing_report(reports, plan.name, plan.version, image, asked_of(plan.spec))
            output.event("smoke_kept", f"{plan.name} {plan.version} has passed before")
            return
        except ReportMissing:
            pass
    else:
        output.event("pull_started", f"{engine.host} pulls {reference}")
        image = engine.pull(reference, credentials, telling(output, "pull_progress", "pulled"))
    try:
        smoke(
            engine,
            plan.spec,
            image,
            runtime_port=plan.runtime.port,
            health=plan.runtime.health,
            lock=plan.locked.digest,
            reports=reports,
            output=output,
        )
    except NotReady as error:
        if error.hint == WRONG_WEIGHTS_HINT:
            error.hint = _forgetting(plan, manifest, weights, error.message)
        raise


def _forgetting(plan: BuildPlan, manifest: Manifest, weights: str, message: str) -> str:
    """Return what to do about a layer with wrong bytes: the registry remembers it, and has to forget it."""
    entries = manifest.document()["layers"]
    here = {str(entry.get("annotations", {}).get(GROUP)) for entry in entries}
    compression = "zstd" if any(entry["mediaType"] == TAR_ZSTD for entry in entries) else "none"
    wrong = [
        group_tag(group, compression)
        for group in plan.groups
        if group.digest in here and any(file.path in message for file in group.files)
    ]
    which = ", ".join(wrong) if wrong else "all of its tags group-... of this model"
    return (
        f"a layer that {weights} remembers has other bytes than models.lock says: find out who may push"
        f" there, delete its tag {which}, and the tag weights-... of this model; then publish it again"
    )

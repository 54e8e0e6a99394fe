"""Proving a candidate: an engine pulls the very digest that was published, and its smoke run passes there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelbake.diskspace import telling_need
from modelbake.engine_stream import telling
from modelbake.errors import NotReady, ReportMissing
from modelbake.plan import WeightGroup, group_files
from modelbake.probing import WRONG_WEIGHTS_HINT
from modelbake.sizing import require_image_size
from modelbake.stream.flow import TAR_ZSTD
from modelbake.stream.weights import GROUP, group_tag

if TYPE_CHECKING:
    from modelbake.dockerconfig import RegistryCredentials
    from modelbake.engine import Engine
    from modelbake.manifest import Manifest
    from modelbake.output import Output
    from modelbake.plan import BuildPlan
    from modelbake.regression import Gate
    from modelbake.report import Report
    from modelbake.trial import Trial


def prove(
    engine: Engine,
    plan: BuildPlan,
    reference: str,
    manifest: Manifest,
    *,
    credentials: RegistryCredentials | None,
    trial: Trial,
    gate: Gate,
    output: Output,
    layers_from: str,
    layout: bool,
) -> Report:
    """Let an engine pull and test a candidate, unless its report says that it has passed before.

    What is kept of an earlier run and is worse than tolerated is measured again.

    Args:
        engine: where it runs.
        plan: what it was published of.
        reference: `host/path@sha256:...`.
        manifest: what is there.
        credentials: the registry's, for the engine.
        trial: how it is tested, and where its report is.
        gate: how much worse than the version before it may be.
        output: where progress goes.
        layers_from: the repository that remembers layers, or the folder of the OCI layout, for a hint.
        layout: whether it is a layout.

    Raises what `Engine.pull` and `smoke` raise, and PerformanceRegressed.
    """
    image = engine.image(reference)
    if image is None:
        output.event("pull_started", f"{engine.host} pulls {reference}")
        size = sum(layer.size for layer in manifest.layers)
        with telling_need(engine, f"its layers are {size:,} bytes, and at least as much again unpacked"):
            image = engine.pull(reference, credentials, telling(output, "pull_progress", "pulled"))
    require_image_size(engine, plan.spec, image)
    if not trial.update_goldens:
        try:
            kept = trial.require_passed(plan, image)
        except ReportMissing:
            pass
        else:
            if gate.lets_pass(kept):
                output.event("smoke_kept", f"{plan.name} {plan.version} has passed before")
                gate.require(kept)
                return kept
    try:
        report = trial.run(engine, plan, image, output)
    except NotReady as error:
        if error.hint == WRONG_WEIGHTS_HINT:
            wrong = wrong_groups(plan, manifest, error.message)
            error.hint = _remedy(wrong, layers_from, layout)
        raise
    gate.require(report)
    return report


def wrong_groups(plan: BuildPlan, manifest: Manifest, message: str) -> list[str]:
    """Return the tags of the layers whose files a container found to be wrong or missing. Pure.

    `message`: that of a container which ended with exit code 65, a line for each difference.
    """
    entries = manifest.document()["layers"]
    marks = [mark for entry in entries if (mark := entry.get("annotations", {}).get(GROUP))]
    compression = "zstd" if any(entry["mediaType"] == TAR_ZSTD for entry in entries) else "none"

    def is_wrong(group: WeightGroup) -> bool:
        paths = [file.path for file in group.files]
        return any(f"\n  {path}: {what}: " in message for path in paths for what in ("mismatch", "missing"))

    groups = group_files(plan.locked.files, max(1, len(marks)))
    return [group_tag(group, compression) for group in groups if group.digest in marks and is_wrong(group)]


def _remedy(wrong: list[str], layers_from: str, layout: bool) -> str:
    if not wrong:
        return "the runtime's layers, or its base image's, have files below /models: take them out there"
    if layout:
        return f"{layers_from} holds other bytes than models.lock says: write it again with `--output`"
    return (
        f"a layer that {layers_from} remembers has other bytes than models.lock says: find out who may push"
        f" there, delete its tag {', '.join(wrong)} and this model's tag weights-...; then publish it again"
    )

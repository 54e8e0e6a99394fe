"""From an image in the registry to its version tag: its trial on an engine, its report, and at last the tag.

An image without a version tag is a candidate. It stays in the registry whatever becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from modelbake.errors import EngineNotFound
from modelbake.smokeentry import ToleranceEntry
from modelbake.versiontag import VersionTag, candidate_tag

if TYPE_CHECKING:
    from modelbake.dockerconfig import RegistryCredentials
    from modelbake.engine import Engine
    from modelbake.manifest import Manifest
    from modelbake.output import Output
    from modelbake.plan import BuildPlan
    from modelbake.report import Report
    from modelbake.stream.repository import RegistryRepository
    from modelbake.trial import Trial
    from modelbake.workspace import Workspace


class Release:
    """The last steps of one model version.

    Args:
        workspace: where reports and goldens are.
        plan: the model version.
        target: the image's repository.
        credentials: the registry's, for the engine that pulls the image.
        trial: how the image is tried; the workspace's own way where nothing is said.
        layers_from: the repository that remembers weight layers, for a hint.
        output: where progress goes.
    """

    def __init__(
        self,
        workspace: Workspace,
        plan: BuildPlan,
        target: RegistryRepository,
        *,
        credentials: RegistryCredentials | None,
        trial: Trial | None,
        layers_from: str,
        output: Output,
    ) -> None:
        self._workspace = workspace
        self._plan = plan
        self._target = target
        self._credentials = credentials
        self._asked_trial = trial
        self._layers_from = layers_from
        self._output = output

    def current(self, same: Callable[[Manifest], bool]) -> Manifest | None:
        """Return what the version tag has, None where there is none; see VersionTag for what it raises."""
        return self._tag(same).current()

    def reference(self, manifest: Manifest) -> str:
        """Return `host/path@sha256:...`."""
        return f"{self._plan.repository}@{manifest.digest}"

    def engine(self) -> Engine:
        """Return an engine that can try the image. Raises EngineNotFound, and what says that it cannot."""
        try:
            engine = connect()
        except EngineNotFound as error:
            error.hint = (
                f"{error.hint}; or publish with --candidate: without a test, and without a version tag"
            )
            raise
        self._trial.require_possible(self._plan.spec, engine.info.gpu, serves=self._plan.runtime.serves)
        return engine

    def finish(
        self,
        manifest: Manifest,
        engine: Engine | None,
        sent: int,
        *,
        layers_from: str | None = None,
        untagged: bool = False,
    ) -> str:
        """Try a candidate and put the version tag; return its digest reference.

        Args:
            manifest: the candidate's; it is in the registry.
            engine: where it is tried; without one it stays a candidate.
            sent: bytes that were sent for it, for people.
            layers_from: the folder of the OCI layout that it came from, if it did.
            untagged: try it and keep the report, and leave the version tag to `release`.
        """
        reference = self.reference(manifest)
        self._output.event(
            "candidate",
            f"{reference} is in the registry as {candidate_tag(manifest.digest)}, without a version tag yet"
            f" ({sent:,} bytes sent for it)",
            digest=manifest.digest,
            tag=candidate_tag(manifest.digest),
            bytes=sent,
        )
        if engine is None:
            return reference
        from modelbake.reportstore import keep_report

        report = self._prove(manifest, engine, self._plan.spec.smoke.tolerance, layers_from)
        if self._trial.update_goldens:
            # A run that takes its own answers for right proves nothing: a person looks at them first.
            self._output.event(
                "goldens_taken",
                f"no version tag was put: look at {self._trial.goldens}, commit it, and run"
                f" `build.py publish {self._plan.name}`",
                level="warning",
            )
            return reference
        keep_report(self._target, manifest, report, self._output)
        if untagged:
            self._output.event(
                "published_untagged",
                f"{reference} has passed: `build.py release {self._plan.name}` gives it its version tag",
                repository=self._plan.repository,
                tag=candidate_tag(manifest.digest),
                digest=manifest.digest,
            )
            return reference
        self._tag(lambda found: found.digest == manifest.digest).put(manifest)
        self._output.event(
            "published",
            f"{self._plan.repository}:{self._plan.version} is {manifest.digest}",
            repository=self._plan.repository,
            tag=self._plan.version,
            digest=manifest.digest,
        )
        return reference

    def retake_goldens(self, released: Manifest) -> None:
        """Take a released image's answers as goldens where that is asked for; nothing else is left to do."""
        if self._asked_trial is not None and self._asked_trial.update_goldens:
            # It is released: nothing is left to compare it with.
            self._prove(released, self.engine(), ToleranceEntry())

    @cached_property
    def _trial(self) -> Trial:
        # Imported when an image is to be tried: a publish with nothing to do is quicker for it.
        from modelbake.trial import Trial

        return self._asked_trial or Trial(self._workspace.reports, self._workspace.goldens)

    def _prove(
        self, manifest: Manifest, engine: Engine, tolerance: ToleranceEntry, layout: str | None = None
    ) -> Report:
        from modelbake.regression import Gate
        from modelbake.stream.proving import prove

        return prove(
            engine,
            self._plan,
            self.reference(manifest),
            manifest,
            credentials=self._credentials,
            trial=self._trial,
            gate=Gate(self._target, self._plan.name, self._plan.version, tolerance, self._output),
            output=self._output,
            layers_from=layout or self._layers_from,
            layout=layout is not None,
        )

    def _tag(self, same: Callable[[Manifest], bool]) -> VersionTag:
        return VersionTag(self._target.registry, self._target.path, self._plan.version, same)


def connect() -> Engine:
    """Return the engine that the environment names. Raises EngineNotFound and EngineError."""
    from modelbake import engine as engines

    return engines.connect()

"""One model's way through the stream lane: what has to be there, in which order, and what stops it early.

Whatever can be refused is refused before the first weight byte moves: a version that is taken, a layer that
the registry does not take, an engine or a GPU that is missing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from modelbake.budget import require_budget
from modelbake.credentials import HUB_TOKEN
from modelbake.diskspace import require_free
from modelbake.dockerconfig import RegistryAuth, split_reference
from modelbake.errors import (
    EngineNotFound,
    LayoutError,
    RuntimeMissing,
)
from modelbake.manifest import Manifest
from modelbake.parallel import parallel, pausing
from modelbake.plan import BuildPlan
from modelbake.registry import Registry
from modelbake.schema import RUNTIMES_REPOSITORY, WEIGHTS_REPOSITORY, ToleranceEntry
from modelbake.stream.assembly import RuntimeImage, choose_order
from modelbake.stream.forecast import Facts
from modelbake.stream.identity import is_of_plan, plan_digest_of
from modelbake.stream.layout import LayoutRepository
from modelbake.stream.publish import (
    Image,
    bytes_to_write,
    copy_image,
    ensure_layers,
    make_image,
    put_image,
    recall_layer,
    recall_layers,
    require_room,
    require_taken,
    weights_spec,
)
from modelbake.stream.repository import RegistryRepository, Repository
from modelbake.stream.runtimes import build_runtime, find_runtime
from modelbake.stream.view import TransferView
from modelbake.stream.weights import size_without_weights
from modelbake.versiontag import VersionTag, precedence, released_versions

if TYPE_CHECKING:
    from modelbake.context import Context
    from modelbake.credentials import Secret
    from modelbake.engine import Engine
    from modelbake.output import Output
    from modelbake.report import Report
    from modelbake.stream.flow import Reader
    from modelbake.trial import Trial
    from modelbake.workspace import Workspace

_MEMORY = ".modelbake/index.json"


class Lane:
    """Publishes one model. A context manager: it holds the connection to the registry.

    Args:
        workspace: where models.yaml, the runtimes and the reports are.
        plan: the model version.
        secrets: of a build of the runtime; `hf_token` is also for the hub.
        output: where progress goes.
        jobs: how many layers flow at once.
        trial: how the image is tried before its version tag; the workspace's own way where nothing is said.
    """

    def __init__(
        self,
        workspace: Workspace,
        plan: BuildPlan,
        *,
        secrets: Mapping[str, Secret],
        output: Output,
        jobs: int,
        trial: Trial | None = None,
    ) -> None:
        self._asked_trial = trial
        self._workspace = workspace
        self._plan = plan
        self._secrets = secrets
        self._output = output
        self._jobs = jobs
        self._view = TransferView(output)
        reference = split_reference(f"{plan.repository}:{plan.version}")
        self._credentials = RegistryAuth().for_registry(reference.registry)
        if self._credentials is not None:
            for secret in self._credentials.secrets:
                output.redactor.add(secret)
        self._stop = threading.Event()  # set when a layer fails: the others need not go on
        self._registry = Registry(reference.registry, self._credentials, sleep=pausing(self._stop))
        namespace = reference.repository.rpartition("/")[0]
        prefix = f"{namespace}/" if namespace else ""
        self.target = RegistryRepository(self._registry, reference.repository, self._stop)
        self.weights = RegistryRepository(self._registry, f"{prefix}{WEIGHTS_REPOSITORY}")
        self.runtimes = RegistryRepository(self._registry, f"{prefix}{RUNTIMES_REPOSITORY}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._registry.close()

    def publish(self, *, candidate_only: bool) -> str:
        """Bring the image to the registry, test it, tag it; return its digest reference.

        Raises the errors of every step; the version tag is the last one.
        """
        plan = self._plan
        released = self._tag(self._is_of_this_plan).current()
        if released is not None and self._is_whole(released):
            self._output.event(
                "already_published", f"{plan.repository}:{plan.version} is there: {released.digest}"
            )
            self._retake_goldens(released)
            return self._reference(released)
        runtime = self.find_runtime()
        require_room(weights_spec(plan, runtime), self._registry.host)
        require_budget(plan.spec, plan.locked.size, runtime.size if runtime else None)
        engine = None if candidate_only else self._engine_for_smoke()
        runtime = runtime or self._build_runtime(engine)
        image = self._image(runtime, self.weights)
        sent = put_image(
            image,
            self.target,
            _candidate(image.manifest),
            runtimes=self.runtimes,
            weights=self.weights,
            jobs=self._jobs,
            stop=self._stop,
        )
        return self._finish(image.manifest, engine, sent)

    def publish_layout(self, folder: Path, *, candidate_only: bool) -> str:
        """Bring the image of an OCI layout to the registry, test it, tag it; return its digest reference."""
        layout = LayoutRepository.open(folder)
        manifest = layout.manifest(self._plan.version)
        if manifest is None:
            there = ", ".join(layout.tags()) or "nothing"
            raise LayoutError(
                f"holds no version {self._plan.version} (it holds {there})",
                subject=str(folder),
                hint=f"`build.py publish {self._plan.name} --output oci:DIR` writes it",
            )
        if plan_digest_of(layout, manifest) != self._plan_digest:
            raise LayoutError(
                "was made of another models.yaml, models.lock or runtime",
                subject=str(folder),
                hint=f"`build.py publish {self._plan.name} --output oci:DIR` writes it again",
            )
        released = self._tag(lambda found: found.digest == manifest.digest).current()
        if not released:
            self._require_fit(manifest)
        engine = None if candidate_only or released else self._engine_for_smoke()
        sent = copy_image(manifest, layout, self.target, _candidate(manifest), self._jobs, self._stop)
        if released:
            self._retake_goldens(manifest)
            return self._reference(manifest)
        return self._finish(manifest, engine, sent, layers_from=str(folder))

    def _require_fit(self, manifest: Manifest) -> None:
        """Raise RegistryLimit, ImageTooLarge where the layers of an image cannot be published so."""
        plan, sizes = self._plan, [layer.size for layer in manifest.layers]
        require_taken(sizes, plan.name, self._registry.host)
        require_budget(plan.spec, plan.locked.size, size_without_weights(manifest))

    def write_layout(self, folder: Path) -> str:
        """Write the image to an OCI layout; return `oci:DIR@sha256:...`."""
        runtime = self.find_runtime()
        require_budget(self._plan.spec, self._plan.locked.size, runtime.size if runtime else None)
        runtime = runtime or self._build_runtime(None)
        layout = LayoutRepository.create(folder, image=self._plan.repository)
        memory = LayoutRepository.create(folder, _MEMORY)
        require_free(folder, bytes_to_write(weights_spec(self._plan, runtime), runtime, layout, memory))
        image = self._image(runtime, memory, others=(self.weights,))
        put_image(image, layout, self._plan.version, runtimes=self.runtimes, weights=layout, jobs=self._jobs)
        return f"{layout.name}@{image.manifest.digest}"

    def facts(self) -> Facts:
        """Ask the registry what is there; nothing is changed."""
        plan, runtime = self._plan, self.find_runtime()
        spec = weights_spec(plan, runtime)
        known = recall_layers(self.weights, spec)
        if known and all(parallel(known, lambda layer: self.weights.has(layer.blob), self._jobs)):
            stored = [layer.group.digest for layer in known]
        else:
            found = parallel(
                spec.groups,
                lambda group: recall_layer(self.weights, group, spec.compression) is not None,
                self._jobs,
            )
            stored = [group.digest for group, there in zip(spec.groups, found, strict=True) if there]
        released = self.target.manifest(plan.version)
        return Facts(
            plan,
            spec,
            runtime,
            stored,
            self._previous(),
            self._registry.host,
            self._jobs,
            released=released.digest if released else None,
            released_is_this=released is not None
            and self._is_of_this_plan(released)
            and self._is_whole(released),
        )

    def _previous(self) -> tuple[str, Manifest] | None:
        """Return the newest release before this version, and its manifest."""
        released = released_versions(self._registry, self.target.path)
        older = (version for version in released if precedence(version) < precedence(self._plan.version))
        newest = next(older, None)
        if newest is None:
            return None
        manifest = self.target.manifest(newest)
        return None if manifest is None or manifest.is_index else (newest, manifest)

    def find_runtime(self) -> RuntimeImage | None:
        """Return the runtime's image in the registry, None without one."""
        return find_runtime(self.runtimes, self._plan.runtime.name, self._runtime_context)

    @cached_property
    def _runtime_context(self) -> Context:
        return self._workspace.runtime_context(self._plan)

    @cached_property
    def _trial(self) -> Trial:
        from modelbake.trial import Trial

        return self._asked_trial or Trial(self._workspace.reports, self._workspace.goldens)

    @cached_property
    def _plan_digest(self) -> str:
        return self._workspace.context(self._plan).digest

    def _is_of_this_plan(self, manifest: Manifest) -> bool:
        return is_of_plan(self.target, manifest, self._plan.spec, self._plan_digest)

    def _is_whole(self, manifest: Manifest) -> bool:
        return all(parallel([manifest.config, *manifest.layers], self.target.has, self._jobs))

    def _tag(self, same: Callable[[Manifest], bool]) -> VersionTag:
        return VersionTag(self._registry, self.target.path, self._plan.version, same)

    def _engine_for_smoke(self) -> Engine:
        try:
            engine = self._connect()
        except EngineNotFound as error:
            error.hint = (
                f"{error.hint}; or publish with --candidate: without a test, and without a version tag"
            )
            raise
        self._trial.require_possible(self._plan.spec, engine.info.gpu, serves=self._plan.runtime.serves)
        return engine

    def _connect(self) -> Engine:
        from modelbake import engine as engines

        return engines.connect()

    def _build_runtime(self, engine: Engine | None) -> RuntimeImage:
        try:
            engine = engine or self._connect()
        except EngineNotFound as error:
            raise RuntimeMissing(
                f"the registry has no image of the runtime {self._plan.runtime.name} as it is now, and there"
                f" is no engine to build it with ({error.subject}: {error.message})",
                subject=self.runtimes.name,
                hint="publish one model of this runtime where an engine is; all others then need none",
            ) from error
        return build_runtime(
            engine,
            self._plan,
            self._runtime_context,
            self.runtimes,
            secrets={name: secret for name, secret in self._secrets.items() if name != HUB_TOKEN},
            output=self._output,
        )

    def _image(
        self, runtime: RuntimeImage, weights: Repository, others: tuple[Repository, ...] = ()
    ) -> Image:
        spec = weights_spec(self._plan, runtime)
        # Whether the wanted order can be had is found out before anything moves.
        choose_order(self._plan.spec, self._plan.locked.size, runtime.size, runtime.hides)
        layers = ensure_layers(
            spec,
            weights,
            self._reader,
            self._view,
            others=others,
            jobs=self._jobs,
            stop=self._stop,
        )
        image = make_image(self._plan, runtime, layers, self._plan_digest)
        self._output.event(
            "assembled",
            f"{self._plan.name} {self._plan.version}: {len(image.manifest.layers)} layers, {image.order}",
            digest=image.manifest.digest,
            order=image.order,
        )
        return image

    def _reader(self, stop: threading.Event) -> Reader:
        from modelbake.sources import reader_for

        return reader_for(self._plan.locked, self._secrets.get(HUB_TOKEN), stop)

    def _finish(
        self, manifest: Manifest, engine: Engine | None, sent: int, *, layers_from: str | None = None
    ) -> str:
        reference = self._reference(manifest)
        self._output.event(
            "candidate",
            f"{reference} is in the registry as {_candidate(manifest)}, without a version tag yet"
            f" ({sent:,} bytes sent for it)",
            digest=manifest.digest,
            tag=_candidate(manifest),
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
        keep_report(self.target, manifest, report, self._output)
        self._tag(lambda found: found.digest == manifest.digest).put(manifest)
        self._output.event(
            "published",
            f"{self._plan.repository}:{self._plan.version} is {manifest.digest}",
            repository=self._plan.repository,
            tag=self._plan.version,
            digest=manifest.digest,
        )
        return reference

    def _prove(
        self, manifest: Manifest, engine: Engine, tolerance: ToleranceEntry, layers_from: str | None = None
    ) -> Report:
        from modelbake.regression import Gate
        from modelbake.stream.proving import prove

        return prove(
            engine,
            self._plan,
            self._reference(manifest),
            manifest,
            credentials=self._credentials,
            trial=self._trial,
            gate=Gate(self.target, self._plan.name, self._plan.version, tolerance, self._output),
            output=self._output,
            layers_from=layers_from or self.weights.name,
            layout=layers_from is not None,
        )

    def _retake_goldens(self, released: Manifest) -> None:
        """Take a released image's answers as goldens where that is asked for; nothing else is left to do."""
        if self._asked_trial is not None and self._asked_trial.update_goldens:
            # It is released: nothing is left to compare it with.
            self._prove(released, self._engine_for_smoke(), ToleranceEntry())

    def _reference(self, manifest: Manifest) -> str:
        return f"{self._plan.repository}@{manifest.digest}"


def _candidate(manifest: Manifest) -> str:
    return f"candidate-{manifest.digest.removeprefix('sha256:')[:12]}"

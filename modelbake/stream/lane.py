"""One model's way through the stream lane: what has to be there, in which order, and what stops it early.

Whatever can be refused is refused before the first weight byte moves: a version that is taken, a layer that
the registry does not take, an engine or a GPU that is missing.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
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
    UsageError,
)
from modelbake.manifest import Manifest
from modelbake.parallel import parallel, pausing
from modelbake.plan import BuildPlan
from modelbake.registry import Registry
from modelbake.schema import RUNTIMES_REPOSITORY, WEIGHTS_REPOSITORY
from modelbake.sources import require_approved
from modelbake.stream.assembly import RuntimeImage, choose_order
from modelbake.stream.forecast import Facts
from modelbake.stream.identity import is_of_plan, plan_digest_of
from modelbake.stream.layout import LayoutRepository
from modelbake.stream.publish import (
    Image,
    WeightsSpec,
    bytes_to_write,
    copy_image,
    ensure_layers,
    make_image,
    put_image,
    require_room,
    require_taken,
    weights_spec,
)
from modelbake.stream.release import Release, connect
from modelbake.stream.repository import RegistryRepository, Repository
from modelbake.stream.runtimes import build_runtime, find_runtime
from modelbake.stream.survey import previous_release, stored_groups
from modelbake.stream.view import TransferView
from modelbake.stream.weights import size_without_weights
from modelbake.versiontag import candidate_tag
from modelbake.writing import exclusively

if TYPE_CHECKING:
    from modelbake.context import Context
    from modelbake.credentials import Secret
    from modelbake.engine import Engine
    from modelbake.output import Output
    from modelbake.stream.flow import Reader
    from modelbake.stream.pool import LayerPool
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
        pool: whose workers stream the layers; without one this process does.

    Raises UsageError for a model whose files have to be converted.
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
        pool: LayerPool | None = None,
    ) -> None:
        if plan.conversion is not None:
            raise UsageError(
                "models.yaml says `convert: safetensors`: that is done in builder stages, and here weights"
                " flow from the hub to the registry as they are",
                subject=plan.name,
                hint="use `build`, `smoke` and `push`; or convert once, upload the safetensors to the hub,"
                " and remove `convert`",
            )
        self._workspace = workspace
        self._plan = plan
        self._secrets = secrets
        self._output = output
        self._jobs = jobs
        self._pool = pool
        self._view = TransferView(output)
        reference = split_reference(f"{plan.repository}:{plan.version}")
        credentials = RegistryAuth().for_registry(reference.registry)
        if credentials is not None:
            for secret in credentials.secrets:
                output.redactor.add(secret)
        self._stop = threading.Event()  # set when a layer fails: the others need not go on
        self._registry = Registry(reference.registry, credentials, sleep=pausing(self._stop))
        namespace = reference.repository.rpartition("/")[0]
        prefix = f"{namespace}/" if namespace else ""
        self.target = RegistryRepository(self._registry, reference.repository, self._stop)
        self.weights = RegistryRepository(self._registry, f"{prefix}{WEIGHTS_REPOSITORY}")
        self.runtimes = RegistryRepository(self._registry, f"{prefix}{RUNTIMES_REPOSITORY}")
        self._release = Release(
            workspace,
            plan,
            self.target,
            credentials=credentials,
            trial=trial,
            layers_from=self.weights.name,
            output=output,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._registry.close()

    def publish(self, *, candidate_only: bool, untagged: bool = False) -> str:
        """Bring the image to the registry, test it, tag it; return its digest reference.

        `candidate_only`: neither test nor tag it; `untagged`: test it, and leave the tag to `release`.

        Raises the errors of every step; the version tag is the last one.
        """
        plan = self._plan
        released = self._release.current(self._is_of_this_plan)
        if released is not None and self._is_whole(released):
            self._output.event(
                "already_published", f"{plan.repository}:{plan.version} is there: {released.digest}"
            )
            self._release.retake_goldens(released)
            return self._release.reference(released)
        require_approved(plan.locked)
        runtime = self.find_runtime()
        require_room(weights_spec(plan, runtime), self._registry.host)
        require_budget(plan.spec, plan.locked.size, runtime.size if runtime else None)
        engine = None if candidate_only else self._release.engine()
        runtime = runtime or self._build_runtime(engine)
        image = self._image(runtime, self.weights)
        sent = put_image(
            image,
            self.target,
            candidate_tag(image.manifest.digest),
            runtimes=self.runtimes,
            weights=self.weights,
            jobs=self._jobs,
            stop=self._stop,
        )
        return self._release.finish(image.manifest, engine, sent, untagged=untagged)

    def missing_weights(self, *, candidate_only: bool) -> WeightsSpec | None:
        """Return the weights that `publish` is going to bring to `weights`; nothing is changed.

        None where all is there, or where the runtime comes first. Raises what `publish` refuses beforehand.
        """
        plan = self._plan
        released = self._release.current(self._is_of_this_plan)
        runtime = self.find_runtime()
        if runtime is None or (released is not None and self._is_whole(released)):
            return None
        spec = weights_spec(plan, runtime)
        require_room(spec, self._registry.host)
        require_budget(plan.spec, plan.locked.size, runtime.size)
        choose_order(plan.spec, plan.locked.size, runtime.size, runtime.hides)
        if not candidate_only:
            with self._release.engine():
                pass  # it is there, and can try the image
        return spec

    def publish_layout(self, folder: Path, *, candidate_only: bool, untagged: bool = False) -> str:
        """Bring the image of an OCI layout to the registry as `publish` does; return its digest reference."""
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
        released = self._release.current(lambda found: found.digest == manifest.digest)
        if not released:
            self._require_fit(manifest)
        engine = None if candidate_only or released else self._release.engine()
        sent = copy_image(
            manifest, layout, self.target, candidate_tag(manifest.digest), self._jobs, self._stop
        )
        if released:
            self._release.retake_goldens(manifest)
            return self._release.reference(manifest)
        return self._release.finish(manifest, engine, sent, layers_from=str(folder), untagged=untagged)

    def _require_fit(self, manifest: Manifest) -> None:
        """Raise RegistryLimit, ImageTooLarge where the layers of an image cannot be published so."""
        plan, sizes = self._plan, [layer.size for layer in manifest.layers]
        require_taken(sizes, plan.name, self._registry.host)
        require_budget(plan.spec, plan.locked.size, size_without_weights(manifest))

    def write_layout(self, folder: Path) -> str:
        """Write the image to an OCI layout; return `oci:DIR@sha256:...`."""
        require_approved(self._plan.locked)
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
        released = self.target.manifest(plan.version)
        return Facts(
            plan,
            spec,
            runtime,
            stored_groups(self.weights, spec, self._jobs),
            previous_release(self.target, plan.version),
            self._registry.host,
            self._jobs,
            released=released.digest if released else None,
            released_is_this=released is not None
            and self._is_of_this_plan(released)
            and self._is_whole(released),
        )

    def find_runtime(self) -> RuntimeImage | None:
        """Return the runtime's image in the registry, None without one."""
        return find_runtime(self.runtimes, self._plan.runtime.name, self._runtime_context)

    @cached_property
    def _runtime_context(self) -> Context:
        return self._workspace.runtime_context(self._plan)

    @cached_property
    def _plan_digest(self) -> str:
        return self._workspace.context(self._plan).digest

    def _is_of_this_plan(self, manifest: Manifest) -> bool:
        return is_of_plan(self.target, manifest, self._plan.spec, self._plan_digest)

    def _is_whole(self, manifest: Manifest) -> bool:
        return all(parallel([manifest.config, *manifest.layers], self.target.has, self._jobs))

    def _build_runtime(self, engine: Engine | None) -> RuntimeImage:
        try:
            engine = engine or connect()
        except EngineNotFound as error:
            raise RuntimeMissing(
                f"the registry has no image of the runtime {self._plan.runtime.name} as it is now, and there"
                f" is no engine to build it with ({error.subject}: {error.message})",
                subject=self.runtimes.name,
                hint="publish one model of this runtime where an engine is; all others then need none",
            ) from error
        # Runs of this folder do it one after the other: the first one builds, the others find it then.
        with exclusively(self._plan.runtime.directory):
            return self.find_runtime() or build_runtime(
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
            jobs=self._jobs if self._pool is None else self._pool.slots,
            stop=self._stop,
            pool=self._pool,
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

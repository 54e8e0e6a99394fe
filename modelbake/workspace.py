"""Where a run finds its files: models.yaml, the lock and the reports beside it, programs and templates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.errors import ConfigError, LockError, ModelbakeError

if TYPE_CHECKING:
    from modelbake.config import Config, ModelSpec
    from modelbake.context import Context
    from modelbake.fitness import Evidence
    from modelbake.lock import Lock, LockedModel
    from modelbake.plan import BuildPlan, ConversionPlan
    from modelbake.runtime import Runtime

_TOOLKIT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Workspace:
    """The files of one run. Reading is done on first use, so that a verb pays only for what it needs.

    `images` has the runtimes and may be a team's own folder; what every image shares (`builder`, `start`,
    the templates) is always the toolkit's.
    """

    file: Path
    images: Path = _TOOLKIT / "images"

    @property
    def lock_path(self) -> Path:
        """The lock beside models.yaml."""
        return self.file.with_name("models.lock")

    @property
    def reports(self) -> Path:
        """The folder of smoke reports beside models.yaml."""
        return self.file.with_name("reports")

    @property
    def goldens(self) -> Path:
        """The folder of golden answers beside models.yaml."""
        return self.file.with_name("goldens")

    @property
    def templates(self) -> Path:
        """The folder of the toolkit's templates."""
        return _TOOLKIT / "templates"

    @property
    def config(self) -> Config:
        """models.yaml, checked, with every runtime it names. Raises ConfigError."""
        return self._read[0]

    @cached_property
    def declared(self) -> Config:
        """models.yaml, checked by itself: what is done to released images needs no runtime's folder here.

        Raises ConfigError.
        """
        from modelbake.config import load_config

        return load_config(self.file)

    def with_config(self, config: Config) -> Workspace:
        """Return this workspace as it is with another models.yaml, which has not been written."""
        made = Workspace(self.file, self.images)
        made.__dict__["declared"] = config
        return made

    @cached_property
    def _read(self) -> tuple[Config, Mapping[str, Runtime]]:
        from modelbake.runtime import check_runtimes

        return self.declared, check_runtimes(self.declared, self.images)

    def bases(self) -> list[str]:
        """Return the base images that the models are built from."""
        config, runtimes = self._read
        return [spec.base or runtimes[spec.runtime].base for spec in config.models.values()]

    @cached_property
    def lock(self) -> Lock:
        """models.lock; empty where there is none yet. Raises LockError."""
        from modelbake.lock import read_lock

        return read_lock(self.lock_path)

    @property
    def programs(self) -> Path:
        """The toolkit's folder of what runs inside images."""
        return _TOOLKIT / "images"

    @property
    def converter(self) -> str:
        """What names today's converter in a lock. Raises RenderError."""
        from modelbake.conversion import identity

        return identity(self.programs)

    def locked(self, spec: ModelSpec) -> LockedModel:
        """Return the facts of one model. Raises LockMissing or LockDrift when they are not of this `spec`."""
        from modelbake.lock import require_locked

        return require_locked(spec, self.lock, self.converter)

    def serves(self, spec: ModelSpec) -> bool:
        """Tell whether a model's image has a server, which a smoke run starts. Raises ConfigError."""
        _, runtimes = self._read
        return runtimes[spec.runtime].serves

    def plan(self, spec: ModelSpec) -> BuildPlan:
        """Resolve one model to a plan. Raises what `locked` does, and UnfitModel."""
        from modelbake.fitness import Evidence
        from modelbake.plan import make_plan

        config, runtimes = self._read
        locked = self.locked(spec)
        self.require_fit({spec.name: Evidence([file.path for file in locked.files])})
        return make_plan(config, spec, locked, runtimes[spec.runtime])

    def plan_all(self) -> list[BuildPlan]:
        """Resolve every model of models.yaml to a plan, in its order.

        Raises what `plan` does, for all models that cannot be planned at once.
        """
        from modelbake.fitness import Evidence
        from modelbake.plan import make_plan

        config, runtimes = self._read
        locked = {}
        problems: list[ModelbakeError] = []
        for spec in config.models.values():
            try:
                locked[spec.name] = self.locked(spec)
            except LockError as error:
                problems.append(error)
        try:
            self.require_fit({n: Evidence([file.path for file in each.files]) for n, each in locked.items()})
        except ConfigError as error:
            problems.append(error)
        if len(problems) > 1:
            raise type(problems[0])("\n".join(map(str, problems)))
        if problems:
            raise problems[0]
        return [
            make_plan(config, spec, locked[spec.name], runtimes[spec.runtime])
            for spec in config.models.values()
        ]

    def require_fit(self, evidence: Mapping[str, Evidence]) -> None:
        """Raise UnfitModel unless each model's runtime can serve its files; `evidence` is by model name."""
        from modelbake.fitness import objections
        from modelbake.objections import raise_objections

        config, runtimes = self._read
        models = {name: (config.models[name], runtimes[config.models[name].runtime]) for name in evidence}
        if any(objections(*models[name], each) for name, each in evidence.items()):
            others = list(self._all_runtimes())
            found = {name: objections(*models[name], each, others) for name, each in evidence.items()}
            raise_objections(config, found)

    def _all_runtimes(self) -> Iterator[Runtime]:
        """Yield every runtime of the folder that can be read: one that no model names may be broken."""
        from modelbake.runtime import list_runtimes, load_runtime

        for name in list_runtimes(self.images):
            with suppress(ConfigError):
                yield load_runtime(self.images, name)

    def context(self, plan: BuildPlan) -> Context:
        """Render a plan to its build context."""
        from modelbake.render import render

        return render(plan, templates=self.templates, programs=self.programs)

    def conversion_context(self, spec: ModelSpec, locked: LockedModel) -> tuple[Context, ConversionPlan]:
        """Render the stages that convert a model's pickles; also return their plan."""
        from modelbake.plan import plan_conversion
        from modelbake.render import render_conversion

        _, runtimes = self._read
        conversion = plan_conversion(spec, locked, runtimes[spec.runtime])
        rendered = render_conversion(conversion, templates=self.templates, programs=self.programs)
        return rendered, conversion

    def runtime_context(self, plan: BuildPlan) -> Context:
        """Render the stages of a plan's runtime, without the model."""
        from modelbake.render import render_runtime

        return render_runtime(plan, templates=self.templates, programs=self.programs)

"""Where a run finds its files: models.yaml, the lock and the reports beside it, programs and templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelbake.config import Config, ModelSpec
    from modelbake.context import Context
    from modelbake.lock import Lock, LockedModel
    from modelbake.plan import BuildPlan
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
    def config(self) -> Config:
        """models.yaml, checked, with every runtime it names. Raises ConfigError."""
        return self._read[0]

    @cached_property
    def _read(self) -> tuple[Config, Mapping[str, Runtime]]:
        from modelbake.config import load_config
        from modelbake.runtime import check_runtimes

        config = load_config(self.file)
        return config, check_runtimes(config, self.images)

    def bases(self) -> list[str]:
        """Return the base images that the models are built from."""
        config, runtimes = self._read
        return [spec.base or runtimes[spec.runtime].base for spec in config.models.values()]

    @cached_property
    def lock(self) -> Lock:
        """models.lock; empty where there is none yet. Raises LockError."""
        from modelbake.lock import read_lock

        return read_lock(self.lock_path)

    def locked(self, spec: ModelSpec) -> LockedModel:
        """Return the facts of one model. Raises LockMissing or LockDrift when they are not of this `spec`."""
        from modelbake.lock import require_locked

        return require_locked(spec, self.lock)

    def plan(self, spec: ModelSpec) -> BuildPlan:
        """Resolve one model to a plan."""
        from modelbake.plan import make_plan

        config, runtimes = self._read
        return make_plan(config, spec, self.locked(spec), runtimes[spec.runtime])

    def context(self, plan: BuildPlan) -> Context:
        """Render a plan to its build context."""
        from modelbake.render import render

        return render(plan, templates=_TOOLKIT / "templates", programs=_TOOLKIT / "images")

    def runtime_context(self, plan: BuildPlan) -> Context:
        """Render the stages of a plan's runtime, without the model."""
        from modelbake.render import render_runtime

        return render_runtime(plan, templates=_TOOLKIT / "templates", programs=_TOOLKIT / "images")

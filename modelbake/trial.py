"""How smoke runs are carried out in a workspace: what they read and write there, and what the user asked for.

Both lanes try an image by it, and both ask it whether an image has passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.errors import GpuUnavailable
from modelbake.goldens import read_goldens, require_goldens
from modelbake.gpus import Gpus, cuda_of
from modelbake.push import require_passing_report
from modelbake.report import Report, asked_of
from modelbake.smoke import smoke, wants_gpu

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.engine import Engine, LocalImage
    from modelbake.output import Output
    from modelbake.plan import BuildPlan


@dataclass(frozen=True)
class Trial:
    """The folders of reports and goldens, the GPUs to use (None: all), and whether goldens are made anew."""

    reports: Path
    goldens: Path
    gpus: Gpus | None = None
    update_goldens: bool = False

    def asked(self, model: ModelSpec) -> str:
        """Return the digest of what is asked of a model now. Raises GoldenError for an unreadable file."""
        return asked_of(model, read_goldens(self.goldens, model.name).values)

    def require_possible(self, model: ModelSpec, engine_has_gpu: bool, *, serves: bool = True) -> None:
        """Raise what would keep a run that is to allow a release from passing, before anything is moved.

        GpuUnavailable, GoldenError and UsageError, as `smoke` does; and where the model requires a GPU.
        """
        gpu = wants_gpu(model, engine_has_gpu, self.gpus, serves=serves)
        if not serves:
            return  # it only verifies its weights
        if model.smoke.require_gpu and not gpu:
            raise GpuUnavailable(
                "models.yaml says `require_gpu: true`, and this engine has no GPU",
                subject=f"{model.name} {model.version}",
                hint="set DOCKER_HOST to an engine with the NVIDIA container toolkit",
            )
        if not self.update_goldens:
            require_goldens(model, read_goldens(self.goldens, model.name), self.goldens)

    def require_passed(self, plan: BuildPlan, image: LocalImage) -> Report:
        """Return the report; raise ReportMissing unless this very image has passed what is asked now."""
        return require_passing_report(
            self.reports,
            plan.name,
            plan.version,
            image,
            self.asked(plan.spec),
            require_gpu=plan.spec.smoke.require_gpu,
        )

    def run(self, engine: Engine, plan: BuildPlan, image: LocalImage, output: Output) -> Report:
        """Run an image of a plan, as `smoke` does."""
        return smoke(
            engine,
            plan.spec,
            image,
            runtime_port=plan.runtime.port,
            health=plan.runtime.health,
            lock=plan.locked.digest,
            reports=self.reports,
            goldens=self.goldens,
            output=output,
            update_goldens=self.update_goldens,
            gpus=self.gpus,
            cuda=_cuda(plan),
        )


def _cuda(plan: BuildPlan) -> str:
    """Return the CUDA version that a plan's requirements install, "" where they say nothing of one."""
    if plan.requirements is None:
        return ""
    return cuda_of((plan.runtime.directory / plan.requirements).read_text(encoding="utf-8"))

"""The models to build as what CI systems take: a matrix of GitHub Actions, a child pipeline of GitLab. Pure.

GitHub makes at most 256 jobs of a matrix, and GitLab's instances limit the jobs of a pipeline: where there
are more models, those with the same runtime and device share jobs. The verbs take several names, so a job
runs `build.py publish $MODEL` either way.

Sources: "Running variations of jobs in a workflow" of GitHub's documentation (the limit, `include`);
"Dynamic child pipelines" and "CI/CD YAML syntax reference" of GitLab's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelbake.errors import UsageError

MOST_JOBS = 256
USUAL_TEMPLATES = "/.gitlab/modelbake-publish.yml"
TEMPLATE, GPU_TEMPLATE = ".publish", ".publish-gpu"


@dataclass(frozen=True)
class Job:
    """One model; or several of the same runtime and device, in the order of models.yaml.

    `gpu`: a smoke run of them needs a GPU.
    """

    models: tuple[str, ...]
    versions: tuple[str, ...]
    runtime: str
    device: str
    gpu: bool

    @property
    def title(self) -> str:
        """What people know the job by; no two of one matrix are the same."""
        more = len(self.models) - 1
        return f"{self.models[0]} {self.versions[0]}" + (f" and {more} more" if more else "")


def shared_out(models: Iterable[Job], most: int) -> list[Job]:
    """Put jobs of one model each together until there are at most `most`.

    Raises UsageError where there are more kinds of them than that.
    """
    kinds: dict[tuple[str, str, bool], list[Job]] = {}
    for job in models:
        kinds.setdefault((job.runtime, job.device, job.gpu), []).append(job)
    if len(kinds) > most:
        raise UsageError(
            f"the models have {len(kinds)} different runtimes and devices, which need as many jobs",
            subject=f"--jobs {most}",
            hint=f"allow {len(kinds)} jobs, or name fewer models",
        )
    each = 1
    while sum(-(-len(alike) // each) for alike in kinds.values()) > most:
        each += 1
    return [
        Job(
            tuple(name for job in part for name in job.models),
            tuple(version for job in part for version in job.versions),
            *kind,
        )
        for kind, alike in kinds.items()
        for part in (alike[at : at + each] for at in range(0, len(alike), each))
    ]


def github(jobs: Sequence[Job]) -> dict[str, Any]:
    """Return what `strategy: matrix: ${{ fromJSON(...) }}` takes.

    An empty `include` fails a workflow: its job has to ask for `include[0]` first.
    """
    return {
        "include": [
            {
                "title": job.title,
                "model": " ".join(job.models),
                "version": " ".join(job.versions),
                "runtime": job.runtime,
                "device": job.device,
                "gpu": job.gpu,
            }
            for job in jobs
        ]
    }


def gitlab(jobs: Sequence[Job], templates: str) -> dict[str, Any]:
    """Return a child pipeline: a job for each, of a template in the repository's own file `templates`.

    The template is `.publish`, or `.publish-gpu` for a job that needs a GPU. A pipeline without jobs cannot
    be started, so where there is nothing to do one job says so.
    """
    if not jobs:
        return {
            "no model changed": {"script": ["echo 'no model changed'"], "variables": {"GIT_STRATEGY": "none"}}
        }
    document: dict[str, Any] = {"include": [{"local": templates}]}
    return document | {f"publish {job.title}": _gitlab_job(job) for job in jobs}


def _gitlab_job(job: Job) -> Mapping[str, Any]:
    return {
        "extends": GPU_TEMPLATE if job.gpu else TEMPLATE,
        "variables": {
            "MODEL": " ".join(job.models),
            "VERSION": " ".join(job.versions),
            "RUNTIME": job.runtime,
            "DEVICE": job.device,
            "GPU": str(job.gpu).lower(),
        },
    }

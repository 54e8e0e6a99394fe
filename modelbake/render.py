"""From a plan to a build context: the rendered Dockerfile and every file it copies. Pure but for reading
the template and the programs.

The Dockerfile is `templates/Dockerfile.j2`; this is the only module of a build that knows Jinja2.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from modelbake.context import Context
from modelbake.errors import RenderError
from modelbake.plan import PLAN_LABEL, BuildPlan

# What of images/ travels with every context. A list, so that nothing lying beside it ever does.
PROGRAMS = (
    "builder/accelerate.py",
    "builder/answers.py",
    "builder/events.py",
    "builder/fetch.py",
    "builder/hub.py",
    "builder/install.py",
    "builder/manifest.py",
    "builder/persistence.py",
    "builder/pip_errors.py",
    "builder/requirements.txt",
    "builder/transfer.py",
    "builder/tree.py",
    "start/chat_parameters.py",
    "start/load_report.py",
    "start/model_metrics.py",
    "start/openai_api.py",
    "start/probe.py",
    "start/serving.py",
    "start/start.py",
    "start/weight_files.py",
    "start/weight_headers.py",
)
# And with that of a runtime alone.
RUNTIME_PROGRAMS = tuple(
    program
    for program in PROGRAMS
    if program.startswith("start/") or program in ("builder/install.py", "builder/pip_errors.py")
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]")


def render(plan: BuildPlan, *, templates: Path, programs: Path) -> Context:
    """Render a plan. The same plan, templates and programs give the same bytes.

    Raises RenderError when a template is wrong or a named program does not exist.
    """
    files = {"manifest.json": plan.manifest(), **_runtime_files(plan, programs, PROGRAMS)}
    for group in plan.groups:
        files[f"weights/{group.digest}/manifest.json"] = group.manifest
    # The image names in a label what it was built of, so that `smoke` and `push` know one of another plan.
    # Where the bytes come from is no part of it: another mirror makes the same image.
    unlabelled = _dockerfile(plan, templates, model=True)
    files["Dockerfile"] = unlabelled.encode()
    digest = _digest(files)
    # No value can look like this line: `quoted` escapes every quotation mark.
    label, empty = quoted(PLAN_LABEL), quoted("")
    files["Dockerfile"] = unlabelled.replace(f"{label}={empty}", f"{label}={quoted(digest)}").encode()
    files["sources.json"] = plan.sources()
    return Context(files, digest)


def render_runtime(plan: BuildPlan, *, templates: Path, programs: Path) -> Context:
    """Render the stages of a plan's runtime alone; the context's digest is the same for all its models.

    Raises as `render` does.
    """
    files = _runtime_files(plan, programs, RUNTIME_PROGRAMS)
    files["Dockerfile"] = _dockerfile(plan, templates, model=False).encode()
    return Context(files, _digest(files))


def _runtime_files(plan: BuildPlan, programs: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    files = {
        "requirements.txt": _read(plan.runtime.directory / plan.requirements) if plan.requirements else b"",
    }
    for program in wanted:
        files[program] = _read(programs / program)
    for name in plan.runtime.app:
        files[f"app/{name}"] = _read(plan.runtime.directory / name)
    return files


def _digest(files: Mapping[str, bytes]) -> str:
    lines = [f"{hashlib.sha256(files[path]).hexdigest()} {path}\n" for path in sorted(files)]
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def _dockerfile(plan: BuildPlan, templates: Path, *, model: bool) -> str:
    try:
        return _environment(templates).get_template("Dockerfile.j2").render(plan=plan, model=model)
    except jinja2.TemplateError as error:
        where = f"{getattr(error, 'name', None) or 'Dockerfile.j2'}:{getattr(error, 'lineno', '?')}"
        raise RenderError(str(error), subject=str(templates / where)) from error


@cache  # compiling the template takes longer than all the rest, and every model of a run uses the same
def _environment(templates: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - a Dockerfile is no HTML; values pass the filters below
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["exec_form"] = exec_form
    environment.filters["quoted"] = quoted
    return environment


def exec_form(words: Any) -> str:
    """Return a command as a Dockerfile's JSON form, in which no shell ever reads a value."""
    return json.dumps([_one_line(word) for word in words])


def quoted(value: str) -> str:
    """Return a value as a Dockerfile's quoted word: no expansion, no escape, no end of line in it."""
    escaped = re.sub(r'(["\\$])', r"\\\1", _one_line(value))
    return f'"{escaped}"'


def _one_line(value: str) -> str:
    if _CONTROL.search(value):
        raise RenderError(f"control character in {value!r}", hint="values of a Dockerfile are single lines")
    return value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RenderError(f"cannot read ({error.strerror})", subject=str(path)) from error

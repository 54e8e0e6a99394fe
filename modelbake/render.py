"""From a plan to a build context: the rendered Dockerfile and every file it copies. Pure but for reading
the template and the programs.

The Dockerfile is `templates/Dockerfile.j2`; this is the only module of a build that knows Jinja2.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2

from modelbake.context import Context
from modelbake.errors import RenderError
from modelbake.instructions import require_planned, require_planned_conversion
from modelbake.plan import PLAN_LABEL, BuildPlan, ConversionPlan, WeightGroup, encode_json, secret_name
from modelbake.programs import (
    ADMITS,
    BASICS,
    CONVERTS,
    FETCHERS,
    INSTALLERS,
    PROGRAMS,
    RUNTIME_PROGRAMS,
    SLIMMERS,
)
from modelbake.requirements import split_requirements
from modelbake.smallfile import read_small

if TYPE_CHECKING:
    from modelbake.locked import LockedFile

_Plan = TypeVar("_Plan", BuildPlan, ConversionPlan)
LARGEST_FILE = 256 * 1024 * 1024  # bytes of a file of the context, which is made in memory
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]")


def render(plan: BuildPlan, *, templates: Path, programs: Path) -> Context:
    """Render a plan. The same plan, templates and programs give the same bytes.

    Raises RenderError when a template is wrong or a named program does not exist, and UnplannedInstruction
    when the Dockerfile is not what the plan says.
    """
    files = {"manifest.json": plan.manifest(), **_runtime_files(plan, programs, PROGRAMS)}
    files |= _manifests(plan.groups)
    if plan.conversion is not None:
        files |= _conversion_files(plan.conversion, programs)
        files |= {ADMITS: _read(programs / ADMITS)}
    # The image names in a label what it was built of, so that `smoke` and `push` know one of another plan.
    # Where the bytes come from is no part of it: another mirror makes the same image.
    # Nor is whether they travel with the context.
    neutral, conversion = _uncarried(plan), plan.conversion and _uncarried(plan.conversion)
    files["Dockerfile"] = _dockerfile(
        templates, "image", plan=neutral, conversion=conversion, by_hand=True
    ).encode()
    digest = _digest(files)
    unlabelled = _dockerfile(templates, "image", plan=plan, conversion=plan.conversion)
    # No value can look like this line: `quoted` escapes every quotation mark.
    label, empty = quoted(PLAN_LABEL), quoted("")
    labelled = unlabelled.replace(f"{label}={empty}", f"{label}={quoted(digest)}")
    _require_planned(labelled, plan, templates, digest)
    files["Dockerfile"] = labelled.encode()
    groups = (*plan.groups, *(plan.conversion.groups if plan.conversion else ()))
    return Context({**files, **_documents(plan.documents)}, digest, _carried(groups))


def render_runtime(plan: BuildPlan, *, templates: Path, programs: Path) -> Context:
    """Render the stages of a plan's runtime alone; the context's digest is the same for all its models.

    Raises as `render` does.
    """
    files = _runtime_files(plan, programs, RUNTIME_PROGRAMS)
    dockerfile = _dockerfile(templates, "runtime", plan=plan, conversion=None)
    _require_planned(dockerfile, plan, templates, None)
    files["Dockerfile"] = dockerfile.encode()
    return Context(files, _digest(files))


def render_conversion(conversion: ConversionPlan, *, templates: Path, programs: Path) -> Context:
    """Render the stages that convert, and one that has their list of what came out.

    They are the same as those of the image, so that a build finds in the engine's cache what `lock` has made.
    Raises as `render` does.
    """
    wanted = (*INSTALLERS, *FETCHERS)
    files = {program: _read(programs / program) for program in wanted}
    files |= _conversion_files(conversion, programs)
    dockerfile = _dockerfile(templates, "conversion", plan=None, conversion=conversion)
    require_planned_conversion(dockerfile, conversion, subject=str(templates / "Dockerfile.j2"))
    files["Dockerfile"] = dockerfile.encode()
    carried = _carried(conversion.groups)
    return Context({**files, **_documents(conversion.documents)}, _digest(files), carried)


def _uncarried(plan: _Plan) -> _Plan:
    return replace(plan, groups=tuple(replace(group, carried=False) for group in plan.groups))


def _documents(documents: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files that a build by hand gives as secrets."""
    return {f"{name}.json": document for name, document in documents.items()}


def _carried(groups: Sequence[WeightGroup]) -> dict[str, LockedFile]:
    """Return the weight files that travel with a context, by their paths in it."""
    return {
        f"weights/{group.digest}/files/{file.path}": file
        for group in groups
        if group.carried
        for file in group.files
    }


def _conversion_files(conversion: ConversionPlan, programs: Path) -> dict[str, bytes]:
    files = {program: _read(programs / program) for program in CONVERTS}
    files["convert.json"] = conversion.instructions
    return files | _manifests(conversion.groups)


def _manifests(groups: Sequence[WeightGroup]) -> dict[str, bytes]:
    return {f"weights/{group.digest}/manifest.json": group.manifest for group in groups}


def _runtime_files(plan: BuildPlan, programs: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    files = {f"requirements/{number}.txt": text for number, text in enumerate(_layers(plan))}
    files["slim.json"] = encode_json(plan.runtime.slim.model_dump(mode="json"))
    for program in wanted:
        files[program] = _read(programs / program)
    for name in plan.runtime.app:
        files[f"app/{name}"] = _read(plan.runtime.directory / name)
    return files


def _layers(plan: BuildPlan) -> list[bytes]:
    """Return the requirements of each layer of packages, bottom first."""
    if not plan.requirements:
        return [b""]
    path = plan.runtime.directory / plan.requirements
    content = _read(path)
    if not plan.runtime.layers:
        return [content]
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise RenderError("is not UTF-8 text", subject=str(path)) from error
    return [each.encode() for each in split_requirements(text, plan.runtime.layers, str(path))]


def _installs(layers: int) -> list[list[str]]:
    """Return the command that installs each layer of packages."""
    commands = []
    for number in range(layers):
        command = ["python3", "/builder/install.py", "/opt/venv", f"/builder/{number}.txt"]
        command += ["--slim", "/builder/slim.json", "--output", "/layer"]
        if number < layers - 1:
            command.append("--part")
        elif number:
            command += ["--beside", *(f"/layers/{below}" for below in range(number))]
        commands.append(command)
    return commands


def _require_planned(dockerfile: str, plan: BuildPlan, templates: Path, digest: str | None) -> None:
    subject = str(templates / "Dockerfile.j2")
    require_planned(dockerfile, plan, layers=len(_layers(plan)), digest=digest, subject=subject)


def _digest(files: Mapping[str, bytes]) -> str:
    lines = [f"{hashlib.sha256(files[path]).hexdigest()} {path}\n" for path in sorted(files)]
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def _dockerfile(
    templates: Path,
    part: str,
    *,
    plan: BuildPlan | None,
    conversion: ConversionPlan | None,
    by_hand: bool | None = None,
) -> str:
    """Render the whole `image`, or of its stages those of the `runtime`, or of the `conversion`, alone."""
    try:
        template = _environment(templates).get_template("Dockerfile.j2")
        return template.render(
            part=part,
            plan=plan,
            conversion=conversion,
            base=plan.base if plan is not None else conversion and conversion.base,
            installs=_installs(len(_layers(plan))) if plan is not None else [],
            installers=INSTALLERS,
            slimmers=SLIMMERS,
            fetchers=FETCHERS,
            basics=BASICS,
            by_hand=_by_hand(plan) if by_hand is None else by_hand,
            secrets=[secret_name(number) for number in range(len(plan.locked.sources))] if plan else [],
        )
    except jinja2.TemplateError as error:
        where = f"{getattr(error, 'name', None) or 'Dockerfile.j2'}:{getattr(error, 'lineno', '?')}"
        raise RenderError(str(error), subject=str(templates / where)) from error


def _by_hand(plan: BuildPlan | None) -> bool:
    return plan is not None and all(source.kind == "hf" for source in plan.locked.sources)


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
        return read_small(path, LARGEST_FILE)
    except OSError as error:
        raise RenderError(f"cannot read ({error.strerror})", subject=str(path)) from error

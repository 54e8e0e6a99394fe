"""A Dockerfile is compared with its plan: whatever is added, lost or changed is found."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import dockerfile
import pytest

from modelbake.config import Config
from modelbake.context import Context
from modelbake.errors import RenderError, UnplannedInstruction
from modelbake.instructions import require_planned
from modelbake.plan import BuildPlan, make_plan
from modelbake.render import render, render_runtime
from modelbake.runtime import list_runtimes, load_runtime
from tests.conftest import Tally
from tests.promises import cases
from tests.servers.environment import ROOT
from tests.unit.buildkit_reading import by_buildkit
from tests.unit.planning import planned

TEMPLATES = ROOT / "templates"
IMAGES = ROOT / "images"
EVIL = (
    *("RUN evil", 'RUN ["evil"]', "USER 0", "COPY --from=evil / /", "ADD http://evil /", "ENV EVIL=1"),
    *("ENV LD_PRELOAD=x", "LABEL evil=1", 'CMD ["evil"]', 'ENTRYPOINT ["evil"]', "FROM evil", "ARG EVIL"),
    *(
        "FROM evil AS image",
        'SHELL ["x"]',
        "ONBUILD RUN evil",
        "HEALTHCHECK CMD evil",
        "VOLUME /evil",
        "evil",
    ),
    *("EXPOSE 22", "WORKDIR /evil", "STOPSIGNAL 9", "MAINTAINER x", "RUN <<EOF\nevil\nEOF", "# syntax=evil"),
    *("# escape=`", "RUN --mount=type=bind,from=evil,target=/x true"),
)


@cache
def plan_of(runtime: str = "embeddings") -> BuildPlan:
    """Return a plan with a runtime of this repository."""
    found = load_runtime(IMAGES, runtime)
    plan = planned(device="cuda" if found.offers("cuda") else "cpu", runtime=runtime)
    config = Config(
        path=Path("models.yaml"), registry="registry.example.com/ml", models={plan.name: plan.spec}
    )
    return make_plan(config, plan.spec, plan.locked, found)


def rendered(plan: BuildPlan, templates: Path = TEMPLATES) -> Context:
    return render(plan, templates=templates, programs=IMAGES)


def require(text: str, plan: BuildPlan, context: Context) -> None:
    """Hold a changed Dockerfile of a rendered context against the plan."""
    layers = sum(path.startswith("requirements/") for path in context.files)
    require_planned(text, plan, layers=layers, digest=context.digest, subject="Dockerfile.j2")


@pytest.mark.parametrize("runtime", list_runtimes(IMAGES))
def test_the_template_and_the_list_agree_for_every_runtime(runtime: str) -> None:
    plan = plan_of(runtime)
    assert b"LABEL" in rendered(plan).files["Dockerfile"]
    assert b"LABEL" not in render_runtime(plan, templates=TEMPLATES, programs=IMAGES).files["Dockerfile"]


@pytest.mark.promise("dockerfile")
def test_an_instruction_more_or_less_is_found(tally: Tally) -> None:
    plan = plan_of()
    context = rendered(plan)
    lines = context.files["Dockerfile"].decode().split("\n")
    random_ = random.Random(1)
    places = range(len(lines))
    for evil in EVIL:
        comment = evil.startswith("#")
        for place in [0] if comment else random_.sample(places, cases(6, len(lines))):
            if place and lines[place - 1].endswith("\\"):
                continue  # that is in the middle of another
            tally.count()
            with pytest.raises(UnplannedInstruction):
                require("\n".join([*lines[:place], evil, *lines[place:]]), plan, context)
    for place, line in enumerate(lines):
        if line and not line.startswith("#"):
            tally.count()
            with pytest.raises(UnplannedInstruction):
                require("\n".join([*lines[:place], *lines[place + 1 :]]), plan, context)


@pytest.mark.promise("dockerfile")
def test_any_change_that_buildkit_sees_is_found(tally: Tally) -> None:
    plan = plan_of()
    context = rendered(plan)
    text = context.files["Dockerfile"].decode()
    meant = by_buildkit(text)
    random_ = random.Random(2)
    for _ in range(cases(300, 5_000)):
        place, length = random_.randrange(len(text)), random_.choice([0, 0, 1, 1, 2, 40])
        added = random_.choice(
            ["", "\n", "\\\n", "\\", '"', "'", "$", " ", "#", "x", "\n#", "=", "[", ",", "\nUSER 0\n"]
        )
        changed = text[:place] + added + text[place + length :]
        tally.count()
        try:
            require(changed, plan, context)
        except UnplannedInstruction:
            continue
        assert by_buildkit(changed) == meant, f"{added!r} in place of {text[place : place + length]!r}"


def test_comments_line_breaks_and_the_order_of_flags_are_the_templates_own() -> None:
    plan = plan_of()
    context = rendered(plan)
    text = context.files["Dockerfile"].decode()
    changed = text.replace(
        "COPY --link --from=weights-0", "# another comment\n\nCOPY --from=weights-0 --link"
    )
    changed = changed.replace("--mount=type=secret,id=hf_token", "--mount=id=hf_token,type=secret \\\n")
    assert changed.count("\n") > text.count("\n")
    require(changed, plan, context)


Change = Callable[[BuildPlan], BuildPlan]


def labelled(value: str) -> Change:
    return lambda plan: replace(plan, labels={**plan.labels, "org.example.note": value})


def of_runtime(**keys: Any) -> Change:
    return lambda plan: replace(plan, runtime=plan.runtime.model_copy(update=keys))


def of_model(**keys: Any) -> Change:
    return lambda plan: replace(plan, spec=plan.spec.model_copy(update=keys))


UNQUOTED = ("LABEL {{ name | quoted }}={{ value | quoted }}", "LABEL {{ name }}={{ value }}")
UNQUOTED_ENV = ("ENV {{ name }}={{ value | quoted }}", "ENV {{ name }}={{ value }}")
IN_A_SHELL = ("CMD {{ plan.runtime.command | exec_form }}", "CMD {{ plan.runtime.command | join(' ') }}")
IN_A_LIST = (
    "CMD {{ plan.runtime.command | exec_form }}",
    'CMD ["{{ plan.runtime.command | join(\'", "\') }}"]',
)
AS_IT_IS = ("", "")
# Grammars, quoting or both are left out on purpose: only the comparison is left to find what comes of it.
INJECTIONS: list[tuple[tuple[str, str], Change]] = [
    (UNQUOTED, labelled("a\nRUN evil")),
    (UNQUOTED, labelled("a\n# \nUSER 0")),
    (UNQUOTED, labelled("a evil=b")),
    (UNQUOTED, labelled("$HOME")),
    (UNQUOTED, labelled("a\\")),
    (UNQUOTED, labelled("a\\nb")),
    (UNQUOTED, labelled('"')),
    (UNQUOTED, labelled("'a'")),
    (UNQUOTED, labelled("a\u2028b=c")),
    (UNQUOTED, lambda plan: replace(plan, labels={**plan.labels, "x=y z": "a"})),
    (UNQUOTED_ENV, lambda plan: replace(plan, model_env={**plan.model_env, "A": "a LD_PRELOAD=/evil"})),
    (UNQUOTED_ENV, lambda plan: replace(plan, runtime_env={**plan.runtime_env, "A": "a\nUSER 0"})),
    (IN_A_SHELL, of_runtime(command=("python", "x; evil"))),
    (IN_A_SHELL, of_runtime(command=("python", "x"))),
    (IN_A_LIST, of_runtime(command=("python", 'x", "evil'))),
    (IN_A_LIST, of_runtime(command=("python", 'x"]\nRUN ["evil'))),
    (IN_A_LIST, of_runtime(command=("python", 'x"; evil #'))),
    (AS_IT_IS, lambda plan: replace(plan, base="x AS base\nRUN evil\nFROM x")),
    (AS_IT_IS, lambda plan: replace(plan, base="--platform=$EVIL x")),
    (AS_IT_IS, lambda plan: replace(plan, base="x\\")),
    (AS_IT_IS, lambda plan: replace(plan, model_env={"A=1 B": "c"})),
    (AS_IT_IS, of_runtime(port="80\nUSER 0")),
    (AS_IT_IS, of_model(name="x\nRUN evil\n#")),
    (AS_IT_IS, of_model(version="x\nRUN evil\n#")),
    (AS_IT_IS, of_model(name="syntax=evil")),
    (AS_IT_IS, of_model(name="escape=`\n#")),
]  # fmt: skip


def injectable(change: tuple[str, str], folder: Path) -> Path:
    """Write the templates with one part of them changed."""
    for name in ("Dockerfile.j2", "macros.j2"):
        text = (TEMPLATES / name).read_text()
        assert name == "macros.j2" or change[0] in text
        (folder / name).write_text(text.replace(*change))
    return folder


@pytest.mark.control("dockerfile")
@pytest.mark.parametrize(("change", "hostile"), INJECTIONS)
def test_an_injection_is_found_where_nothing_else_stops_it(
    change: tuple[str, str], hostile: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of()
    templates = injectable(change, tmp_path)
    meant = by_buildkit(rendered(plan).files["Dockerfile"].decode())
    with pytest.raises(UnplannedInstruction) as raised:
        rendered(hostile(plan), templates)
    assert raised.value.subject.endswith("Dockerfile.j2")
    monkeypatch.setattr("modelbake.render.require_planned", lambda *_, **__: None)
    text = rendered(hostile(plan), templates).files["Dockerfile"].decode()
    with suppress(dockerfile.GoParseError, ValueError):  # then the engine refuses it
        seen = by_buildkit(text)
        assert seen != meant or text.startswith(("# syntax", "# escape")), "without it, it would be built"


@pytest.mark.promise("dockerfile")
@pytest.mark.parametrize("hostile", [hostile for change, hostile in INJECTIONS if change != AS_IT_IS])
def test_quoting_alone_stops_what_no_grammar_stopped(hostile: Change) -> None:
    plan = hostile(plan_of())
    with suppress(RenderError):
        seen = by_buildkit(rendered(plan).files["Dockerfile"].decode())
        assert len(seen) == len(by_buildkit(rendered(plan_of()).files["Dockerfile"].decode())) + len(
            plan.labels.keys() - plan_of().labels.keys()
        ) + len(plan.model_env.keys() - plan_of().model_env.keys()) + len(
            plan.runtime_env.keys() - plan_of().runtime_env.keys()
        )


def test_the_error_names_what_is_wrong_and_where_an_intended_change_goes(tmp_path: Path) -> None:
    plan = plan_of()
    templates = injectable(("USER 65532:65532\n", "USER 0\nRUN apt-get update\n"), tmp_path)
    with pytest.raises(UnplannedInstruction) as raised:
        rendered(plan, templates)
    text = (templates / "Dockerfile.j2").read_text()
    assert "not planned: USER 0 (stage runtime)" in raised.value.message
    assert "not planned: RUN apt-get update (stage runtime)" in raised.value.message
    assert "missing: USER 65532:65532 (stage runtime)" in raised.value.message
    assert "modelbake/instructions.py" in raised.value.hint
    assert "USER 0" in text and raised.value.subject == str(templates / "Dockerfile.j2")


def test_what_a_terminal_would_act_on_is_not_printed(tmp_path: Path) -> None:
    templates = injectable(("USER 65532:65532\n", "LABEL a=\u202eevil\n"), tmp_path)
    with pytest.raises(UnplannedInstruction, match=r"LABEL a \\u202eevil") as raised:
        rendered(plan_of(), templates)
    assert "\u202e" not in str(raised.value)

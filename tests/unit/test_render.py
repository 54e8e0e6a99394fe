from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from modelbake.context import Context
from modelbake.errors import RenderError
from modelbake.plan import BuildPlan
from modelbake.programs import CONVERTERS, PROGRAMS
from modelbake.render import exec_form, quoted, render, render_conversion
from modelbake.runtime import SlimEntry
from tests.unit.planning import converting, planned

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_program_is_listed_and_no_other() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "images/builder", "images/start"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    programs = {name.removeprefix("images/") for name in tracked.stdout.split()}
    assert {*PROGRAMS, *CONVERTERS} == programs - {
        "builder/requirements.in",
        "builder/requirements.converter.in",
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A small images/ folder, with things beside the programs that must never travel."""
    for name in (*PROGRAMS, *CONVERTERS, "embeddings/server.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    for name in (
        "embeddings/requirements.cuda.txt",
        "embeddings/requirements.cpu.txt",
    ):
        (tmp_path / name).write_text(f"# {name}\n")
    for stray in ("embeddings/.env", "builder/token.txt", "builder/scratch.py", "start/model.safetensors"):
        (tmp_path / stray).write_text("hf_canary")
    return tmp_path


def _render(plan: BuildPlan, images: Path, templates: Path = ROOT / "templates") -> Context:
    return render(plan, templates=templates, programs=images)


def _instructions(dockerfile: bytes) -> list[str]:
    lines = dockerfile.decode().replace("\\\n", "").splitlines()
    return [re.sub(r"\s+", " ", line) for line in lines if line and not line.startswith("#")]


def test_the_context_is_what_the_dockerfile_copies_and_nothing_else(images: Path) -> None:
    plan = planned(directory=images / "embeddings")
    context = _render(plan, images)
    assert sorted(context.files) == sorted(
        [
            "Dockerfile",
            "app/server.py",
            *PROGRAMS,
            "manifest.json",
            "requirements/0.txt",
            "slim.json",
            "sources.json",
            *(f"weights/{group.digest}/manifest.json" for group in plan.groups),
        ]
    )
    assert b"hf_canary" not in context.tar()


def test_the_same_plan_gives_the_same_bytes(images: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "images"
    shutil.copytree(images, elsewhere)
    here = _render(planned(directory=images / "embeddings"), images)
    there = _render(planned(directory=elsewhere / "embeddings"), elsewhere)
    assert here.tar() == there.tar()


def test_the_stages_stand_in_the_documented_order(images: Path) -> None:
    plan = planned(directory=images / "embeddings")
    steps = _instructions(_render(plan, images).files["Dockerfile"])
    stages = [step for step in steps if step.startswith("FROM")]
    assert stages == [
        f"FROM {plan.base} AS base",
        "FROM base AS fetch",
        "FROM fetch AS weights-0",
        "FROM fetch AS weights-1",
        "FROM base AS dependencies-0",
        "FROM base AS runtime",
        "FROM runtime AS image",
    ]


def test_every_command_is_in_json_form_and_weights_are_linked(images: Path) -> None:
    steps = _instructions(_render(planned(directory=images / "embeddings"), images).files["Dockerfile"])
    for step in steps:
        if step.startswith("RUN"):
            assert re.fullmatch(r'RUN (--mount=\S+ )+\["[^$]*"\]', step), step
        if step.startswith(("CMD", "ENTRYPOINT")):
            assert re.fullmatch(r'\w+ \[".*"\]', step), step
        if step.startswith("COPY"):
            assert step.startswith("COPY --link "), step
    assert sum(step.startswith("COPY --link --from=weights-") for step in steps) == 2


def test_no_instruction_holds_a_secret_or_a_build_argument(images: Path) -> None:
    text = _render(planned(directory=images / "embeddings"), images).files["Dockerfile"].decode()
    assert not re.search(r"^\s*ARG\b", text, re.M)
    instructions = "\n".join(_instructions(text.encode()))
    assert set(re.findall(r"id=(\w+)", instructions)) == {
        "ca_bundle", "hf_token", "index_url", "pip_config", "sources",
    }  # fmt: skip


def test_weight_stages_differ_by_their_manifest_alone(images: Path) -> None:
    """A stage that named its index or the commit would be fetched again whenever those change."""
    text = _render(planned(directory=images / "embeddings"), images).files["Dockerfile"].decode()
    stages = re.findall(r"^FROM fetch AS weights-\d+\n(.*?)(?=^\s*(?:FROM|#))", text, re.M | re.S)
    assert len(stages) == 2
    assert len({re.sub(r"weights/\w{64}/", "weights/DIGEST/", stage) for stage in stages}) == 1


def test_values_are_words_whatever_they_hold(images: Path) -> None:
    hostile = '$(id) ${HOME} "quoted" \\ `tick` # {{ 7*7 }}'
    plan = planned(directory=images / "embeddings", labels={"org.example.note": hostile})
    steps = _instructions(_render(plan, images).files["Dockerfile"])
    assert r'LABEL "org.example.note"="\$(id) \${HOME} \"quoted\" \\ `tick` # {{ 7*7 }}"' in steps
    assert exec_form(["a b", 'c"d']) == '["a b", "c\\"d"]'


@pytest.mark.promise("dockerfile")
@pytest.mark.parametrize("end_of_line", ["\n", "\r", "\x85", "\u2028", "\x00", "\x0b"])
def test_a_value_never_ends_its_line(end_of_line: str) -> None:
    for filter_ in (quoted, lambda value: exec_form([value])):
        with pytest.raises(RenderError, match="control character"):
            filter_(f"a{end_of_line}RUN evil")


def test_a_template_that_uses_an_unknown_name_is_an_error_with_its_place(
    images: Path, tmp_path: Path
) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/Dockerfile.j2").write_text("FROM {{ plan.base }}\nRUN {{ plan.nonsense }}\n")
    with pytest.raises(RenderError, match="nonsense"):
        _render(planned(directory=images / "embeddings"), images, tmp_path / "templates")
    (tmp_path / "templates/Dockerfile.j2").write_text("FROM x\n{% if %}\n")
    with pytest.raises(RenderError, match=r"Dockerfile\.j2:2"):
        _render(planned(directory=images / "embeddings"), images, tmp_path / "templates")


def test_a_missing_program_is_an_error(images: Path) -> None:
    (images / "embeddings/server.py").unlink()
    with pytest.raises(RenderError, match=r"server\.py: cannot read"):
        _render(planned(directory=images / "embeddings"), images)


LAYERED = {"layers": (("torch", "nvidia-*"), ("absent",), ("numpy",))}
PINS = "torch==1 \\\n    --hash=sha256:aa\nnvidia-x==2 --hash=sha256:bb\n"
PINS += "numpy==3 --hash=sha256:cc\nweb==4 --hash=sha256:dd\n"


def _layered(images: Path) -> BuildPlan:
    (images / "embeddings/requirements.cuda.txt").write_text(PINS)
    plan = planned(directory=images / "embeddings")
    return replace(plan, runtime=plan.runtime.model_copy(update=LAYERED))


def test_each_layer_of_packages_is_a_stage_and_the_last_one_sees_the_others(images: Path) -> None:
    context = _render(_layered(images), images)
    steps = _instructions(context.files["Dockerfile"])
    installs = [step for step in steps if '"/opt/venv", "/builder/' in step]
    assert [step.partition('"--output", "/layer"')[2] for step in installs] == [
        ', "--part"]',
        ', "--part"]',
        ', "--beside", "/layers/0", "/layers/1"]',
    ]
    mounts = [
        re.findall(r"type=bind,from=(\S+?),source=/layer/opt/venv,target=(\S+)", step) for step in installs
    ]
    assert mounts == [[], [], [("dependencies-0", "/layers/0"), ("dependencies-1", "/layers/1")]]
    copies = [step for step in steps if "--from=dependencies" in step]
    assert copies == [f"COPY --link --from=dependencies-{number} /layer/ /" for number in range(3)]
    assert [context.files[f"requirements/{number}.txt"].decode() for number in range(3)] == [
        "torch==1 \\\n    --hash=sha256:aa\nnvidia-x==2 --hash=sha256:bb\n",
        "numpy==3 --hash=sha256:cc\n",
        "web==4 --hash=sha256:dd\n",
    ]
    assert "requirements/3.txt" not in context.files


def test_a_light_package_changes_nothing_that_a_heavy_stage_is_made_of(images: Path) -> None:
    plan = _layered(images)
    before = _render(plan, images)
    (images / "embeddings/requirements.cuda.txt").write_text(PINS.replace("web==4", "web==5"))
    after = _render(plan, images)
    changed = {path for path in before.files if before.files[path] != after.files[path]}
    assert changed == {"requirements/2.txt", "Dockerfile"}, "the Dockerfile has the label of all of it"
    stages = [
        re.sub(r'"io.modelbake.plan"="\S+"', "", each.files["Dockerfile"].decode())
        for each in (before, after)
    ]
    assert stages[0] == stages[1]


def test_one_layer_is_installed_with_its_dependencies_looked_for(images: Path) -> None:
    plan = planned(directory=images / "embeddings")
    (images / "embeddings/requirements.cuda.txt").write_text(PINS)
    alone = replace(plan, runtime=plan.runtime.model_copy(update={"layers": (("absent",),)}))
    for each in (plan, alone):
        context = _render(each, images)
        assert context.files["requirements/0.txt"].decode() == PINS
        assert not re.search(r"--part|--beside", context.files["Dockerfile"].decode())


def test_a_changed_rule_of_slimming_fetches_no_weights_again(images: Path) -> None:
    steps = _instructions(_render(planned(directory=images / "embeddings"), images).files["Dockerfile"])
    fetch = steps[steps.index("FROM base AS fetch") : steps.index("FROM base AS dependencies-0")]
    assert any("builder/fetch.py" in step for step in fetch)
    assert not [step for step in fetch if "slim" in step or "stub" in step]
    copied = " ".join(step for step in steps if step.startswith("COPY --link builder/"))
    assert all(program in copied for program in PROGRAMS if program.startswith("builder/"))


def test_a_runtime_says_what_is_slimmed(images: Path) -> None:
    plan = planned(directory=images / "embeddings")
    slim = SlimEntry(remove={"triton/**": "why"}, stub={"a.so": "b"}, keep=("torch/include/**",))
    slimmer = replace(plan, runtime=plan.runtime.model_copy(update={"slim": slim}))
    assert json.loads(_render(slimmer, images).files["slim.json"]) == {
        "remove": {"triton/**": "why"},
        "stub": {"a.so": "b"},
        "keep": ["torch/include/**"],
    }
    assert json.loads(_render(plan, images).files["slim.json"]) == {"remove": {}, "stub": {}, "keep": []}


def test_a_runtime_without_files_of_its_own_copies_none(images: Path) -> None:
    plan = planned(directory=images / "embeddings")
    bare = replace(plan, runtime=plan.runtime.model_copy(update={"app": ()}))
    context = _render(bare, images)
    assert b"app/ /app/" not in context.files["Dockerfile"]
    assert b"app/ /app/" in _render(plan, images).files["Dockerfile"]


def test_the_label_names_what_was_built_and_not_from_where(images: Path) -> None:
    plan = planned(directory=images / "embeddings")
    context = _render(plan, images)
    assert f'LABEL "io.modelbake.plan"="{context.digest}"'.encode() in context.files["Dockerfile"]
    mirrored = replace(plan, locked=replace(plan.locked, hub="https://mirror.example.com"))
    assert _render(mirrored, images).digest == context.digest
    (images / "embeddings/server.py").write_text("# another server\n")
    assert _render(plan, images).digest != context.digest


def _conversion(images: Path) -> tuple[BuildPlan, Context]:
    plan = converting(planned(directory=images / "embeddings"))
    assert plan.conversion is not None
    return plan, render_conversion(plan.conversion, templates=ROOT / "templates", programs=images)


def test_a_conversion_has_stages_of_its_own_and_the_image_none_of_the_pickles(images: Path) -> None:
    plan, _ = _conversion(images)
    context = _render(plan, images)
    steps = _instructions(context.files["Dockerfile"])
    assert [step for step in steps if step.startswith("FROM")] == [
        f"FROM {plan.base} AS base",
        "FROM base AS fetch",
        "FROM base AS converter",
        "FROM fetch AS pickles-0",
        "FROM converter AS converted",
        "FROM base AS weights-0",
        "FROM fetch AS weights-1",
        "FROM base AS dependencies-0",
        "FROM base AS runtime",
        "FROM runtime AS image",
    ]
    image = steps[steps.index("FROM runtime AS image") :]
    assert [step for step in image if "--from" in step] == [
        f"COPY --link --from=weights-{number} /fetched/ /" for number in (0, 1)
    ]
    runs = [step for step in steps if '"/builder/convert.py"' in step or '"/builder/admit.py"' in step]
    assert len(runs) == 2
    for step in runs:
        assert step.startswith("RUN --network=none --mount=type=bind,from=")
        assert "secret" not in step
    assert json.loads(context.files["convert.json"])["weights"] == {"pytorch_model.bin": "model.safetensors"}
    manifest = json.loads(context.files["manifest.json"])["files"]
    assert [file["path"] for file in manifest] == ["config.json", "model.safetensors"]


def test_lock_and_build_convert_in_the_same_stages(images: Path) -> None:
    """So a build finds in the engine's cache what `lock` has made."""
    plan, context = _conversion(images)
    asked = _instructions(context.files["Dockerfile"])
    built = _instructions(_render(plan, images).files["Dockerfile"])
    end = asked.index("FROM scratch AS conversion")
    assert asked[:end] == built[:end]
    assert asked[end + 1 :] == ["COPY --link --from=converted /converted/converted.json /converted.json"]
    rendered = _render(plan, images).files
    for path in context.files.keys() - {"Dockerfile"}:
        assert rendered[path] == context.files[path], path


def test_the_context_of_a_conversion_is_what_its_dockerfile_copies(images: Path) -> None:
    _, context = _conversion(images)
    text = context.files["Dockerfile"].decode()
    assert [path for path in context.files if path not in text] == ["Dockerfile", "sources.json"]
    of_images = [path for path in context.files if path.startswith(("start/", "app/"))]
    assert of_images == ["start/weight_sample.py"], "what serves must not make a conversion run again"


def test_a_model_that_is_not_converted_has_nothing_of_a_converter(images: Path) -> None:
    context = _render(planned(directory=images / "embeddings"), images)
    assert not set(CONVERTERS) & context.files.keys()
    assert b"convert" not in context.files["Dockerfile"]

"""The instructions that a plan's Dockerfile has to have, and whether one has these and no others. Pure.

The list is made of the plan alone, without the template: a value that turned into an instruction, or into
another word of one, is not on it. Comments, blank lines, line breaks and the order of flags are the
template's own; everything else is compared. So an intended change of templates/Dockerfile.j2 is made here as
well, in `_steps`: what an image is made of then stands in two places that have to agree.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modelbake.dockerfile import Dockerfile, DockerfileError, Instruction, parse
from modelbake.dockerwords import Variable, Word
from modelbake.errors import UnplannedInstruction
from modelbake.plan import PLAN_LABEL, BuildPlan, ConversionPlan, WeightGroup
from modelbake.programs import ADMITS, BASICS, CONVERTS, FETCHERS, INSTALLERS, SLIMMERS
from modelbake.weightpath import shown

_SHOWN = 5
_SAMPLES = ("--samples", "/fetched/modelbake/samples")
_PIP_SECRETS = ("ca_bundle", "index_url", "pip_config")
_REMEDY = (
    "a value of models.yaml, runtime.yaml or models.lock must never become an instruction: please report it."
    " If templates/Dockerfile.j2 was changed on purpose, change `_steps` in modelbake/instructions.py alike"
)


@dataclass(frozen=True)
class Step:
    """One instruction of a stage, in a form in which equal ones are equal.

    `flags` are sorted, and the parts of a mount in them. `is_json` and `words` are as in `Instruction`.
    """

    stage: str
    keyword: str
    flags: tuple[str, ...]
    words: tuple[Word, ...]
    is_json: bool = False
    heredocs: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it on one line, for people: no quotes or escapes that the file may have."""
        words = [
            "".join(f"${{{part.name}}}" if isinstance(part, Variable) else part for part in word) or '""'
            for word in self.words
        ]
        text = " ".join([self.keyword, *self.flags, *words, *(["<<"] * len(self.heredocs))])
        return f"{shown(text, 300)} (stage {shown(self.stage)})"


def require_planned(text: str, plan: BuildPlan, *, layers: int, digest: str | None, subject: str) -> None:
    """Compare a Dockerfile with what its plan says it has to be.

    Args:
        text: the Dockerfile.
        plan: what it was rendered from.
        layers: how many layers of packages there are.
        digest: of the context, which a label names; None where only the runtime is built.
        subject: what errors are about.

    Raises:
        UnplannedInstruction: it has an instruction, or a word of one, more or less than the plan, or a parser
            directive; or no two readers would surely read it alike.
    """
    _require(text, tuple(_steps(plan, layers, digest)), subject)


def require_planned_conversion(text: str, conversion: ConversionPlan, *, subject: str) -> None:
    """Compare the Dockerfile of a conversion alone with what its plan says it has to be.

    Raises as `require_planned` does.
    """
    steps = [
        _from(conversion.base, "base"),
        *_fetch(),
        *_conversion(conversion),
        _from("scratch", "conversion"),
        _copy("conversion", "/converted/converted.json", "/converted.json", source="converted"),
    ]
    _require(text, steps, subject)


def _require(text: str, planned: Sequence[Step], subject: str) -> None:
    try:
        dockerfile = parse(text)
    except DockerfileError as error:
        raise UnplannedInstruction(
            f"makes a Dockerfile that is not clearly one: {error}", subject=subject, hint=_REMEDY
        ) from error
    if found := differences(dockerfile, planned):
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        raise UnplannedInstruction(
            "\n".join(["makes a Dockerfile that is not the plan's:", *found[:_SHOWN], *more]),
            subject=subject,
            hint=_REMEDY,
        )


def differences(dockerfile: Dockerfile, planned: Sequence[Step]) -> list[str]:
    """Return what a Dockerfile has and the plan has not, and the other way round, one text each."""
    texts = [
        f"line 1: a parser directive that nobody planned: # {name}={shown(value)}"
        for name, value in dockerfile.directives.items()
    ]
    steps = _staged(dockerfile.instructions)
    if steps == list(planned):
        return texts
    lines = [instruction.line for instruction in dockerfile.instructions]
    matcher = difflib.SequenceMatcher(None, steps, planned, autojunk=False)
    for kind, begin, end, planned_begin, planned_end in matcher.get_opcodes():
        if kind != "equal":
            texts += [f"line {lines[at]}: not planned: {steps[at]}" for at in range(begin, end)]
            texts += [f"missing: {step}" for step in planned[planned_begin:planned_end]]
    return texts


def _staged(instructions: Sequence[Instruction]) -> list[Step]:
    stage, steps = "", []
    for each in instructions:
        if each.keyword == "FROM":
            last = each.words[-1] if each.words else ()
            stage = last[0] if len(last) == 1 and isinstance(last[0], str) else ""
        flags = tuple(sorted(_canonical(flag) for flag in each.flags))
        steps.append(Step(stage, each.keyword, flags, each.words, each.is_json, each.heredocs))
    return steps


def _canonical(flag: str) -> str:
    name, _, value = flag.partition("=")
    return f"{name}={','.join(sorted(value.split(',')))}" if name == "--mount" else flag


def _steps(plan: BuildPlan, layers: int, digest: str | None) -> Iterator[Step]:
    """Yield what the Dockerfile of a plan has to be, stage by stage; `digest` is None for a runtime alone."""
    model = digest is not None
    yield _from(plan.base, "base")
    if model:
        yield from _fetch()
        if plan.conversion is not None:
            yield from _conversion(plan.conversion)
        for number, group in enumerate(plan.groups):
            yield from _weights(f"weights-{number}", group)
    for number in range(layers):
        yield from _dependencies(number, layers)
    yield from _runtime(plan, layers)
    if digest is not None:
        yield from _image(plan, digest)


def _fetch() -> Iterator[Step]:
    """Yield the stage that has what fetches."""
    stage = "fetch"
    yield _from("base", stage)
    yield _copy(stage, *INSTALLERS, "builder/requirements.txt", "/builder/")
    yield _install(stage, "builder/requirements.txt")
    yield _copy(stage, *FETCHERS, "/builder/")


def _conversion(conversion: ConversionPlan) -> Iterator[Step]:
    """Yield the stages that fetch pickles, and the one that reads them, where no network is."""
    requirements = "builder/requirements.converter.txt"
    yield _from("base", "converter")
    yield _copy("converter", *INSTALLERS, requirements, "/builder/")
    yield _install("converter", requirements)
    programs = [program for program in CONVERTS if program != requirements]
    yield _copy("converter", *BASICS, *programs, "/builder/")
    for number, group in enumerate(conversion.groups):
        yield _from("fetch", f"pickles-{number}")
        yield from _fetched(f"pickles-{number}", group)
    stage = "converted"
    yield _from("converter", stage)
    yield _copy(stage, "convert.json", "/builder/convert.json")
    yield _run(
        stage,
        [
            "/builder/venv/bin/python",
            "/builder/convert.py",
            "/builder/convert.json",
            "/pickles",
            "/converted",
        ],
        *(
            f"type=bind,from=pickles-{number},source=/fetched/models,target=/pickles/{number}"
            for number in range(len(conversion.groups))
        ),
        network="none",
    )


def _weights(stage: str, group: WeightGroup) -> Iterator[Step]:
    """Yield the stage of one group of files: fetched, or taken of what was converted."""
    if not group.converted:
        yield _from("fetch", stage)
        yield from _fetched(stage, group)
        return
    yield _from("base", stage)
    yield _copy(stage, *BASICS, ADMITS, _manifest(group), "/builder/")
    yield _run(
        stage,
        [
            *("python3", "/builder/admit.py", "/builder/manifest.json", "/converted", "/fetched/models"),
            *_SAMPLES,
        ],
        "type=bind,from=converted,source=/converted/models,target=/converted",
        network="none",
    )


def _fetched(stage: str, group: WeightGroup) -> Iterator[Step]:
    command = ["/builder/venv/bin/python", "/builder/fetch.py", "/builder/manifest.json", "/fetched/models"]
    yield _copy(stage, _manifest(group), "/builder/manifest.json")
    if group.carried:
        yield _run(
            stage,
            [*command, "--carried", "/carried", *_SAMPLES],
            f"type=bind,source=weights/{group.digest}/files,target=/carried",
            network="none",
        )
        return
    # One id and one place for it: a build by hand gives the first source as `sources`.
    place = ",target=/run/secrets/sources" if group.source else ""
    yield _run(
        stage,
        [*command, *_SAMPLES],
        _secret("ca_bundle"),
        _secret("hf_token"),
        f"{_secret(group.secret)}{place},required=true",
    )


def _manifest(group: WeightGroup) -> str:
    return f"weights/{group.digest}/manifest.json"


def _install(stage: str, requirements: str) -> Step:
    command = ["python3", "/builder/install.py", "/builder/venv", f"/{requirements}"]
    return _run(stage, command, *map(_secret, _PIP_SECRETS))


def _dependencies(number: int, layers: int) -> Iterator[Step]:
    """Yield the stage of one layer of packages; the last one sees those below it."""
    stage = f"dependencies-{number}"
    command = ["python3", "/builder/install.py", "/opt/venv", f"/builder/{number}.txt"]
    command += ["--slim", "/builder/slim.json", "--output", "/layer"]
    below = range(number) if number == layers - 1 else range(0)
    if number < layers - 1:
        command.append("--part")
    elif below:
        command += ["--beside", *(f"/layers/{each}" for each in below)]
    binds = [
        f"from=dependencies-{each},source=/layer/opt/venv,target=/layers/{each},type=bind" for each in below
    ]
    yield _from("base", stage)
    yield _copy(stage, *INSTALLERS, *SLIMMERS, "slim.json", f"requirements/{number}.txt", "/builder/")
    yield _run(stage, command, *map(_secret, _PIP_SECRETS), *binds)


def _runtime(plan: BuildPlan, layers: int) -> Iterator[Step]:
    stage = "runtime"
    yield _from("base", stage)
    for number in range(layers):
        yield _copy(stage, "/layer/", "/", source=f"dependencies-{number}")
    yield _copy(stage, "start/", "/modelbake/")
    if plan.runtime.app:
        yield _copy(stage, "app/", "/app/")
    path: Word = ("/opt/venv/bin:", Variable("PATH"))
    yield Step(stage, "ENV", (), (("PATH",), path, ("PYTHONPATH",), ("/modelbake",)))
    for name, value in plan.runtime_env.items():
        yield _plain(stage, "ENV", name, value)
    yield _plain(stage, "WORKDIR", "/app")
    yield _plain(stage, "USER", "65532:65532")
    if plan.runtime.port is not None:
        yield _plain(stage, "EXPOSE", str(plan.runtime.port))
    yield _json(stage, "ENTRYPOINT", ["/opt/venv/bin/python", "/modelbake/start.py"])
    yield _json(stage, "CMD", plan.runtime.command)


def _image(plan: BuildPlan, digest: str) -> Iterator[Step]:
    stage = "image"
    yield _from("runtime", stage)
    for number in range(len(plan.groups)):
        yield _copy(stage, "/fetched/", "/", source=f"weights-{number}")
    yield _copy(stage, "manifest.json", "/modelbake/manifest.json")
    for name, value in plan.model_env.items():
        yield _plain(stage, "ENV", name, value)
    for name, value in [(PLAN_LABEL, digest), *plan.labels.items()]:
        yield _plain(stage, "LABEL", name, value)


def _from(base: str, stage: str) -> Step:
    return _plain(stage, "FROM", base, "AS", stage)


def _copy(stage: str, *paths: str, source: str | None = None) -> Step:
    flags = ("--link",) if source is None else (f"--from={source}", "--link")
    return Step(stage, "COPY", flags, _literally(paths))


def _run(stage: str, command: Sequence[str], *mounts: str, network: str | None = None) -> Step:
    flags = [_canonical(f"--mount={each}") for each in mounts]
    if network is not None:
        flags.append(f"--network={network}")
    return Step(
        stage,
        "RUN",
        tuple(sorted(flags)),
        _literally(command),
        True,
    )


def _json(stage: str, keyword: str, command: Sequence[str]) -> Step:
    return Step(stage, keyword, (), _literally(command), True)


def _plain(stage: str, keyword: str, *words: str) -> Step:
    return Step(stage, keyword, (), _literally(words))


def _literally(words: Sequence[str]) -> tuple[Word, ...]:
    return tuple((word,) if word else () for word in words)


def _secret(name: str) -> str:
    return f"type=secret,id={name}"

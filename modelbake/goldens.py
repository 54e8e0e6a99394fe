"""Golden answers: what a model said when somebody looked, kept in the repository as goldens/MODEL.json.

A golden belongs to one request and one expression of models.yaml: asked otherwise it says nothing, and is
refused. It also notes whose answer it is, by the weights' lock and the device. Other weights may well answer
the same, so theirs are compared all the same; the run says that they are others'.

The file is sorted JSON, and the same answers give the same bytes. Only `smoke --update-goldens` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, JsonValue, ValidationError

from modelbake import grammar
from modelbake.diskspace import saying_full
from modelbake.errors import GoldenError
from modelbake.records import Digest, Record, json_digest, parse
from modelbake.smallfile import read_small
from modelbake.writing import replace_file

if TYPE_CHECKING:
    from modelbake.config import CheckSpec, ModelSpec

_LARGEST = 64 << 20  # bytes of a file


class _Entry(Record):
    request: Digest
    value: JsonValue


class _File(Record):
    schema_: Literal[1] = Field(default=1, alias="schema")
    model: str
    lock: Digest
    device: str
    goldens: dict[str, _Entry]


@dataclass(frozen=True)
class Golden:
    """A value, and the digest of the request and expression that it came of."""

    value: Any
    request: str


@dataclass(frozen=True)
class Goldens:
    """A model's goldens by name; `lock` and `device` say whose answers they are, "" where there are none."""

    entries: Mapping[str, Golden] = field(default_factory=dict)
    lock: str = ""
    device: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """The golden values by name."""
        return {name: golden.value for name, golden in self.entries.items()}


def goldens_path(root: Path, model: str) -> Path:
    """Return where the goldens of a model are: ROOT/MODEL.json."""
    return root / f"{model}.json"


def request_digest(check: CheckSpec, expression: str) -> str:
    """Return `sha256:...` of what a golden is the answer to."""
    asked = {"method": check.method, "path": check.path, "body": check.body, "expression": expression}
    return json_digest(asked)


def wanted_goldens(model: ModelSpec) -> dict[str, tuple[CheckSpec, str]]:
    """Return the goldens that a model's checks name, each with its check and its expression."""
    return {
        name: (check, expression)
        for check in model.smoke.checks
        for name, expression in check.goldens.items()
    }


def read_goldens(root: Path, model: str) -> Goldens:
    """Read a model's goldens; no file is no goldens. Raises GoldenError where it is not what a run writes."""
    path = goldens_path(root, model)
    hint = f"restore it with git, or delete it and run {remedy(model)}"
    try:
        raw = read_small(path, _LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        return Goldens()
    except OSError as error:
        raise GoldenError(f"cannot be read ({error.strerror})", subject=str(path), hint=hint) from error
    try:
        found = _File.model_validate(parse(raw))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        problem = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise GoldenError(f"is not a file of goldens: {problem}", subject=str(path), hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise GoldenError(f"is not a file of goldens: {error}", subject=str(path), hint=hint) from None
    if found.model != model:
        raise GoldenError(f"has the goldens of {found.model}", subject=str(path), hint=hint)
    if wrong := sorted(name for name in found.goldens if not grammar.NAME.matches(name)):
        problem = f"goldens.{wrong[0][:60]!r}: expected {grammar.NAME.expected}"
        raise GoldenError(problem, subject=str(path), hint=hint)
    entries = {name: Golden(entry.value, entry.request) for name, entry in sorted(found.goldens.items())}
    return Goldens(entries, found.lock, found.device)


def require_goldens(model: ModelSpec, goldens: Goldens, root: Path) -> None:
    """Raise GoldenError, with all of them, for goldens that are missing or answer another request."""
    problems = []
    for name, (check, expression) in wanted_goldens(model).items():
        golden = goldens.entries.get(name)
        if golden is None:
            problems.append(f"golden {name} is missing (check {check.name}: {expression})")
        elif golden.request != request_digest(check, expression):
            problems.append(
                f"golden {name} answers another request or expression than check {check.name} has now"
            )
    if problems:
        raise GoldenError(
            problems[0] if len(problems) == 1 else "".join(f"\n  {problem}" for problem in problems),
            subject=str(goldens_path(root, model.name)),
            hint=f"run {remedy(model.name)}: it takes the running image's answers; look at them, commit them",
        )


def write_goldens(root: Path, model: str, goldens: Goldens) -> Path:
    """Write a model's goldens, atomically; a file that has these bytes is left alone. None need no file.

    Raises GoldenError, and DiskFull where there is no room for it.
    """
    path = goldens_path(root, model)
    content = encode_goldens(model, goldens)
    if not goldens.entries and not path.is_file():
        return path
    try:
        with saying_full(path, len(content)):
            path.parent.mkdir(parents=True, exist_ok=True)
        target = path.resolve()  # a link stays a link
        if not (target.is_file() and target.read_bytes() == content):
            replace_file(target, content)
    except OSError as error:
        raise GoldenError(f"cannot be written ({error.strerror})", subject=str(path)) from error
    return path


def encode_goldens(model: str, goldens: Goldens) -> bytes:
    """Return the file's bytes: sorted, a line for each golden, so that a diff shows which have changed."""
    # json.dumps escapes, because half characters (lone surrogates) have no UTF-8 form.
    lines = [
        f'    {json.dumps(name)}: {{"request": {json.dumps(golden.request)},'
        f' "value": {json.dumps(golden.value, sort_keys=True, allow_nan=False)}}}'
        for name, golden in sorted(goldens.entries.items())
    ]
    text = [
        "{",
        f'  "device": {json.dumps(goldens.device)},',
        '  "goldens": {',
        ",\n".join(lines),
        "  },",
        f'  "lock": {json.dumps(goldens.lock)},',
        f'  "model": {json.dumps(model)},',
        '  "schema": 1',
        "}\n",
    ]
    return "\n".join(text).encode()


def why_not_kept(value: Any) -> str:
    """Return why a value cannot be a golden, "" where it can: a file of it has to be read again as it was."""
    try:
        again = _Entry.model_validate({"request": f"sha256:{'0' * 64}", "value": parse(json.dumps(value))})
    except (ValueError, RecursionError):  # pydantic's error is a ValueError
        return "no file of goldens can keep it: it has a number beyond all others, or is nested too deeply"
    return "" if again.value == value else "no file of goldens can keep it as it is"


def remedy(model: str) -> str:
    """Return the commands that make goldens, for hints."""
    return f"`build.py smoke {model} --update-goldens` (or `publish` with it)"

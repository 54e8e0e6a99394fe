"""From a YamlFile to a pydantic model, with every problem as one line that says where and what to write.

The fields of a model are annotated with `Text`, `Number` or ordinary types. Nothing is coerced: a number
is never taken for text, nor `"5"` for a number.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from modelbake.grammar import Grammar, holds_a_secret, names_a_secret
from modelbake.scalars import quoted
from modelbake.yamlfile import KeyPath, Problem, YamlFile, dotted, raise_problems

_WORDS_MEANT = {"gpu": "cuda", "GPU": "cuda", "nvidia": "cuda", "auto": "any"}  # no closeness finds these
_LONGEST_GUESSED = 100  # characters; difflib is quadratic


class Entry(BaseModel):
    """A mapping of a configuration file: immutable, without coercion, every key known."""

    explained: ClassVar[Mapping[str, str]] = {}  # unknown keys that people try, and what to tell them

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


Model = TypeVar("Model", bound=Entry)


@dataclass(frozen=True)
class Text:
    """Annotation of a text: of a grammar, and not refused for what `refuse` returns (a message or "")."""

    grammar: Grammar
    refuse: Callable[[str], str] | None = None

    def _check(self, value: object) -> str:
        if not isinstance(value, str):
            raise PydanticCustomError("text", "expected {expected}", self._context(""))
        if not self.grammar.matches(value):
            raise PydanticCustomError(
                "text", "expected {expected}", self._context(self.grammar.advise(value))
            )
        if self.refuse and (message := self.refuse(value)):
            raise refusal(message)
        return value

    def _context(self, advice: str) -> dict[str, Any]:
        return {"expected": self.grammar.expected, "advice": advice, "grammar": self.grammar}

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {
            "type": "string",
            "pattern": f"^(?:{self.grammar.pattern})$",
            "maxLength": self.grammar.longest,
            # What the YAML language server shows in place of "does not match the pattern ...".
            "patternErrorMessage": f"expected {self.grammar.expected}",
        }


@dataclass(frozen=True)
class Number:
    """Annotation of a number: of two bounds, both included unless `above` the least; `whole`: an integer."""

    expected: str
    least: float
    most: float
    whole: bool = False
    above: bool = False

    def _check(self, value: object) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            raise self._error()
        if not self.least <= value <= self.most or (self.above and value == self.least):
            raise self._error()
        return value if self.whole else float(value)

    def _error(self) -> PydanticCustomError:
        return PydanticCustomError("number", "expected {expected}", {"expected": self.expected})

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        kind = "integer" if self.whole else "number"
        least = "exclusiveMinimum" if self.above else "minimum"
        return {"type": kind, least: self.least, "maximum": self.most}


def refusal(message: str) -> PydanticCustomError:
    """Return an error for a validator to raise: the value is well-formed but not accepted, and not shown."""
    return PydanticCustomError("refused", "{message}", {"message": message})


@lru_cache(maxsize=1024)
def _closest(word: str, known: tuple[str, ...]) -> str:
    found = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return found[0] if found else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest known word, or "" where none is close."""
    closest = _closest(word, tuple(known)) if len(word) <= _LONGEST_GUESSED else ""
    return f"; did you mean {closest!r}?" if closest else ""


def validate(file: YamlFile, model: type[Model], others: Iterable[Problem] = ()) -> Model:
    """Return the file's data as a model; ConfigError with all problems: the YAML's, the model's, `others`."""
    found: Model | None = None
    problems = [*file.problems, *others]
    try:
        found = model.model_validate(file.data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        better = {dotted(detail["loc"]) for detail in details if _is_better(file, detail)}
        problems = [problem for problem in problems if problem.key not in better]
        problems += _problems(file, model, details)
    raise_problems(file.path, problems)
    assert found is not None
    return found


def _problems(file: YamlFile, model: type[Entry], details: list[ErrorDetails]) -> list[Problem]:
    # A wrong key is reported once, not again for what it holds; nor is what the YAML reader refused.
    wrong_keys = {_key_path(detail) for detail in details if _is_of_key(detail)}
    problems = []
    for detail in details:
        path = _key_path(detail)
        parents = [path[:length] for length in range(len(path) + 1)]
        if any(parent in file.refused for parent in parents) and not _is_better(file, detail):
            continue
        if detail["type"] == "missing" and (*path[:-1], "<<") in file.refused:
            continue
        # pydantic counts only the good items, and each bad one is reported by itself
        if detail["type"] == "too_short" and detail["input"]:
            continue
        if not _is_of_key(detail) and any(parent in wrong_keys for parent in parents):
            continue
        at_key = _is_of_key(detail) or detail["type"] == "extra_forbidden"
        problems.append(file.problem(path, _message(file, model, path, detail), at_key=at_key))
    return problems


def _is_better(file: YamlFile, detail: ErrorDetails) -> bool:
    """Tell whether a model has better advice about a plain scalar that the YAML reader refused.

    The reader says to quote it, and knows nothing of a grammar that it does not match with quotes either.
    """
    path = detail["loc"]
    if detail["type"] != "text" or path not in file.refused or file.written(path) is None:
        return False
    return bool(detail["ctx"]["advice"])


def _is_of_key(detail: ErrorDetails) -> bool:
    return detail["loc"][-1:] == ("[key]",)


def _key_path(detail: ErrorDetails) -> KeyPath:
    return detail["loc"][:-1] if _is_of_key(detail) else detail["loc"]


def _message(file: YamlFile, model: type[Entry], path: KeyPath, detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    got = f"got {_described(file, path, detail, context)}"
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(model, path)
        case "missing":
            return "required key missing"
        case "refused":
            return str(context["message"])
        case "text":
            advice = context["advice"] or _in_quotes(file, path, detail, context["grammar"])
            return f"expected {context['expected']}, {got}" + (f"; {advice}" if advice else "")
        case "number":
            return f"expected {context['expected']}, {got}"
        case "literal_error":
            literal = _annotation(model, path, of_key=_is_of_key(detail))
            known = [str(word) for word in typing.get_args(literal)]
            word = _WORDS_MEANT.get(str(detail["input"]), str(detail["input"]))
            return f"expected one of {', '.join(known)}; {got}{did_you_mean(word, known)}"
        case "bool_type":
            return f"expected true or false, {got}"
        case "tuple_type":
            example = f"; write [{quoted(detail['input'])}]" if isinstance(detail["input"], str) else ""
            return f"expected a list, {got}{example}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"expected a mapping (key: value), {got}"
        case "too_short":
            return "expected at least one item"
        case _:
            return detail["msg"]


def _described(file: YamlFile, path: KeyPath, detail: ErrorDetails, context: dict[str, Any]) -> str:
    value = detail["input"]
    if isinstance(value, str):
        grammar = context.get("grammar")
        hidden = holds_a_secret(value) or (grammar is not None and grammar.secretive)
        return "text that is not repeated here" if hidden else quoted(value)
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {file.written(path) or value}"
    if value is None:
        return "nothing"
    return "a mapping" if isinstance(value, dict) else "a list"


def _in_quotes(file: YamlFile, path: KeyPath, detail: ErrorDetails, grammar: Grammar) -> str:
    written = file.written(path)
    if not written or isinstance(detail["input"], str):
        return ""
    return f"write {quoted(written)} in quotes" if grammar.matches(written) else grammar.advise(written)


def _unknown_key(model: type[Entry], path: KeyPath) -> str:
    key = str(path[-1])
    holder = _annotation(model, path[:-1])
    known: tuple[str, ...] = ()
    if isinstance(holder, type) and issubclass(holder, Entry):
        if key in holder.explained:
            return f"unknown key; {holder.explained[key]}"
        known = tuple(holder.model_fields)
    if guess := did_you_mean(key, known):
        return f"unknown key{guess}"
    if names_a_secret(key):
        return "unknown key; secrets are never written in this file: tokens come from the environment"
    return "unknown key" + (f"; known here: {', '.join(known)}" if known else "")


def _annotation(model: type[Entry], path: KeyPath, *, of_key: bool = False) -> Any:
    """Return the type that a model declares at a key path, or of its last key, as far as it declares one."""
    here: Any = model
    for depth, part in enumerate(path, 1):
        if isinstance(here, type) and issubclass(here, BaseModel):
            found = here.model_fields.get(str(part))
            here = found.annotation if found else None
        elif typing.get_origin(here) is dict:
            here = typing.get_args(here)[0 if of_key and depth == len(path) else 1]
        elif typing.get_origin(here) is tuple:
            here = typing.get_args(here)[0]
        else:
            return None
        here = _required(here)
        if typing.get_origin(here) is typing.Annotated:
            here = getattr(here.__metadata__[0], "model", here.__origin__)
    return here


def _required(annotation: Any) -> Any:
    """Return the X of `X | None`, and anything else as it is."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation

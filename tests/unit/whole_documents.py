"""Documents in which every key of a schema stands, made from the schema: a new key is in them by itself."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from modelbake import expected, runtime, schema, smokeentry
from modelbake.release.entries import SigningEntry
from modelbake.validation import Entry, Number, Text

# What cannot be said together with another key of the same entry.
# A hub's repository has no endpoint, and lists its files; `add` below says what it cannot.
_LEFT_OUT = {
    (schema.ModelEntry, "endpoint"),
    (schema.ModelEntry, "files"),
    (smokeentry.CheckEntry, "get"),
    (SigningEntry, "public_key"),
}
# What has to fit to something else of the files.
_GIVEN: dict[tuple[type[Entry], str], Any] = {
    (runtime._Entry, "builds"): {"cuda": "requirements.txt"},
    (schema.ModelsFile, "channels"): {
        "staging": {"require": ["audit"]},
        "production": {"require": ["signature"], "soak": {"channel": "staging", "hours": 24}},
    },
}
_CHOICE = {"include": ["*.json"], "exclude": ["onnx/*"]}
_GIVEN[schema.ModelEntry, "add"] = [
    {"source": "hf://acme/a", "into": "a", "revision": "v1", "hub": "https://hub.example.com", **_CHOICE},
    {"source": "s3://models/b", "into": "b", "endpoint": "https://minio.example.com", **_CHOICE},
    {"source": "https://example.com/c/", "into": "c/d", "files": {"config.json": "ab" * 32}},
    {"source": "file:///srv/e", "into": "e"},
]
_ANY = {"a text": ["in a list", {"in": "a mapping"}]}

Path = tuple[str | int, ...]


def models_file() -> dict[str, Any]:
    """Return a models.yaml with every key, and each kind of expected value.

    Its model `minilm` says everything itself, `other` as much as it can by the defaults.
    """
    document: dict[str, Any] = _entry(schema.ModelsFile)
    said = document["models"]["minilm"]
    document["models"]["other"] = {key: said[key] for key in said.keys() - document["defaults"].keys()}
    return document


def runtime_file() -> dict[str, Any]:
    """Return a runtime.yaml with every key."""
    document: dict[str, Any] = _entry(runtime.ServerEntry)
    return document


def fields(kind: type[Entry]) -> Iterator[tuple[type[Entry], str]]:
    """Yield every field of an entry and of the entries within it."""
    for name, field in kind.model_fields.items():
        yield kind, name
        for inner in _entries(field.annotation):
            yield from fields(inner)


def strings(document: Any, path: Path = ()) -> Iterator[tuple[Path, bool]]:
    """Yield where the texts of a document are; True where it is the key of a mapping."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield (*path, key), True
            yield from strings(value, (*path, key))
    elif isinstance(document, list | tuple):
        for index, value in enumerate(document):
            yield from strings(value, (*path, index))
    elif isinstance(document, str):
        yield path, False


def text_at(document: Any, path: Path, is_key: bool) -> str:
    """Return a text of a document."""
    if is_key:
        return str(path[-1])
    for part in path:
        document = document[part]
    return str(document)


def with_text(document: Any, path: Path, is_key: bool, text: str) -> Any:
    """Return a document with another text at one place; the order of keys is kept."""
    if not path:
        return text
    first, rest = path[0], path[1:]
    if isinstance(document, dict):
        return {
            (text if is_key and not rest and key == first else key): (
                with_text(value, rest, is_key, text) if key == first and (rest or not is_key) else value
            )
            for key, value in document.items()
        }
    return [
        with_text(value, rest, is_key, text) if at == first else value for at, value in enumerate(document)
    ]


def as_yaml(document: Any) -> bytes:
    """Write a document so that a YAML reader gets exactly its texts, whatever they hold."""
    text = json.dumps(document, ensure_ascii=False)
    return re.sub(r"[^\x20-\x7e]", lambda found: f"\\U{ord(found[0]):08X}", text).encode()


def _entry(kind: type[Entry]) -> Any:
    said = {}
    for name, field in kind.model_fields.items():
        if not any(issubclass(kind, owner) and name == left for owner, left in _LEFT_OUT):
            given = [
                value for (owner, key), value in _GIVEN.items() if issubclass(kind, owner) and key == name
            ]
            said[name] = given[0] if given else _value(field)
    return said


def _value(field: FieldInfo) -> Any:
    number = next((each for each in field.metadata if isinstance(each, Number)), None)
    if number is not None:
        default = field.default
        return default if isinstance(default, int | float) else max(number.least, 1)
    if field.examples and not list(_entries(field.annotation)):
        return field.examples[0]
    return _sample(field.annotation, field.metadata)


def _sample(annotation: Any, metadata: typing.Sequence[Any] = ()) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _sample(arguments[0], arguments[1:])
    if origin in (typing.Union, types.UnionType):
        return _sample(next(each for each in arguments if each is not type(None)), metadata)
    for each in metadata:
        if isinstance(each, Text):
            return each.grammar.examples[0]
        if isinstance(each, Number):
            return max(each.least, 1)
        if isinstance(each, expected.Expected):
            return _ANY
    if origin is typing.Literal:
        return arguments[0]
    if origin is tuple:
        return [_sample(arguments[0])]
    if origin is dict:
        if any(isinstance(each, expected.Expected) for each in getattr(arguments[1], "__metadata__", ())):
            kinds = dict.fromkeys(expected._KINDS.values())
            return {f"a{number}": _entry(kind) for number, kind in enumerate(kinds)} | {"b": _ANY}
        return {_sample(arguments[0]): _sample(arguments[1])}
    if isinstance(annotation, type) and issubclass(annotation, Entry):
        return _entry(annotation)
    if annotation is bool:
        return True
    if annotation is Any:
        return _ANY
    raise TypeError(f"no sample of {annotation}: teach tests/unit/whole_documents.py")


def _entries(annotation: Any) -> Iterator[type[Entry]]:
    if isinstance(annotation, type) and issubclass(annotation, Entry):
        yield annotation
    if typing.get_origin(annotation) is typing.Annotated:
        for each in annotation.__metadata__:
            if isinstance(each, expected.Expected):
                yield from dict.fromkeys(expected._KINDS.values())
    for argument in typing.get_args(annotation):
        yield from _entries(argument)

"""Reads and writes models.lock. The reader takes nothing on trust: people merge, edit and paste such files.

What `write_lock` writes, `read_lock` gives back; what it would never write, `read_lock` refuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from modelbake import writing
from modelbake.errors import LockError
from modelbake.grammar import (
    FOLDER,
    HUB,
    NAME,
    PATTERN,
    REVISION,
    STORE_VERSION,
    Grammar,
    holds_a_secret,
)
from modelbake.locked import Conversion, Lock, LockedFile, LockedModel, LockedSource
from modelbake.smallfile import NotRegular, TooLarge, read_small
from modelbake.sourceuri import SOURCE
from modelbake.weightpath import conflicting_paths, path_problem, shown

SCHEMA = 1
MAX_FILE_BYTES = 64 * 1024 * 1024  # of models.lock itself: about 500,000 files
_MAX_SIZE = 2**63 - 1  # of a weight file: what a file system can count

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CONFLICT = re.compile(r"^(?:<{7}|={7}|>{7})(?: |$)", re.MULTILINE)
_REMEDY_ALL = "restore it with git, or run `build.py lock` to write it anew"


class _Problem(Exception):
    """What is wrong, and the keys that lead there."""

    def __init__(self, problem: str, *keys: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.keys = keys

    def under(self, key: str) -> _Problem:
        return _Problem(self.problem, key, *self.keys)

    @property
    def where(self) -> str:
        return "".join(key if key.startswith("[") else f".{key}" for key in self.keys).removeprefix(".")


def read_lock(path: Path, *, replacing: Container[str] = ()) -> Lock:
    """Read and check models.lock; a file that does not exist is an empty lock.

    Args:
        path: the file.
        replacing: names about to be locked anew. A wrong entry of theirs is left out instead of refused, so
            that the remedy which the errors name does work.

    Raises:
        LockError: unreadable, not JSON, or not what `write_lock` writes; names file, key and remedy.
    """
    try:
        content = _read_bytes(path)
    except FileNotFoundError:
        return Lock()
    except OSError as error:
        raise LockError(f"cannot be read ({error.strerror})", subject=str(path)) from error
    return decode_lock(content, subject=str(path), replacing=replacing)


@contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Keep every other process that asks for the same from running the `with` block for this file.

    The folder is what is locked: the file itself is replaced at every write. Raises LockError.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(writing.exclusively(path.resolve().parent))
        except OSError as error:
            raise LockError(f"cannot be written ({error.strerror})", subject=str(path)) from error
        yield


def write_lock(path: Path, lock: Lock) -> bool:
    """Write models.lock atomically; return whether its content changed. Unchanged content is left alone.

    Raises:
        LockError: the file cannot be written, or `lock` holds what `read_lock` would refuse.
        DiskFull: there is no room for it; what was there stays.
    """
    content = encode_lock(lock)
    if len(content) > MAX_FILE_BYTES:
        raise LockError(
            f"would be larger than {MAX_FILE_BYTES:,} bytes",
            subject=str(path),
            hint="take fewer files: `include`, `exclude`, a longer prefix; or more than one models.yaml",
        )
    decode_lock(content, subject=str(path))  # a file that we would refuse to read must not come into being
    try:
        target = path.resolve()  # a link stays a link
        if target.is_file() and target.read_bytes() == content:
            return False
        writing.replace_file(target, content)
    except OSError as error:
        raise LockError(f"cannot be written ({error.strerror})", subject=str(path)) from error
    return True


def encode_lock(lock: Lock) -> bytes:
    """Return the file's bytes: the same facts give the same bytes."""
    models = {
        name: {
            **_encode_source(model.sources[0]),
            **({"added": [_encode_source(each) for each in model.added]} if model.added else {}),
            **_encode_conversion(model.converted),
            "digest": model.digest,
        }
        for name, model in lock.models.items()
    }
    text = json.dumps({"schema": SCHEMA, "models": models}, indent=2, sort_keys=True, ensure_ascii=False)
    # A lone surrogate has no UTF-8 form; escaped it reaches the reader, which refuses it by name.
    return f"{text}\n".encode(errors="backslashreplace")


def _encode_source(source: LockedSource) -> dict[str, Any]:
    is_hub = source.kind == "hf"
    return {
        "source": source.source,
        **({"hub": source.hub, "revision": source.revision} if is_hub else {"endpoint": source.hub}),
        "commit": source.commit,
        "include": list(source.include),
        "exclude": list(source.exclude),
        **({"into": source.into} if source.into else {}),
        "files": _encode_files(source.files),
    }


def _encode_files(files: Iterable[LockedFile]) -> list[dict[str, Any]]:
    return [
        {
            "path": file.path,
            "size": file.size,
            "sha256": file.sha256,
            **({"version": file.version} if file.version else {}),
        }
        for file in files
    ]


def _encode_conversion(converted: Conversion | None) -> dict[str, Any]:
    if converted is None:
        return {}
    files = _encode_files(converted.files)
    return {
        "converted": {
            "converter": converted.converter,
            "replaces": list(converted.replaces),
            "files": files,
        }
    }


def decode_lock(content: bytes, *, subject: str = "models.lock", replacing: Container[str] = ()) -> Lock:
    """Check a lock's bytes and return what they say; see `read_lock`. `subject` names the file in errors."""
    try:
        document = _parse(content)
        _keys(document, {"schema", "models"})
        if document["schema"] != SCHEMA or type(document["schema"]) is not int:
            raise _Problem(
                f"expected {SCHEMA}, got {_got(document['schema'])}: another modelbake wrote it", "schema"
            )
        entries = _expect(document["models"], dict, "an object", "models")
    except _Problem as problem:
        raise _error(subject, problem, _REMEDY_ALL) from None
    models: dict[str, LockedModel] = {}
    for name, entry in entries.items():
        if not NAME.matches(name):
            raise _error(subject, _Problem(f"{shown(name)!r} is not a model's name", "models"), _REMEDY_ALL)
        try:
            models[name] = _model(name, entry)
        except _Problem as problem:
            if name not in replacing:
                remedy = f"run `build.py lock {name}`; models.lock is not for editing by hand"
                raise _error(subject, problem.under(name).under("models"), remedy) from None
    return Lock(dict(sorted(models.items())))


def _read_bytes(path: Path) -> bytes:
    try:
        return read_small(path, MAX_FILE_BYTES)
    except NotRegular as error:
        raise LockError("is not a regular file", subject=str(path)) from error
    except TooLarge as error:
        problem = f"is larger than {MAX_FILE_BYTES:,} bytes"
        raise LockError(problem, subject=str(path), hint=_REMEDY_ALL) from error


def _parse(content: bytes) -> Any:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _Problem(f"line {line}: is not UTF-8") from None
    if conflict := _CONFLICT.search(text):
        line = text.count("\n", 0, conflict.start()) + 1
        raise _Problem(f"line {line}: holds a merge conflict")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _Problem(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise _Problem("is nested too deeply") from None
    except MemoryError:  # empty objects take thirty times the bytes that the file has
        raise _Problem("needs more memory than there is") from None
    except ValueError:  # an integer of thousands of digits
        raise _Problem("holds a number that is out of range") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Problem(f"the key {shown(twice)!r} stands twice in one object")
    return made


def _no_constant(name: str) -> NoReturn:
    raise _Problem(f"holds {name}, which is not JSON")


def _model(name: str, entry: Any) -> LockedModel:
    _expect(entry, dict, "an object")
    _keys(entry, _source_keys(entry) | {"digest"} | (entry.keys() & {"converted", "added"}))
    sources = [_source(name, entry)]
    for index, each in enumerate(_expect(entry.get("added", []), list, "a list", "added")):
        try:
            _expect(each, dict, "an object")
            _keys(each, _source_keys(each) | {"into"})
            sources.append(_source(name, each))
        except _Problem as problem:
            raise problem.under(f"[{index}]").under("added") from None
    if entry.get("added") == []:
        raise _Problem("is empty: leave it out", "added")
    joined = LockedModel.join(sources)
    if clash := conflicting_paths([file.path for file in joined.files]):
        raise _Problem(f"{clash[0]!r} and {clash[1]!r} cannot both exist", "added")
    converted = None
    if "converted" in entry:
        try:
            converted = _conversion(entry["converted"], joined.files)
        except _Problem as problem:
            raise problem.under("converted") from None
    model = replace(joined, converted=converted)
    if entry["digest"] != model.digest:
        raise _Problem("is not that of the files: an edit or a merge lost, added or changed one", "digest")
    return model


def _source_keys(entry: Any) -> set[str]:
    """Return the keys that an entry of its kind has."""
    is_hub = "source" not in entry or _of(SOURCE, entry["source"], "source").startswith("hf:")
    return {"source", "commit", "include", "exclude", "files"} | (
        {"hub", "revision"} if is_hub else {"endpoint"}
    )


def _source(name: str, entry: Any) -> LockedSource:
    source = _of(SOURCE, entry["source"], "source")
    is_hub = source.startswith("hf:")
    server = entry["hub" if is_hub else "endpoint"]
    into = _of(FOLDER, entry["into"], "into") if "into" in entry else ""
    files = _files(entry["files"], versions=not is_hub)
    if strays := [file.path for file in files if into and not file.path.startswith(f"{into}/")]:
        raise _Problem(f"{shown(strays[0])!r} is not below {into!r}", "files")
    return LockedSource(
        name=name,
        source=source,
        hub=_of(HUB, server, "hub" if is_hub else "endpoint") if is_hub or server != "" else "",
        revision=_of(REVISION, entry["revision"], "revision") if is_hub else "",
        commit=_hex(_COMMIT, 40, entry["commit"], "commit"),
        include=_patterns(entry["include"], "include"),
        exclude=_patterns(entry["exclude"], "exclude"),
        files=files,
        into=into,
    )


def _conversion(entry: Any, files: tuple[LockedFile, ...]) -> Conversion:
    _keys(entry, {"converter", "replaces", "files"})
    converter = entry["converter"]
    if not isinstance(converter, str) or not _DIGEST.fullmatch(converter):
        raise _Problem(f"expected sha256: and 64 lower-case hex digits, got {_got(converter)}", "converter")
    replaces = _expect(entry["replaces"], list, "a list of paths", "replaces")
    paths = {file.path for file in files}
    for index, path in enumerate(replaces):
        if not isinstance(path, str) or path not in paths:
            raise _Problem(f"expected the path of one of the files, got {_got(path)}", f"replaces[{index}]")
    if not replaces or len(set(replaces)) != len(replaces):
        raise _Problem("expected at least one path, and none twice", "replaces")
    _sorted(replaces, "replaces")
    converted = _files(entry["files"])
    kept = [path for path in paths if path not in replaces]
    if clash := conflicting_paths([*kept, *(file.path for file in converted)]):
        raise _Problem(f"{clash[0]!r} and {clash[1]!r} cannot both exist", "files")
    return Conversion(converter, tuple(replaces), converted)


def _files(value: Any, *, versions: bool = False) -> tuple[LockedFile, ...]:
    _expect(value, list, "a list", "files")
    if not value:
        raise _Problem("is empty: a model has at least one file", "files")
    files: list[LockedFile] = []
    for index, item in enumerate(value):
        try:
            files.append(_file(item, versions))
        except _Problem as problem:
            raise problem.under(f"[{index}]").under("files") from None
    paths = [file.path for file in files]
    if clash := conflicting_paths(paths):
        raise _Problem(f"{clash[0]!r} and {clash[1]!r} cannot both exist", "files")
    _sorted(paths, "files")
    return tuple(files)


def _file(item: Any, versions: bool) -> LockedFile:
    _keys(item, {"path", "size", "sha256"} | ({"version"} if versions else set()))
    path, size = item["path"], item["size"]
    _expect(path, str, "a text", "path")
    if problem := path_problem(path):
        raise _Problem(f"{shown(path)!r} {problem}", "path")
    if type(size) is not int or not 0 <= size <= _MAX_SIZE:
        raise _Problem(f"expected a number of bytes, got {_got(size)}", "size")
    version = _of(STORE_VERSION, item["version"], "version") if versions else ""
    return LockedFile(path, size, _hex(_SHA256, 64, item["sha256"], "sha256"), version)


def _patterns(value: Any, key: str) -> tuple[str, ...]:
    _expect(value, list, "a list of patterns", key)
    texts = [_of(PATTERN, item, f"{key}[{index}]") for index, item in enumerate(value)]
    if len(set(texts)) != len(texts):
        raise _Problem("holds a pattern twice", key)
    _sorted(texts, key)
    return tuple(texts)


def _of(grammar: Grammar, value: Any, key: str) -> str:
    if not isinstance(value, str) or not grammar.matches(value):
        raise _Problem(f"expected {grammar.expected}, got {_got(value)}", key)
    return value


def _hex(grammar: re.Pattern[str], digits: int, value: Any, key: str) -> str:
    if not isinstance(value, str) or not grammar.fullmatch(value):
        raise _Problem(f"expected {digits} lower-case hex digits, got {_got(value)}", key)
    return value


def _keys(value: Any, expected: set[str]) -> None:
    _expect(value, dict, "an object")
    if value.keys() == expected:
        return
    missing, unknown = sorted(expected - value.keys()), sorted(map(shown, value.keys() - expected))
    texts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(
        unknown
    )
    raise _Problem(" and ".join(texts))


def _expect(value: Any, kind: type, text: str, *keys: str) -> Any:
    if not isinstance(value, kind):
        raise _Problem(f"expected {text}, got {_got(value)}", *keys)
    return value


def _sorted(texts: list[str], key: str) -> None:
    for before, after in pairwise(texts):
        if before > after:
            raise _Problem(f"is not sorted: {shown(after)!r} stands after {shown(before)!r}", key)


def _got(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str) and holds_a_secret(value):
        return "a text that looks like a secret"
    return shown(json.dumps(value, ensure_ascii=False), 60)


def _error(subject: str, problem: _Problem, hint: str) -> LockError:
    message = f"{problem.where}: {problem.problem}" if problem.where else problem.problem
    return LockError(message, subject=subject, hint=hint)

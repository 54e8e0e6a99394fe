"""A strict reading of YAML: what every reader of the file would agree on, and where it stands.

YAML 1.1 and 1.2 disagree about `yes`, `0755`, `1:30` and `2024-01-01`, and most readers silently take
the last of two equal keys. All of that is refused here, together with what a plain configuration file
has no use for: tags, anchors, aliases, merge keys, several documents, keys that are not text.

Problems that leave the rest of the file readable are collected, so that one run reports them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from modelbake.errors import ConfigError
from modelbake.scalars import is_text, plain_value, quoted
from modelbake.smallfile import NotRegular, TooLarge, read_small

LARGEST_FILE = 1024 * 1024  # bytes
DEEPEST = 50  # levels of nesting
MOST_VALUES = 50_000  # of one file: a thousand models with much said of each
MOST_SHOWN = 10_000  # problems of one file

KeyPath = tuple[str | int, ...]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What YAML calls printable, without line breaks that editors do not count as lines, and without the
# marks that make text appear in another order than it is read in.
_UNPRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)

_SHARED = "`defaults` holds what models share"


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong: `line` and `column` count from 1, `key` is the key path as people write it."""

    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        """Return `line:column: key: message`; whoever prints it puts the file's name in front."""
        return (
            f"{self.line}:{self.column}: {self.key}: {self.message}"
            if self.key
            else (f"{self.line}:{self.column}: {self.message}")
        )


@dataclass(slots=True)
class _Node:
    """Where a value stands, how a plain scalar was written, and the same for what it holds."""

    mark: Any
    written: str | None = None
    key_mark: Any = None
    children: dict[str | int, _Node] = field(default_factory=dict)


@dataclass(frozen=True)
class YamlFile:
    """A file's plain data (dict, list, str, int, float, bool, None) and the positions of all of it.

    `problems` is not empty when parts were refused: `refused` names their key paths, at which `data`
    holds a stand-in or nothing. Whoever uses `data` has to raise `problems` first (or with its own).
    """

    path: Path
    data: Any
    root: _Node = field(repr=False)
    problems: tuple[Problem, ...] = ()
    refused: frozenset[KeyPath] = frozenset()

    def position(self, key_path: KeyPath, *, of_key: bool = False) -> tuple[int, int]:
        """Return the (line, column) of the value, or of its key; of the nearest parent that exists."""
        node = self.root
        for part in key_path:
            if (child := node.children.get(part)) is None:
                of_key = True
                break
            node = child
        mark = node.key_mark if of_key and node.key_mark is not None else node.mark
        return mark.line + 1, mark.column + 1

    def written(self, key_path: KeyPath) -> str | None:
        """Return an unquoted scalar as it stands in the file (`1.10`, not 1.1), else None."""
        node: _Node | None = self.root
        for part in key_path:
            node = node.children.get(part) if node else None
        return node.written if node else None

    def problem(self, key_path: KeyPath, message: str, *, at_key: bool = False) -> Problem:
        """Return a Problem about a key path of this file."""
        line, column = self.position(key_path, of_key=at_key)
        return Problem(line, column, dotted(key_path), message)


def dotted(key_path: KeyPath) -> str:
    """Return a key path as people write it: `models.minilm.smoke.checks[0]."data[0]"`."""
    text = ""
    for part in key_path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[\w.-]{1,64}", part) else quoted(part))
    return text


def raise_problems(
    path: Path, problems: list[Problem] | tuple[Problem, ...], kind: type[ConfigError] = ConfigError
) -> None:
    """Raise one error of a kind with all problems in the order of the file; return if there are none."""
    if problems:
        raise kind(_listed(path, problems))


def _listed(path: Path, problems: Sequence[Problem]) -> str:
    lines = list(dict.fromkeys(f"{path}:{problem}" for problem in sorted(problems)))
    more = len(lines) - MOST_SHOWN
    return "\n".join([*lines[:MOST_SHOWN], *([f"{path}: and {more} more"] if more > 0 else [])])


def read_yaml(path: Path, *, hint: str = "") -> YamlFile:
    """Read a file of at most 1 MiB; ConfigError where it cannot be read or is not YAML at all.

    `hint` says what to do where there is no such file.
    """
    try:
        content = read_small(path, LARGEST_FILE)
    except FileNotFoundError as error:
        raise ConfigError("no such file", subject=str(path), hint=hint) from error
    except (NotRegular, IsADirectoryError) as error:
        raise ConfigError("not a regular file", subject=str(path)) from error
    except TooLarge as error:
        raise ConfigError("larger than 1 MiB", subject=str(path)) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot be read: {reason}", subject=str(path)) from error
    return parse_yaml(content, path)


def parse_yaml(content: bytes, path: Path) -> YamlFile:
    """Parse a file's content; `path` is only its name in messages. ConfigError where it is not YAML."""
    if len(content) > LARGEST_FILE:
        raise ConfigError("larger than 1 MiB", subject=str(path))
    return _Parser(path).parse(_decoded(content, path))


def _decoded(content: bytes, path: Path) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        problem = _at_end_of(before, f"not UTF-8: byte 0x{content[error.start]:02x}")
        raise ConfigError(f"{path}:{problem}") from error
    if found := _UNPRINTABLE.search(text):
        problem = _at_end_of(
            text[: found.start()], f"unprintable character U+{ord(found[0]):04X}; write it as an escape"
        )
        raise ConfigError(f"{path}:{problem}")
    return text


def _at_end_of(before: str, message: str) -> Problem:
    lines = before.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return Problem(len(lines), len(lines[-1]) + 1, "", message)


class _Parser:
    """Builds data and positions from parser events; unlike nodes, events still show tags and anchors."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._problems: list[Problem] = []
        self._refused: set[KeyPath] = set()
        self._events: Iterator[yaml.Event] = iter(())
        self._values = 0

    def parse(self, text: str) -> YamlFile:
        self._events = yaml.parse(text, Loader=_LOADER)
        try:
            next(self._events)  # the stream's start
            event = next(self._events)
            if isinstance(event, yaml.StreamEndEvent):
                raise self._fatal(event, (), "the file is empty")
            data, root = self._value(next(self._events), ())
            next(self._events)  # the document's end
            event = next(self._events)
            if not isinstance(event, yaml.StreamEndEvent):
                raise self._fatal(event, (), "a second document starts here; write one document a file")
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            self._problems.append(Problem(line, column, "", f"not YAML: {reason}"))
            raise ConfigError(self._text()) from error
        return YamlFile(self._path, data, root, tuple(self._problems), frozenset(self._refused))

    def _text(self) -> str:
        return _listed(self._path, self._problems)

    def _fatal(self, event: Any, at: KeyPath, message: str) -> ConfigError:
        self._refuse(event, at, message)
        return ConfigError(self._text())

    def _report(self, event: Any, at: KeyPath, message: str) -> None:
        mark = event.start_mark
        self._problems.append(Problem(mark.line + 1, mark.column + 1, dotted(at), message))

    def _refuse(self, event: Any, at: KeyPath, message: str) -> None:
        self._report(event, at, message)
        self._refused.add(at)

    def _value(self, event: Any, at: KeyPath) -> tuple[Any, _Node]:
        node = _Node(event.start_mark)
        self._values += 1
        if self._values > MOST_VALUES:
            raise self._fatal(event, at[:3], f"more than {MOST_VALUES:,} values in one file")
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, at, f"aliases (*{event.anchor}) are not supported; write the value out")
            return None, node
        if event.anchor is not None:
            self._report(event, at, f"anchors (&{event.anchor}) are not supported; {_SHARED}")
        if event.tag is not None:
            self._report(event, at, f"tags ({event.tag}) are not supported; quote what has to be text")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, at, node), node
        if len(at) >= DEEPEST:
            raise self._fatal(event, at[:3], f"nested deeper than {DEEPEST} levels")
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(at, node), node
        return self._mapping(at, node), node

    def _sequence(self, at: KeyPath, node: _Node) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            value, node.children[len(items)] = self._value(event, (*at, len(items)))
            items.append(value)
        return items

    def _mapping(self, at: KeyPath, node: _Node) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key, kept = self._key(event, at, node)
            value, child = self._value(next(self._events), (*at, key))
            if kept:
                child.key_mark = event.start_mark
                items[key] = value
                node.children[key] = child
        return items

    def _key(self, event: Any, at: KeyPath, node: _Node) -> tuple[str, bool]:
        """Return a mapping's key and whether its value is kept."""
        if not isinstance(event, yaml.ScalarEvent):
            self._refuse(event, at, "a key has to be text")
            if not isinstance(event, yaml.AliasEvent):
                self._value(event, (*at, "?"))
            return "?", False
        key: str = event.value
        here = (*at, key)
        if event.anchor is not None or event.tag is not None:
            self._report(event, here, "anchors and tags on keys are not supported")
        if event.implicit[0] and key == "<<":
            self._refuse(event, here, f"merge keys are not supported; {_SHARED}")
            return key, False
        if event.implicit[0] and not is_text(key):
            self._refuse(event, here, f"a key has to be text; write {quoted(key)} in quotes")
        if key in node.children:
            first = node.children[key].key_mark.line + 1
            self._report(event, here, f"duplicate key; the first is at line {first}")
            return key, False
        return key, True

    def _scalar(self, event: Any, at: KeyPath, node: _Node) -> Any:
        text: str = event.value
        if not event.implicit[0] or event.tag is not None:
            # Only PyYAML's own parser lets an escape make half a character; it could not be written anywhere.
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                self._refuse(event, at, "not a character: half of a surrogate pair")
            return text
        node.written = text
        try:
            return plain_value(text)
        except ValueError as error:
            self._refuse(event, at, str(error))
            return text

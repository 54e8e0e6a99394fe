"""Reads a Dockerfile into its instructions, as BuildKit does. Pure.

What `render` made is read again with this before any engine sees it. It is stricter than BuildKit: what its
versions read differently, or what a person could misread, is refused, not guessed at. What it does accept,
BuildKit reads alike; the tests compare it with BuildKit's own parser.

Of what is on PyPI, `dockerfile-parse` knows no here-documents and ends lines where Python does, not where
BuildKit does. `dockerfile` is BuildKit's own parser, and what the tests use; but it sees nothing of a text
behind a NUL, and brings a second language's runtime into the process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modelbake.dockerwords import Word, resolve, split_words

# No Dockerfile needs these, and readers disagree about which of them end a line.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]")
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*")
_DIRECTIVES = ("syntax", "escape", "check")
_FLAG = re.compile(r"--[a-z][a-z0-9-]*(?:=[^\s\"'\\`$]*)?(?=\s|$)")
_HEREDOC = re.compile(r"[0-9]*<<(-?)(?:([\w.-]+)|\"([\w.-]+)\"|'([\w.-]+)')", re.ASCII)

_PAIRS = ("ENV", "LABEL")
_WORDS = ("FROM", "EXPOSE")
_JSON_OR_WORDS = ("ADD", "COPY", "VOLUME")
_JSON_OR_TEXT = ("CMD", "ENTRYPOINT", "RUN", "SHELL")
_TEXT = ("ARG", "HEALTHCHECK", "MAINTAINER", "ONBUILD", "STOPSIGNAL", "USER", "WORKDIR")
_WITH_HEREDOCS = ("ADD", "COPY", "RUN")


class DockerfileError(Exception):
    """A text is no Dockerfile, or not clearly one. `line` counts from 1. It never leaves `instructions`."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line


@dataclass(frozen=True)
class Instruction:
    """One instruction: where it begins, its name in capitals, its `--flags` as written, and what it is given.

    `words` are the strings of a JSON form where `is_json`; else words, name and value by turns for ENV and
    LABEL, and one text for shell commands and what takes a single value. `heredocs` are the bodies of
    here-documents.
    """

    line: int
    keyword: str
    flags: tuple[str, ...]
    words: tuple[Word, ...]
    is_json: bool = False
    heredocs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dockerfile:
    """The parser directives, by name, and the instructions in their order."""

    directives: dict[str, str]
    instructions: tuple[Instruction, ...]


def parse(text: str) -> Dockerfile:
    """Return the instructions of a text. Raises DockerfileError."""
    lines = text.split("\n")  # and nothing else ends a line
    for number, line in enumerate(lines, 1):
        if found := _CONTROL.search(line):
            raise DockerfileError(number, f"holds the control character U+{ord(found[0]):04X}")
    directives = _directives(lines)
    escape = directives.get("escape", "\\")
    if escape not in ("\\", "`"):
        raise DockerfileError(1, "`escape` is neither \\ nor `")
    source = _Source(lines, escape)
    return Dockerfile(directives, tuple(_instructions(source, escape)))


def _directives(lines: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    # The first line may say what to run a file with; BuildKit looks for `syntax` behind it.
    for number, line in enumerate(lines, 1):
        if number == 1 and line.startswith("#!"):
            continue
        match = _DIRECTIVE.fullmatch(line.strip())
        if match is None or (name := match[1].lower()) not in _DIRECTIVES:
            break
        if name in found:
            raise DockerfileError(number, f"a second directive `{name}`")
        found[name] = match[2]
    return found


class _Source:
    """The lines of a file, taken as whole instructions or as the body of a here-document."""

    def __init__(self, lines: Sequence[str], escape: str) -> None:
        self._lines = lines
        self._next = 0
        self._escape = escape
        self._continued = re.compile(rf"{re.escape(escape)}[ \t]*$")

    @property
    def line(self) -> int:
        """The number of the line that was taken last."""
        return self._next

    def logical_line(self) -> tuple[int, str] | None:
        """Return where the next instruction begins, and all its lines as one; None at the end of the file.

        Comments are left out, also those between its lines.
        """
        began, text = 0, ""
        while self._next < len(self._lines):
            line = self._lines[self._next]
            self._next += 1
            bare = line.strip()
            if bare.startswith("#") or not bare:
                continue
            began = began or self._next
            end = self._continued.search(line)
            if end is None:
                return began, text + line
            before = line[: end.start()]
            if before.endswith(self._escape):
                # Older versions go on with the next line, newer ones do not.
                raise DockerfileError(self._next, f"ends with {self._escape * 2}")
            text += before
        if began:
            raise DockerfileError(began, "goes on behind the end of the file")
        return None

    def body(self, name: str, *, tabs: bool) -> str:
        """Return the lines up to one that is `name`, or with `tabs` one that is `name` behind tabs."""
        began, body = self._next, list[str]()
        while self._next < len(self._lines):
            line = self._lines[self._next]
            self._next += 1
            if (line.lstrip("\t") if tabs else line) == name:
                return "".join(f"{each}\n" for each in body)
            body.append(line)
        raise DockerfileError(began, f"the here-document has no end: no line {name}")


def _instructions(source: _Source, escape: str) -> Iterator[Instruction]:
    while taken := source.logical_line():
        number, text = taken
        _no_unusual_space(number, text, escape)
        keyword, rest = (*re.split(r"[ \t]+", text.strip(), maxsplit=1), "")[:2]
        keyword = keyword.upper() if keyword.isascii() else keyword
        flags, rest = _flags(number, rest.strip())
        try:
            is_json, words = _arguments(number, keyword, rest, escape)
        except ValueError as error:
            raise DockerfileError(number, str(error)) from error
        heredocs: tuple[str, ...] = ()
        if "<<" in rest and not is_json:
            if keyword in _WITH_HEREDOCS:
                heredocs = tuple(source.body(name, tabs=tabs) for name, tabs in _heredocs(number, rest))
            elif keyword == "ONBUILD":
                raise DockerfileError(number, "ONBUILD with a here-document")
        yield Instruction(number, keyword, flags, words, is_json, heredocs)


def _no_unusual_space(number: int, text: str, escape: str) -> None:
    """Refuse spaces that are neither ` ` nor a tab outside double quotes: some readers end a word there."""
    quoted = skip = False
    for character in text:
        if skip:
            skip = False
        elif character == escape:
            skip = True
            continue
        elif character == '"':
            quoted = not quoted
        if character.isspace() and character not in " \t" and not quoted:
            raise DockerfileError(number, f"the space U+{ord(character):04X} outside double quotes")


def _flags(number: int, rest: str) -> tuple[tuple[str, ...], str]:
    flags = []
    while rest.startswith("--"):
        match = _FLAG.match(rest)
        if match is None:
            raise DockerfileError(number, "a flag that is not --name or --name=value, without quotes")
        flags.append(match[0])
        rest = rest[match.end() :].strip()
    return tuple(flags), rest


def _arguments(number: int, keyword: str, rest: str, escape: str) -> tuple[bool, tuple[Word, ...]]:
    if keyword in (*_JSON_OR_TEXT, *_JSON_OR_WORDS) and rest.startswith("["):
        return True, _json_form(number, rest)
    if keyword in _PAIRS:
        return False, tuple(_pairs(number, rest, escape))
    if keyword in (*_WORDS, *_JSON_OR_WORDS):
        words = rest.split()
        for word in words:
            if re.search(r"[\"'\\`]", word) and not _HEREDOC.fullmatch(word):
                raise DockerfileError(number, f"quotes in {keyword}; write its JSON form")
        return False, tuple((word,) if "<<" in word else resolve(word, escape) for word in words)
    if keyword in (*_TEXT, *_JSON_OR_TEXT):
        return False, ((rest,),) if rest else ()
    raise DockerfileError(number, f"no instruction begins with {keyword[:40]!r}")


def _json_form(number: int, rest: str) -> tuple[Word, ...]:
    try:
        words = json.loads(rest)
    except (ValueError, RecursionError):
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        # BuildKit would hand such a text to a shell.
        raise DockerfileError(number, "begins with [ and is no JSON list of texts")
    return tuple((word,) if word else () for word in words)


def _pairs(number: int, rest: str, escape: str) -> Iterator[Word]:
    for word in split_words(rest, escape):
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise DockerfileError(number, "expected NAME=VALUE, each in quotes where it has spaces")
        yield resolve(name, escape)
        yield resolve(value, escape)


def _heredocs(number: int, rest: str) -> Iterator[tuple[str, bool]]:
    """Yield the name of each here-document that begins in a text, and whether tabs may precede its end."""
    others = []
    for word in rest.split():
        if match := _HEREDOC.fullmatch(word):
            yield match[2] or match[3] or match[4], bool(match[1])
        else:
            others.append(word)
    if re.search(r"<<|[\"'\\`]", " ".join(others)):
        raise DockerfileError(number, "quotes or another << beside a here-document")

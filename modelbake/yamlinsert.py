"""Puts a model into the text of models.yaml; every byte that was there stays: comments, order, line ends.

A file is not written anew from its data, because that would lose what people wrote around it. The text of the
entry goes behind the last model: in the file's own indentation or, in flow style (and JSON), in its braces.
Whether that was right is not argued: the result is read again, and must differ in this entry alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modelbake.errors import ConfigError
from modelbake.scalars import is_text
from modelbake.yamlfile import parse_yaml

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_BOM = "\ufeff"
# Plain where every reader takes it for the same text, and nobody would think of quotes.
_PLAIN = re.compile(r"[A-Za-z.][A-Za-z0-9_./@-]*(?:(?::|://)[A-Za-z0-9_./@-]+)*")

Entry = Mapping[str, str | list[str]]


@dataclass(frozen=True)
class _Text:
    text: str
    lines: list[str]

    def offset(self, mark: Any) -> int:
        return sum(map(len, self.lines[: mark.line])) + int(mark.column)


def new_file(registry: str, name: str, entry: Entry) -> bytes:
    """Return a models.yaml of one model."""
    return f"registry: {_scalar(registry)}\n\nmodels:\n{_block(name, entry, 2, 2, chr(10))}".encode()


def entry_text(name: str, entry: Entry) -> str:
    """Return the entry as people write it below `models:`."""
    return _block(name, entry, 2, 2, "\n")


def insert_model(content: bytes, path: Path, name: str, entry: Entry) -> bytes:
    """Return a file's content with one more model. `path`: what the file is called in messages.

    Raises ConfigError where the content is not YAML, or no place is found that changes nothing else.
    """
    before = parse_yaml(content, path).data
    whole = content.decode()
    mark = _BOM if whole.startswith(_BOM) else ""
    text = whole.removeprefix(mark)
    root = yaml.compose(text, Loader=_LOADER)
    made = _inserted(_Text(text, _LINE.findall(text)), root, name, entry)
    wanted = {**before, "models": {**before["models"], name: dict(entry)}}
    if made is not None:
        result = f"{mark}{made}".encode()
        try:
            after = parse_yaml(result, path)
        except ConfigError:
            after = None
        if after is not None and not after.problems and after.data == wanted:
            return result
    raise ConfigError(
        "the entry cannot be put in without changing anything else",
        subject=str(path),
        hint=f"put it below `models:` by hand, and run this again:\n{entry_text(name, entry)}",
    )


def _inserted(text: _Text, root: Any, name: str, entry: Entry) -> str | None:
    if not isinstance(root, yaml.MappingNode):
        return None
    found = [(key, value) for key, value in root.value if key.value == "models"]
    if len(found) != 1 or not isinstance(found[0][1], yaml.MappingNode) or not found[0][1].value:
        return None
    key, models = found[0]
    if models.flow_style:
        return _in_flow(text, models, name, entry)
    later = [each.start_mark.line for each, _ in root.value if each.start_mark.line > key.start_mark.line]
    return _in_block(text, models, min(later, default=None), name, entry)


def _in_block(text: _Text, models: Any, following: int | None, name: str, entry: Entry) -> str:
    lines = text.lines
    keys = [key.start_mark for key, _ in models.value]
    indent = keys[0].column
    end = _end_of_block(lines, keys[-1].line, following)
    before, after = "".join(lines[:end]), "".join(lines[end:])
    newline = "\r\n" if "\r\n" in lines[keys[0].line] else "\n"
    inner = models.value[0][1]
    is_block = isinstance(inner, yaml.MappingNode) and not inner.flow_style and inner.value
    step = inner.value[0][0].start_mark.column - indent if is_block else 2
    # Where models are set apart by empty lines, this one is as well.
    apart = any(_is_apart(lines, each.line) for each in keys[1:])
    joint = "" if before.endswith(("\n", "\r")) else newline
    return before + joint + (newline if apart else "") + _block(name, entry, indent, step, newline) + after


def _end_of_block(lines: list[str], last_key: int, following: int | None) -> int:
    """Return the line that the entry comes before: what follows the last model may belong to the next key."""
    end = len(lines) if following is None else following
    while end - 1 > last_key:
        line = lines[end - 1]
        ends_document = following is None and re.match(r"\.\.\.(\s|$)", line)
        if line.strip() and not line.startswith("#") and not ends_document:
            break
        end -= 1
    return end


def _is_apart(lines: list[str], line: int) -> bool:
    while line and lines[line - 1].lstrip().startswith("#"):
        line -= 1
    return bool(line) and not lines[line - 1].strip()


def _in_flow(text: _Text, models: Any, name: str, entry: Entry) -> str:
    first, last = models.value[0][0].start_mark, models.value[-1][1].end_mark
    at = text.offset(last)
    if first.line == models.start_mark.line:
        piece = f", {json.dumps(name)}: {json.dumps(entry, ensure_ascii=False)}"
    else:
        newline = "\r\n" if "\r\n" in text.lines[first.line] else "\n"
        inner = models.value[0][1]
        nested = isinstance(inner, yaml.MappingNode) and inner.value
        column = inner.value[0][0].start_mark.column if nested else 0
        step = column - first.column if nested and inner.start_mark.line != column else 2
        is_spread = nested and inner.value[0][0].start_mark.line > inner.start_mark.line and step > 0
        body = json.dumps(entry, ensure_ascii=False, indent=step if is_spread else None)
        margin = " " * first.column
        lines = f"{json.dumps(name)}: {body}".split("\n")
        piece = f",{newline}" + newline.join(margin + line for line in lines)
    return text.text[:at] + piece + text.text[at:]


def _block(name: str, entry: Entry, indent: int, step: int, newline: str) -> str:
    lines = [f"{' ' * indent}{_scalar(name)}:"]
    for key, value in entry.items():
        shown = (
            f"[{', '.join(json.dumps(each, ensure_ascii=False) for each in value)}]"
            if isinstance(value, list)
            else _scalar(value, quote=key == "version")
        )
        lines.append(f"{' ' * (indent + max(step, 1))}{key}: {shown}")
    return newline.join(lines) + newline


def _scalar(text: str, *, quote: bool = False) -> str:
    plain = _PLAIN.fullmatch(text) is not None and is_text(text)
    return text if plain and not quote else json.dumps(text, ensure_ascii=not text.isprintable())

"""Words of a Dockerfile with their quotes, escapes and variables, and what they mean. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))", re.ASCII)


@dataclass(frozen=True)
class Variable:
    """A part of a word that the build replaces with a variable's value."""

    name: str


Word = tuple[str | Variable, ...]  # what is between the variables is as it is meant: no quotes, no escapes


def split_words(text: str, escape: str) -> list[str]:
    """Return words with their quotes; quotes keep spaces together. Raises ValueError."""
    words: list[str] = []
    word = quote = ""
    at = 0
    while at < len(text):
        character = text[at]
        if character == escape and quote != "'":
            if at + 1 == len(text):
                raise ValueError(f"ends with {escape}")
            word += text[at : at + 2]
            at += 2
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in " \t":
            words += [word] * bool(word)
            word = ""
            at += 1
            continue
        word += character
        at += 1
    if quote:
        raise ValueError(f"a quotation mark {quote} without its other half")
    return [*words, word] if word else words


def resolve(word: str, escape: str) -> Word:
    """Return what a word with quotes means, its variables apart. Raises ValueError."""
    parts: list[str | Variable] = []
    text = quote = ""
    at = 0
    while at < len(word):
        character = word[at]
        at += 1
        if character == escape and quote != "'":
            following = word[at : at + 1]
            if not following:
                raise ValueError(f"ends with {escape}")
            at += 1
            # Within quotes only these are escaped; before others the escape is a character like any.
            text += following if not quote or following in ('"', "$", escape) else character + following
        elif character == quote:
            quote = ""
        elif not quote and character in "\"'":
            quote = character
        elif character == "$" and quote != "'":
            match = _VARIABLE.match(word, at - 1)
            if match is None:
                raise ValueError("a $ that is neither escaped nor before a variable's name")
            parts += [*([text] * bool(text)), Variable(match[1] or match[2])]
            text = ""
            at = match.end()
        else:
            text += character
    if quote:
        raise ValueError(f"a quotation mark {quote} without its other half")
    return tuple([*parts, text] if text else parts)

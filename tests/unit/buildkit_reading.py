"""A Dockerfile as BuildKit's own parser reads it, in terms of `modelbake.dockerfile`: a second opinion."""

from __future__ import annotations

from dataclasses import replace

import dockerfile

from modelbake.dockerfile import Instruction
from modelbake.dockerwords import Word, resolve

# BuildKit cuts these further than we do.
_CUT = ("ARG", "HEALTHCHECK", "ONBUILD")


def by_buildkit(text: str, escape: str = "\\") -> list[Instruction]:
    """Read a text with BuildKit's parser. Raises dockerfile.GoParseError."""
    found = []
    for each in dockerfile.parse_string(text):
        keyword = each.cmd.upper()
        words: tuple[Word, ...]
        if each.json:
            words = tuple((word,) if word else () for word in each.value)
        elif keyword in ("ENV", "LABEL"):
            words = tuple(resolve(word, escape) for word in each.value)
        elif keyword in ("FROM", "EXPOSE", "COPY", "ADD", "VOLUME"):
            words = tuple((word,) if "<<" in word else resolve(word, escape) for word in each.value)
        else:
            words = tuple((word,) for word in each.value)
        bodies = tuple(heredoc.content for heredoc in each.heredocs)
        found.append(Instruction(0, keyword, tuple(each.flags), words, each.json, bodies))
    return [comparable(each) for each in found]


def comparable(instruction: Instruction) -> Instruction:
    """Return an instruction without what the two parsers say in different forms."""
    words = () if instruction.keyword in _CUT else instruction.words
    return replace(instruction, line=0, words=words)

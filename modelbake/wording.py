"""What is said of a command, in the words of the command that was given. Pure.

Messages and hints are written for the usual case: models.yaml in this folder, and the toolkit's own runtimes.
Where `--file` or `--images` said otherwise, a hint that leaves them out would be about another model.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

USUAL_FILE = Path("models.yaml")
_COMMAND = re.compile(r"`build\.py (?=[a-z])")
# The name alone: within a path it is some file's own name.
_FILE = re.compile(r"(?<![\w./-])models\.yaml(?![\w/-])")


def wording(file: Path, images: Path | None) -> Callable[[str], str]:
    """Return what puts the options of a run into a text; `file` and `images` as they were given."""
    options = [] if file == USUAL_FILE else ["--file", str(file)]
    options += [] if images is None else ["--images", str(images)]
    command = f"`build.py {' '.join(map(shlex.quote, options))} " if options else "`build.py "

    def say(text: str) -> str:
        text = _COMMAND.sub(lambda _: command, text)
        return text if file == USUAL_FILE else _FILE.sub(lambda _: str(file), text)

    return say

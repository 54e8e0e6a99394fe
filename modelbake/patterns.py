"""Regular expressions of smoke checks: refused early where they are none, and given up where they run away.

Python's engine backtracks: for some expressions an unlucky text of forty characters takes it years. No other
thread can stop a search, so each one has a process of its own, which can be ended.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings

from modelbake.grammar import Grammar

REGEX = Grammar("a regular expression of 1 to 500 characters", r"[\s\S]+", 500, ("^[Hh]ello",))
SEARCH_SECONDS = 10.0
_SEARCH = "import json, re, sys; order = json.load(sys.stdin); print(bool(re.search(*order)))"


class SearchError(Exception):
    """A search came to no result; the message says why. It never leaves `expectations`."""


def why_not_a_pattern(text: str) -> str:
    """Return why a text is not a regular expression, and where it goes wrong, or ""."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what Python warns of will mean something else one day
            re.compile(text)
    except re.error as error:
        where = "" if error.pos is None else f" at character {error.pos + 1}"
        return f"not a regular expression: {error.msg}{where}"
    except Warning as warning:
        return f"not a regular expression that means the same to every Python: {warning}"
    except (OverflowError, RecursionError, ValueError) as error:
        return f"not a regular expression: {error}"
    return ""


def found(pattern: str, text: str) -> bool:
    """Tell whether a regular expression finds something in a text. Raises SearchError after some seconds."""
    command = [sys.executable, "-I", "-S", "-c", _SEARCH]
    try:
        done = subprocess.run(
            command,
            input=json.dumps([pattern, text]).encode(),
            capture_output=True,
            timeout=SEARCH_SECONDS,
            env={},
        )
    except subprocess.TimeoutExpired:
        raise SearchError(
            f"no result after {SEARCH_SECONDS:g} s: the expression backtracks too much"
        ) from None
    except OSError as error:
        raise SearchError(f"no process for the search ({error.strerror})") from error
    if done.returncode:
        raise SearchError(f"the search ended with exit code {done.returncode}")
    return done.stdout.strip() == b"True"

"""The JMESPath expressions of smoke checks, checked as far as that is possible without an answer.

A misspelt function would otherwise be found only when the image has been built and started.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from modelbake.grammar import ARGUMENT, Grammar
from modelbake.scalars import quoted
from modelbake.validation import did_you_mean

EXPRESSION = Grammar("a JMESPath expression", ARGUMENT.pattern, 500, ("length(data[0].embedding)",))


@lru_cache(maxsize=4096)
def why_not(text: str) -> str:
    """Return why a text cannot be evaluated as a JMESPath expression, and where it goes wrong, or ""."""
    # Imported here because only files with checks need it.
    import jmespath
    from jmespath.exceptions import ArityError, ParseError
    from jmespath.functions import Functions

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PendingDeprecationWarning)
            parsed = jmespath.compile(text).parsed
    except PendingDeprecationWarning:
        # jmespath still guesses what such a literal means.
        return f"not a JMESPath expression: what stands between backticks is not JSON in {quoted(text)}"
    except ArityError as error:
        return f"not a JMESPath expression: {error}"
    except ParseError as error:
        where = min(error.lex_position or 0, len(text)) + 1
        found = f"{quoted(str(error.token_value))} is unexpected" if error.token_value else "it is incomplete"
        return f"not a JMESPath expression: {found} at character {where} of {quoted(text)}"
    except (ValueError, RecursionError):
        return f"not a JMESPath expression: {quoted(text)}"
    for name, arguments in _calls(parsed):
        if name not in Functions.FUNCTION_TABLE:
            return f"JMESPath has no function {name}(){did_you_mean(name, Functions.FUNCTION_TABLE)}"
        signature = Functions.FUNCTION_TABLE[name]["signature"]
        variadic = bool(signature) and signature[-1].get("variadic", False)
        if arguments < len(signature) or (arguments > len(signature) and not variadic):
            plural = "" if len(signature) == 1 and not variadic else "s"
            takes = f"{len(signature)}{' or more' if variadic else ''} argument{plural}"
            return f"{name}() takes {takes}, not {arguments}"
    return ""


def _calls(parsed: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the functions that a parsed expression calls, each with its number of arguments."""
    children = [child for child in parsed.get("children", ()) if isinstance(child, dict)]
    calls = [(parsed["value"], len(children))] if parsed["type"] == "function_expression" else []
    for child in children:
        calls += _calls(child)
    return calls

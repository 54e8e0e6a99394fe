"""What an unquoted scalar of YAML means, where all readers agree, and what to write where they do not."""

from __future__ import annotations

import json
import math
import re

# A plain (unquoted) scalar is one of these, or text. The first three are what YAML 1.2 calls them, and
# 1.1 agrees; the others are read differently by different readers.
_PLAIN = re.compile(
    r"""
      (?P<null>      ~ | null | Null | NULL | )
    | (?P<bool>      true | True | TRUE | false | False | FALSE )
    | (?P<int>       [-+]? (?: 0 | [1-9][0-9]* ) )
    | (?P<zeros>     [-+]? 0[0-9_]+ )
    | (?P<float>     [-+]? (?: \.[0-9]+ | [0-9]+ (?: \.[0-9]* )? ) (?: [eE] [-+]? [0-9]+ )? )
    | (?P<infinite>  [-+]? \. (?: inf | Inf | INF ) | \. (?: nan | NaN | NAN ) )
    | (?P<word>      yes | Yes | YES | no | No | NO | on | On | ON | off | Off | OFF )
    | (?P<radix>     [-+]? 0 (?: x [0-9a-fA-F_]+ | o [0-7_]+ | b [01_]+ ) )
    | (?P<grouped>   [-+]? [0-9][0-9_]* (?: \. [0-9_]* )? (?: [eE] [-+]? [0-9]+ )? )
    | (?P<base60>    [-+]? [0-9][0-9_]* (?: : [0-5]?[0-9] )+ (?: \. [0-9_]* )? )
    | (?P<date>      [0-9]{4} - [0-9]{1,2} - [0-9]{1,2} (?: [Tt\ \t] .* )? )
    """,
    re.VERBOSE | re.DOTALL,
)
_AMBIGUOUS = {
    "zeros": ("an octal number", "or a number without leading zeros"),
    "word": ("a boolean", "or true or false"),
    "radix": ("a number", "or a decimal number"),
    "grouped": ("a number", "or a number without '_'"),
    "base60": ("a base-60 number", ""),
    "date": ("a date", ""),
}
_LONGEST_NUMBER = 18  # digits; longer integers do not fit into 64 bits


def is_text(text: str) -> bool:
    """Tell whether every reader takes this for text, also without quotes."""
    return _PLAIN.fullmatch(text) is None


def plain_value(text: str) -> str | int | float | bool | None:
    """Return what an unquoted scalar means; ValueError with the remedy where that depends on the reader."""
    found = _PLAIN.fullmatch(text)
    if found is None:
        return text
    match found.lastgroup:
        case "null":
            return None
        case "bool":
            return text[0] in "tT"
        case "int" if len(text.lstrip("+-")) <= _LONGEST_NUMBER:
            return int(text)
        case "float" if len(text) <= 2 * _LONGEST_NUMBER and math.isfinite(float(text)):
            return float(text)
        case "infinite":
            raise ValueError(f"numbers have to be finite; write {quoted(text)} in quotes if it is text")
        case "int" | "float":
            raise ValueError(
                f"the number is too large or too long; write {quoted(text)} in quotes if it is text"
            )
        case kind:
            meaning, other = _AMBIGUOUS[str(kind)]
            raise ValueError(
                f"{quoted(text)[1:-1]} is {meaning} for some YAML readers and not for others;"
                f" write {quoted(text)} in quotes{', ' if other else ''}{other}"
            )


def quoted(text: str, longest: int = 60) -> str:
    """Return a text in double quotes on one line, escaped where it would not print, shortened."""
    short = text if len(text) <= longest else text[: longest - 3] + "..."
    return json.dumps(short, ensure_ascii=not short.isprintable())

"""Secrets in an image's documents: environment, labels, history, annotations, attestations. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from modelbake.audit.findings import Finding, finding
from modelbake.audit.rules import RULES
from modelbake.audit.tokens import Canaries, find_tokens
from modelbake.grammar import names_a_secret

_ASSIGNED = re.compile(r"""(?<![\w.-])([A-Za-z_][A-Za-z0-9_]*)=("[^"]{0,4096}"|'[^']{0,4096}'|\S{0,4096})""")
_SHORTEST_PASSWORD = re.compile(rb"://[^\s/:@]{0,64}:([^\s/:@]{1,255})@")
_PLACE_OF_A_FILE = re.compile(r".*(?:_FILE|_PATH|_DIR)", re.IGNORECASE)
_FINGERPRINT = re.compile(r"[0-9A-F]{40}")
_LONGEST_NAME = 4096  # characters
_KEYS = ("config", "history", "rootfs", "os", "architecture")
_SETTINGS = ("User", "Env", "Labels", "Entrypoint", "Cmd", "Volumes", "OnBuild")
_STEP = ("created_by", "comment", "empty_layer")


def document_findings(name: str, document: Any, canaries: Canaries) -> list[Finding]:
    """Return the secrets in a JSON document; `name` is what the findings call it."""
    found = []
    for path, text in _texts(document):
        place = f"{name}: {'.'.join(path)}"
        raw = text.encode(errors="surrogateescape")
        rules = {match.rule for match in (*find_tokens(raw), *canaries.find(raw))}
        if _SHORTEST_PASSWORD.search(raw):  # a password in a document is one, however simple
            rules.add("secret-url")
        found += [finding(rule, place, RULES[rule].title) for rule in sorted(rules)]
    return found


def config_findings(name: str, config: Mapping[str, Any], canaries: Canaries) -> list[Finding]:
    """Return the secrets in an image's configuration: also values whose names promise one."""
    found = document_findings(name, config, canaries)
    settings = _object(config.get("config"))
    for entry in _list(settings.get("Env")):
        variable, _, value = str(entry).partition("=")
        found += _named(f"{name}: Env.{shown_name(variable)}", variable, value)
    for label, value in _object(settings.get("Labels")).items():
        found += _named(f"{name}: Labels.{shown_name(str(label))}", str(label).replace(".", "_"), str(value))
    for number, step in enumerate(_list(config.get("history"))):
        said = str(_object(step).get("created_by", ""))
        for variable, value in _ASSIGNED.findall(said):
            found += _named(f"{name}: history.{number}: {shown_name(variable)}", variable, value.strip("\"'"))
    return list(dict.fromkeys(found))


def ambiguous(name: str, config: Mapping[str, Any]) -> list[Finding]:
    """Return keys that engines, which do not mind case, take for another one: for `User`, say."""
    settings = _object(config.get("config"))
    known = [("", config, _KEYS), ("config.", settings, _SETTINGS)]
    known += [(f"history.{n}.", _object(step), _STEP) for n, step in enumerate(_list(config.get("history")))]
    return [
        finding(
            "unreadable", f"{name}: {where}{shown_name(str(key))}", f"engines take it for {meant[folded]}"
        )
        for where, document, keys in known
        for meant in ({each.casefold(): each for each in keys},)
        for key in document
        if (folded := str(key).casefold()) in meant and key != meant[folded]
    ]


def _named(place: str, name: str, value: str) -> list[Finding]:
    """Judge a value by its name; a reference to another value, or to a file, is none itself."""
    if not value or not names_a_secret(name) or value.startswith("$"):
        return []
    if _PLACE_OF_A_FILE.fullmatch(name) and value.startswith("/"):
        return []
    if name == "GPG_KEY" and _FINGERPRINT.fullmatch(value):  # Python's own images say whose signature it is
        return []
    return [finding("secret-name", place, "its name promises a secret, and it has a value")]


def _texts(document: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every text of a document, its keys as well, with the way to it; however deep it is."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), document)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, Mapping):
            for key, each in value.items():
                yield (*path, "(a key)"), str(key)
                waiting.append(((*path, shown_name(str(key))), each))
        elif isinstance(value, list):
            waiting += [((*path, str(number)), each) for number, each in enumerate(value)]


def shown_name(name: str) -> str:
    """Return a name as a finding may repeat it: it can be a secret itself."""
    secret = any(find_tokens(name.encode(errors="surrogateescape")))
    return "(a name with a secret in it)" if secret else name[:_LONGEST_NAME]


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

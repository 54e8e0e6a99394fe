"""What an audit found: as a JSON document, and as a table for people. Pure.

No finding repeats a secret: it says where one begins, and of which kind it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modelbake.audit.rules import RULES, Rule
from modelbake.errors import AuditFailed
from modelbake.tables import table

_SHOWN = 90  # characters of a path in the table
_ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Finding:
    """One thing that breaks a rule. `layer` counts from 1, the lowest; 0: it is not in a layer.

    `path`: of a file without the first '/', or of a value in a document (`config: Env.HF_TOKEN`).
    `offset`: in bytes from the beginning of the file, -1 where it is about all of it.
    """

    rule: Rule
    path: str
    message: str
    layer: int = 0
    offset: int = -1

    @property
    def key(self) -> tuple[Any, ...]:
        """What they are sorted by: the worst first."""
        return (_ORDER[self.rule.severity], self.rule.id, self.layer, self.path, self.offset, self.message)


@dataclass(frozen=True)
class Findings:
    """All that was found in an image. `files` and `size` (bytes, unpacked) say how much was read."""

    image: str
    digest: str
    layers: int
    files: int
    size: int
    found: tuple[Finding, ...]

    @property
    def failing(self) -> tuple[Finding, ...]:
        """What has to be seen to; without any, the image has passed."""
        return tuple(each for each in self.found if each.rule.fails)

    @property
    def passed(self) -> bool:
        """Whether nothing has to be seen to."""
        return not self.failing


def finding(rule: str, path: str, message: str = "", layer: int = 0, offset: int = -1) -> Finding:
    """Return a finding of a rule by its id; without a message of its own it has the rule's title."""
    found = RULES[rule]
    return Finding(found, path, message or found.title, layer, offset)


def require_passed(findings: Findings) -> None:
    """Raise AuditFailed, which names the rules, where anything has to be seen to."""
    if not findings.passed:
        rules = ", ".join(dict.fromkeys(each.rule.id for each in findings.failing))
        raise AuditFailed(
            f"{len(findings.failing)} findings: {rules}",
            subject=findings.image,
            hint="docs/audit.md says what each rule means and what to do",
        )


def as_document(findings: Findings) -> dict[str, Any]:
    """Return all of it as JSON; `layer` 1 is the lowest, sizes are in bytes."""
    return {
        "image": findings.image,
        "digest": findings.digest,
        "passed": findings.passed,
        "layers": findings.layers,
        "files": findings.files,
        "bytes": findings.size,
        "findings": [
            {
                "rule": each.rule.id,
                "severity": each.rule.severity,
                "path": each.path,
                "layer": each.layer or None,
                "offset": each.offset if each.offset >= 0 else None,
                "message": each.message,
                "remedy": each.rule.remedy,
            }
            for each in findings.found
        ],
    }


def in_words(findings: Findings) -> list[str]:
    """Return the lines of a table, what to do about each rule, and how much was looked at."""
    lines = []
    if findings.found:
        rows = [
            (each.rule.severity, each.rule.id, str(each.layer or "-"), _where(each), each.message)
            for each in findings.found
        ]
        lines += table(("SEVERITY", "RULE", "LAYER", "WHERE", "WHAT"), rows, right={2})
        lines += [f"{rule.id}: {rule.remedy}" for rule in _rules(findings.found)]
    counted = f"{len(findings.failing)} finding{'' if len(findings.failing) == 1 else 's'}"
    notes = len(findings.found) - len(findings.failing)
    more = f" and {notes} note{'' if notes == 1 else 's'}" if notes else ""
    lines.append(
        f"{findings.image}: {counted}{more} in {findings.layers} layers,"
        f" {findings.files:,} files, {findings.size / 1e6:,.1f} MB"
    )
    return lines


def _rules(found: Sequence[Finding]) -> list[Rule]:
    return [RULES[id] for id in dict.fromkeys(each.rule.id for each in found) if RULES[id].fails]


def _where(each: Finding) -> str:
    path = each.path if len(each.path) <= _SHOWN else f"...{each.path[3 - _SHOWN :]}"
    return f"{path}+{each.offset}" if each.offset > 0 else path or "-"

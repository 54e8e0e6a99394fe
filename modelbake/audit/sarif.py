"""Findings as SARIF 2.1.0, which code scanning takes. Pure.

An image has no source lines: a finding is at a path of the image, in a layer that its message names. Notes
are results of the level `note`.

Source: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import quote

from modelbake import __version__
from modelbake.audit.findings import Finding, Findings
from modelbake.audit.rules import RULES

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def as_sarif(findings: Findings) -> dict[str, Any]:
    """Return one run with all rules and all findings."""
    rules = list(RULES.values())
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "modelbake audit",
                        "version": __version__,
                        "semanticVersion": __version__,
                        "rules": [
                            {
                                "id": rule.id,
                                "shortDescription": {"text": rule.title},
                                "help": {"text": rule.remedy},
                                "defaultConfiguration": {"level": rule.severity},
                            }
                            for rule in rules
                        ],
                    }
                },
                "automationDetails": {"id": f"modelbake-audit/{findings.image}/"},
                "properties": {"image": findings.image, "digest": findings.digest},
                "results": [
                    _result(each, [rule.id for rule in rules].index(each.rule.id)) for each in findings.found
                ],
            }
        ],
    }


def _result(each: Finding, index: int) -> dict[str, Any]:
    where = f" (layer {each.layer})" if each.layer else ""
    physical: dict[str, Any] = {
        "artifactLocation": {"uri": quote(each.path or "image", safe="/", errors="replace")}
    }
    if each.offset >= 0:
        physical["region"] = {"byteOffset": each.offset, "byteLength": 0}
    # The same finding of the next version of an image is the same alert: neither layer nor offset counts.
    fingerprint = hashlib.sha256(f"{each.rule.id}\0{each.path}".encode(errors="replace")).hexdigest()
    said = f"{each.path or 'the image'}: {each.message}{where}. To do: {each.rule.remedy}"
    return {
        "ruleId": each.rule.id,
        "ruleIndex": index,
        "level": each.rule.severity,
        "message": {"text": said.encode(errors="replace").decode()},
        "locations": [{"physicalLocation": physical}],
        "partialFingerprints": {"modelbake/v1": fingerprint},
    }

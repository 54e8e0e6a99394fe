"""Look at what a build needs (engine, BuildKit, GPU, disk, hub, registry): each a line, ok or what to do."""

from __future__ import annotations

import argparse

from modelbake.errors import DoctorFailed
from modelbake.output import Output
from modelbake.workspace import Workspace

SUMMARY = "say what is ready here and what is not"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print one line a finding. Raises DoctorFailed when something has to be fixed."""
    from dataclasses import asdict

    from modelbake.doctor import examine

    findings = examine(workspace, output.redactor)
    if args.json:
        output.result_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            output.result(str(finding))
    if bad := [finding.subject for finding in findings if finding.state == "fix"]:
        raise DoctorFailed(f"to fix first: {', '.join(bad)}", hint="each line above says how")

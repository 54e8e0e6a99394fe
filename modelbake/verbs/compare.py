"""Show two versions of a model side by side: their figures with ratios, and what of the image changed.

The registry is asked. A version that is not released is taken from the report of this machine, without its
image.
"""

from __future__ import annotations

import argparse

from modelbake.errors import ReportMissing, UsageError
from modelbake.output import Output
from modelbake.workspace import Workspace

SUMMARY = "show two versions side by side: figures, and what of the image changed"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="a model of models.yaml")
    parser.add_argument("before", metavar="A", help="a version, the earlier one")
    parser.add_argument("now", metavar="B", help="another version")
    parser.add_argument("--json", action="store_true", help="print all of it as a JSON document")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print a table and some lines.

    Raises ReportMissing for a version that nobody knows, and for a report of this machine that is none.
    """
    from modelbake.comparison import compare, in_words, read_image
    from modelbake.grammar import VERSION
    from modelbake.history import Version, opened, read_version
    from modelbake.report import find_report

    (spec,) = workspace.declared.select([args.name], all=False)
    for version in (args.before, args.now):
        if not VERSION.matches(version):
            raise UsageError(f"expected {VERSION.expected}, got {version!r}")
    with opened(workspace.declared.registry, spec.name, output) as repository:

        def find(version: str) -> Version:
            if found := read_version(repository, spec.name, version, output):
                return found
            if report := find_report(workspace.reports, spec.name, version):
                return Version(version, None, None, (report,))
            raise ReportMissing(
                f"neither {repository.name} nor {workspace.reports} has this version",
                subject=f"{spec.name} {version}",
                hint=f"`build.py history {spec.name}` lists all there are",
            )

        before, now = find(args.before), find(args.now)
        images = [read_image(repository, each.digest) if each.digest else None for each in (before, now)]
    told = compare(before, now, *images)
    if args.json:
        output.result_json(told)
    else:
        for line in in_words(told):
            output.result(line)

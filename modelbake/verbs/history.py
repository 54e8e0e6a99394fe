"""List a model's versions with what was measured of each: size, load time, speed, GPU memory, date, device.

The registry has the released versions and their reports. Reports of this machine are added for versions that
are not released.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from modelbake.output import Output
from modelbake.workspace import Workspace

SUMMARY = "list a model's versions with what was measured of each"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="a model of models.yaml")
    parser.add_argument("--json", action="store_true", help="print a JSON list with every report whole")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write a page with plots: one file, nothing is fetched"
    )


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print one line a version and device, the newest version first."""
    from modelbake.history import as_document, as_table, opened, read_history

    (spec,) = workspace.declared.select([args.name], all=False)
    with opened(workspace.declared.registry, spec.name, output) as repository:
        history = read_history(repository, spec.name, workspace.reports, output)
        where = repository.name
    if args.html:
        from modelbake.historypage import write_page

        write_page(args.html, spec.name, where, history, templates=workspace.templates)
        output.event("page_written", f"{args.html}: open it in a browser", path=str(args.html))
    if args.json:
        output.result_json(as_document(history))
    elif history:
        for line in as_table(history):
            output.result(line)
    else:
        output.event("no_history", f"{where} has no version yet, and there is no report here")

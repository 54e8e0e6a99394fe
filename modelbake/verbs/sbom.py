"""Print what is kept beside a released version: its bill of materials, or where it comes from.

CycloneDX 1.6, or an in-toto statement with SLSA's provenance, as `release` has attached it.
"""

from __future__ import annotations

import argparse
from functools import partial

from modelbake.output import Output
from modelbake.verbs import signing_of
from modelbake.workspace import Workspace

SUMMARY = "print the SBOM or the provenance of a released version"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="a model of models.yaml")
    parser.add_argument(
        "version", nargs="?", metavar="VERSION", help="a released version (default: that of models.yaml)"
    )
    parser.add_argument("--provenance", action="store_true", help="print the provenance instead of the SBOM")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print the document."""
    from modelbake.errors import UsageError
    from modelbake.grammar import VERSION
    from modelbake.history import opened
    from modelbake.release.documents import SBOM_TYPE, released_document
    from modelbake.release.provenance import PROVENANCE_TYPE

    (spec,) = workspace.declared.select([args.name], all=False)
    version = args.version or spec.version
    if not VERSION.matches(version):
        raise UsageError(f"{version!r} is not a semantic version", hint='such as "1.4.0"')
    media_type = PROVENANCE_TYPE if args.provenance else SBOM_TYPE
    with opened(workspace.declared.registry, spec.name, output) as repository:
        signing = signing_of(workspace, output)
        is_signed = None if signing is None else partial(signing.has_signed, repository)
        raw = released_document(repository, spec.name, version, media_type, output, is_signed)
    output.result(raw.decode(errors="replace").rstrip("\n"))

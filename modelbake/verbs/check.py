"""Check models.yaml, the runtimes it names, and whether these can serve what is locked.

Nothing is fetched and nothing is changed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.errors import UsageError
from modelbake.output import Output
from modelbake.verbs import signing_of
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.config import Config

SUMMARY = "check models.yaml"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print the models with all defaults applied")
    parser.add_argument("--schema", type=Path, metavar="FILE", help="also write the JSON schema for editors")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print one line a model: name, version, source, runtime, device."""
    config = workspace.config
    if args.schema:
        from modelbake.config import schema_text
        from modelbake.diskspace import saying_full

        text = schema_text()
        try:
            with saying_full(args.schema, len(text.encode())):
                args.schema.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"cannot write ({error.strerror})",
                subject=f"--schema={args.schema}",
                hint="name a file in a folder that is there, and that you may write to",
            ) from error
    if config.signing is not None and (signing := signing_of(workspace, output)) is not None:
        # Whoever releases finds out too late that the key is not there, or is none.
        _ = signing.key
    _check_locked(config, workspace, output)
    if args.json:
        output.result_json(
            {
                "registry": config.registry,
                "models": {name: spec.model_dump(mode="json") for name, spec in config.models.items()},
            }
        )
        return
    for spec in config.models.values():
        source = "+".join(
            f"{each.source}@{each.revision}" if each.revision else each.source for each in spec.sources
        )
        output.result(f"{spec.name} {spec.version} {source} runtime={spec.runtime} device={spec.device}")


def _check_locked(config: Config, workspace: Workspace, output: Output) -> None:
    """Judge the models whose lock is of this models.yaml; of the others `lock` has to find out first.

    Raises UnfitModel, and ImageTooLarge for the first whose weights alone are more than its `max_size`.
    """
    from modelbake.budget import require_budget
    from modelbake.fitness import Evidence, warnings
    from modelbake.lock import intent_changes

    locked = {
        name: Evidence([file.path for file in workspace.lock.models[name].files])
        for name, spec in config.models.items()
        if name in workspace.lock.models
        and not intent_changes(spec, workspace.lock.models[name], workspace.converter)
    }
    workspace.require_fit(locked)
    for name in locked:
        require_budget(config.models[name], workspace.lock.models[name].size, None)
    for name, evidence in locked.items():
        for warning in warnings(config.models[name], evidence):
            output.event("code_among_weights", warning, level="warning", model=name)

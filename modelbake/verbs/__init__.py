"""The verbs of the command line, one module each, and the arguments that several of them take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from modelbake.errors import ModelbakeError

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.output import Output


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `NAME...` and `--all`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="a model of models.yaml")
    parser.add_argument("--all", action="store_true", help="every model of models.yaml")


def for_each(specs: Sequence[ModelSpec], action: Callable[[ModelSpec], None], output: Output) -> None:
    """Run `action` for every model; one model's error does not keep the others from being tried.

    Every error but the last is logged as it comes; the first one's class decides the exit code.
    """
    failed: list[tuple[str, ModelbakeError]] = []
    for spec in specs:
        try:
            action(spec)
        except ModelbakeError as error:
            if len(specs) == 1:
                raise
            output.event("model_failed", f"{spec.name}: {error}", level="error", model=spec.name)
            failed.append((spec.name, error))
    if failed:
        first = failed[0][1]
        names = ", ".join(name for name, _ in failed)
        raise type(first)(
            f"{len(failed)} of {len(specs)} models failed: {names}", hint="see the errors above"
        )

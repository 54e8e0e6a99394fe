"""The command line: finds the verb, runs it, and turns every error into a message and an exit code.

A verb is a module of `modelbake.verbs` with a `SUMMARY`, `arguments(parser)` and
`run(args, workspace, output)`; add its name to VERBS. Verbs import what they need inside `run`, so that
`--help` and the fast verbs do not pay for Docker's or the hub's libraries.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from modelbake import __version__
from modelbake.errors import Interrupted, ModelbakeError, UsageError
from modelbake.output import Output
from modelbake.process import forbid_core_dumps, secrets_withheld
from modelbake.wording import USUAL_FILE, wording
from modelbake.workspace import Workspace

VERBS = (
    *("adopt", "check", "lock", "matrix", "plan", "render", "build", "smoke", "push", "publish"),
    *("release", "sign", "promote", "rollback", "channels", "verify", "incident"),
    *("size", "audit", "history", "compare", "sbom", "backup", "restore", "prune", "doctor"),
)


class _Parser(argparse.ArgumentParser):
    """Raises UsageError instead of ending the program, with a suggestion for a mistyped verb.

    Options are not abbreviated: a script's `--out` would mean another one after the next release.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{**arguments, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        typed = re.search(r"invalid choice: '(\w+)'", message)
        close = difflib.get_close_matches(typed[1], VERBS, n=1) if typed else []
        hint = f"did you mean `{close[0]}`?" if close else f"`{self.prog} --help` says what there is"
        raise UsageError(message, hint=hint)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program and exit. 0 is success; every error class has an exit code of its own."""
    forbid_core_dumps()
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    # Known before the arguments are parsed, because what is wrong with them is said in this form too.
    as_json = "--log-format=json" in argv or ("--log-format", "json") in pairwise(argv)
    output = Output(log_format="json" if as_json else "text")
    with secrets_withheld():
        return _run(argv, output)


def _run(argv: Sequence[str], output: Output) -> int:
    # A CI job is cancelled by SIGTERM, a closed terminal sends SIGHUP: both have to clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup asks to go on
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        args = _parser().parse_args(argv)
        output.wording = wording(args.file, args.images)
        workspace = Workspace(file=args.file, **({"images": args.images} if args.images else {}))
        importlib.import_module(f"modelbake.verbs.{args.verb}").run(args, workspace, output)
        return 0
    except ModelbakeError as error:
        return _report(output, error)
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # everything has been cleaned up: only the message is left
        return _report(output, Interrupted("interrupted"))
    except BrokenPipeError:
        # The reader of stdout went away (`build.py check | head`). Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _report(output: Output, error: ModelbakeError) -> int:
    output.event(
        "error",
        str(error) if output.log_format == "text" else error.message,
        level="error",
        kind=type(error).__name__,
        subject=error.subject,
        hint=error.hint,
        exit_code=error.exit_code,
    )
    return error.exit_code


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="build.py", description="Private model weights into verified, slim CUDA images.")
    parser.add_argument("--version", action="version", version=f"modelbake {__version__}")
    _common_arguments(parser)
    # After the verb they have no defaults: these would take back what was said before it.
    after = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    _common_arguments(after)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in VERBS:
        module = importlib.import_module(f"modelbake.verbs.{name}")
        module.arguments(
            verbs.add_parser(name, help=module.SUMMARY, description=module.__doc__, parents=[after])
        )
    parser.set_defaults(file=USUAL_FILE, images=None, log_format="text")
    return parser


def _common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what may stand before the verb as well as after it."""
    parser.add_argument("--file", type=Path, help="models.yaml (default: here)")
    parser.add_argument(
        "--images", type=Path, help="folder of the runtimes (default: modelbake's own images/)"
    )
    parser.add_argument("--log-format", choices=("text", "json"), help="form of stderr's lines")

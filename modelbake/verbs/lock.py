"""Resolve models to facts: the commit, and the path, size and sha256 of every file. Writes models.lock.

A model that its runtime cannot serve, or that holds pickles which models.yaml does not allow, is not locked.

With --check nothing is written: every difference between models.yaml, models.lock and upstream is listed,
and any makes the exit code non-zero. Upstream is asked what each revision names now, and which files the
locked commit holds.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from modelbake.errors import LockDrift, LockError, UsageError
from modelbake.output import Output
from modelbake.verbs import model_arguments
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.credentials import Secret
    from modelbake.locked import Lock, LockedModel
    from modelbake.sources import Resolved

SUMMARY = "write models.lock (or --check it)"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)
    parser.add_argument("--check", action="store_true", help="change nothing; list all drift")
    parser.add_argument("--offline", action="store_true", help="with --check: do not ask upstream")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print one line a locked model, or with --check one line a difference. No NAME means all models."""
    from modelbake.credentials import hub_token

    if args.offline and not args.check:
        raise UsageError("--offline goes with --check: a lock cannot be made without asking upstream")
    specs = workspace.config.select(args.names, all=args.all or not args.names)
    token = None if args.offline else hub_token()
    if token:
        output.redactor.add(token)
    if args.check:
        _check(specs, token, workspace, output, everything=not args.names, offline=args.offline)
    else:
        _lock(specs, token, workspace, output, everything=not args.names)


def _lock(
    specs: list[ModelSpec], token: Secret | None, workspace: Workspace, output: Output, *, everything: bool
) -> None:
    from modelbake.lock import exclusively, update_lock, write_lock
    from modelbake.sources import resolve_all

    def say(locked: LockedModel) -> None:
        output.event(
            "resolved",
            f"{locked.name}: {locked.source}@{locked.revision} is {locked.commit}",
            model=locked.name,
            source=locked.source,
            commit=locked.commit,
            files=len(locked.files),
            bytes=locked.size,
        )

    lock = _replaceable(workspace, {spec.name for spec in specs}, everything=everything)
    answers = resolve_all(specs, lock, token, done=say, audit=output.audit)
    _judge(answers, workspace, output)
    resolved = [answer.locked for answer in answers]
    configured = set(workspace.config.models) if everything else None
    with exclusively(workspace.lock_path):
        # Read again: another `lock` may have written its models meanwhile.
        lock = _replaceable(workspace, {spec.name for spec in specs}, everything=everything)
        write_lock(workspace.lock_path, update_lock(lock, resolved, configured=configured))
    for locked in resolved:
        output.result(
            f"{locked.name} {locked.commit} {len(locked.files)} files {locked.size:,} bytes {locked.digest}"
        )


def _judge(answers: list[Resolved], workspace: Workspace, output: Output) -> None:
    """Refuse models that their runtimes cannot serve: nothing is written then. Warn of code among weights."""
    from modelbake.fitness import Evidence, warnings

    evidence = {
        each.locked.name: Evidence(
            [file.path for file in each.locked.files], each.upstream, each.configuration
        )
        for each in answers
    }
    workspace.require_fit(evidence)
    for name, known in evidence.items():
        for warning in warnings(workspace.config.models[name], known):
            output.event("code_among_weights", warning, level="warning", model=name)


def _replaceable(workspace: Workspace, names: set[str], *, everything: bool) -> Lock:
    """Read the lock for writing it anew: what is about to be replaced need not be right."""
    from modelbake.lock import Lock, read_lock

    try:
        return read_lock(workspace.lock_path, replacing=names)
    except LockError:
        if everything:
            return Lock()
        raise


def _check(
    specs: list[ModelSpec],
    token: Secret | None,
    workspace: Workspace,
    output: Output,
    *,
    everything: bool,
    offline: bool,
) -> None:
    from modelbake.lock import comparable, config_drift, upstream_drift
    from modelbake.sources import compare_all

    names = {spec.name for spec in specs}
    lock = workspace.lock
    drifts = [drift for drift in config_drift(workspace.config, lock) if drift.model in names or everything]
    for drift in drifts:
        output.result(str(drift))
    if not offline:
        compared = compare_all([spec for spec in specs if comparable(spec, lock)], lock, token)
        upstream = upstream_drift(lock, compared.heads, compared.edits)
        for drift in upstream:
            output.result(str(drift))
        drifts += upstream
        if compared.error:
            raise compared.error  # only now: one model that cannot be asked hides no drift of the others
    if drifts:
        raise LockDrift(
            f"{len(drifts)} difference{'s' if len(drifts) > 1 else ''}",
            subject=str(workspace.lock_path),
            hint="run `build.py lock`, look at the difference, and commit models.lock",
        )
    output.event(
        "no_drift",
        f"{workspace.lock_path} agrees with models.yaml{'' if offline else ' and with upstream'}",
        models=len(specs),
    )

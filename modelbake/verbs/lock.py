"""Resolve models to facts: the commit, and the path, size and sha256 of every file. Writes models.lock.

A model that its runtime cannot serve, or that holds pickles which models.yaml does not allow, is not locked.
Where models.yaml says `convert`, an engine converts the pickles in builder stages, and what they become is
locked as well; what is locked already of the same pickles by the same converter is not converted again.

With --check nothing is written: every difference between models.yaml, models.lock and upstream is listed,
and any makes the exit code non-zero. Upstream is asked what each revision names now, and which files the
locked commit holds.
"""

from __future__ import annotations

import argparse
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from modelbake.errors import EngineNotFound, LockDrift, LockError, NotConvertible, UsageError
from modelbake.output import Output
from modelbake.verbs import build_secrets, model_arguments, secret_arguments
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.credentials import Secret
    from modelbake.locked import Conversion, Lock, LockedModel
    from modelbake.sources import ResolvedModel

SUMMARY = "write models.lock (or --check it)"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)
    parser.add_argument("--check", action="store_true", help="change nothing; list all drift")
    parser.add_argument("--offline", action="store_true", help="with --check: do not ask upstream")
    secret_arguments(parser)


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print one line a locked model, or with --check one line a difference. No NAME means all models."""
    from modelbake.credentials import hub_token
    from modelbake.trust import VARIABLE

    if args.offline and not args.check:
        raise UsageError("--offline goes with --check: a lock cannot be made without asking upstream")
    if args.check and args.pip_config:
        raise UsageError(
            "--pip-config does not go with --check: nothing is converted, so nothing is installed"
        )
    if args.offline and args.ca_bundle:
        raise UsageError("--ca-bundle does not go with --offline: nobody is asked")
    specs = workspace.config.select(args.names, all=args.all or not args.names)
    if args.ca_bundle:
        os.environ[VARIABLE] = str(args.ca_bundle)  # the hub is asked from here, and not only in a build
    token = None if args.offline else hub_token()
    if token:
        output.redactor.add(token)
    if args.check:
        _check(specs, token, workspace, output, everything=not args.names, offline=args.offline)
    else:
        _lock(args, specs, token, workspace, output, everything=not args.names)


def _lock(
    args: argparse.Namespace,
    specs: list[ModelSpec],
    token: Secret | None,
    workspace: Workspace,
    output: Output,
    *,
    everything: bool,
) -> None:
    from modelbake.lock import exclusively, update_lock, write_lock
    from modelbake.sources import resolve_all

    def say(locked: LockedModel) -> None:
        for each in locked.sources:
            revision = f"@{each.revision}" if each.revision else ""
            output.event(
                "resolved",
                f"{locked.name}: {each.source}{revision} is {each.commit}",
                model=locked.name,
                source=each.source,
                commit=each.commit,
                files=len(each.files),
                bytes=sum(file.size for file in each.files),
            )

    lock = _replaceable(workspace, {spec.name for spec in specs}, everything=everything)
    answers = resolve_all(specs, lock, token, done=say, audit=output.audit)
    _judge(answers, workspace, output)
    resolved = converted(args, specs, [answer.locked for answer in answers], lock, workspace, output)
    configured = set(workspace.config.models) if everything else None
    with exclusively(workspace.lock_path):
        # Read again: another `lock` may have written its models meanwhile.
        lock = _replaceable(workspace, {spec.name for spec in specs}, everything=everything)
        write_lock(workspace.lock_path, update_lock(lock, resolved, configured=configured))
    for locked in resolved:
        output.result(
            f"{locked.name} {locked.commit} {len(locked.weights)} files {locked.size:,} bytes {locked.digest}"
        )


def _judge(answers: list[ResolvedModel], workspace: Workspace, output: Output) -> None:
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


def converted(
    args: argparse.Namespace,
    specs: list[ModelSpec],
    resolved: list[LockedModel],
    lock: Lock,
    workspace: Workspace,
    output: Output,
) -> list[LockedModel]:
    """Return the models with what their pickles become, where models.yaml says `convert`.

    `args` has those of `secret_arguments`; an engine is asked for only where there is anything to convert.
    """
    from modelbake.conversion import kept_conversion

    known = {
        locked.name: kept_conversion(spec, locked, lock.models.get(spec.name), workspace.converter)
        for spec, locked in zip(specs, resolved, strict=True)
        if spec.convert != "none"
    }
    for name in (name for name, conversion in known.items() if conversion):
        message = f"{name}: the same pickles and the same converter: what they become stays as it is locked"
        output.event("already_converted", message, model=name)
    wanted = [
        (spec, locked)
        for spec, locked in zip(specs, resolved, strict=True)
        if locked.name in known and not known[locked.name]
    ]
    if wanted:
        known |= _convert(args, wanted, workspace, output)
    return [replace(locked, converted=known.get(locked.name)) for locked in resolved]


def _convert(
    args: argparse.Namespace,
    wanted: list[tuple[ModelSpec, LockedModel]],
    workspace: Workspace,
    output: Output,
) -> dict[str, Conversion | None]:
    """Convert models on an engine, one after the other."""
    from modelbake import engine as engines
    from modelbake.buildview import BuildView
    from modelbake.converting import convert
    from modelbake.credentials import HUB_TOKEN
    from modelbake.dockerconfig import RegistryAuth
    from modelbake.sources import reader_for
    from modelbake.sources.delivery import source_secrets

    secrets = build_secrets(args)
    for secret in secrets.values():
        output.redactor.add(secret)
    names = ", ".join(spec.name for spec, _ in wanted)
    try:
        engine = engines.connect()
    except EngineNotFound as error:
        error.message += f"; `convert: safetensors` of {names} needs one: it is done in builder stages"
        raise
    engine.require_buildkit()
    done: dict[str, Conversion | None] = {}
    for spec, locked in wanted:
        context, plan = workspace.conversion_context(spec, locked)
        where = source_secrets(locked, plan.groups, plan.documents, output.redactor)
        try:
            with BuildView(output) as view:
                done[spec.name] = convert(
                    engine,
                    spec,
                    locked,
                    context.open(reader_for(locked, secrets.get(HUB_TOKEN), threading.Event())),
                    converter=workspace.converter,
                    secrets={**secrets, **where},
                    registries=RegistryAuth(),
                    on_event=view,
                )
        except NotConvertible as error:
            error.subject = spec.name  # the message names the file, and the step says no more
            raise
    return done


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
    drifts = [
        drift
        for drift in config_drift(workspace.config, lock, workspace.converter)
        if drift.model in names or everything
    ]
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

"""The verbs of the command line, one module each, and the arguments that several of them take."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.errors import ImageNotFound, ModelbakeError, UsageError

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.context import Context
    from modelbake.credentials import Secret
    from modelbake.engine import Engine, LocalImage
    from modelbake.output import Output
    from modelbake.plan import BuildPlan
    from modelbake.release.signing import Signing
    from modelbake.trial import Trial
    from modelbake.workspace import Workspace


_LARGEST_SECRET = 4096  # bytes


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `NAME...` and `--all`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="a model of models.yaml")
    parser.add_argument("--all", action="store_true", help="every model of models.yaml")


def untagged_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--untagged`."""
    parser.add_argument(
        "--untagged",
        action="store_true",
        help="keep the report beside the image, and put no version tag: `release` does",
    )


def secret_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what reaches a build as secret mounts."""
    parser.add_argument("--ca-bundle", type=Path, metavar="FILE", help="PEM CAs (or MODELBAKE_CA_BUNDLE)")
    parser.add_argument("--pip-config", type=Path, metavar="FILE", help="pip.conf (or MODELBAKE_PIP_CONFIG)")


def secret_of(path: Path, option: str) -> Secret:
    """Return the secret that a file holds and nothing else. Raises UsageError."""
    from modelbake.audit.tokens import SHORTEST_CANARY
    from modelbake.credentials import Secret

    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_SECRET + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror})", subject=option) from error
    if len(raw.strip()) < SHORTEST_CANARY or len(raw) > _LARGEST_SECRET:
        raise UsageError(
            f"{path} holds no secret of {SHORTEST_CANARY} to {_LARGEST_SECRET} bytes",
            subject=option,
            hint="one secret a file, and nothing else in it",
        )
    return Secret(raw.strip())


def signing_of(workspace: Workspace, output: Output) -> Signing | None:
    """Return how images are signed, and whose signature counts; None where models.yaml does not say so."""
    from modelbake.release.signing import Signing

    entry = workspace.declared.signing
    return None if entry is None else Signing.of(entry, workspace.file.absolute().parent, output)


def trial_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how a smoke run is carried out here."""
    parser.add_argument(
        "--gpus",
        metavar="WHICH",
        help="all (default), a number, device=0,1 (indices or UUIDs), or CDI names such as nvidia.com/gpu=0",
    )
    parser.add_argument(
        "--update-goldens", action="store_true", help="take the answers as the new goldens/NAME.json"
    )


def trial_of(args: argparse.Namespace, workspace: Workspace, specs: Sequence[ModelSpec]) -> Trial:
    """Return how smoke runs are carried out. Raises UsageError for arguments that fit no model."""
    from modelbake.goldens import wanted_goldens
    from modelbake.gpus import parse_gpus
    from modelbake.trial import Trial

    gpus = None if args.gpus is None else parse_gpus(args.gpus)
    without = [spec.name for spec in specs if not wanted_goldens(spec)]
    if args.update_goldens and without and (not args.all or len(without) == len(specs)):
        raise UsageError(
            f"--update-goldens: no check of {', '.join(without)} names a golden",
            hint="expect {cosine: NAME} or {golden: NAME} of an answer, in models.yaml",
        )
    return Trial(workspace.reports, workspace.goldens, gpus, args.update_goldens)


def for_each(specs: Sequence[ModelSpec], action: Callable[[ModelSpec], None], output: Output) -> None:
    """Run `action` for every model; one model's error does not keep the others from being tried.

    Where there are several models each error is logged as it comes, and the first one's class decides the
    exit code.
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


def for_each_image(
    args: argparse.Namespace,
    workspace: Workspace,
    output: Output,
    action: Callable[[Engine, BuildPlan, LocalImage], None],
) -> None:
    """Run `action` for the built image of every model that `args` names, as `for_each` does."""
    from modelbake import engine as engines

    specs = workspace.config.select(args.names, all=args.all)
    plans = {spec.name: workspace.plan(spec) for spec in specs}
    engine = engines.connect()

    def act(spec: ModelSpec) -> None:
        plan = plans[spec.name]
        action(engine, plan, built_image(engine, plan, workspace.context(plan)))

    for_each(specs, act, output)


def built_image(engine: Engine, plan: BuildPlan, context: Context) -> LocalImage:
    """Return the image that `build` made of this very plan.

    Raises ImageNotFound where there is none, or where models.yaml, models.lock or the runtime say otherwise
    now than when it was built.
    """
    from modelbake.plan import PLAN_LABEL

    remedy = f"run `build.py build {plan.name}`"
    image = engine.image(plan.local_tag)
    if image is None:
        raise ImageNotFound("has not been built on this engine", subject=plan.local_tag, hint=remedy)
    if image.labels.get(PLAN_LABEL) != context.digest:
        raise ImageNotFound(
            "was built of another models.yaml, models.lock or runtime", subject=plan.local_tag, hint=remedy
        )
    return image


def build_secrets(args: argparse.Namespace) -> dict[str, Secret]:
    """Collect the secrets of a build by their mount id.

    Raises UsageError for a file that cannot be read, and for a CA bundle that holds no certificates.
    """
    from modelbake.credentials import HUB_TOKEN, Secret, hub_token
    from modelbake.process import environment
    from modelbake.trust import check_authorities

    secrets: dict[str, Secret] = {}
    if token := hub_token():
        secrets[HUB_TOKEN] = token
    if url := environment().get("MODELBAKE_INDEX_URL"):
        secrets["index_url"] = Secret(url)
    for name, given in (("ca_bundle", args.ca_bundle), ("pip_config", args.pip_config)):
        variable = f"MODELBAKE_{name.upper()}"
        if not (path := given or os.environ.get(variable)):
            continue
        option = f"--{name.replace('_', '-')}" if given else variable
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {path} ({error.strerror})", subject=option) from error
        if name == "ca_bundle":
            check_authorities(content, f"{option}={path}")
        secrets[name] = Secret(content)
    return secrets

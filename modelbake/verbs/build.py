"""Build images with the Docker SDK over BuildKit; the token reaches the weights stages as a secret mount."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.errors import DiskFull, UsageError
from modelbake.output import Output
from modelbake.verbs import for_each, model_arguments
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.credentials import Secret

SUMMARY = "build images"

# While BuildKit copies a fetched file into the image's layer, the weights are there twice.
_DISK_PER_WEIGHT_BYTE = 2


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    model_arguments(parser)
    parser.add_argument("--no-cache", action="store_true", help="run every step again")
    parser.add_argument("--ca-bundle", type=Path, metavar="FILE", help="PEM CAs (or MODELBAKE_CA_BUNDLE)")
    parser.add_argument("--pip-config", type=Path, metavar="FILE", help="pip.conf (or MODELBAKE_PIP_CONFIG)")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print `NAME sha256:...`, the image id, for each built model."""
    from modelbake import engine as engines
    from modelbake.buildkit.solve import build
    from modelbake.buildview import BuildView
    from modelbake.credentials import Secret
    from modelbake.dockerconfig import RegistryAuth
    from modelbake.plan import LOCK_LABEL

    specs = workspace.config.select(args.names, all=args.all)
    plans = {spec.name: workspace.plan(spec) for spec in specs}
    secrets = build_secrets(args)
    for secret in secrets.values():
        output.redactor.add(secret)
    engine = engines.connect()
    engine.require_buildkit()

    def build_one(spec: ModelSpec) -> None:
        plan = plans[spec.name]
        free = engine.disk_free()
        needed = _DISK_PER_WEIGHT_BYTE * plan.locked.size
        image = engine.image(plan.local_tag)
        there = image is not None and image.labels.get(LOCK_LABEL) == plan.locked.digest
        if free is not None and free < needed and not there:
            raise DiskFull(
                f"the engine's disk has {free / 1e9:.1f} GB free, this build needs {needed / 1e9:.1f} GB",
                subject=spec.name,
                hint="`docker system df` says what uses it, `docker builder prune` drops the build cache",
            )
        with BuildView(output) as view:
            built = build(
                engine,
                workspace.context(plan).tar(),
                secrets={**secrets, "sources": Secret(plan.sources())},
                registries=RegistryAuth(),
                target="image",
                tags=[plan.local_tag],
                labels={},
                no_cache=args.no_cache,
                on_event=view,
            )
        output.event(
            "built",
            f"built {plan.local_tag} ({_fetched(view.fetched_bytes)})",
            model=plan.name,
            version=plan.version,
            image_id=built.id,
            fetched_bytes=view.fetched_bytes,
        )
        output.result(f"{plan.name} {built.id}")

    for_each(specs, build_one, output)


def _fetched(size: int) -> str:
    return f"{size:,} bytes from the hub" if size else "all weights were in the build cache"


def build_secrets(args: argparse.Namespace) -> dict[str, Secret]:
    """Collect the secrets of a build by their mount id. Raises UsageError for a file that cannot be read."""
    from modelbake.credentials import Secret, hub_token

    secrets: dict[str, Secret] = {}
    if token := hub_token():
        secrets["hf_token"] = token
    if url := os.environ.get("MODELBAKE_INDEX_URL"):
        secrets["index_url"] = Secret(url)
    for name, given in (("ca_bundle", args.ca_bundle), ("pip_config", args.pip_config)):
        variable = f"MODELBAKE_{name.upper()}"
        if not (path := given or os.environ.get(variable)):
            continue
        try:
            secrets[name] = Secret(Path(path).read_bytes())
        except OSError as error:
            option = f"--{name.replace('_', '-')}" if given else variable
            raise UsageError(f"cannot read {path} ({error.strerror})", subject=option) from error
    return secrets

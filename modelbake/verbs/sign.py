"""Sign a released version, as `signing:` of models.yaml says: by its digest, with the cosign program.

`release` signs by itself. This is for versions that were released before there was a key, or with another.
The private key is named by MODELBAKE_SIGNING_KEY, its password is COSIGN_PASSWORD or in the file that
MODELBAKE_SIGNING_PASSWORD_FILE names.
"""

from __future__ import annotations

import argparse

from modelbake.errors import NotReleased, SigningFailed
from modelbake.output import Output
from modelbake.verbs import signing_of
from modelbake.workspace import Workspace

SUMMARY = "sign a released version: its digest, and its weights for the model_signing program"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="a model of models.yaml")
    parser.add_argument("version", nargs="?", metavar="VERSION", help="default: that of models.yaml")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print the reference of what is signed now, whether it was before or not."""
    from modelbake.history import opened
    from modelbake.release.baked import require_said
    from modelbake.release.quarantine import require_none
    from modelbake.release.weightsignature import sign_weights
    from modelbake.versiontag import released_versions

    (spec,) = workspace.declared.select([args.name], all=False)
    signing = signing_of(workspace, output)
    if signing is None:
        raise SigningFailed(
            "models.yaml does not say with which key signatures are verified",
            subject=str(workspace.file),
            hint="`cosign generate-key-pair`, and write `signing: {public_key: cosign.pub}`",
        )
    version = args.version or spec.version
    with opened(workspace.declared.registry, spec.name, output) as repository:
        known = released_versions(repository.registry, repository.path)
        manifest = repository.manifest(version) if version in known else None
        if manifest is None:
            shown = ", ".join(known[:5]) or "none"
            raise NotReleased(
                "there is no such version",
                subject=f"{repository.name}:{version}",
                hint=f"the newest that are released: {shown}",
            )
        require_said(repository, manifest, spec.name, version)
        require_none(repository, manifest, f"{spec.name} {version}")
        signing.sign(repository, manifest)
        sign_weights(repository, manifest, signing)
        output.result(f"{repository.name}@{manifest.digest}")

"""Verify an image in its registry: digest, content, version, signature, lock, and what is kept beside it.

NAME [VERSION] is a model of models.yaml. REF is any image, NAME:TAG or NAME@sha256:...; it needs no
models.yaml, and --public-key then says whose signature counts. Exit code 80 where a check failed; what is not
checked is said, with the reason.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.errors import ImageNotFound, NotReleased, SignatureError, UsageError, VerifyFailed
from modelbake.output import Output
from modelbake.verbs import signing_of
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.dockerconfig import Reference
    from modelbake.release.entries import ChannelEntry
    from modelbake.release.signing import Signing
    from modelbake.release.verification import Locked, Verification

SUMMARY = "verify an image in its registry: digest, signature, version, lock, what is kept beside it"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("image", metavar="NAME|REF", help="a model of models.yaml, or an image's reference")
    parser.add_argument("version", nargs="?", metavar="VERSION", help="default: that of models.yaml")
    parser.add_argument(
        "--public-key",
        metavar="FILE|URI",
        help="whose signature counts, instead of `signing:` of models.yaml",
    )
    parser.add_argument(
        "--channel", metavar="CHANNEL", help="it has to be in this channel, and have what that asks"
    )
    parser.add_argument(
        "--weights-signature",
        type=Path,
        metavar="FILE",
        help="write the signature of its weights, for `model_signing verify key`",
    )
    parser.add_argument("--json", action="store_true", help="print all checks as JSON")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print a line a check. Raises VerifyFailed where one failed."""
    from modelbake.history import opened
    from modelbake.release.verification import Verification, as_document, as_lines

    reference, is_model = _reference(args, workspace)
    signing = _signing(args, workspace, is_model, output)
    tag = reference.digest or reference.tag or "latest"
    with opened(reference.registry, reference.repository, output) as repository:
        manifest = repository.manifest(tag)
        if manifest is None:
            kind = NotReleased if is_model else ImageNotFound
            raise kind("there is no such image", subject=str(reference))
        if reference.digest and reference.tag and repository.manifest(reference.tag) != manifest:
            raise VerifyFailed(f"the tag names another image than {reference.digest}", subject=str(reference))
        verification = Verification(
            repository,
            reference.tag or tag,
            manifest,
            output,
            signing,
            _locked(workspace, reference),
            _channel(args.channel, workspace),
        )
        checks = verification.checks()
        if args.weights_signature:
            _write(args.weights_signature, verification, output)
    if args.json:
        output.result_json(as_document(verification, checks))
    else:
        for line in as_lines(checks):
            output.result(line)
    failed = [check.name for check in checks if check.state == "failed"]
    if failed:
        raise VerifyFailed(
            f"{len(failed)} of {len(checks)} checks failed: {', '.join(dict.fromkeys(failed))}",
            subject=f"{repository.name}@{manifest.digest}",
            hint="do not run it before you know why; docs/releases.md says what each check means",
        )


def _reference(args: argparse.Namespace, workspace: Workspace) -> tuple[Reference, bool]:
    """Return the image's reference, and whether it was named by a model of models.yaml."""
    from modelbake.dockerconfig import split_reference
    from modelbake.grammar import VERSION

    given: str = args.image
    if any(mark in given for mark in "/:@"):
        if args.version is not None:
            raise UsageError("a reference has its tag in itself: VERSION goes with the name of a model")
        return split_reference(given), False
    (spec,) = workspace.declared.select([given], all=False)
    version = args.version or spec.version
    if not VERSION.matches(version):
        raise UsageError(
            f"{version!r} is not a version", hint=f"`build.py history {given}` lists what there is"
        )
    return split_reference(f"{workspace.declared.registry}/{given}:{version}"), True


def _signing(
    args: argparse.Namespace, workspace: Workspace, is_model: bool, output: Output
) -> Signing | None:
    from modelbake.release.signing import Signing

    if args.public_key is not None:
        signing = Signing.by_key(args.public_key, output)
        assert (
            signing.key is None or signing.key.pem
        )  # a file that is no key is said before anything is asked
        return signing
    if not is_model and not workspace.file.exists():
        return None
    return signing_of(workspace, output)


def _locked(workspace: Workspace, reference: Reference) -> Locked | None:
    """Return what models.lock says of an image, where its repository is that of a model."""
    from modelbake.release.verification import Locked

    if not workspace.file.exists():
        return None
    registry, _, name = reference.name.rpartition("/")
    spec = workspace.declared.models.get(name)
    if spec is None or registry != workspace.declared.registry:
        return None
    return Locked(spec.version, lambda: workspace.locked(spec))


def _channel(name: str | None, workspace: Workspace) -> tuple[str, ChannelEntry] | None:
    if name is None:
        return None
    channels = workspace.declared.channels
    if name not in channels:
        raise UsageError(f"there is no channel {name!r}", hint=f"models.yaml has: {', '.join(channels)}")
    return name, channels[name]


def _write(path: Path, verification: Verification, output: Output) -> None:
    from modelbake.release.weightsignature import kept_bundle

    subject = "--weights-signature"
    if verification.signing is None or verification.signing.key is None or verification.baked is None:
        raise UsageError("that takes a public key in a file, and an image of this toolkit", subject=subject)
    try:
        content = kept_bundle(
            verification.repository, verification.manifest, verification.signing.key, verification.baked.files
        )
    except SignatureError as error:
        raise SignatureError(error.message, subject=subject, hint=error.hint) from error
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror})", subject=subject) from error
    output.event("weights_signature_written", f"{path}: `model_signing verify key` takes it", path=str(path))

"""Look for what must not be in an image: secrets, pickles, foreign or changed files, loose rights.

Every layer is read to its end, also what a later one deletes, and the configuration, history and labels.
NAME is a model of models.yaml whose image `build` has made here. REF is any other image: NAME:TAG or
NAME@sha256:... in the engine, or else in its registry, or oci:DIR.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.errors import EngineNotFound, ImageNotFound, UsageError
from modelbake.output import Output
from modelbake.verbs import built_image, secret_of
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.audit.images import Image
    from modelbake.audit.judging import Expected
    from modelbake.credentials import Secret

SUMMARY = "look for secrets, pickles, foreign files and loose rights in every layer of an image"

_LAYOUT = "oci:"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("image", metavar="NAME|REF", help="a model of models.yaml, or an image's reference")
    parser.add_argument("--model", metavar="NAME", help="compare REF with what is locked for this model")
    parser.add_argument("--remote", action="store_true", help="read REF from its registry, not the engine")
    parser.add_argument(
        "--canary-file",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a secret that must not be in the image; may be given again",
    )
    parser.add_argument(
        "--strict", action="store_true", help="ask picklescan and fickling of the pickles that are allowed"
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    parser.add_argument(
        "--sarif", type=Path, metavar="FILE", help="also write SARIF 2.1.0, for code scanning"
    )


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print what was found. Raises AuditFailed where anything but notes was."""
    from modelbake.audit.auditing import audit, telling_layers
    from modelbake.audit.findings import as_document, in_words, require_passed

    canaries = _canaries(args.canary_file, output)
    name = _model(args, workspace)
    expected = _expected(workspace, name)
    with _image(args, workspace, name, output) as image:
        output.event("audit_started", f"reading all of {image.name} ({image.digest})", digest=image.digest)
        told = telling_layers(output)
        findings = audit(image, expected, canaries=canaries, strict=args.strict, on_layer=told)
    if args.sarif:
        _write_sarif(args.sarif, findings)
        output.event("sarif_written", str(args.sarif), path=str(args.sarif))
    if args.json:
        output.result_json(as_document(findings))
    else:
        for line in in_words(findings):
            output.result(line)
    require_passed(findings)


def _model(args: argparse.Namespace, workspace: Workspace) -> str | None:
    """Return the model that the image is, or is compared with; None without one."""
    given: str = args.image
    reference = given.startswith(_LAYOUT) or any(mark in given for mark in "/:@")
    if reference:
        if args.model is not None:
            workspace.config.select([args.model], all=False)
        return args.model  # type: ignore[no-any-return]
    if args.model is not None or args.remote:
        option = "--model" if args.model is not None else "--remote"
        raise UsageError(f"{option} goes with a reference, and {given!r} is the name of a model")
    try:
        workspace.config.select([given], all=False)
    except UsageError as error:
        raise UsageError(
            error.message, hint=f"an image that is no model is named with its tag: {given}:latest"
        ) from error
    return given


def _expected(workspace: Workspace, name: str | None) -> Expected | None:
    from modelbake.audit.auditing import expected_of

    if name is None:
        return None
    (spec,) = workspace.config.select([name], all=False)
    return expected_of(spec, workspace.locked(spec))


@contextmanager
def _image(
    args: argparse.Namespace, workspace: Workspace, name: str | None, output: Output
) -> Iterator[Image]:
    from modelbake import engine as engines
    from modelbake.audit.images import EngineImage, RepositoryImage

    given: str = args.image
    if given == name:
        (spec,) = workspace.config.select([name], all=False)
        plan = workspace.plan(spec)
        with engines.connect() as engine:
            image = built_image(engine, plan, workspace.context(plan))
            yield EngineImage(engine, plan.local_tag, image.id)
        return
    if given.startswith(_LAYOUT):
        yield _in_layout(given.removeprefix(_LAYOUT))
        return
    from modelbake.dockerconfig import split_reference
    from modelbake.history import opened

    reference = split_reference(given)
    with ExitStack() as stack:
        if not args.remote:
            why = "the engine does not have it"
            try:
                engine = stack.enter_context(engines.connect())
            except EngineNotFound:
                why = "no engine answers"
            else:
                if found := engine.image(given):
                    yield EngineImage(engine, given, found.id)
                    return
            output.event("audit_remote", f"{given}: {why}; reading it from its registry")
        repository = stack.enter_context(opened(reference.registry, reference.repository, output))
        yield RepositoryImage(repository, reference.digest or reference.tag or "latest")


def _in_layout(given: str) -> Image:
    from modelbake.audit.images import RepositoryImage
    from modelbake.stream.layout import LayoutRepository

    folder, _, digest = given.partition("@")
    layout = LayoutRepository.open(Path(folder))
    names = [digest] if digest else layout.tags()
    if len(names) != 1:
        listed = f": {', '.join(names)}" if names else ""
        raise ImageNotFound(
            f"the layout names {len(names)} images{listed}",
            subject=f"oci:{folder}",
            hint="say which by its digest: oci:DIR@sha256:...",
        )
    return RepositoryImage(layout, names[0])


def _canaries(files: list[Path], output: Output) -> list[Secret]:
    """Return the secrets to look for: those of the files, and this machine's hub token, if it has one."""
    from modelbake.audit.tokens import SHORTEST_CANARY
    from modelbake.credentials import hub_token

    found = [secret_of(path, "--canary-file") for path in files]
    token = hub_token()
    if token and len(token.reveal_bytes()) >= SHORTEST_CANARY:
        found.append(token)
    for secret in found:
        output.redactor.add(secret)
    return found


def _write_sarif(path: Path, findings: object) -> None:
    import json

    from modelbake.audit.findings import Findings
    from modelbake.audit.sarif import as_sarif

    assert isinstance(findings, Findings)
    try:
        path.write_text(json.dumps(as_sarif(findings), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror})", subject="--sarif") from error

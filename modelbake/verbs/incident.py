"""Find every image, version and channel that holds something that must not run, and say what to do.

All models of models.yaml are searched, or those that are named: released versions, aliases, channels, the
records of their moves, candidates. What holds it, or may hold it ("unknown"), is listed, and what to do.
Exit code 0 means that the question was answered, whatever the answer is.

--quarantine marks each image that holds it, so that no channel can name it again, and moves each channel that
names one to the last version that it named before and that is free of it. Where there is none the channel
stays, and the exit code is 72.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.errors import ModelbakeError, ReleaseError
from modelbake.output import Output
from modelbake.verbs import secret_of
from modelbake.verbs.promote import mover_of
from modelbake.workspace import Workspace

if TYPE_CHECKING:
    from modelbake.config import ModelSpec
    from modelbake.manifest import Manifest
    from modelbake.release.holdings import Holding, Holdings
    from modelbake.release.incident import Incident
    from modelbake.release.questions import Question
    from modelbake.release.searching import Answer, Searcher
    from modelbake.stream.repository import RegistryRepository

SUMMARY = "find what holds a commit, a file, a package or a leaked token, and take channels off it"

_AT_ONCE = 4  # images that are asked about at the same time


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a model of models.yaml; default: all of them"
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--commit", metavar="C", help="of weights, or of the repository that models.yaml lies in"
    )
    asked.add_argument("--file-sha256", metavar="H", help="of a file of the weights")
    asked.add_argument("--package", metavar="NAME[==VERSION]", help="of Python or of the distribution")
    asked.add_argument(
        "--token-file", type=Path, metavar="FILE", help="a secret, and nothing else in the file"
    )
    parser.add_argument(
        "--quarantine", action="store_true", help="mark what holds it, and move channels off it"
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON, clean images too")


def run(args: argparse.Namespace, workspace: Workspace, output: Output) -> None:
    """Print what holds it and the steps. Raises ReleaseError where a channel stays where it must not."""
    from modelbake.release.incident import as_document, as_table, steps

    question = _question(args, output)
    specs = workspace.declared.select(args.names, all=not args.names)
    incident = _find(specs, question, workspace, output)
    moved: dict[tuple[str, str], str] = {}
    failures: list[str] = []
    if args.quarantine:
        moved, failures = _quarantine(incident, workspace, output)
    told = steps(incident, quarantined=args.quarantine, moved=moved)
    counts = {state: len(incident.of(state)) for state in ("affected", "unknown", "clean")}
    output.event(
        "incident_searched",
        f"{question.words}: {counts['affected']} images hold it, {counts['clean']} do not, of"
        f" {counts['unknown']} it is not known",
        affected=counts["affected"],
        clean=counts["clean"],
        unknown=counts["unknown"],
    )
    if args.json:
        output.result_json(as_document(incident, told, moved))
    else:
        for line in [*as_table(incident), *told]:
            output.result(line)
    if failures:
        raise ReleaseError(
            "\n".join(
                [f"{len(failures)} of what had to be done was not", *(f"  {each}" for each in failures)]
            ),
            subject="--quarantine",
            hint="what was done stays done; follow the steps above for the rest, and run it again",
        )


def _question(args: argparse.Namespace, output: Output) -> Question:
    from modelbake.release.questions import TokenQuestion, parse_commit, parse_file, parse_package

    if args.commit is not None:
        return parse_commit(args.commit)
    if args.file_sha256 is not None:
        return parse_file(args.file_sha256)
    if args.package is not None:
        return parse_package(args.package)
    secret = secret_of(args.token_file, "--token-file")
    output.redactor.add(secret)
    return TokenQuestion(secret, str(args.token_file))


def _find(specs: list[ModelSpec], question: Question, workspace: Workspace, output: Output) -> Incident:
    from modelbake.history import opened
    from modelbake.parallel import parallel
    from modelbake.release.holdings import read_holdings
    from modelbake.release.incident import Incident
    from modelbake.release.questions import TokenQuestion
    from modelbake.release.searching import Searcher

    searcher = Searcher(question, output)
    at_once = (
        1 if isinstance(question, TokenQuestion) else _AT_ONCE
    )  # layers are read with one core, and once
    models: list[Holdings] = []
    answers: dict[tuple[str, str], Answer] = {}
    quarantined: dict[str, frozenset[str]] = {}
    for spec in specs:
        with opened(workspace.declared.registry, spec.name, output) as repository:
            held = read_holdings(repository, spec.name, workspace.declared.channels, output)
            output.event("incident_model", f"{spec.name}: {len(held.images)} images in {repository.name}")
            found = parallel(held.images, _answering(searcher, repository, held), at_once)
            marked = parallel(list(held.manifests.values()), _marking(repository), _AT_ONCE)
        models.append(held)
        answers |= {(spec.name, digest): answer for digest, answer in found}
        quarantined[spec.name] = frozenset(digest for digest, is_marked in marked if is_marked)
    return Incident(question, tuple(models), answers, quarantined)


def _answering(
    searcher: Searcher, repository: RegistryRepository, held: Holdings
) -> Callable[[Holding], tuple[str, Answer]]:
    return lambda image: (image.digest, searcher.answer(repository, held, image))


def _marking(repository: RegistryRepository) -> Callable[[Manifest], tuple[str, bool]]:
    from modelbake.release.quarantine import quarantines

    return lambda manifest: (manifest.digest, bool(quarantines(repository, manifest)))


def _quarantine(
    incident: Incident, workspace: Workspace, output: Output
) -> tuple[dict[tuple[str, str], str], list[str]]:
    """Mark the images, then move the channels; return what was moved, and what was not."""
    from modelbake.history import opened
    from modelbake.release.origin import who
    from modelbake.release.quarantine import Quarantine, put_into_quarantine

    me = who()
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    reason = Quarantine(f"holds {incident.question.words}", date, me)
    moved: dict[tuple[str, str], str] = {}
    failures: list[str] = []
    # All marks first: from then on nobody promotes one of these, whatever happens to this run.
    for held, image, _ in incident.of("affected"):
        with opened(workspace.declared.registry, held.model, output) as repository:
            if put_into_quarantine(repository, held.manifests[image.digest], reason):
                output.event(
                    "quarantined", f"{held.model} {image.name} is in quarantine now", digest=image.digest
                )
    for escape in incident.escapes:
        what = f"{escape.model}: {escape.channel}"
        if escape.target is None:
            failures.append(f"{what} stays at {escape.version}: no earlier version is known to be free of it")
            continue
        with opened(workspace.declared.registry, escape.model, output) as repository:
            mover = mover_of(workspace, repository, escape.model, escape.channel, output)
            try:
                mover.rollback(escape.target.version, escape.digest if escape.by_hand else None)
            except ModelbakeError as error:
                failures.append(f"{what} stays at {escape.version}: {error.message}")
            else:
                moved[escape.model, escape.channel] = escape.target.version
    return moved, failures

"""Writers of one channel, one request at a time, on a repository that is a value: for tests of all orders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from modelbake.errors import ModelbakeError, RegistryError
from modelbake.manifest import OCI_MANIFEST, Manifest
from modelbake.release.channels import Channel, read_channel, require_known
from modelbake.release.promotion import Answer, Ask, Steps, look, move
from modelbake.release.records import Record, decode, encode, listing, next_number, tags_of

NAME = "production"
WHERE = "registry.example.com/ml/minilm"
DATE = "2026-01-31T12:00:00Z"
CONFIG = json.dumps({"os": "linux", "architecture": "amd64"}).encode()


def image(name: str) -> Manifest:
    """Return an image's manifest; another name, another digest."""
    config = {"mediaType": "x", "digest": f"sha256:{'c' * 64}", "size": 10}
    body = {"mediaType": OCI_MANIFEST, "config": config, "layers": [], "annotations": {"name": name}}
    return Manifest.of(OCI_MANIFEST, json.dumps(body).encode())


IMAGES = {name: image(name) for name in "zabcd"}
NAMES = {each.digest: name for name, each in IMAGES.items()}
KNOWN = {each.digest: each for each in IMAGES.values()}  # every manifest that was ever put, by digest
Tags = Mapping[str, str]


def apply(tags: Tags, ask: Ask) -> tuple[Tags, Answer]:
    """Return the repository and the answer after one request."""
    if ask.kind == "tags":
        return tags, Answer(tags=tuple(sorted(tags)))
    if ask.kind == "read":
        found = (tags.get(each, each) for each in ask.references)
        return tags, Answer(manifests=tuple(KNOWN.get(each) for each in found))
    assert ask.manifest is not None
    KNOWN[ask.manifest.digest] = ask.manifest
    return {**tags, ask.references[0]: ask.manifest.digest}, Answer()


def record(name: str, number: int, previous: str | None, who: str, **more: object) -> Record:
    """Return the record of a promotion to an image."""
    digest = IMAGES[name].digest
    made = Record(NAME, number, "promote", "minilm", f"1.0.{ord(name)}", digest, previous, DATE, who)
    return replace(made, **more)  # type: ignore[arg-type]


Mover = Callable[[Channel, Manifest, Record, Manifest, str], Steps[None]]


def promotion(name: str, who: str, over: str | None = None, mover: Mover = move) -> Steps[str]:
    """Promote an image as the verb does: look, then move; return what was done."""
    seen = yield from look(NAME, lambda error: None)
    require_known(seen, WHERE, over)
    target = IMAGES[name]
    if seen.digest == target.digest and not seen.by_hand:
        return "there already"
    tags = [f"{NAME}-{seen.highest:04d}"] if seen.highest else []
    made = record(name, next_number(NAME, tags), seen.digest, who, over=over is not None)
    yield from mover(seen, target, made, encode(made, listing(target, CONFIG)), WHERE)
    return "moved"


@dataclass(frozen=True)
class Outcome:
    """How a writer ended: what it returned, or the error."""

    done: str | None = None
    error: ModelbakeError | None = None


def advance(make: Callable[[], Steps[str]], answers: tuple[Answer | RegistryError, ...]) -> Ask | Outcome:
    """Return what a writer asks next, or how it ended, after these answers."""
    steps = make()
    try:
        ask = next(steps)
        for answer in answers:
            ask = steps.throw(answer) if isinstance(answer, RegistryError) else steps.send(answer)
    except StopIteration as finished:
        return Outcome(done=finished.value)
    except ModelbakeError as error:
        return Outcome(error=error)
    return ask


def run(tags: Tags, make: Callable[[], Steps[str]]) -> tuple[Tags, Outcome]:
    """Let a writer run to its end, alone."""
    answers: tuple[Answer | RegistryError, ...] = ()
    while isinstance(ask := advance(make, answers), Ask):
        tags, answer = apply(tags, ask)
        answers += (answer,)
    return tags, ask


def state(tags: Tags) -> Channel:
    """Return the channel's state as the repository is now."""
    numbers = {tag: said.number for tag, said in tags_of(NAME, tags).items() if said.claim is None}
    records = [decode(KNOWN[tags[tag]], NAME, number) for tag, number in numbers.items()]
    return read_channel(NAME, tags.get(NAME), tags, records)


def starts() -> dict[str, Tags]:
    """Return repositories to start from: an empty channel, one at `z`, one with an unfinished move."""
    empty: Tags = {"1.0.0": IMAGES["z"].digest}
    at_z, outcome = run(empty, lambda: promotion("z", "first"))
    assert outcome.done == "moved"
    tags, answers = at_z, ()
    killed = lambda: promotion("d", "killed")  # noqa: E731
    while (isinstance(ask := advance(killed, answers), Ask) and ask.references != (NAME,)) or not answers[3:]:
        assert isinstance(ask, Ask)
        tags, answer = apply(tags, ask)
        answers += (answer,)  # type: ignore[assignment]
    return {"empty": empty, "moved once": at_z, "unfinished": tags}

"""Two writers of one channel in every order of their requests, and killed at every one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from modelbake.errors import ChannelMoved, RegistryError, RegistryUnavailable
from modelbake.manifest import Manifest
from modelbake.release import promotion as protocol
from modelbake.release.channels import Channel
from modelbake.release.promotion import Answer, Ask, Steps
from modelbake.release.records import Record, parse_tag
from tests.conftest import Tally
from tests.unit.release.moving_channels import (
    IMAGES,
    NAME,
    Mover,
    Outcome,
    Tags,
    advance,
    apply,
    promotion,
    run,
    starts,
    state,
)

STARTS = starts()
Maker = Callable[[], Steps[str]]


@dataclass(frozen=True)
class Moment:
    """The repository, and each writer's answers so far with what it asks next or how it ended."""

    tags: Tags
    answers: tuple[tuple[Answer, ...], ...]
    nexts: tuple[Ask | Outcome, ...]

    @property
    def key(self) -> object:
        """What the rest of the run depends on."""
        return frozenset(self.tags.items()), self.answers


def every_moment(tags: Tags, makers: tuple[Maker, ...]) -> Iterator[Moment]:
    """Yield every state that the writers' requests can lead to, in any order; each state once."""
    begin = Moment(tags, tuple(() for _ in makers), tuple(advance(make, ()) for make in makers))
    seen = {begin.key}
    waiting = [begin]
    while waiting:
        moment = waiting.pop()
        yield moment
        for writer, ask in enumerate(moment.nexts):
            if isinstance(ask, Outcome):
                continue
            after, answer = apply(moment.tags, ask)
            require_no_record_overwritten(moment.tags, ask)
            answers = list(moment.answers)
            answers[writer] += (answer,)
            nexts = list(moment.nexts)
            nexts[writer] = advance(makers[writer], answers[writer])
            following = Moment(after, tuple(answers), tuple(nexts))
            if following.key not in seen:
                seen.add(following.key)
                waiting.append(following)


def require_no_record_overwritten(tags: Tags, ask: Ask) -> None:
    if ask.kind == "put" and parse_tag(ask.references[0]) is not None:
        assert ask.manifest is not None
        held = tags.get(ask.references[0], ask.manifest.digest)
        assert held == ask.manifest.digest, f"somebody else's {ask.references[0]} is overwritten"


def require_true(before: Tags, moment: Moment, wanted: tuple[str, ...]) -> None:
    """Hold a state in which nobody asks any more to what the writers said."""
    now = state(moment.tags)
    assert not now.by_hand, "the records say what the tag is"
    assert now.digest in {before.get(NAME), *(IMAGES[name].digest for name in wanted)}
    done = [
        IMAGES[name].digest
        for name, ended in zip(wanted, moment.nexts, strict=True)
        if isinstance(ended, Outcome) and ended.done == "moved"
    ]
    if len(done) > 1:  # one began after the other had ended, and knows it
        assert [each.digest for each in now.moves][-len(done) :] in (done, done[::-1])
        assert all(one.digest == other.previous for one, other in zip(now.moves, now.moves[1:], strict=False))
    if done:
        assert now.digest in done, "a false success"
    for ended in moment.nexts:
        assert isinstance(ended, Outcome)
        assert ended.error is None or isinstance(ended.error, ChannelMoved)


_recovered: set[object] = set()


def explore(start: str, wanted: tuple[str, ...], mover: Mover = protocol.move) -> tuple[int, int]:
    """Try all orders; return how many states and how many ends there were."""
    before = STARTS[start]
    makers = tuple(functools.partial(promotion, name, f"writer {name}", mover=mover) for name in wanted)
    moments = ends = 0
    for moment in every_moment(before, makers):
        moments += 1
        if all(isinstance(ended, Outcome) for ended in moment.nexts):
            ends += 1
            require_true(before, moment, wanted)
        elif any(isinstance(ended, Outcome) for ended in moment.nexts):
            require_safe_without_the_others(moment, wanted)
    return moments, ends


def require_safe_without_the_others(moment: Moment, wanted: tuple[str, ...]) -> None:
    """Those that have not ended are killed here: nobody is deceived, and the next promotion works."""
    now = state(moment.tags)
    for name, ended in zip(wanted, moment.nexts, strict=True):
        if isinstance(ended, Outcome) and ended.done == "moved" and now.digest != IMAGES[name].digest:
            followed = any(each.previous == IMAGES[name].digest for each in now.moves)
            assert followed or now.unfinished, "it was moved on, or everybody sees that it was overwritten"
    over = now.digest if now.by_hand else None
    if (key := frozenset(moment.tags.items())) in _recovered:
        return
    _recovered.add(key)
    after, outcome = run(moment.tags, lambda: promotion("c", "the next one", over))
    assert outcome.done == "moved", outcome
    assert state(after).digest == IMAGES["c"].digest and not state(after).by_hand


@pytest.mark.promise("channel")
@pytest.mark.parametrize("start", STARTS)
def test_every_order_of_two_writers(start: str, tally: Tally) -> None:
    moments, ends = explore(start, ("a", "b"))
    tally.count(moments)
    assert moments > 300 and ends > 5, "control: the orders were tried"


@pytest.mark.promise("channel")
def test_two_writers_of_one_image_agree(tally: Tally) -> None:
    before = STARTS["moved once"]
    makers = tuple(functools.partial(promotion, "a", who) for who in ("one", "other"))
    for moment in every_moment(before, makers):
        if all(isinstance(ended, Outcome) for ended in moment.nexts):
            tally.count()
            done = [ended.done for ended in moment.nexts if isinstance(ended, Outcome) and ended.done]
            assert not state(moment.tags).by_hand
            assert not done or state(moment.tags).digest == IMAGES["a"].digest


def without_looking_at_claims(
    seen: Channel, image: Manifest, record: Record, index: Manifest, where: str
) -> Steps[None]:
    yield from protocol._put(record.tag, index)
    assert (yield from protocol._read(record.tag)) is not None
    yield from protocol._put(seen.name, image)
    yield from protocol._confirm(seen, image, record, where, None)


def without_looking_again(
    seen: Channel, image: Manifest, record: Record, index: Manifest, where: str
) -> Steps[None]:
    steps = protocol.move(seen, image, record, index, where)
    ask = next(steps)
    while not (ask.kind == "put" and ask.references == (seen.name,)):
        ask = steps.send((yield ask))
    yield ask


@pytest.mark.control("channel")
@pytest.mark.parametrize("mover", [without_looking_at_claims, without_looking_again])
def test_a_weaker_protocol_is_found_out(mover: Mover) -> None:
    with pytest.raises(AssertionError):
        explore("moved once", ("a", "b"), mover)


def requests(before: Tags, make: Maker) -> int:
    answers: tuple[Answer, ...] = ()
    tags = before
    while isinstance(ask := advance(make, answers), Ask):
        tags, answer = apply(tags, ask)
        answers += (answer,)
    return len(answers)


@pytest.mark.promise("channel")
@pytest.mark.parametrize("start", STARTS)
def test_killed_at_every_request(start: str, tally: Tally) -> None:
    before = STARTS[start]

    def make() -> Steps[str]:
        return promotion("a", "killed")

    for moment in every_moment(before, (make,)):
        tally.count()
        now = state(moment.tags)
        assert not now.by_hand
        assert now.digest in (before.get(NAME), IMAGES["a"].digest)
        for name in ("a", "b"):
            after, outcome = run(moment.tags, functools.partial(promotion, name, "the next one"))
            assert outcome.done in ("moved", "there already")
            assert state(after).digest == IMAGES[name].digest and not state(after).by_hand


@pytest.mark.promise("channel")
@pytest.mark.parametrize("taken", [False, True], ids=["not carried out", "carried out"])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_an_error_at_every_request_is_no_false_success(taken: bool, lasting: bool, tally: Tally) -> None:
    before = STARTS["moved once"]

    def make() -> Steps[str]:
        return promotion("a", "unlucky")

    for nth in range(requests(before, make)):
        tally.count()
        tags, outcome, uncertain = before, None, False
        answers: tuple[Answer | RegistryError, ...] = ()
        while isinstance(ask := advance(make, answers), Ask):
            here = len(answers) == nth or (lasting and len(answers) > nth)
            if not here or taken:
                tags, answer = apply(tags, ask)
            answers += (RegistryUnavailable("broke off") if here else answer,)
        outcome = ask
        now = state(tags)
        assert not now.by_hand and now.digest in (before.get(NAME), IMAGES["a"].digest)
        uncertain = outcome.error is not None and "could not be read back" in outcome.error.message
        if outcome.done is not None:
            assert now.digest == IMAGES["a"].digest, "a false success"
        else:
            assert isinstance(outcome.error, RegistryUnavailable)
            assert uncertain or now.digest == before.get(NAME), "it failed, and the channel was moved"

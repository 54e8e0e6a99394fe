"""A hub that answers slowly, for ever or not at all: none of the programs that read from it hangs.

Limits are made short here, and are the same mechanism as the long ones, which are looked at as figures.
"""

from __future__ import annotations

import random
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from modelbake.sources.patience import Patience
from tests.conftest import Tally
from tests.promises import cases
from tests.servers.hub import Fault, Hub, Repo
from tests.unit.hostile.forked import BUILDER
from tests.unit.hostile.readers import (
    CALM,
    HURRIED,
    NAME,
    QUICK,
    READERS,
    TOKEN,
    UNHURRIED,
    Case,
    Refused,
    ends,
    fetch,
    outcome,
    require_right,
)

FILES = {"config.json": b'{"a": 1}' * 1000, "model.safetensors": random.Random(5).randbytes(20_000)}
# By chance: the offset and the pace. Where there is neither, only the file differs.
RANDOM = dict.fromkeys(("body", "body in pieces", "head", "first head"), cases(1, 100))
FIXED = dict.fromkeys(("silence", "come back later", "busy"), cases(1, 5))
_AT_ONCE = 20  # hubs, and readers that mostly wait


@pytest.fixture
def case(hub: Hub, tmp_path: Path) -> Case:
    commit = Repo(hub.root, NAME).head.id
    options = (*HURRIED, "--grace", "0.8")
    return Case(hub.url, commit, FILES, tmp_path / "case", options=options, patience=QUICK)


def slow(kind: str, path: str, chance: random.Random) -> Fault:
    """Make a fault in which bytes come, one by one, often enough that no timeout for the next one expires."""
    every = chance.uniform(0.05, 0.3)
    match kind:
        case "body":
            return Fault("trickle", path, offset=chance.randrange(len(FILES[path])), seconds=every)
        case "body in pieces":
            return Fault("drop", path, offset=chance.randrange(100))
        case "head":
            return Fault("slow_head", path, method="GET", seconds=every)
        case "first head":
            return Fault("slow_head", path, seconds=every)
        case "silence":
            return Fault("delay", path, seconds=3600)
        case "come back later":
            return Fault("status", path, status=429, retry_after=3600)
        case "busy":
            return Fault("status", path, status=503)
    raise AssertionError(kind)


@pytest.mark.promise("hub-hang")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("kind", "seeds"), (RANDOM | FIXED).items())
def test_a_file_that_never_comes(
    hub: Hub, case: Case, tally: Tally, reader: str, kind: str, seeds: int
) -> None:
    # Of the file in Git LFS the resolver reads nothing.
    paths = ["config.json", *(["model.safetensors"] if reader != "resolver" else [])]

    def ask(seed: int) -> None:
        chance = random.Random(f"{reader} {kind} {seed}")
        with Hub(hub.root, tokens={TOKEN: [NAME]}) as own:
            own.faults.add(slow(kind, chance.choice(paths), chance))
            asked = replace(case, hub=own.url, folder=case.folder / str(seed))
            taken = outcome(READERS[reader], asked)
            require_right(taken, asked)
            # Of a body that is slow from near its end on, all may come in time.
            assert taken is None or kind == "body", f"seed {seed}"

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(ask, range(seeds)):
            tally.count()


@pytest.mark.parametrize("reader", READERS)
def test_a_hub_that_answers_is_read(case: Case, reader: str) -> None:
    case.options, case.patience = UNHURRIED, CALM  # what the limits are for is not how fast this machine is
    assert outcome(READERS[reader], case) == case.truth


@pytest.mark.promise("hub-hang")
@pytest.mark.parametrize("path", ["*/revision/*", "*/tree/*"])
@pytest.mark.parametrize("fault", [Fault("slow_head", seconds=0.1), Fault("delay", seconds=3600)])
def test_a_listing_that_never_comes(hub: Hub, case: Case, path: str, fault: Fault) -> None:
    hub.faults.add(replace(fault, path=path))
    with pytest.raises(Refused, match="timeout"):
        ends(lambda: READERS["resolver"](case))


@pytest.mark.promise("hub-hang")
def test_a_listing_of_which_every_page_comes_late(tmp_path: Path) -> None:
    """Each answer is in time, and there is always one more."""
    files = {f"{number}.json": b"{}" for number in range(60)}
    Repo.create(tmp_path / "hub", NAME, files)
    with Hub(tmp_path / "hub", tokens={TOKEN: [NAME]}, page_size=1) as hub:
        case = Case(hub.url, Repo(hub.root, NAME).head.id, files, tmp_path / "case", patience=QUICK)
        hub.faults.add(Fault("delay", "*/tree/*", seconds=0.3))
        with pytest.raises(Refused, match="too long for all of its answers"):
            ends(lambda: READERS["resolver"](case))
        huggingface_hub.close_session()


@pytest.mark.promise("hub-hang")
def test_many_files_of_which_each_comes_late(tmp_path: Path) -> None:
    """No file takes longer than it may, but all of them do."""
    files = {f"{number}.json": b"{}" for number in range(12)}
    Repo.create(tmp_path / "hub", NAME, files)
    program = (
        f"import sys; sys.path.insert(0, {str(BUILDER)!r})\n"
        "import persistence, fetch\n"
        "persistence._EACH = 0.1\n"
        "sys.exit(fetch.main(sys.argv[1:]))\n"
    )
    with Hub(tmp_path / "hub", tokens={TOKEN: [NAME]}) as hub:
        script = tmp_path / "fetch.py"
        script.write_text(program)
        hub.faults.add(Fault("delay", "*.json", method="GET", seconds=0.6))
        case = Case(
            hub.url,
            Repo(hub.root, NAME).head.id,
            files,
            tmp_path / "case",
            options=(*HURRIED, "--grace", "1.5", "--jobs", "1"),
        )
        with pytest.raises(Refused, match="too slow"):
            ends(lambda: fetch(case, script))


@pytest.mark.promise("hub-hang")
def test_the_figures_are_those_that_the_documentation_names() -> None:
    sys.path.insert(0, str(BUILDER))
    try:
        from persistence import Limits, longest_run  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(BUILDER))
    assert (Limits().attempts, Limits().patience, Limits().grace) == (6, 300, 900)
    assert longest_run([5 << 30], Limits()) == 900 + 5 + (5 << 30) / (50 * 1024)
    patience = Patience()
    assert (patience.connect, patience.read, patience.answer, patience.listing) == (10, 30, 60, 900)


@pytest.mark.control("hub-hang")
@pytest.mark.parametrize("kind", ["trickle", "slow_head"])
def test_a_naive_reader_hangs_and_that_is_seen(hub: Hub, case: Case, kind: str) -> None:
    """A timeout for the next byte is what most programs have."""
    fault = Fault("trickle", "config.json", seconds=0.1)
    hub.faults.add(fault if kind == "trickle" else replace(fault, kind="slow_head"))
    request = urllib.request.Request(  # noqa: S310  # the hub of this test
        f"{hub.url}/{NAME}/resolve/{case.commit}/config.json", headers={"Authorization": f"Bearer {TOKEN}"}
    )

    def naive() -> bytes:
        with urllib.request.urlopen(request, timeout=2) as answer:  # noqa: S310
            content: bytes = answer.read()
            return content

    with pytest.raises(AssertionError, match="it hangs"):
        ends(naive, 4)
    hub.faults.clear()
    assert ends(naive, 30) == FILES["config.json"], "control: the same reader at the same hub"

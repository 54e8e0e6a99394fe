"""A hub that serves other bytes than were locked, at random, to each of the programs that read from it."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from modelbake.credentials import Secret
from modelbake.sources.hub import HubSource
from modelbake.sources.hub_read import HubReader
from tests.conftest import Tally
from tests.promises import cases
from tests.servers.hub import Fault, Hub, Repo
from tests.unit.hostile.readers import (
    NAME,
    READERS,
    TOKEN,
    UNHURRIED,
    Case,
    Refused,
    ends,
    fetch,
    outcome,
    require_right,
    resolver,
    sabotaged,
    stream,
)

WEIGHTS = random.Random(5).randbytes(700_000)
# Two files of the same size: what distinguishes them is their bytes alone.
FILES = {
    "config.json": b'{"a": 1}' * 40,
    "other.json": b'{"b": 2}' * 40,
    "model.safetensors": WEIGHTS,
    "more.safetensors": WEIGHTS[::-1],
    "sub/vocab.txt": b"word\n" * 30_000,
    "sub/empty.txt": b"",
}
SEEDS = cases(3, 100)


def swap(hub: Hub, one: str, other: str) -> None:
    """Make the hub serve each of two files under the other's name."""
    repo = Repo(hub.root, NAME)
    first, second = (repo.head.file(path) for path in (one, other))
    assert first is not None and second is not None and first.size == second.size
    places = [repo.object_path(file) for file in (first, second)]
    contents = [place.read_bytes() for place in places]
    for place, content in zip(places, reversed(contents), strict=True):
        place.unlink()
        place.write_bytes(content)


def damage(hub: Hub, chance: random.Random, hashed: list[str]) -> list[Fault]:
    """Think of one to three faults in what the hub serves for its files."""
    made: list[Fault] = []
    for _ in range(chance.randint(1, 3)):
        path = chance.choice(hashed)
        size = len(FILES[path])
        offset, some = chance.randrange(-size, size), chance.randint(1, size)
        count = chance.choice([1, 2, None])
        kind = chance.choice(
            ["corrupt", "truncate", "short", "extra", "drop", "endless", "content_range", "html", "status"]
        )
        match kind:
            case "corrupt":
                made.append(Fault("corrupt", path, offset=offset, count=count))
            case "drop":
                made.append(Fault("drop", path, offset=abs(offset), count=count))
            case "content_range":
                # It takes a connection that broke to be asked for a range.
                made.append(Fault("drop", path, offset=abs(offset), count=1))
                made.append(Fault("content_range", path, size=some, count=count))
            case "html":
                made.append(Fault("html", path, method="GET", count=count))
            case "status":
                status = chance.choice([200, 204, 206, 304, 404, 416, 429, 500, 503])
                made.append(Fault("status", path, method="GET", status=status, count=count))
            case "truncate" | "short" | "extra" | "endless":
                made.append(Fault(kind, path, size=some, count=count))
    return made


@pytest.mark.promise("wrong-bytes", "hub-hang", "hub-token")
@pytest.mark.parametrize("reader", READERS)
def test_whatever_is_served_only_the_locked_bytes_are_accepted(
    hub: Hub, case: Case, tally: Tally, reader: str
) -> None:
    # The resolver takes a Git LFS file's sha256 from the listing, and fetches the others.
    hashed = [path for path, data in FILES.items() if data and not (reader == "resolver" and "safe" in path)]
    accepted = 0
    for seed in range(SEEDS):
        chance = random.Random(f"{reader} {seed}")
        hub.faults.clear()
        hub.faults.add(*damage(hub, chance, hashed))
        case.options = (*UNHURRIED, *(("--ranges-from", "65536") if chance.random() < 0.5 else ()))
        try:
            taken = outcome(READERS[reader], case)
            require_right(taken, case)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        accepted += taken is not None
        tally.count()
    assert not hub.token_leaks()
    hub.faults.clear()
    assert outcome(READERS[reader], case) == case.truth, "control: without a fault it is accepted"
    if SEEDS > 50:
        assert 0.03 * SEEDS < accepted < 0.97 * SEEDS, "control: some faults pass, and some are lasting"


@pytest.mark.promise("wrong-bytes")
@pytest.mark.parametrize("reader", READERS)
def test_two_files_that_have_been_swapped(hub: Hub, case: Case, tally: Tally, reader: str) -> None:
    pairs = [("config.json", "other.json")]
    if reader != "resolver":
        pairs.append(("model.safetensors", "more.safetensors"))
    for pair in pairs:
        swap(hub, *pair)
        with pytest.raises(Refused, match=r"sha256|sha1"):
            READERS[reader](case)
        swap(hub, *pair)
        tally.count()
    assert READERS[reader](case) == case.truth, "control"


@pytest.mark.promise("wrong-bytes")
@pytest.mark.parametrize("reader", ["fetch", "stream"])
def test_a_branch_that_moved_after_the_lock_changes_nothing(hub: Hub, case: Case, reader: str) -> None:
    Repo(hub.root, NAME).commit({path: data[::-1] + b"!" for path, data in FILES.items()})
    assert READERS[reader](case) == case.truth


@pytest.mark.promise("wrong-bytes", "hub-hang")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", ["repository", "commit"])
def test_what_was_deleted_after_the_lock_is_named(hub: Hub, case: Case, reader: str, what: str) -> None:
    if what == "repository":
        shutil.rmtree(hub.root / "repos" / NAME)
    else:
        Repo(hub.root, NAME).squash()
    with pytest.raises(Refused, match=r"no such|has no (?:such )?(?:branch|commit)|hides it"):
        ends(lambda: resolver(case, revision=case.commit) if reader == "resolver" else READERS[reader](case))


@pytest.mark.control("wrong-bytes")
class TestControls:
    """With its comparison taken out a program accepts wrong bytes, and the check of these tests says so."""

    def test_fetch(self, hub: Hub, case: Case, tmp_path: Path) -> None:
        naive = sabotaged(tmp_path, "transfer.py", "if digest != self.entry.sha256:", "if False:")
        hub.faults.add(Fault("corrupt", "model.safetensors", offset=99))
        self.finds(lambda case: fetch(case, naive), case)

    def test_stream(self, hub: Hub, case: Case) -> None:
        """Without the layer's flow, which compares: what the reader alone hands out."""
        hub.faults.add(Fault("corrupt", "model.safetensors", offset=99))

        def naive(case: Case) -> dict[str, str]:
            reader = HubReader(case.locked(), Secret(TOKEN), patience=case.patience)
            return {
                file.path: hashlib.sha256(b"".join(reader.read(file))).hexdigest()
                for file in case.locked().files
            }

        self.finds(naive, case)

    def test_resolver(self, hub: Hub, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
        class Agreeable(str):
            __slots__ = ()

            def __ne__(self, other: object) -> bool:
                return False

            __hash__ = str.__hash__

        honest = HubSource._digest

        def naive(*args: object) -> tuple[int, str, str]:
            size, sha256, blob = honest(*args)  # type: ignore[arg-type]
            return size, sha256, Agreeable(blob)

        monkeypatch.setattr(HubSource, "_digest", naive)
        hub.faults.add(Fault("corrupt", "config.json", offset=5))
        self.finds(resolver, case)

    def finds(self, read: Callable[[Case], dict[str, str]], case: Case) -> None:
        accepted = outcome(read, case)
        assert accepted is not None
        with pytest.raises(AssertionError, match="wrong bytes were accepted"):
            require_right(accepted, case)


def test_the_readers_are_what_is_used(case: Case) -> None:
    assert stream(case) == fetch(case) == resolver(case) == case.truth

"""A lock that was edited by hand, field by field: what refuses it, or what fails at the latest.

read    `read_lock` refuses it: every verb ends there, offline
drift   it is no lock of this models.yaml: every verb ends there, offline
hub     only the hub can tell: `lock --check` lists it, and fetching fails where a byte differs
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modelbake.errors import LockDrift, LockError, LockMissing, RevisionNotFound
from modelbake.lock import LockedFile, LockedModel, decode_lock, encode_lock, require_locked
from tests.conftest import Tally
from tests.servers.environment import ROOT
from tests.unit import test_cli_lock
from tests.unit.test_cli_lock import TOKEN, Folder
from tests.unit.test_injection import with_right_digests
from tests.unit.test_lock import make_lock, make_spec

folder = test_cli_lock.folder
FETCH = ROOT / "images/builder/fetch.py"
OTHER = {"size": 4711, "sha256": "ef" * 32, "commit": "f" * 40, "source": "hf://org/other", "schema": 2}
OTHER |= {
    "hub": "https://mirror.example.com",
    "revision": "v2",
    "path": "moved.json",
    "digest": f"sha256:{'e' * 64}",
}
MODEL = ("models", "minilm")
Place = tuple[str | int, ...]


def places(document: Any, at: Place = ()) -> Iterator[Place]:
    """Yield where every value of a lock is, mappings and lists included."""
    yield at
    if isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield from places(value, (*at, key))


def edits(document: Any) -> Iterator[tuple[str, Place, Any]]:
    """Yield every edit of a lock by what it does: each value replaced, removed, added to or reordered."""
    for place in places(document):
        value = document
        for part in place:
            value = value[part]
        for kind, key, new in changes_of(value, str(place[-1]) if place else ""):
            made = copy.deepcopy(document)
            holder = made
            for part in place[:-1]:
                holder = holder[part]
            if place:
                holder[place[-1]] = new
            yield kind, place if key is None else (*place, key), made if place else new


def changes_of(value: Any, name: str) -> Iterator[tuple[str, str | int | None, Any]]:
    """Yield what one value can become, by what is done to it and to which of its parts."""
    if isinstance(value, dict):
        for key in value:
            yield "removed", key, {each: value[each] for each in value if each != key}
            yield "renamed", key, {(f"{each}x" if each == key else each): value[each] for each in value}
        yield "added", None, {**value, "more": 1}
    elif isinstance(value, list):
        for index in range(len(value)):
            yield "removed", index, [*value[:index], *value[index + 1 :]]
            yield "doubled", index, [*value[: index + 1], *value[index:]]
        if len(value) > 1:
            yield "reordered", None, value[::-1]
        file = {"path": "zzz.json", "size": 1, "sha256": "cd" * 32}
        yield "added", None, [*value, file if name == "files" else "zzz"]
    else:
        yield "replaced", None, OTHER.get(name, "zzz")


def stopped_by(document: Any) -> str:
    """Return what stops an edited lock."""
    try:
        lock = decode_lock(json.dumps(document).encode())
    except LockError:
        return "read"
    try:
        require_locked(make_spec(include=["*.json", "*.safetensors"]), lock)
    except (LockMissing, LockDrift):
        return "drift"
    return "hub"


LOCK = json.loads(
    encode_lock(make_lock(LockedModel.of(
        make_spec(include=["*.json", "*.safetensors"]), "0123456789" * 4,
        [LockedFile("a.json", 1, "ab" * 32), LockedFile("b.safetensors", 2, "cd" * 32)],
    )))
)  # fmt: skip


@pytest.mark.promise("lock")
def test_what_stops_each_edit(tally: Tally) -> None:
    assert stopped_by(LOCK) == "hub", "control: what was not edited is read"
    only_hub = []
    for kind, place, document in edits(LOCK):
        tally.count()
        if stopped_by(document) == "hub":
            only_hub.append((kind, place))
    # The commit is what the hub is asked for; nothing here can tell whether it is the right one.
    assert only_hub == [("replaced", (*MODEL, "commit"))]


@pytest.mark.promise("lock")
def test_what_stops_each_edit_of_somebody_who_corrects_the_digest(tally: Tally) -> None:
    only_hub = set()
    for kind, place, document in edits(LOCK):
        tally.count()
        if stopped_by(with_right_digests(document)) == "hub":
            only_hub.add((kind, place[2:3], place[4:]))
    assert only_hub == {
        ("replaced", ("commit",), ()),
        ("replaced", ("digest",), ()),  # which was corrected, as a removed one: nothing is edited then
        ("removed", ("digest",), ()),
        ("replaced", ("files",), ("path",)),
        ("replaced", ("files",), ("size",)),
        ("replaced", ("files",), ("sha256",)),
        ("removed", ("files",), ()),
        ("added", ("files",), ()),
        ("reordered", ("files",), ()),  # which was sorted again
    }


def edit(folder: Folder, change: Callable[[Any], None]) -> None:
    """Edit the lock of model `two`, and correct its digest."""
    path = folder.path / "models.lock"
    document = json.loads(path.read_text())
    change(document["models"]["two"])
    path.write_text(json.dumps(with_right_digests(document)))


def fetch(folder: Folder) -> int:
    """Fetch what the lock says as a build does; return the exit code."""
    done = folder.run("render", "two", "--output", "out")
    assert done.returncode == 0, done.stderr
    secrets = folder.path / "secrets"
    secrets.mkdir()
    (secrets / "sources").write_bytes((folder.path / "out/sources.json").read_bytes())
    (secrets / "hf_token").write_text(TOKEN)
    (manifest,) = (folder.path / "out/weights").glob("*/manifest.json")
    command = [
        sys.executable,
        str(FETCH),
        str(manifest),
        str(folder.path / "models"),
        "--secrets",
        str(secrets),
    ]
    fetched = subprocess.run([*command, "--patience", "0"], capture_output=True, text=True, check=False)
    assert "Traceback" not in fetched.stderr
    return fetched.returncode


def first_file(**changes: Any) -> Callable[[Any], None]:
    return lambda model: model["files"][0].update(changes)


EDITS: dict[str, tuple[Callable[[Any], None], int]] = {
    "sha256": (first_file(sha256="cd" * 32), 24),
    "size": (first_file(size=4711), 24),
    "path": (first_file(path="b2.safetensors"), 22),
    "an added file": (lambda model: model["files"].append({"path": "z", "size": 1, "sha256": "cd" * 32}), 22),
    "commit": (lambda model: model.update(commit="f" * 40), 22),
    # Nothing that is missing is fetched; what is there is right.
    "a removed file": (lambda model: model["files"].pop(1), 0),
}


@pytest.mark.promise("lock")
@pytest.mark.parametrize("what", EDITS)
def test_what_only_the_hub_can_tell_it_does(folder: Folder, what: str) -> None:
    change, code = EDITS[what]
    edit(folder, change)
    done = folder.run("lock", "--check")
    assert done.returncode in (LockDrift.exit_code, RevisionNotFound.exit_code), done.stderr
    assert "two" in done.stdout + done.stderr
    assert fetch(folder) == code


@pytest.mark.control("lock")
def test_what_was_not_edited_is_fetched(folder: Folder) -> None:
    assert fetch(folder) == 0
    assert (folder.path / "models/a.safetensors").read_bytes() == b"first shard"


@pytest.mark.control("lock")
def test_a_reader_that_does_not_compare_digests_is_found() -> None:
    right = copy.deepcopy(LOCK)
    right["models"]["minilm"]["files"][0]["size"] = 4711
    assert stopped_by(right) == "read"
    assert stopped_by(with_right_digests(right)) == "hub"


def test_the_walk_reaches_every_field() -> None:
    reached = {part for place in places(LOCK) for part in place if isinstance(part, str)}
    assert reached >= {
        "schema",
        "source",
        "hub",
        "revision",
        "commit",
        "include",
        "exclude",
        "digest",
        "size",
        "path",
    }

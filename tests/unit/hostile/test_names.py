"""A hub whose files have hostile names: none of the programs that read from it writes outside its folder."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import subprocess
import tarfile
import unicodedata
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from modelbake.errors import ModelbakeError
from modelbake.lock import Lock, LockedFile, LockedModel, decode_lock, encode_lock
from modelbake.plan import WeightGroup
from modelbake.sources import selecting
from modelbake.sources.patience import Patience
from modelbake.stream.layers import WeightLayer
from modelbake.weightpath import path_problem
from tests.conftest import Tally
from tests.promises import cases
from tests.servers.hub import Hub, Repo
from tests.unit.hostile.forked import BUILDER
from tests.unit.hostile.readers import (
    NAME,
    TOKEN,
    Case,
    Refused,
    ends,
    fetch,
    prepare,
    resolver,
    sabotaged,
)
from tests.unit.images.test_fetch import Rogue

CONTENT = b"{}"
HOSTILE = {
    "traversal": "../outside.json",
    "traversal inside": "a/../../outside.json",
    "traversal, backslashes": "..\\outside.json",
    "absolute": "/tmp/modelbake-outside.json",
    "two slashes": "//tmp/x.json",
    "a drive": "C:\\x.json",
    "backslash": "a\\b.json",
    "NUL": "a\x00.json",
    "newline": "a\nRUN x.json",
    "escape sequence": "a\x1b[2J.json",
    "right to left": "a\u202egnp.json",
    "dot": "./x.json",
    "dots": "x/..",
    "empty part": "a//b.json",
    "folder of git": "x/.git/config.json",
    "folder of git, upper": "x/.GIT/config.json",
    "whiteout": "x/.wh.config.json",
    "whiteout of all": "x/.wh..wh..opq",
    "long part": "a" * 300 + ".json",
    "long path": "a/" * 600 + "b.json",
    "1 MB": "m" * 1_000_000 + ".json",
    "1 MB of folders": ("m" * 25_000 + "/") * 40 + "b.json",
}
# What only the lock's own reader refuses: invisible text in a name is no way out of a folder.
SHOWN_ONLY = {"right to left"}
PAIRS = {
    "case": ("Config.json", "config.JSON"),
    "case of a folder": ("A/x.json", "a/X.json"),
    "normalisation": (unicodedata.normalize("NFC", "é.json"), unicodedata.normalize("NFD", "é.json")),
    "a file and a folder": ("a.json", "a.json/b.json"),
    "a file and a folder, case": ("A.json", "a.json/b.json"),
}


def make_case(hub: Hub, folder: Path, *paths: str) -> Case:
    shutil.rmtree(hub.root, ignore_errors=True)
    files = {path: CONTENT + b" " * number for number, path in enumerate(paths)}
    repo = Repo.create(hub.root, NAME, files)
    return Case(hub.url, repo.head.id, files, folder / "in" / "case")


def random_name(chance: random.Random) -> str:
    """Make a name that has at least one thing in it that no path may have."""
    parts = [chance.choice(["a", "B", "é", "weights", "1"]) for _ in range(chance.randint(1, 4))]
    bad = ["..", ".", "", ".git", ".GiT", "\x00", "x\ty", "a\\b", "\x7f", "..\\..", ".wh.a", "y" * 256]
    parts.insert(chance.randint(0, len(parts)), chance.choice(bad))
    return "/".join(parts) + chance.choice(["", ".json"]) if chance.random() < 0.9 else "/" + "/".join(parts)


def is_named_otherwise(path: str) -> bool:
    """Whether the random ending has made a fine name of a bad one."""
    return path_problem(path) is None


NAMES = [
    *HOSTILE.values(),
    *[
        name
        for seed in range(cases(5, 200))
        if not is_named_otherwise(name := random_name(random.Random(seed)))
    ],
]


def standing(folder: Path) -> dict[Path, bytes]:
    """Return every file of a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def require_inside(folder: Path, case: Case, before: dict[Path, bytes]) -> None:
    """Nothing has come, gone or changed but below the case's destination."""
    now = standing(folder)
    new = {path for path in {*now, *before} if now.get(path) != before.get(path)}
    ours = {"sources", "hf_token", "manifest.json"}
    outside = [path for path in new if not path.is_relative_to(case.destination) and path.name not in ours]
    assert not outside, f"written outside: {outside}"
    assert not Path(HOSTILE["absolute"]).exists()


@pytest.mark.promise("hub-names")
def test_no_such_name_is_locked(hub: Hub, tmp_path: Path, tally: Tally) -> None:
    for name in NAMES:
        case = make_case(hub, tmp_path, name, "good.json")
        tally.count()
        try:
            accepted = ends(lambda case=case: locked_all(case))  # type: ignore[misc]
        except Refused as refused:
            text = str(refused)
        else:
            # What git keeps its own files in is passed over like those.
            assert set(accepted) == {"good.json"} and "/.git" in f"/{name}".lower(), name[:100]
            continue
        assert "the file name" in text and len(text) < 2000, name[:100]
        assert re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text) is None, "the name is shown harmless"
        assert not hub.requests_for("*outside*"), "and is not asked for"


def locked_all(case: Case) -> dict[str, str]:
    """Lock with the patterns that take everything: what a pattern leaves out does no harm."""
    # The test's own hub takes its time for a megabyte of name.
    return resolver(replace(case, files={"*": b""}, patience=Patience()))


@pytest.mark.promise("hub-names")
@pytest.mark.parametrize("pair", PAIRS)
def test_no_two_names_for_one_file_are_locked(hub: Hub, tmp_path: Path, pair: str) -> None:
    with pytest.raises(Refused, match="cannot both exist"):
        locked_all(make_case(hub, tmp_path, *PAIRS[pair]))


@pytest.mark.promise("hub-names", "lock")
def test_no_such_name_in_a_lock_is_read(tally: Tally) -> None:
    """What `publish` and `build` begin with, where somebody has written the name into the lock."""
    for names in [*((name,) for name in NAMES), *PAIRS.values()]:
        with pytest.raises(ModelbakeError):
            ends(lambda names=names: decode_lock(encode_lock(lock_of(*names))))  # type: ignore[misc]
        tally.count()
    assert decode_lock(encode_lock(lock_of("good.json"))).models, "control"


def lock_of(*paths: str) -> Lock:
    files = tuple(LockedFile(path, len(CONTENT), "ab" * 32) for path in sorted(paths))
    model = LockedModel("m", f"hf://{NAME}", "http://hub", "main", "ab" * 20, ("*",), (), files)
    return Lock({"m": model})


@pytest.mark.promise("hub-names")
def test_no_such_name_is_fetched(hub: Hub, tmp_path: Path, tally: Tally) -> None:
    """The builder stage believes no manifest; one run for each name of a kind, the others in one process."""
    for name in [name for kind, name in HOSTILE.items() if kind not in SHOWN_ONLY][
        :: 1 if cases(0, 1) else 4
    ]:
        case = Case(hub.url, "ab" * 20, {name: CONTENT}, tmp_path / "in" / "case")
        before = standing(tmp_path)
        with pytest.raises(Refused, match="not a safe path"):
            fetch(case)
        require_inside(tmp_path, case, before)
        tally.count()
    for pair in list(PAIRS.values())[:: 1 if cases(0, 1) else 2]:
        with pytest.raises(Refused, match=r"the same name|also the folder"):
            fetch(make_case(hub, tmp_path, *pair))
        tally.count()
    program = (
        f"import sys, json; sys.path.insert(0, {str(BUILDER)!r})\n"
        "from manifest import unsafe\n"
        "print(json.dumps([bool(unsafe(name)) for name in json.load(sys.stdin)]))\n"
    )
    checked = [name for name in NAMES if name not in {HOSTILE[kind] for kind in SHOWN_ONLY}]
    done = subprocess.run(
        ["python3", "-c", program], input=json.dumps(checked), capture_output=True, text=True, check=True
    )
    assert [name for name, bad in zip(checked, json.loads(done.stdout), strict=True) if not bad] == []
    tally.count(len(checked))


@pytest.mark.promise("hub-names")
def test_links_of_a_repository_are_files_or_nothing(hub: Hub, tmp_path: Path) -> None:
    """git keeps a link as a file that holds where it leads: so it is listed, and so it is written."""
    case = make_case(hub, tmp_path, "good.json")
    case.files = {"link": b"../../../etc/passwd", "good.json": CONTENT}
    case.commit = Repo(hub.root, NAME).commit({"link": b"../../../etc/passwd"}).id
    assert resolver(case) == case.truth
    before = standing(tmp_path)
    assert fetch(case) == case.truth
    require_inside(tmp_path, case, before)
    assert not any(path.is_symlink() for path in case.destination.rglob("*"))
    with tarfile.open(fileobj=io.BytesIO(tar_of(case))) as archive:
        assert all(member.isreg() or member.isdir() for member in archive)


def tar_of(case: Case) -> bytes:
    layer = WeightLayer(WeightGroup(case.locked().files))
    return b"".join(
        case.files[segment.file.path] if segment.file else segment.literal or b""
        for segment in layer.segments
    )


@pytest.mark.promise("hub-names", "hub-hang")
def test_more_files_than_any_model_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = cases(5_000, 100_000)
    monkeypatch.setattr("modelbake.sources.hub.MOST_FILES", most)
    paths = [f"{number % 97}/{number}.safetensors" for number in range(most + 1)]
    repo = Repo.create(tmp_path / "hub", NAME, dict.fromkeys(paths, CONTENT))
    with Hub(tmp_path / "hub", tokens={TOKEN: [NAME]}, page_size=most // 5) as hub:
        case = Case(hub.url, repo.head.id, {}, tmp_path / "case")
        with pytest.raises(Refused, match=f"holds more than {most:,} files"):
            ends(lambda: locked_all(case), 120)
        repo.commit({paths[0]: None})
        accepted = ends(lambda: locked_all(case), 120)
        assert len(accepted) == most, "control: one file less is taken"
        huggingface_hub.close_session()


@pytest.mark.promise("hub-names", "hub-hang")
def test_a_manifest_of_100_000_names_is_read_in_time(tmp_path: Path) -> None:
    """Then the hub is asked, which is not there."""
    most = cases(10_000, 100_000)
    files = {f"{number % 97}/{number}.safetensors": CONTENT for number in range(most)}
    case = Case("http://127.0.0.1:9", "ab" * 20, files, tmp_path / "case")
    with pytest.raises(Refused, match="refused"):
        ends(lambda: fetch(case))


@pytest.mark.control("hub-names")
class TestControls:
    """Without the grammar of names a file is written outside, and the check of these tests says so."""

    def test_fetch(self, hub: Hub, tmp_path: Path) -> None:
        made = make_case(hub, tmp_path, HOSTILE["traversal"])
        naive = sabotaged(tmp_path, "manifest.py", "(reason := unsafe(path))", '(reason := "")')
        # A hub that serves these bytes under whatever address a client makes of the name.
        with Rogue(lambda ask: ask.serve(CONTENT)) as any_name:
            case = replace(made, hub=any_name.url)
            command = prepare(case, naive)
            (case.folder / "outside.json").write_text("somebody's")
            before = standing(tmp_path)
            subprocess.run(command, capture_output=True, timeout=60, check=False)
        with pytest.raises(AssertionError, match="written outside"):
            require_inside(tmp_path, case, before)

    def test_resolver(self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        case = make_case(hub, tmp_path, HOSTILE["backslash"])
        monkeypatch.setattr(selecting, "path_problem", lambda path: None)
        assert locked_all(case) == case.truth, "without the grammar the name is locked"

    def test_stream(self) -> None:
        """A layer itself asks nothing: the lock's reader is what stands before it."""
        layer = WeightLayer(WeightGroup((LockedFile("../../x", 0, "ab" * 32),)))
        with tarfile.open(
            fileobj=io.BytesIO(b"".join(part.literal or b"" for part in layer.segments))
        ) as made:
            assert "models/../../x" in made.getnames()

"""Hostile text in every string of every file that people write: it is refused, or stays a value.

The files are made from their schemas with every key in them, `build.py render` runs on each, and
BuildKit's own parser says what came out.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelbake import cli
from modelbake.config import load_config
from modelbake.dockerfile import Instruction
from modelbake.errors import ConfigError, ModelbakeError
from modelbake.lock import Lock, LockedFile, LockedModel, LockedSource, encode_lock
from modelbake.runtime import ServerEntry
from modelbake.schema import ModelsFile
from tests.conftest import Tally
from tests.promises import cases
from tests.unit import whole_documents
from tests.unit.buildkit_reading import by_buildkit
from tests.unit.hostile_text import HOSTILE, PLACES, TEXTS, placed, watched
from tests.unit.whole_documents import as_yaml, strings, text_at, with_text

MODELS = whole_documents.models_file()
RUNTIME = whole_documents.runtime_file()
REQUIREMENTS = f"torch==1.0 --hash=sha256:{'ab' * 32}\nweb==2.0 --hash=sha256:{'cd' * 32}\n"
CANARY = "canary of a file that nobody named"
ENDINGS = {error.exit_code for error in ModelbakeError.__subclasses__()} | {11, 12, 13, 14, 31}
_UNSEEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


@dataclass
class Case:
    """A user's folder, in a folder of its own that nothing outside `out` of may be written to."""

    folder: Path
    models: Any = field(default_factory=lambda: MODELS)
    runtime: Any = field(default_factory=lambda: RUNTIME)
    change_lock: Callable[[Any], Any] | None = None
    app_files: tuple[str, ...] = ("server.py",)

    def write(self) -> None:
        """Write the files; models.lock is of models.yaml, if that is one at all."""
        (self.folder / "canary.txt").write_text(CANARY)
        home = self.folder / "images/embeddings"
        home.mkdir(parents=True)
        (home / "requirements.txt").write_text(REQUIREMENTS)
        for name in self.app_files:
            # A file of the hostile name, where there can be one: then only the grammar keeps it out.
            with suppress(OSError, ValueError, RecursionError):
                if (home / name).resolve().is_relative_to(home):
                    (home / name).parent.mkdir(parents=True, exist_ok=True)
                    (home / name).write_text("# app\n")
        (home / "runtime.yaml").write_bytes(as_yaml(self.runtime))
        (self.folder / "models.yaml").write_bytes(as_yaml(self.models))
        with suppress(ConfigError):
            specs = load_config(self.folder / "models.yaml").models
            lock = encode_lock(Lock({name: locked(spec) for name, spec in specs.items()}))
            if self.change_lock:
                lock = json.dumps(self.change_lock(json.loads(lock))).encode()
            (self.folder / "models.lock").write_bytes(lock)

    def render(self, name: str) -> tuple[int, str, dict[str, str]]:
        """Return the exit code, stderr, and the written files."""
        out, stderr = self.folder / "out", io.StringIO()
        command = ["render", name, "--file", str(self.folder / "models.yaml"), "--output", str(out)]
        with redirect_stdout(io.StringIO()), redirect_stderr(stderr), watched(out) as seen:
            status = cli.run([*command, "--images", str(self.folder / "images")])
        assert not seen, "it did something outside its folder"
        files = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
        return status, stderr.getvalue(), {name: path.read_text() for name, path in files.items()}


def locked(spec: Any) -> LockedModel:
    files = [
        LockedFile(path, 10, "ab" * 32) for path in ("config.json", "model.safetensors", "pytorch_model.bin")
    ]
    return LockedModel.join(
        [
            LockedSource.at(
                each,
                "0123456789" * 4,
                [
                    replace(file, version="" if each.kind == "hf" else "v1")
                    for file in files
                    if not (each.into and file.path.endswith(".bin"))
                    and (not each.files or file.path in each.files)
                ],
            )
            for each in spec.sources
        ]
    )


_folders = 0


@pytest.fixture
def new_case(tmp_path: Path) -> Callable[..., Case]:
    def make(**keys: Any) -> Case:
        global _folders
        _folders += 1
        case = Case(tmp_path / f"case-{_folders}", **keys)
        case.folder.mkdir()
        case.write()
        return case

    return make


def outline(instructions: list[Instruction]) -> Counter[Any]:
    """Return what no value may change: instructions and flags, and those words that are no values."""
    return Counter(map(_without_values, instructions))


def _without_values(each: Instruction) -> Any:
    words: Any = each.words
    if each.keyword in ("ENV", "LABEL", "CMD"):
        words = len(words)
    elif each.keyword == "FROM" and "@sha256:" in str(words[0]):  # the base, which a text may well change
        words = words[1:]
    elif each.keyword == "COPY":
        words = [re.sub(r"\bweights/[0-9a-f]{64}/", "weights/DIGEST/", str(word)) for word in words]
    flags = [re.sub(r"\bweights/[0-9a-f]{64}/", "weights/DIGEST/", flag) for flag in each.flags]
    return (each.keyword, tuple(flags), str(words), each.is_json, each.heredocs)


@pytest.fixture(scope="module")
def meant(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[Any]]:
    """The outline of each model's Dockerfile where nothing is hostile."""
    found = {}
    for name in MODELS["models"]:
        case = Case(tmp_path_factory.mktemp(name))
        case.write()
        status, stderr, files = case.render(name)
        assert status == 0, stderr
        found[name] = outline(by_buildkit(files["Dockerfile"]))
    return found


def judge(case: Case, name: str, meant: Counter[Any], text: str) -> bool:
    """Fail where a hostile text got through; tell whether it was taken as a value."""
    status, stderr, files = case.render(name)
    assert not _UNSEEN.search(stderr), "a terminal would act on what is said"
    if status:
        assert status in ENDINGS
        assert re.search(r"models\.(yaml|lock)|runtime\.yaml|images|no model", stderr), stderr
        assert not files
        return False
    assert outline(by_buildkit(files["Dockerfile"])) == meant
    assert not re.match(r"\s*(#|//)\s*(syntax|escape|check)\s*=", files["Dockerfile"], re.IGNORECASE)
    assert CANARY not in "".join(files.values())
    return True


@pytest.mark.parametrize(("document", "kind"), [(MODELS, ModelsFile), (RUNTIME, ServerEntry)])
def test_the_documents_have_every_key(document: Any, kind: Any) -> None:
    said = set(re.findall(r'"(\w+)": ', json.dumps(document)))
    assert {name for _, name in whole_documents.fields(kind)} - said == (
        {"get", "public_key"} if kind is ModelsFile else set()
    )


def several(number: int, everything: int) -> settings:
    return settings(
        max_examples=cases(number, everything),
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.mark.promise("dockerfile")
def test_hostile_text_in_models_yaml(
    new_case: Callable[..., Case], meant: dict[str, Counter[Any]], tally: Tally
) -> None:
    taken = 0

    @several(80, 1_000)
    @given(st.sampled_from(list(strings(MODELS))), TEXTS, PLACES)
    def check(where: Any, hostile: str, place: str) -> None:
        nonlocal taken
        path, is_key = where
        text = placed(hostile, text_at(MODELS, path, is_key), place)
        name = "other" if path[0] == "defaults" or path[:2] == ("models", "other") else "minilm"
        new = with_text(MODELS, path, is_key, text)
        called = text if is_key and path == ("models", name) else name
        if called.startswith("-"):
            called = name  # that is an option of the command line
        tally.count()
        wanted = meant[name]
        taken += judge(new_case(models=new), called, wanted, text)

    check()
    assert 0 < taken < tally.tried, "some texts are harmless"


@pytest.mark.promise("dockerfile")
def test_hostile_text_in_runtime_yaml_and_file_names(
    new_case: Callable[..., Case], meant: dict[str, Counter[Any]], tally: Tally
) -> None:
    taken = 0

    @several(50, 600)
    @given(st.sampled_from(list(strings(RUNTIME))), TEXTS, PLACES)
    def check(where: Any, hostile: str, place: str) -> None:
        nonlocal taken
        text = placed(hostile, text_at(RUNTIME, *where), place)
        case = new_case(runtime=with_text(RUNTIME, where[0], where[1], text), app_files=("server.py", text))
        tally.count()
        # `other` takes the base of the defaults, so a base that is taken here is not seen there.
        taken += judge(case, "minilm", meant["minilm"], text)

    check()
    assert 0 < taken < tally.tried, "some texts are harmless"


@pytest.mark.promise("dockerfile")
def test_hostile_text_in_models_lock(
    new_case: Callable[..., Case], meant: dict[str, Counter[Any]], tally: Tally, tmp_path: Path
) -> None:
    plain = new_case()
    lock = json.loads((plain.folder / "models.lock").read_text())
    taken = 0

    @several(50, 600)
    @given(st.sampled_from(list(strings(lock))), TEXTS, PLACES, st.booleans())
    def check(where: Any, hostile: str, place: str, corrected: bool) -> None:
        nonlocal taken
        text = placed(hostile, text_at(lock, *where), place)

        def change(document: Any) -> Any:
            changed = with_text(document, where[0], where[1], text)
            return with_right_digests(changed) if corrected else changed

        tally.count()
        taken += judge(new_case(change_lock=change), "minilm", meant["minilm"], text)

    check()
    assert taken < tally.tried


def with_right_digests(document: Any) -> Any:
    """Correct the digests of a lock, as somebody does who knows how they are made."""
    with suppress(KeyError, TypeError, AttributeError, UnicodeEncodeError):
        for model in document["models"].values():
            for source in (model, *model.get("added", ())):
                source["files"].sort(key=lambda file: file["path"])
            listed = [file for source in (model, *model.get("added", ())) for file in source["files"]]
            files = sorted(
                (LockedFile(file["path"], file["size"], file["sha256"]) for file in listed),
                key=lambda file: file.path,
            )
            model["digest"] = LockedModel("", "", "", "", "", (), (), tuple(files)).digest
    return document


@pytest.mark.promise("dockerfile")
@pytest.mark.parametrize("hostile", ["a\nb", "\x1b[31m", "$HOME", "a b", "#", "\u202ea", "-o", "a'b\"c"])
def test_a_folder_with_a_hostile_name(hostile: str, tmp_path: Path, meant: dict[str, Counter[Any]]) -> None:
    case = Case(tmp_path / hostile)
    case.folder.mkdir()
    case.write()
    status, _, files = case.render("minilm")
    assert status == 0
    assert outline(by_buildkit(files["Dockerfile"])) == meant["minilm"]


@pytest.mark.control("dockerfile")
def test_a_text_that_no_grammar_stops_is_found(
    new_case: Callable[..., Case], meant: dict[str, Counter[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stops it is taken away bit by bit: the grammar, the quoting, then the comparison."""
    monkeypatch.setattr("modelbake.grammar.Grammar.matches", lambda *_: True)
    case = new_case(
        models=with_text(MODELS, ("models", "minilm", "labels", "org.example.team"), False, "a\nUSER 0")
    )
    assert case.render("minilm")[0] == 30, "the quoting refuses it"
    monkeypatch.setattr("modelbake.render._CONTROL", re.compile("(?!)"))
    assert case.render("minilm")[0] == 31, "the comparison finds it"
    monkeypatch.setattr("modelbake.render.require_planned", lambda *_, **__: None)
    with pytest.raises((AssertionError, ValueError)):
        judge(case, "minilm", meant["minilm"], "")


@pytest.mark.control("dockerfile")
def test_what_is_written_elsewhere_is_seen(tmp_path: Path) -> None:
    def acts() -> Iterator[Callable[[], object]]:
        yield lambda: (tmp_path / "elsewhere").write_text("")
        yield lambda: (tmp_path / "folder").mkdir()
        yield lambda: (tmp_path / "in/../elsewhere").open("a").close()
        yield lambda: (tmp_path / "elsewhere").rename(tmp_path / "in" / "x")
        yield lambda: (tmp_path / "in/link").symlink_to("/etc")

    (tmp_path / "in").mkdir()
    for act in acts():
        with watched(tmp_path / "in") as seen:
            act()
        assert seen or act.__code__.co_consts[-1] == "/etc"
    with watched(tmp_path / "in") as seen:
        (tmp_path / "in" / "x").write_text("")
    assert not seen
    assert len(HOSTILE) > 100

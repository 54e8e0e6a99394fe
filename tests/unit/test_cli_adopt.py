"""`build.py adopt`: a folder of loose weights into a folder, and into a hub that asserts the token."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelbake import cli, errors
from modelbake.lock import decode_lock
from tests.servers.environment import ROOT
from tests.servers.hub import Fault, Hub, Repo

# huggingface_hub passes files to its HTTP client in a way that this one calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_commandCOMMANDcommandCOMMAND012345"
# The folder that somebody has: the same weights twice, once as a pickle.
LOOSE = {"model.safetensors": b"\1" * 300_000, "consolidated.00.pth": b"\2" * 300_100}
MODELS = """\
registry: registry.example.com/ml   # ours
defaults:
  hub: HUB

models:
  other:               # a comment that has to stay
    version: "1.0.0"
    source: hf://team/other
    runtime: weights

# the end
"""


@dataclass(frozen=True)
class Done:
    """What a run said."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Desk:
    """A user's folder with models.yaml, `llama/` with loose weights, and a hub; the current folder is it."""

    path: Path
    hub: Hub
    captured: pytest.CaptureFixture[str]

    def put(self, files: Mapping[str, bytes], folder: str = "llama") -> None:
        for name, content in files.items():
            place = self.path / folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)

    def words(self, *arguments: str, to: str, runtime: str = "weights") -> list[str]:
        return ["adopt", "llama", "--to", to, "--name", "llama", "--runtime", runtime, *arguments]

    def run(self, *arguments: str) -> Done:
        self.captured.readouterr()
        code = cli.run(arguments)
        said = self.captured.readouterr()
        assert TOKEN not in said.out + said.err
        return Done(code, said.out, said.err)

    def adopt(self, *arguments: str, to: str = "", runtime: str = "weights") -> Done:
        return self.run(*self.words(*arguments, to=to or self.store, runtime=runtime))

    def refused(
        self, kind: type[errors.ModelbakeError], *arguments: str, to: str = "", runtime: str = "weights"
    ) -> str:
        """Run it, see that it fails so and that nothing is written or said to be deletable."""
        before = self.written()
        done = self.adopt(*arguments, to=to, runtime=runtime)
        assert done.returncode == kind.exit_code, done.stderr
        assert self.written() == before
        assert "may be deleted" not in done.stderr and done.stdout == ""
        return done.stderr

    def written(self) -> list[bytes]:
        return [
            (self.path / name).read_bytes()
            for name in ("models.yaml", "models.lock")
            if (self.path / name).exists()
        ]

    @property
    def store(self) -> str:
        return f"file://{self.path}/disk/llama"

    def locked(self) -> dict[str, str]:
        lock = decode_lock((self.path / "models.lock").read_bytes())
        return {file.path: file.sha256 for file in lock.models["llama"].files}

    def check(self) -> None:
        """`lock --check` agrees with what was written."""
        done = self.run("lock", "--check", "llama")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    (tmp_path / "disk").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HOME", str(tmp_path))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with Hub(tmp_path / "hub", tokens={TOKEN: None}) as hub:
        made = Desk(tmp_path, hub, capsys)
        made.put(LOOSE)
        (tmp_path / "models.yaml").write_text(MODELS.replace("HUB", hub.url))
        yield made
    for number, handler in handlers.items():
        signal.signal(number, handler)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_original_case_into_a_folder(desk: Desk) -> None:
    done = desk.adopt()
    assert done.returncode == 0, done.stderr
    weights = sha256(LOOSE["model.safetensors"])
    assert done.stdout == f"model.safetensors {weights} verified\n"
    assert desk.locked() == {"model.safetensors": weights}
    assert (desk.path / "disk/llama/model.safetensors").read_bytes() == LOOSE["model.safetensors"]
    entry = f'  llama:\n    version: "1.0.0"\n    source: {desk.store}\n    exclude: ["*.pth"]\n'
    entry += "    runtime: weights\n"
    before = MODELS.replace("HUB", desk.hub.url)
    assert (desk.path / "models.yaml").read_text() == before.replace("\n# the end", f"{entry}\n# the end")
    assert "consolidated.00.pth is a pickle" in done.stderr and "two formats" in done.stderr
    assert "may be deleted now: model.safetensors" in done.stderr
    assert "Not uploaded, and nowhere but in" in done.stderr
    desk.check()
    again = desk.adopt()
    assert again.returncode == 0 and "1 of 1 files are at" in again.stderr and again.stdout == done.stdout


@pytest.mark.parametrize(
    ("words", "key"), [(["--allow-pickle", "consolidated.00.pth"], 'allow_pickle: ["consolidated.00.pth"]')]
)
def test_a_pickle_is_taken_where_the_user_says_so(desk: Desk, words: list[str], key: str) -> None:
    done = desk.adopt(*words)
    assert done.returncode == 0, done.stderr
    assert set(desk.locked()) == set(LOOSE) and key in (desk.path / "models.yaml").read_text()
    assert f"{desk.path}/llama may be deleted now" in done.stderr


def test_a_repository_in_the_folder_is_not_given_up(desk: Desk) -> None:
    (desk.path / "llama/consolidated.00.pth").unlink()
    subprocess.run(["git", "init", "-q", "llama"], cwd=desk.path, check=True)
    done = desk.adopt()
    assert done.returncode == 0, done.stderr
    assert "may be deleted now: model.safetensors. Not uploaded" in done.stderr
    assert f"nowhere but in {desk.path}/llama: .git/" in done.stderr


def test_a_file_that_comes_while_others_are_uploaded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelbake import adopting

    read_back = adopting._read_back

    def meanwhile(*arguments: object) -> object:
        desk.put({"model-00002.safetensors": b"the only copy"})
        return read_back(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(adopting, "_read_back", meanwhile)
    done = desk.adopt("--allow-pickle", "consolidated.00.pth")
    assert done.returncode == 0, done.stderr
    assert f"nowhere but in {desk.path}/llama: model-00002.safetensors" in done.stderr


def test_into_a_hub_that_has_no_such_repository(desk: Desk) -> None:
    desk.put({"config.json": b"{}", "sub/empty.txt": b"", "vocab.txt": b"a\nb\n" * 5000})
    hub = "hf://team/llama"
    assert "--create" in desk.refused(errors.SourceNotFound, to=hub)
    dry = desk.adopt("--create", "--dry-run", to=hub)
    assert dry.returncode == 0 and "config.json" in dry.stdout and "upload" in dry.stdout
    assert not Repo(desk.hub.root, "team/llama").exists
    done = desk.adopt("--create", to=hub)
    assert done.returncode == 0, done.stderr
    repo = Repo(desk.hub.root, "team/llama")
    assert repo.private
    assert {each.path for each in repo.head.files} - {".gitattributes"} == set(desk.locked())
    assert desk.locked()["model.safetensors"] == sha256(LOOSE["model.safetensors"])
    assert [each.title for each in repo.history(repo.head)] == [
        "Add 4 files by modelbake adopt",
        "initial commit",
    ]
    assert desk.hub.bytes_sent("model.safetensors", host="cdn") == 300_000, "read back, every byte"
    assert desk.hub.token_leaks() == []
    desk.check()
    head = repo.head
    again = desk.adopt("--create", to=hub)
    assert again.returncode == 0 and "4 of 4 files are at" in again.stderr and repo.head == head


def test_a_public_repository_is_refused(desk: Desk) -> None:
    Repo.create(desk.hub.root, "team/llama", {"README.md": b"x"}, private=False)
    assert "is public" in desk.refused(errors.SourceError, "--create", to="hf://team/llama")
    assert desk.hub.requests(method="PUT") == []


def test_a_token_that_may_not_write(desk: Desk) -> None:
    Repo.create(desk.hub.root, "team/llama", {".gitattributes": b"x"})
    desk.hub.faults.add(Fault("status", "/api/models/team/llama/preupload/*", status=403))
    said = desk.refused(errors.SourceAuthError, to="hf://team/llama")
    assert "may not write" in said and "Write access" in said


def test_somebody_else_pushes_meanwhile(desk: Desk) -> None:
    repo = Repo.create(desk.hub.root, "team/llama", {".gitattributes": b"x"})
    desk.hub.faults.add(Fault("status", "/api/models/team/llama/commit/*", status=412))
    assert "412" in desk.refused(errors.SourceError, to="hf://team/llama")
    assert [file.path for file in repo.head.files] == [".gitattributes"]


def test_a_busy_storage_is_tried_again(desk: Desk) -> None:
    Repo.create(desk.hub.root, "team/llama", {".gitattributes": b"x"})
    desk.hub.faults.add(Fault("status", "*", host="cdn", method="PUT", status=503, count=1))
    done = desk.adopt(to="hf://team/llama")
    assert done.returncode == 0, done.stderr
    assert [each.status for each in desk.hub.requests(method="PUT")] == [503, 200]


@pytest.mark.promise("wrong-bytes")
def test_a_wrong_byte_at_the_hub_keeps_the_folder(desk: Desk) -> None:
    Repo.create(desk.hub.root, "team/llama", {".gitattributes": b"x"})
    desk.hub.faults.add(Fault("corrupt", "*", host="cdn", method="GET", offset=1234, count=1))
    said = desk.refused(errors.WrongBytes, to="hf://team/llama")
    assert "keep the folder" in said and "Uploaded by this run: model.safetensors" in said
    assert desk.adopt(to="hf://team/llama").returncode == 0, "control: without the fault it is adopted"


@pytest.mark.promise("wrong-bytes")
def test_a_wrong_byte_on_the_disk_is_never_written_over(desk: Desk) -> None:
    desk.put({"model.safetensors": b"\1" * 299_999 + b"\0"}, "disk/llama")
    assert "has another content under model.safetensors" in desk.refused(errors.SourceError)
    assert (desk.path / "disk/llama/model.safetensors").read_bytes()[-1] == 0
    desk.put({"model.safetensors": b"short"}, "disk/llama")
    assert "has another content" in desk.refused(errors.SourceError)


def test_files_of_others_at_the_target_are_refused(desk: Desk) -> None:
    desk.put({"tokenizer.json": b"{}"}, "disk/llama")
    assert "holds what is not in the folder: tokenizer.json" in desk.refused(errors.SourceError)
    assert desk.adopt("--exclude", "tokenizer.json").returncode == 0


@pytest.mark.promise("resume")
@pytest.mark.parametrize("place", ["disk", "hub"])
def test_a_run_that_was_killed_goes_on(desk: Desk, place: str) -> None:
    desk.put({f"part-{number}.safetensors": bytes([number]) * 200_000 for number in range(6)})
    to = desk.store if place == "disk" else "hf://team/llama"
    before = desk.written()
    words = desk.words("--create" if place == "hub" else "--include=*", "--log-format=json", to=to)
    running = subprocess.Popen(
        [sys.executable, str(ROOT / "build.py"), *words],
        cwd=desk.path,
        env={"PATH": os.environ["PATH"], "HOME": str(desk.path), "HF_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with running:
        assert running.stderr is not None
        seen = 0
        for line in running.stderr:
            seen += json.loads(line)["event"] == "uploaded"
            if seen == 3:
                running.send_signal(signal.SIGKILL)
                break
    assert running.returncode == -signal.SIGKILL and desk.written() == before
    puts = {each.path for each in desk.hub.requests(method="PUT") if each.status == 200}
    desk.hub.reset_log()
    done = desk.adopt(*(["--create"] if place == "hub" else ["--include=*"]), to=to)
    assert done.returncode == 0, done.stderr
    assert len(desk.locked()) == 7 and len(done.stdout.splitlines()) == 7
    if place == "hub":
        again = {each.path for each in desk.hub.requests(method="PUT")}
        assert len(puts) >= 3 and not puts & again and len(puts | again) == 7
    else:
        assert done.stderr.count("uploading ") <= 4
        assert sorted(path.name for path in (desk.path / "disk/llama").iterdir()) == sorted(desk.locked())


@pytest.mark.parametrize(
    ("words", "to", "kind", "said"),
    [
        ([], "https://example.com/x/", errors.UsageError, "only read"),
        ([], "mlflow:models/a/1", errors.UsageError, "hf://, s3://, gs://, az://, file:///"),
        ([], "llama", errors.UsageError, "expected a source"),
        ([], "file:///LLAMA/inner", errors.UsageError, "within each other"),
        ([], "file:///DISK/no/where", errors.SourceNotFound, "is the disk mounted"),
        (["--name", "Bad Name"], "", errors.UsageError, "--name"),
        (["--name", "other"], "", errors.UsageError, "already, and it is not this one"),
        (["--version", "v1"], "", errors.ConfigError, "semantic version"),
        (["--runtime", "nothing"], "", errors.ConfigError, "nothing"),
        (["--runtime", "transformers"], "", errors.UnfitModel, "config.json"),
        (["--include", "*.pth"], "", errors.UsageError, "only pickles"),
        (["--include", "*.gguf"], "", errors.NoMatchingFiles, "selects none"),
        (["--create"], "", errors.UsageError, "--create is for hf"),
        (["--registry", "r.example.com"], "", errors.UsageError, "--registry is for making"),
        (["--endpoint", "https://x.example.com"], "", errors.ConfigError, "endpoint"),
        (["--pip-config", "x"], "", errors.UsageError, "--convert"),
        (["--allow-pickle", "no.pth"], "", errors.UnfitModel, "no.pth"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(
    desk: Desk, words: list[str], to: str, kind: type[errors.ModelbakeError], said: str
) -> None:
    to = to.replace("/LLAMA", f"{desk.path}/llama").replace("/DISK", f"{desk.path}/disk")
    assert said in desk.refused(kind, *words, to=to)
    assert list((desk.path / "disk").iterdir()) == []


def test_a_conversion_needs_an_engine_before_anything_is_sent(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    (desk.path / "llama/model.safetensors").unlink()
    desk.refused(errors.EngineNotFound, "--convert")
    assert list((desk.path / "disk").iterdir()) == []
    dry = desk.adopt("--convert", "--dry-run")
    assert dry.returncode == 0 and "convert: safetensors" in dry.stdout


def test_names_that_no_image_can_have(desk: Desk) -> None:
    desk.put({"a\nb.bin.txt": b"x"})
    assert "control or invisible character" in desk.refused(errors.SourceError)


def test_a_models_yaml_is_made_where_there_is_none(desk: Desk) -> None:
    (desk.path / "models.yaml").unlink()
    assert "--registry" in desk.refused(errors.UsageError)
    done = desk.adopt("--registry", "registry.example.com/ml")
    assert done.returncode == 0, done.stderr
    assert (
        (desk.path / "models.yaml").read_text().startswith("registry: registry.example.com/ml\n\nmodels:\n")
    )
    desk.check()


def test_what_git_keeps_is_said_at_the_end_with_the_way_out(desk: Desk) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run(["git", *who, *words], cwd=desk.path, check=True, capture_output=True)

    git("init", "-q")
    said = desk.adopt("--dry-run").stderr
    assert "git does not ignore llama/consolidated.00.pth, llama/model.safetensors" in said
    git("add", "llama")
    git("commit", "-qm", "weights")
    assert "filter-repo" not in desk.adopt("--dry-run").stderr, "it would remove the only copy"
    said = desk.adopt().stderr
    assert said.index("may be deleted now") < said.index("filter-repo")
    assert "git filter-repo --invert-paths --path llama/model.safetensors\n" in said
    assert "git keeps llama/consolidated.00.pth, llama/model.safetensors" in said

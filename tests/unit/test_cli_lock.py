"""`build.py lock`, `lock --check` and `render` as processes, with a hub that asserts the token."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from modelbake import errors
from modelbake.conversion import identity
from modelbake.lock import Conversion, Lock, LockedFile, LockedModel, decode_lock, encode_lock
from tests.servers.environment import ROOT
from tests.servers.hub import Fault, Hub, Repo

TOKEN = "hf_commandCOMMANDcommandCOMMAND012345"
FILES = {
    "config.json": b'{"a": 1}',
    "a.safetensors": b"first shard",
    "b.safetensors": b"second shard",
    "tokenizer.model": b"words",  # by its ending in Git LFS, like the shards: not fetched
}


@dataclass
class Folder:
    """A user's folder with two models, `one` and `two`, and the hub that they come from."""

    path: Path
    hub: Hub

    def write(self, **models: dict[str, Any]) -> None:
        """Write models.yaml; what a model does not say is that of a small one."""
        entries = {
            name: {"version": "1.0.0", "source": f"hf://team/{name}", "runtime": "embeddings", **keys}
            for name, keys in models.items()
        }
        document = {
            "registry": "registry.example.com/ml",
            "defaults": {"hub": self.hub.url},
            "models": entries,
        }
        (self.path / "models.yaml").write_text(json.dumps(document))

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.path), "HF_TOKEN": TOKEN, **more}
        command = [sys.executable, str(ROOT / "build.py"), *arguments]
        done = subprocess.run(
            command, cwd=self.path, env=environment, capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def edit(self, name: str, change: Callable[[LockedModel], LockedModel]) -> None:
        """Change a locked model as somebody does who also corrects the digest."""
        path = self.path / "models.lock"
        models = dict(decode_lock(path.read_bytes()).models)
        models[name] = change(models[name])
        path.write_bytes(encode_lock(Lock(models)))

    def repo(self, name: str) -> Repo:
        return Repo(self.hub.root, f"team/{name}")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    for name in ("one", "two"):
        Repo.create(tmp_path / "hub", f"team/{name}", FILES)
    with Hub(tmp_path / "hub", tokens={TOKEN: None}) as hub:
        made = Folder(tmp_path, hub)
        made.write(one={}, two={})
        locked = made.run("lock", "--log-format", "json")
        assert locked.returncode == 0, locked.stderr
        assert made.run("lock", "--check").returncode == 0, "control: nothing differs at first"
        yield made


def test_every_downloaded_file_leaves_an_audit_line(folder: Folder) -> None:
    done = folder.run("lock", "one", "--log-format", "json")
    records = [json.loads(line) for line in done.stderr.splitlines()]
    (transfer,) = [record for record in records if record["event"] == "transfer"]
    lock = decode_lock((folder.path / "models.lock").read_bytes()).models["one"]
    config = next(file for file in lock.files if file.path == "config.json")
    assert transfer["source"] == f"hf://team/one@{lock.commit}"
    assert (transfer["file"], transfer["bytes"], transfer["sha256"]) == ("config.json", 8, config.sha256)
    assert transfer["attempts"] == 1 and transfer["seconds"] >= 0


def without_b(locked: LockedModel) -> LockedModel:
    """Return a lock as a bad merge leaves it."""
    return replace(locked, files=tuple(file for file in locked.files if file.path != "b.safetensors"))


def test_a_lock_without_a_shard_is_drift(folder: Folder) -> None:
    folder.edit("two", without_b)
    done = folder.run("lock", "--check")
    assert done.returncode == errors.LockDrift.exit_code
    assert done.stdout.startswith("two: edited: at the locked commit ")
    assert done.stdout.endswith(": b.safetensors is upstream and not in the lock\n")
    assert folder.run("lock", "--check", "--offline").returncode == 0, "control: offline nothing tells"
    assert folder.run("lock").returncode == 0
    assert folder.run("lock", "--check").returncode == 0, "the remedy works"


def test_without_the_digest_it_is_noticed_offline_too(folder: Folder) -> None:
    path = folder.path / "models.lock"
    lock = json.loads(path.read_text())
    del lock["models"]["two"]["files"][2]
    path.write_text(json.dumps(lock))
    for arguments in (
        ["lock", "--check", "--offline"],
        ["lock", "--check"],
        ["render", "one", "--output", "c"],
    ):
        done = folder.run(*arguments)
        assert done.returncode == errors.LockError.exit_code
        assert "models.two.digest" in done.stderr and "run `build.py lock two`" in done.stderr


def test_one_model_that_cannot_be_asked_hides_no_drift_of_the_others(folder: Folder) -> None:
    commit = folder.repo("two").commit({"config.json": b"{}"}).id
    folder.hub.faults.add(Fault("status", "*/models/team/one/*", status=404))
    done = folder.run("lock", "--check")
    assert done.returncode == errors.SourceNotFound.exit_code
    assert done.stdout.startswith("two: moved: main was ") and done.stdout.endswith(f"is {commit}\n")
    assert "one: hf://team/one@main" in done.stderr


def test_a_model_that_is_changed_and_moved_is_both(folder: Folder) -> None:
    folder.repo("one").commit({"config.json": b"{}"})
    folder.edit("one", without_b)
    folder.write(one={"exclude": ["*.md"]}, two={"revision": "v2"})
    done = folder.run("lock", "--check")
    assert done.returncode == errors.LockDrift.exit_code
    lines = [line.split(": ")[:2] for line in done.stdout.splitlines()]
    # Where main is, says nothing about a model that wants v2.
    assert lines == [["one", "changed"], ["two", "changed"], ["one", "edited"], ["one", "moved"]]
    assert "4 differences" in done.stderr


def test_the_printed_command_is_good_for_any_folder(folder: Folder) -> None:
    where = "a b/it's $HOME"
    done = folder.run("render", "one", "--output", where)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stderr.partition("build it by hand: ")[2])
    assert words == [
        *("docker", "build", "--secret", f"id=sources,src={where}/sources.json"),
        *("--secret", "id=hf_token,env=HF_TOKEN", where),
    ]
    assert (folder.path / where / "sources.json").is_file()


def test_a_model_that_its_runtime_cannot_serve_is_not_locked(folder: Folder) -> None:
    before = (folder.path / "models.lock").read_bytes()
    folder.repo("two").commit({"README.md": b"moved on"})
    folder.write(one={"include": ["*.safetensors", "config.json"]}, two={})
    done = folder.run("lock")
    assert done.returncode == errors.UnfitModel.exit_code
    assert "models.one.include: one lacks the tokenizer that runtime embeddings needs (tokenizer.json," in (
        done.stderr
    )
    assert 'upstream has it, but tokenizer.model is not selected: add "tokenizer.model"\n' in done.stderr
    assert (folder.path / "models.lock").read_bytes() == before, "nothing is written, of no model"
    folder.write(one={"include": ["*.safetensors", "config.json", "tokenizer.model"]}, two={})
    assert folder.run("lock").returncode == 0, "the remedy works"
    assert (folder.path / "models.lock").read_bytes() != before


def test_what_a_model_is_by_its_configuration_is_judged(folder: Folder) -> None:
    bert = {"config.json": b'{"architectures": ["BertModel"]}', "tokenizer_config.json": b"{}"}
    folder.repo("one").commit(bert)
    folder.write(one={"runtime": "transformers"}, two={})
    done = folder.run("lock", "one")
    assert done.returncode == errors.UnfitModel.exit_code
    assert (
        "models.one.runtime: one is a BertModel by its config.json, and runtime transformers" in done.stderr
    )
    assert done.stderr.endswith("runtime embeddings would find what it needs\n")
    folder.repo("one").commit({"config.json": b'{"architectures": ["LlamaForCausalLM"]}'})
    assert folder.run("lock", "one").returncode == 0, "control"


@pytest.mark.promise("pickles")
def test_pickles_are_locked_only_by_name(folder: Folder) -> None:
    folder.repo("one").commit({"pytorch_model.bin": b"anything", "old/rng.pth": b"anything"})
    done = folder.run("lock", "one")
    assert done.returncode == errors.UnfitModel.exit_code
    assert 'Leave it out with `exclude: ["*.bin", "*.pth"]`' in done.stderr
    for keys in ({"exclude": ["*.bin", "*.pth"]}, {"allow_pickle": ["old/rng.pth", "pytorch_model.bin"]}):
        folder.write(one=keys, two={})
        assert folder.run("lock", "one").returncode == 0
        assert folder.run("check").returncode == 0
    locked = decode_lock((folder.path / "models.lock").read_bytes()).models["one"]
    assert {"old/rng.pth", "pytorch_model.bin"} <= {file.path for file in locked.files}
    folder.write(one={"allow_pickle": ["old/rng.pth"]}, two={})
    for arguments in (["check"], ["render", "one", "--output", "c"], ["build", "one"]):
        done = folder.run(*arguments)
        assert done.returncode == errors.UnfitModel.exit_code, arguments
        assert "one holds pytorch_model.bin: by name a pickle" in done.stderr


BIN = {"convert": "safetensors", "exclude": ["*.safetensors"]}


def test_a_conversion_needs_an_engine_once(folder: Folder) -> None:
    commit = folder.repo("one").commit({"pytorch_model.bin": b"anything"}).id
    before = (folder.path / "models.lock").read_bytes()
    folder.write(one=BIN, two={})
    environment = {"DOCKER_HOST": f"unix://{folder.path}/none.sock"}
    done = folder.run("lock", **environment)
    assert done.returncode == errors.EngineNotFound.exit_code
    assert "`convert: safetensors` of one needs one: it is done in builder stages" in done.stderr
    assert "none.sock" in done.stderr
    assert (folder.path / "models.lock").read_bytes() == before, "nothing is written, of no model"

    assert folder.run("lock", "two", **environment).returncode == 0, "control: others need none"
    folder.write(one={"allow_pickle": ["pytorch_model.bin"]}, two={})
    assert folder.run("lock", "one").returncode == 0
    made = LockedFile("model.safetensors", 10, "ab" * 32)
    done_already = Conversion(identity(ROOT / "images"), ("pytorch_model.bin",), (made,))
    folder.edit("one", lambda locked: replace(without_shards(locked), converted=done_already))
    folder.write(one=BIN, two={})
    for arguments in (["check"], ["lock", "--check", "--offline"], ["lock", "--check"], ["lock", "one"]):
        done = folder.run(*arguments, **environment)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    assert "one: the same pickles and the same converter" in done.stderr
    assert done.stdout.startswith(f"one {commit} 3 files 23 bytes sha256:")
    rendered = folder.run("render", "one", "--output", "context")
    assert rendered.returncode == 0
    manifest = json.loads((folder.path / "context/manifest.json").read_text())
    assert [file["path"] for file in manifest["files"]] == [
        "config.json",
        "model.safetensors",
        "tokenizer.model",
    ]

    folder.edit("one", lambda locked: replace(locked, converted=replace(done_already, converter=OTHER)))
    for arguments in (["lock", "--check", "--offline"], ["lock", "--check"]):
        done = folder.run(*arguments, **environment)
        assert done.returncode == errors.LockDrift.exit_code
        assert done.stdout.startswith(f"one: changed: the converter was {OTHER}, is sha256:")
    assert folder.run("build", "one", **environment).returncode == errors.LockDrift.exit_code
    assert folder.run("lock", "one", **environment).returncode == errors.EngineNotFound.exit_code


OTHER = "sha256:" + "12" * 32


def without_shards(locked: LockedModel) -> LockedModel:
    kept = tuple(file for file in locked.files if not file.path.endswith(".safetensors"))
    return replace(locked, files=kept, exclude=("*.safetensors",))


def test_a_pickle_that_is_there_converted_already_is_not_converted(folder: Folder) -> None:
    folder.repo("one").commit({"a.bin": b"anything"})
    folder.write(one={"convert": "safetensors"}, two={"convert": "safetensors"})
    done = folder.run("lock")
    assert done.returncode == errors.UnfitModel.exit_code
    assert (
        "models.one.convert: a.bin of one would become a.safetensors, which is there already" in done.stderr
    )
    assert "models.two.convert: two has no file to convert" in done.stderr


def test_options_that_would_do_nothing_are_refused(folder: Folder) -> None:
    for arguments in (["--check", "--pip-config", "x"], ["--check", "--offline", "--ca-bundle", "x"]):
        done = folder.run("lock", *arguments)
        assert done.returncode == errors.UsageError.exit_code
        assert f"{arguments[-2]} does not go with" in done.stderr


def test_a_lock_is_judged_again_where_the_runtime_changed(folder: Folder) -> None:
    folder.write(one={"runtime": "transformers"}, two={"revision": "v2"})
    done = folder.run("check")
    assert done.returncode == errors.UnfitModel.exit_code
    assert "models.one.runtime: one lacks the chat template that runtime transformers needs" in done.stderr
    assert "`build.py lock one` says whether upstream has it" in done.stderr
    assert "two" not in done.stderr, "of what is not locked as asked for nothing is known"
    assert done.stdout == ""


def test_code_among_the_weights_is_warned_of(folder: Folder) -> None:
    folder.repo("one").commit({"modeling_x.py": b"1", "config.json": b'{"auto_map": {"AutoModel": "x"}}'})
    done = folder.run("lock", "one")
    assert done.returncode == 0
    assert "warning: one: modeling_x.py: code among the weights" in done.stderr
    assert "warning: one: config.json refers to code of the repository (auto_map)" in done.stderr
    assert "warning: one: modeling_x.py" in folder.run("check").stderr
    folder.write(one={"exclude": ["*.py"]}, two={})
    assert "modeling_x.py" not in folder.run("lock", "one").stderr

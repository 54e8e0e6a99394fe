"""`matrix`: which models, why, and as what; on real git repositories."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner

from modelbake import workspace
from modelbake.cli import run
from modelbake.config import load_config
from modelbake.errors import LockMissing, UnfitModel, UsageError
from modelbake.lock import Lock, LockedFile, LockedModel, read_lock, write_lock
from modelbake.matrix import MOST_JOBS, Job, github, gitlab, shared_out
from tests.servers.environment import ROOT

FILES = ("config.json", "model.safetensors", "modules.json", "tokenizer.json", "tokenizer_config.json")
WHO = {
    f"GIT_{role}_{part}": "test@example.com" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")
}
NONE = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


def git(folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-c", "protocol.file.allow=always", *arguments]
    done = subprocess.run(
        command, cwd=folder, env={**environment, **WHO, **NONE}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


class Team:
    """A team's repository, with runtimes of its own; the toolkit is elsewhere."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys
        self.code = 0
        self.images = ROOT / "tests/runtimes"
        shutil.copytree(ROOT / "tests/runtimes/tiny", folder / "services/own")
        self.models: dict[str, dict[str, Any]] = {
            "a": {"runtime": "tiny"},
            "b": {"runtime": "tiny", "device": "any"},
            "own": {"runtime": "./services/own", "device": "cpu"},
        }
        self.defaults: dict[str, Any] = {}
        git(folder, "init", "--quiet", "--initial-branch=main")
        self.write()
        self.commit()

    def write(self, **weights: str) -> None:
        """Write models.yaml, and the lock: by name whose weights are others than usual."""
        document = {
            "registry": "registry.example.com/ml",
            "defaults": self.defaults,
            "models": {
                name: {"version": "1.0.0", "source": f"hf://acme/{name}", **keys}
                for name, keys in self.models.items()
            },
        }
        (self.folder / "models.yaml").write_text(json.dumps(document))
        specs = load_config(self.folder / "models.yaml").models
        files = {
            name: [LockedFile(path, 4096, weights.get(name, "a") * 64) for path in FILES] for name in specs
        }
        write_lock(
            self.folder / "models.lock",
            Lock({name: LockedModel.of(spec, "0" * 40, files[name]) for name, spec in specs.items()}),
        )

    def commit(self) -> str:
        git(self.folder, "add", ".")
        git(self.folder, "commit", "--quiet", "--allow-empty", "--message", "x")
        return git(self.folder, "rev-parse", "HEAD")

    def run(self, *arguments: str) -> tuple[str, str]:
        file = str(self.folder / "models.yaml")
        self.code = run(["matrix", *arguments, "--file", file, "--images", str(self.images)])
        said = self._capsys.readouterr()
        return said.out, said.err

    def listed(self, *arguments: str) -> list[str]:
        out, err = self.run(*arguments)
        assert self.code == 0, err
        assert out.count("\n") == 1
        return [name for job in json.loads(out)["include"] for name in job["model"].split()]

    def changed(self, since: str = "HEAD") -> list[str]:
        return self.listed("--changed-since", since)


@pytest.fixture
def team(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Team:
    return Team(tmp_path, capsys)


def test_all_models(team: Team) -> None:
    out, _ = team.run()
    assert json.loads(out) == {
        "include": [
            {
                "title": f"{name} 1.0.0",
                "model": name,
                "version": "1.0.0",
                "runtime": runtime,
                "device": device,
                "gpu": device == "cuda",
            }
            for name, runtime, device in (
                ("a", "tiny", "cuda"),
                ("b", "tiny", "any"),
                ("own", "./services/own", "cpu"),
            )
        ]
    }


def test_a_gpu_is_for_what_needs_one(team: Team) -> None:
    team.images = ROOT / "images"
    team.models = {
        "data": {"runtime": "weights"},
        "required": {"runtime": "./services/own", "device": "any", "smoke": {"require_gpu": True}},
    }
    team.write()
    out, _ = team.run()
    assert {job["model"]: job["gpu"] for job in json.loads(out)["include"]} == {
        "data": False,
        "required": True,
    }


def test_without_a_change_nothing_is_listed(team: Team) -> None:
    assert team.changed() == []
    (team.folder / "README.md").write_text("x")
    (team.folder / "services/own/notes.md").write_text("not named by its runtime.yaml")
    team.commit()
    assert team.changed("HEAD~1") == []
    # The same, said otherwise.
    team.models["a"]["verify"] = "full"
    team.models["a"]["env"] = {}
    team.write()
    assert team.changed() == []


def edit_model(team: Team) -> None:
    team.models["a"]["version"] = "1.0.1"
    team.write()


def edit_defaults(team: Team) -> None:
    team.defaults["verify"] = "quick"
    team.models["b"]["verify"] = "full"
    team.models["own"]["verify"] = "full"
    team.write()


def edit_kind(team: Team) -> None:
    team.models["a"]["smoke"] = {"checks": [{"get": "/x", "expect": {"a": 1}}]}
    team.write()
    team.commit()
    team.models["a"]["smoke"] = {"checks": [{"get": "/x", "expect": {"a": True}}]}
    team.write()


def edit_lock(team: Team) -> None:
    team.write(a="b")


def edit_server(team: Team) -> None:
    with (team.folder / "services/own/server.py").open("a") as file:
        file.write("# changed\n")


def add_model(team: Team) -> None:
    team.models["new"] = {"runtime": "tiny"}
    team.write()


def remove_model(team: Team) -> None:
    del team.models["a"]
    team.write()


def edit_golden(team: Team) -> None:
    for name in ("a", "b"):
        expect = {"data[0].embedding": {"cosine": "hello"}} if name == "a" else {"x": 1}
        team.models[name]["smoke"] = {"checks": [{"post": "/v1/embeddings", "body": {}, "expect": expect}]}
    team.write()
    (team.folder / "goldens").mkdir()
    for name in ("a", "b"):
        (team.folder / f"goldens/{name}.json").write_text("{}")
    team.commit()
    assert team.changed() == [], "control"
    for name in ("a", "b"):  # of b no check names a golden
        (team.folder / f"goldens/{name}.json").write_text('{"other": 1}')


def move_registry(team: Team) -> None:
    text = (team.folder / "models.yaml").read_text()
    (team.folder / "models.yaml").write_text(
        text.replace("registry.example.com/ml", "registry.example.com/mm")
    )


@pytest.mark.parametrize(
    ("edit", "expected", "why"),
    [
        (edit_model, ["a"], "models.yaml says otherwise of it (version)"),
        (edit_defaults, ["a"], "(verify)"),
        (edit_kind, ["a"], "(smoke)"),
        (edit_lock, ["a"], "its lock is another one"),
        (edit_server, ["own"], "own: what it is built with has changed"),
        (add_model, ["new"], "it is new"),
        (remove_model, [], "0 of 2 models"),
        (edit_golden, ["a"], "goldens"),
        (move_registry, ["a", "b", "own"], "the registry"),
    ],
)
def test_what_counts_as_changed(
    team: Team, edit: Callable[[Team], None], expected: list[str], why: str
) -> None:
    edit(team)
    out, err = team.run("--changed-since", "HEAD")
    assert [job["model"] for job in json.loads(out)["include"]] == expected
    assert why in err
    team.commit()
    assert team.changed("HEAD~1") == expected, "a commit is compared as the work tree is"


def test_the_toolkit_in_the_same_repository(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone with models of its own: what every image shares counts, and only what goes into an image."""
    for part in ("images/builder", "images/start", "templates"):
        shutil.copytree(ROOT / part, team.folder / part)
    shutil.copytree(ROOT / "tests/runtimes/tiny", team.folder / "images/tiny")
    monkeypatch.setattr(workspace, "_TOOLKIT", team.folder)
    team.images = team.folder / "images"
    team.commit()

    def append(name: str, text: str = "# changed\n") -> None:
        git(team.folder, "checkout", "--quiet", "--", ".")
        with (team.folder / name).open("a") as file:
            file.write(text)

    append("images/builder/README.md")
    assert team.changed() == []
    append("images/tiny/server.py")
    assert team.changed() == ["a", "b"]
    append("images/start/start.py")
    assert team.changed() == ["a", "b", "own"]
    append("templates/Dockerfile.j2", "{# only a comment of the template #}\n")
    assert team.changed() == []


def test_a_revision_that_today_cannot_read(team: Team) -> None:
    first = git(team.folder, "rev-parse", "HEAD")
    (team.folder / "models.yaml").write_text("models: [")
    (team.folder / "models.lock").write_text("{")
    team.commit()
    team.write()
    assert team.changed() == ["a", "b", "own"]
    assert team.changed(first) == []


def test_a_revision_before_there_were_models(team: Team) -> None:
    git(team.folder, "checkout", "--quiet", "--orphan", "empty")
    git(team.folder, "rm", "--quiet", "-r", "--cached", ".")
    git(team.folder, "commit", "--quiet", "--allow-empty", "--message", "empty")
    assert team.changed() == ["a", "b", "own"]


def failure(team: Team, *arguments: str) -> str:
    out, err = team.run(*arguments)
    assert out == ""
    assert team.code != 0
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("no-such-branch", "git fetch origin"),
        ("0" * 40, "first commit"),
        ("", "git log"),
        ("-rf", "git log"),
        ("HEAD:models.yaml", "git log"),
    ],
)
def test_revisions_that_are_none(team: Team, name: str, remedy: str) -> None:
    said = failure(team, f"--changed-since={name}")
    assert team.code == UsageError.exit_code
    assert "names no commit that is here" in said
    assert remedy in said


def test_a_shallow_clone(team: Team, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = git(team.folder, "rev-parse", "HEAD")
    team.commit()
    clone = tmp_path_factory.mktemp("shallow") / "clone"
    git(team.folder, "clone", "--quiet", "--depth=1", f"file://{team.folder}", str(clone))
    team.folder = clone
    said = failure(team, "--changed-since", first)
    assert "fetch-depth: 0" in said
    assert "GIT_DEPTH: 0" in said
    git(clone, "fetch", "--quiet", "--unshallow")
    assert team.changed(first) == []


def test_without_a_repository(team: Team) -> None:
    shutil.rmtree(team.folder / ".git")
    assert "is in no work tree of git" in failure(team, "--changed-since", "HEAD")
    assert team.code == UsageError.exit_code
    assert team.listed() == ["a", "b", "own"]


def test_without_git(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(team.folder))
    assert "git cannot be run" in failure(team, "--changed-since", "HEAD")
    assert team.code == UsageError.exit_code


def test_what_cannot_be_planned_is_said_of_all(team: Team) -> None:
    lock = read_lock(team.folder / "models.lock").models
    kept = {name: each for name, each in lock.items() if name == "own"}
    write_lock(team.folder / "models.lock", Lock(kept))
    said = failure(team)
    assert team.code == LockMissing.exit_code
    assert "a: is not in models.lock" in said
    assert "b: is not in models.lock" in said
    files = [*lock["a"].files, LockedFile("pytorch_model.bin", 4096, "a" * 64)]
    specs = load_config(team.folder / "models.yaml").models
    write_lock(
        team.folder / "models.lock",
        Lock({name: LockedModel.of(spec, "0" * 40, files) for name, spec in specs.items()}),
    )
    said = failure(team)
    assert team.code == UnfitModel.exit_code
    assert "models.a." in said
    assert "models.b." in said


def test_git_changes_nothing(team: Team) -> None:
    edit_model(team)
    before = git(team.folder, "status", "--porcelain")
    index = (team.folder / ".git/index").read_bytes()
    team.changed()
    assert git(team.folder, "status", "--porcelain") == before
    assert (team.folder / ".git/index").read_bytes() == index


# As jobs


def job(name: str, runtime: str = "x", gpu: bool = False) -> Job:
    return Job((name,), ("1.0.0",), runtime, "cuda" if gpu else "any", gpu)


def test_a_thousand_models_are_no_more_jobs_than_there_may_be() -> None:
    models = [job(f"m{at}", runtime=f"r{at % 7}", gpu=at % 2 == 0) for at in range(1000)]
    jobs = shared_out(models, MOST_JOBS)
    assert 200 < len(jobs) <= MOST_JOBS
    assert sorted(name for each in jobs for name in each.models) == sorted(f"m{at}" for at in range(1000))
    runtime = {model.models[0]: (model.runtime, model.gpu) for model in models}
    assert all({runtime[name] for name in each.models} == {(each.runtime, each.gpu)} for each in jobs)
    assert len({each.title for each in jobs}) == len(jobs)
    assert max(len(each.models) for each in jobs) <= 6
    assert [each.models for each in shared_out(models, 1000)] != [each.models for each in jobs]
    assert len(shared_out(models, 14)) == 14
    with pytest.raises(UsageError, match="14 different"):
        shared_out(models, 13)


def test_options(team: Team) -> None:
    assert sorted(team.listed("--jobs", "3")) == ["a", "b", "own"]
    assert "14" not in failure(team, "--jobs", "2")
    assert "at least one" in failure(team, "--jobs", "0")
    assert "--format gitlab" in failure(team, "--templates", "x.yml")


def gitlab_takes(*files: Path) -> bool:
    """Ask check-jsonschema, which has GitLab's schema of .gitlab-ci.yml."""
    arguments = ["--builtin-schema", "vendor.gitlab-ci", *map(str, files)]
    return CliRunner().invoke(check_jsonschema, arguments).exit_code == 0


def test_gitlab_takes_the_child_pipeline(team: Team, tmp_path: Path) -> None:
    out, _ = team.run("--format", "gitlab", "--templates", "/ci/x.yml")
    document = json.loads(out)
    assert document["include"] == [{"local": "/ci/x.yml"}]
    assert document["publish a 1.0.0"] == {
        "extends": ".publish-gpu",
        "variables": {
            "MODEL": "a", "VERSION": "1.0.0", "RUNTIME": "tiny", "DEVICE": "cuda", "GPU": "true",
        },
    }  # fmt: skip
    assert document["publish b 1.0.0"]["extends"] == ".publish"
    assert len(gitlab([], "/x.yml")) == 1, "GitLab starts no pipeline without a job"
    (tmp_path / "child.yml").write_text(out)
    (tmp_path / "empty.yml").write_text(json.dumps(gitlab([], "/x.yml")))
    (tmp_path / "broken.yml").write_text(out.replace('"variables":', '"variabels":'))
    assert gitlab_takes(tmp_path / "child.yml", tmp_path / "empty.yml")
    assert not gitlab_takes(tmp_path / "broken.yml"), "control"


def test_github_asks_for_an_empty_list_by_its_first_entry() -> None:
    assert github([]) == {"include": []}

"""What keeps secrets out of git, for this repository and for users' ones: real pre-commit, real git.

The hooks come from the package index, pinned as .pre-commit-config.yaml says, and stay in the cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Tally
from tests.promises import cases
from tests.servers.environment import ROOT
from tests.servers.minilm import cache_folder
from tests.servers.planted_secrets import planted_secrets

OURS = ROOT / ".pre-commit-config.yaml"
USERS = ROOT / "docs/ci/pre-commit-config.yaml"
_TOOLS = ("pre-commit==4.7.0",)
_OTHERS = "ruff-format,ruff-check,models-yaml"  # hooks that are about no secret


@dataclass(frozen=True)
class Hooks:
    """pre-commit and its home, where it keeps the environments of hooks."""

    programs: Path
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        """Return git's and pre-commit's environment: no configuration of whoever runs the tests."""
        who = {
            f"GIT_{role}_{part}": "test@example.com"
            for role in ("AUTHOR", "COMMITTER")
            for part in ("NAME", "EMAIL")
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        path = f"{self.programs}:{os.environ['PATH']}"
        none = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        return {
            **kept,
            **who,
            **none,
            "PATH": path,
            "PRE_COMMIT_HOME": str(self.home),
            "SKIP": _OTHERS,
            **more,
        }


@pytest.fixture(scope="module")
def hooks() -> Hooks:
    """Made once for these pins."""
    home = (
        cache_folder().parent
        / "hooks"
        / hashlib.sha256(repr((_TOOLS, sys.version)).encode()).hexdigest()[:12]
    )
    if not (home / "done").exists():
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(home / "venv")], check=True)
        pip = [
            str(home / "venv/bin/python"),
            "-m",
            "pip",
            "--quiet",
            "--disable-pip-version-check",
            "install",
        ]
        subprocess.run([*pip, *_TOOLS], check=True)
        (home / "done").touch()
    return Hooks(home / "venv/bin", home / "pre-commit")


@dataclass(frozen=True)
class Repository:
    """A repository whose commits pass the hooks of a configuration."""

    folder: Path
    hooks: Hooks

    @classmethod
    def make(cls, folder: Path, hooks: Hooks, configuration: Path) -> Repository:
        folder.mkdir()
        made = cls(folder, hooks)
        made.git("init", "--quiet")
        shutil.copy(configuration, folder / ".pre-commit-config.yaml")
        baseline = json.loads((ROOT / ".secrets.baseline").read_text())
        (folder / ".secrets.baseline").write_text(json.dumps({**baseline, "results": {}}, indent=2))
        subprocess.run(
            [hooks.programs / "pre-commit", "install"],
            cwd=folder, env=hooks.environment(), check=True, capture_output=True,
        )  # fmt: skip
        return made

    def git(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *arguments],
            cwd=self.folder, env=self.hooks.environment(**environment),
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def commit(self, files: Mapping[str, str], **environment: str) -> subprocess.CompletedProcess[str]:
        """Write files, and try to commit all there is."""
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        self.git("add", "--all", "--force").check_returncode()
        return self.git("commit", "--quiet", "--message", "test", **environment)

    def commits(self) -> int:
        return len(self.git("rev-list", "--all").stdout.split())


@pytest.mark.promise("commit")
@pytest.mark.parametrize("configuration", [OURS, USERS], ids=["ours", "users"])
def test_every_kind_of_secret_is_refused(
    hooks: Hooks, tmp_path: Path, tally: Tally, configuration: Path
) -> None:
    for seed in range(cases(1, 20)):
        repository = Repository.make(tmp_path / str(seed), hooks, configuration)
        planted = planted_secrets(seed)
        refused = repository.commit(dict(planted.values()))
        tally.count(len(planted))
        assert refused.returncode != 0 and repository.commits() == 0
        missed = [kind for kind, (file, _) in planted.items() if not named(file, refused)]
        assert missed == [], f"{len(planted) - len(missed)} of {len(planted)} found (seed {seed})"


def named(file: str, done: subprocess.CompletedProcess[str]) -> bool:
    """Tell whether a hook has named a line of a file."""
    return bool(re.search(rf"(?:^|\s){re.escape(file)}:\d", done.stdout + done.stderr))


@pytest.mark.control("commit")
def test_each_scan_is_needed(hooks: Hooks, tmp_path: Path) -> None:
    """With one of the two left out some kinds pass, and the search above would tell; with none all do."""
    planted = planted_secrets(0)
    files = dict(planted.values())
    for without in ("detect-secrets", "known-tokens"):
        repository = Repository.make(tmp_path / without, hooks, USERS)
        refused = repository.commit(files, SKIP=f"{_OTHERS},{without}")
        assert 0 < sum(named(file, refused) for file in files) < len(files), without
    assert repository.commit(files, SKIP=f"{_OTHERS},detect-secrets,known-tokens").returncode == 0
    assert repository.commits() == 1


@pytest.mark.control("commit")
def test_what_a_user_commits_is_no_secret(hooks: Hooks, tmp_path: Path) -> None:
    """models.lock is full of digests, and a base image is named by one."""
    repository = Repository.make(tmp_path / "users", hooks, USERS)
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(30)]
    lock = {
        "schema": 1,
        "models": {
            "m": {
                "commit": digests[0][:40],
                "digest": f"sha256:{digests[1]}",
                "files": [
                    {"path": f"{at}.safetensors", "sha256": each, "size": 9}
                    for at, each in enumerate(digests)
                ],
            }
        },
    }
    files = {
        "models.yaml": f"""\
registry: registry.example.com/ml
defaults:
  base: docker.io/library/python@sha256:{digests[2]}
models:
  m:
    version: "1.0.0"
    source: hf://acme/m
    revision: {digests[3][:40]}
""",
        "models.lock": json.dumps(lock, indent=2) + "\n",
        "goldens/m.json": json.dumps(
            {"lock": f"sha256:{digests[4]}", "goldens": {"a": {"value": [0.5, 0.25]}}}
        ),
        ".env.example": (ROOT / ".env.example").read_text().replace("user:password@", ""),
        "docs/ci.yml": (ROOT / "docs/ci/github-actions.yml").read_text().replace("0" * 40, digests[5][:40]),
        "gitlab-ci.yml": (ROOT / "docs/ci/gitlab-ci.yml").read_text(),
        "gitlab-publish.yml": (ROOT / "docs/ci/gitlab-publish.yml").read_text(),
    }
    done = repository.commit(files)
    assert done.returncode == 0, done.stdout + done.stderr
    refused = repository.commit({"weights.safetensors": "0" * (1 << 20) + "0"})
    assert refused.returncode != 0 and "weights.safetensors" in refused.stdout + refused.stderr


@pytest.mark.control("commit")
def test_our_own_tree_gives_no_false_alarm(hooks: Hooks, tmp_path: Path) -> None:
    """As it would be committed now: what git tracks, and what is new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    repository = Repository.make(tmp_path / "tree", hooks, OURS)
    for name in filter(None, listed):
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (repository.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, repository.folder / name)
    done = repository.commit({})
    if "The baseline file was updated" in done.stdout + done.stderr:
        done = repository.commit({})  # what it accepts stands in other lines by now: that is no alarm
    assert done.returncode == 0, done.stdout + done.stderr
    accepted = json.loads((ROOT / ".secrets.baseline").read_text())["results"]
    own = [file for file in accepted if not file.startswith("tests/")]
    assert len(own) <= 3, "what is accepted beside tests is looked at one by one"


def test_users_hooks_are_ours() -> None:
    ours, users = (
        {hook["id"]: hook for hook in yaml.safe_load(file.read_text())["repos"][0]["hooks"]}
        for file in (OURS, USERS)
    )
    assert set(users) == {"detect-secrets", "known-tokens", "no-large-files"}
    for name, hook in users.items():
        for key in ("entry", "language", "additional_dependencies"):
            assert _without_ours(hook.get(key)) == _without_ours(ours[name].get(key)), (name, key)


def _without_ours(entry: Any) -> Any:
    return re.sub(r" --exclude-files \S+", "", entry) if isinstance(entry, str) else entry

"""Where an image comes from: what the statement says, and what it must not say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from modelbake.release.checkout import checkout_of
from modelbake.release.provenance import (
    LOCAL_BUILDER,
    Builder,
    Checkout,
    builder_of,
    make_provenance,
    repository_of,
)
from tests.unit.planning import converting, planned
from tests.unit.release.made import DIGEST

GITHUB = {
    "GITHUB_ACTIONS": "true",
    "GITHUB_SERVER_URL": "https://github.example.com",
    "GITHUB_REPOSITORY": "acme/models",
    "GITHUB_WORKFLOW_REF": "acme/models/.github/workflows/release.yml@refs/heads/main",
    "GITHUB_RUN_ID": "17",
    "GITHUB_RUN_ATTEMPT": "2",
    "GITHUB_REF": "refs/heads/main",
    "GITHUB_SHA": "ab" * 20,
}
GITLAB = {
    "GITLAB_CI": "true",
    "CI_PROJECT_URL": "https://gitlab.example.com/acme/models",
    "CI_RUNNER_ID": "5",
    "CI_JOB_URL": "https://gitlab.example.com/acme/models/-/jobs/9",
    "CI_COMMIT_REF_NAME": "main",
    "CI_COMMIT_SHA": "cd" * 20,
}


def made(plan: Any = None, **keys: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "builder": Builder(),
        "checkout": None,
        "context": "sha256:" + "11" * 32,
        "requirements": {"requirements.cuda.txt": "sha256:" + "22" * 32},
    }
    raw = make_provenance(plan or planned(), "registry.example.com/ml/minilm", DIGEST, **{**usual, **keys})
    document: dict[str, Any] = json.loads(raw)
    return document


def materials(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    listed = document["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert all(each.get("uri") or each.get("digest") for each in listed), "SLSA asks for one of them"
    return {each["name"]: each for each in listed}


def test_the_statement_is_slsas() -> None:
    document = made(started="2026-01-02T03:04:05Z")
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "https://slsa.dev/provenance/v1"
    assert document["subject"] == [
        {"name": "registry.example.com/ml/minilm", "digest": {"sha256": "ab" * 32}}
    ]
    predicate = document["predicate"]
    assert predicate["buildDefinition"]["externalParameters"]["source"] == "hf://acme/minilm"
    assert predicate["runDetails"]["builder"]["id"] == LOCAL_BUILDER
    assert predicate["runDetails"]["metadata"] == {"startedOn": "2026-01-02T03:04:05Z"}


def test_what_went_into_it() -> None:
    plan = planned()
    found = materials(made(plan, checkout=Checkout("ef" * 20, "git+https://git.example.com/a", changed=True)))
    assert found["lock of minilm"]["digest"] == {"sha256": plan.locked.digest.removeprefix("sha256:")}
    weights = found["model.safetensors"]
    assert weights["uri"] == (
        f"https://huggingface.co/acme/minilm/resolve/{plan.locked.commit}/model.safetensors"
    )
    assert weights["digest"] == {"sha256": plan.locked.files[1].sha256}
    assert found["hf://acme/minilm"]["digest"] == {"gitCommit": plan.locked.commit}
    assert found["base image"]["digest"] == {"sha256": "ab" * 32}
    assert found["embeddings/requirements.cuda.txt"]["digest"] == {"sha256": "22" * 32}
    assert found["build context"]["digest"] == {"sha256": "11" * 32}
    assert found["repository of models.yaml"] == {
        "name": "repository of models.yaml",
        "uri": "git+https://git.example.com/a",
        "digest": {"gitCommit": "ef" * 20},
        "annotations": {"changed": True},
    }


def test_a_converted_model_names_what_was_fetched_and_the_converter() -> None:
    found = materials(made(converting(planned())))
    assert found["pytorch_model.bin"]["digest"] == {"sha256": "cd" * 32}
    assert found["converter of pickles"]["digest"] == {"sha256": "12" * 32}


def test_no_environment_and_no_label_is_in_it() -> None:
    plan = planned(env={"GREETING": "bonjour"}, labels={"team": "search-team"})
    text = json.dumps(made(plan))
    assert "bonjour" not in text and "search-team" not in text and "minilm" in text


class TestBuilder:
    def test_a_ci_job_is_named_by_its_definition_and_its_run(self) -> None:
        assert builder_of(GITHUB) == Builder(
            "https://github.example.com/acme/models/.github/workflows/release.yml@refs/heads/main",
            "https://github.example.com/acme/models/actions/runs/17/attempts/2",
        )
        assert builder_of(GITLAB) == Builder(
            "https://gitlab.example.com/acme/models/-/runners/5", GITLAB["CI_JOB_URL"]
        )
        assert repository_of(GITHUB) == "git+https://github.example.com/acme/models@refs/heads/main"
        assert repository_of(GITLAB) == "git+https://gitlab.example.com/acme/models@main"

    @pytest.mark.parametrize(
        "environment",
        [
            {},
            {"GITHUB_ACTIONS": "true"},
            {"GITLAB_CI": "true"},
            {**GITHUB, "GITHUB_SERVER_URL": "https://user" + ":password@github.example.com"},
            {**GITLAB, "CI_PROJECT_URL": "https://token@gitlab.example.com/a"},
            {**GITLAB, "CI_PROJECT_URL": "https://gitlab.example.com/a\nb"},
        ],
    )
    def test_anything_else_is_a_local_builder(self, environment: dict[str, str]) -> None:
        assert builder_of(environment).id == LOCAL_BUILDER
        assert "password" not in repository_of(environment) and "token" not in repository_of(environment)


class TestCheckout:
    def test_the_commit_and_whether_it_is_all(self, tmp_path: Path) -> None:
        assert checkout_of(tmp_path, {}) is None
        git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run([*git, "init", "-q"], check=True)
        assert checkout_of(tmp_path, {}) is None, "no commit yet"
        (tmp_path / "models.yaml").write_text("a")
        subprocess.run([*git, "add", "models.yaml"], check=True)
        subprocess.run([*git, "commit", "-qm", "first"], check=True)
        subprocess.run([*git, "remote", "add", "origin", "https://token@git.example.com/a"], check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert checkout_of(tmp_path, {}) == Checkout(head.stdout.strip())
        (tmp_path / "models.yaml").write_text("b")
        assert checkout_of(tmp_path, GITHUB) == Checkout(
            head.stdout.strip(), repository_of(GITHUB), changed=True
        )

    def test_without_git_a_ci_job_knows_its_commit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert checkout_of(tmp_path, GITHUB) == Checkout("ab" * 20, repository_of(GITHUB))
        assert checkout_of(tmp_path, GITLAB) == Checkout("cd" * 20, repository_of(GITLAB))
        assert checkout_of(tmp_path, {"GITHUB_SHA": "x", **GITLAB}) is None
        assert checkout_of(tmp_path, {}) is None

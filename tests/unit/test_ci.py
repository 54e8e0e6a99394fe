"""docs/ci: CI files are what their own tools take, and give each job no more than it needs.

actionlint's own package downloads its program while it is installed; jactionlint is a fork of it whose wheel
has the program, with a profile of what actionlint checks. zizmor looks for rights that are too wide and for
injections.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner

FOLDER = Path(__file__).resolve().parents[2] / "docs/ci"
GITHUB, GITLAB, GITLAB_PUBLISH = (
    FOLDER / name for name in ("github-actions.yml", "gitlab-ci.yml", "gitlab-publish.yml")
)
VERBS = [
    *(
        "check",
        "lock --check --offline",
        "matrix",
        "lock --check",
        "publish --untagged",
        "release",
        "promote --to",
    ),
]


def schema_takes(schema: str, *files: Path) -> bool:
    arguments = ["--builtin-schema", schema, *map(str, files)]
    return CliRunner().invoke(check_jsonschema, arguments).exit_code == 0


def program(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name(name)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def actionlint(file: Path) -> subprocess.CompletedProcess[str]:
    # Whether shellcheck is on the machine must not decide.
    return program("jactionlint", "--profile=correctness", "--shellcheck=", "--pyflakes=", str(file))


def zizmor(file: Path) -> subprocess.CompletedProcess[str]:
    return program("zizmor", "--offline", "--quiet", "--no-progress", "--strict-collection", str(file))


def jobs() -> dict[str, Any]:
    return dict(yaml.safe_load(GITHUB.read_text())["jobs"])


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("", "", ""),
        ("runs-on: ubuntu-24.04", "run-on: ubuntu-24.04", "run-on"),
        ("needs.check.outputs.matrix", "needs.checks.outputs.matrix", "checks"),
        ("steps.matrix.outputs.matrix", "steps.matrices.outputs.matrix", "matrices"),
    ],
)
def test_actionlint(tmp_path: Path, before: str, after: str, said: str) -> None:
    text = GITHUB.read_text()
    file = tmp_path / "workflow.yml"
    file.write_text(text.replace(before, after) if before else text)
    done = actionlint(file)
    assert (done.returncode, said in done.stdout) == (int(bool(before)), True), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("", "", ""),
        (
            "    permissions:\n      contents: read\n    steps:",
            "    permissions: write-all\n    steps:",
            "excessive-permissions",
        ),
        (re.search(r"@[0-9a-f]{40}", GITHUB.read_text())[0], "@v7", "unpinned-uses"),  # type: ignore[index]
        ("        with:\n          persist-credentials: false\n", "", "artipacked"),
        ('"$GITHUB_REF_NAME"', '"${{ github.ref_name }}"', "template-injection"),
    ],
)
def test_zizmor(tmp_path: Path, before: str, after: str, said: str) -> None:
    text = GITHUB.read_text()
    file = tmp_path / ".github/workflows/workflow.yml"
    file.parent.mkdir(parents=True)
    file.write_text(text.replace(before, after) if before else text)
    done = zizmor(file)
    assert (done.returncode != 0) is bool(before), done.stdout + done.stderr
    assert said in done.stdout


def test_schemas(tmp_path: Path) -> None:
    assert schema_takes("vendor.github-workflows", GITHUB)
    assert schema_takes("vendor.gitlab-ci", GITLAB, GITLAB_PUBLISH)
    # Of a hidden job the schema asks nothing, so the template is checked as if it were none.
    shown = tmp_path / "shown.yml"
    shown.write_text(GITLAB_PUBLISH.read_text().replace("\n.publish:", "\npublish:"))
    assert schema_takes("vendor.gitlab-ci", shown)
    broken = tmp_path / "broken.yml"
    for file, schema, before, after in (
        (GITHUB, "vendor.github-workflows", "runs-on:", "run-on:"),
        (GITLAB, "vendor.gitlab-ci", "resource_group:", "resource_groups:"),
        (shown, "vendor.gitlab-ci", "id_tokens:", "id_token:"),
    ):
        assert before in file.read_text()
        broken.write_text(file.read_text().replace(before, after))
        assert not schema_takes(schema, broken), "control"


def test_each_step_of_the_way_is_there() -> None:
    for texts in ((GITHUB,), (GITLAB, GITLAB_PUBLISH)):
        text = "\n".join(file.read_text() for file in texts)
        found = {
            " ".join([verb, *re.findall(r"--(?:check|offline|untagged|to)\b(?!-)", rest)])
            for verb, rest in re.findall(r"/build\.py ([a-z]+)(.*)", text)
        }
        assert found == set(VERBS)
        assert text.index("pre-commit run --all-files") < text.index("build.py check")


def test_what_runs_for_a_stranger_has_no_secret() -> None:
    check = json.dumps(jobs()["check"])
    assert "secrets." not in check
    assert "environment" not in jobs()["check"]
    assert "$" not in json.dumps(yaml.safe_load(GITLAB.read_text())["check"].get("id_tokens", {}))
    for name, job in jobs().items():
        writes = {right for right, to in job["permissions"].items() if to == "write"}
        assert writes == ({"id-token"} if name == "publish" else set()), name
    assert yaml.safe_load(GITHUB.read_text())["permissions"] == {}


def test_each_secret_reaches_the_steps_that_need_it() -> None:
    known = {
        step.get("name", step.get("run", ""))[:12]: set(re.findall(r"secrets\.(\w+)", json.dumps(step)))
        for step in jobs()["publish"]["steps"]
        if "secrets." in json.dumps(step)
    }
    assert list(known.values()) == [{"HF_TOKEN"}, {"HF_TOKEN", "REGISTRY_PASSWORD"}, {"REGISTRY_PASSWORD"}]
    assert "HF_TOKEN" not in json.dumps(jobs()["promote"])


def test_the_identity_of_gitlab_is_removed() -> None:
    publish = yaml.safe_load(GITLAB_PUBLISH.read_text())[".publish"]
    assert any("unset STORE_IDENTITY" in line for line in publish["script"])
    assert any(line.startswith("rm ") for line in publish["after_script"])


class _Tokens(BaseHTTPRequestHandler):
    """Answers as GitHub's token service does, to whoever has the request token."""

    def do_GET(self) -> None:
        known = (
            self.headers["Authorization"] == "bearer asked" and self.path == "/token?a=b&audience=modelbake"
        )
        self.send_response(200 if known else 403)
        self.end_headers()
        self.wfile.write(b'{"value": "the.identity"}' if known else b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("said", [{}, {"AWS_ROLE_ARN": "arn:x", "OTHER": "y", "AZURE_TENANT_ID": ""}])
def test_the_identity_of_github(tmp_path: Path, said: dict[str, str]) -> None:
    (step,) = [step for step in jobs()["publish"]["steps"] if step.get("shell") == "python"]
    with HTTPServer(("127.0.0.1", 0), _Tokens) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"http://127.0.0.1:{server.server_address[1]}/token?a=b",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "asked",
            "RUNNER_TEMP": str(tmp_path),
            "GITHUB_ENV": str(tmp_path / "environment"),
            "VARIABLES": json.dumps(said),
        }
        done = subprocess.run(
            [sys.executable, "-c", step["run"]], env=environment, capture_output=True, check=True
        )
        server.shutdown()
    assert b"the.identity" not in done.stdout + done.stderr
    assert (tmp_path / "identity").read_text() == "the.identity"
    assert (tmp_path / "identity").stat().st_mode & 0o777 == 0o600
    wanted = f"AWS_ROLE_ARN=arn:x\nAWS_WEB_IDENTITY_TOKEN_FILE={tmp_path}/identity\n" if said else ""
    assert (tmp_path / "environment").read_text() == wanted

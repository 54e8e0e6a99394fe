"""What children of ours, and a core dump, get to see of our secrets: nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelbake import process
from modelbake.buildkit.buildx import find_buildx
from modelbake.credentials import Secret, hub_token
from modelbake.dockerconfig import RegistryAuth
from modelbake.patterns import found
from tests.servers.environment import ROOT

CANARY = "hf_processCANARYprocess0123456789"
SECRETS = dict.fromkeys(sorted(process.SECRET_VARIABLES), CANARY)


@pytest.fixture(autouse=True)
def secrets_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("MODELBAKE_REGISTRY", raising=False)


def spy(folder: Path, name: str, answer: str) -> Path:
    """Install a program that writes its environment and arguments to a file; return that file."""
    seen = folder / f"{name}.seen"
    program = folder / name
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump([sys.argv, dict(os.environ)], open({str(seen)!r}, 'w'))\nprint({answer!r})\n"
    )
    program.chmod(0o755)
    return seen


@pytest.mark.promise("token-leak")
def test_no_child_inherits_a_secret_while_a_command_runs() -> None:
    show = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    with process.secrets_withheld():
        seen = subprocess.run(show, capture_output=True, text=True, check=True).stdout
        assert CANARY not in seen and "PATH" in json.loads(seen)
        assert {name: process.environment()[name] for name in SECRETS} == SECRETS, "we still have them"
        assert hub_token() == Secret(CANARY)
    assert {name: os.environ[name] for name in SECRETS} == SECRETS


@pytest.mark.control("token-leak")
def test_a_child_that_inherits_them_is_found() -> None:
    show = [sys.executable, "-c", "import os; print(dict(os.environ))"]
    assert CANARY in subprocess.run(show, capture_output=True, text=True, check=True).stdout


@pytest.mark.promise("token-leak")
@pytest.mark.parametrize("child", ["credential helper", "token command", "buildx"])
def test_the_programs_we_start_are_given_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: str
) -> None:
    """Not even where nobody has taken them out of the environment before."""
    monkeypatch.setenv("CLOUD_PROFILE", "ml-ci")
    if child == "credential helper":
        seen = spy(tmp_path, "docker-credential-test", '{"Username": "u", "Secret": "s", "ServerURL": ""}')
        (tmp_path / "config.json").write_text('{"credsStore": "test"}')
        monkeypatch.delenv("MODELBAKE_REGISTRY_PASSWORD")
        assert RegistryAuth(tmp_path / "config.json").for_registry("registry.example.com") is not None
    elif child == "token command":
        seen = spy(tmp_path, "vault", "other-token")
        environ = {**os.environ, "HF_TOKEN": "", "MODELBAKE_TOKEN_COMMAND": "vault read hub"}
        environ.pop("HF_TOKEN_PATH", None)
        assert hub_token(environ) == Secret("other-token")
    else:
        seen = spy(tmp_path, "docker-buildx", "github.com/docker/buildx v0.30.0 x")
        assert find_buildx() == str(tmp_path / "docker-buildx")
    arguments, environment = json.loads(seen.read_text())
    assert CANARY not in str(arguments)
    assert [name for name, value in environment.items() if CANARY in value] == []
    assert "PATH" in environment
    assert (environment.get("CLOUD_PROFILE") == "ml-ci") is (child != "buildx"), "what it needs to log in"


def test_a_search_for_a_pattern_has_no_environment_at_all() -> None:
    assert found("b+", "abbc") and not found("x", "abc")


@pytest.mark.promise("token-leak")
def test_a_crash_leaves_no_core_dump(tmp_path: Path) -> None:
    """`build.py` is killed by what usually dumps core, from the program that it asks for its token."""
    assert _crashed(tmp_path, [str(ROOT / "build.py"), "lock"]) == (-signal.SIGABRT, False)


@pytest.mark.control("token-leak")
def test_a_process_that_dumps_core_is_found(tmp_path: Path) -> None:
    code, dumped = _crashed(tmp_path, ["-c", "import subprocess; subprocess.run(['./abort'])"])
    assert code == -signal.SIGABRT
    if not dumped:
        pytest.skip("this system dumps no core at all")


def _crashed(folder: Path, arguments: list[str]) -> tuple[int, bool]:
    """Run Python with core dumps allowed; return how it ended, and whether there is a dump."""
    (folder / "models.yaml").write_text(
        "registry: registry.example.com/ml\nmodels:\n  m:\n    version: 1.0.0\n    source: hf://a/b\n"
        "    runtime: embeddings\n"
    )
    abort = folder / "abort"
    abort.write_text("#!/bin/sh\nkill -ABRT $PPID\nsleep 5\n")
    abort.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "MODELBAKE_TOKEN_COMMAND": "./abort"}
    script = 'cd "$1" && shift && ulimit -S -c "$(ulimit -H -c)" && exec "$@" 2>/dev/null'
    shell = ["sh", "-c", script, "sh", str(folder), sys.executable, *arguments]
    pid = os.posix_spawn("/bin/sh", shell, environment)  # subprocess would not tell of the dump
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), os.WCOREDUMP(status)

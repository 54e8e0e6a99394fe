"""The token from a program: what it is given, what is shown of it, and what is no token."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from modelbake import tokencommand
from modelbake.credentials import Secret, hub_token
from modelbake.errors import UsageError
from modelbake.tokencommand import token_from_command

CANARY = "hf_commandCANARYcommandCANARY01"
PATH = {"PATH": os.environ["PATH"]}


def printing(code: str) -> str:
    """Return a command that runs some Python."""
    return json.dumps([sys.executable, "-c", code])


def refused(command: str, environ: Mapping[str, str] = PATH) -> str:
    with pytest.raises(UsageError) as caught:
        token_from_command(command, environ)
    assert caught.value.subject == "MODELBAKE_TOKEN_COMMAND"
    return str(caught.value)


@pytest.mark.parametrize(
    "command", [f"echo {CANARY}", f'["echo", "{CANARY}"]', f"printf '%s\\n\\n' {CANARY}"]
)
def test_what_it_prints_is_the_token(command: str) -> None:
    assert token_from_command(command, PATH) == Secret(CANARY)


def test_no_shell_reads_it() -> None:
    assert token_from_command("echo $HOME;id>/x", {**PATH, "HOME": "/"}) == Secret("$HOME;id>/x")
    assert token_from_command("echo 'a\"b'", PATH) == Secret('a"b')


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HF_TOKEN": "one"}, "one"),
        ({"HF_TOKEN": ""}, "file"),
        ({"HF_TOKEN": "", "HF_TOKEN_PATH": ""}, "command"),
    ],
)
def test_what_is_said_more_plainly_wins(tmp_path: Path, environ: dict[str, str], expected: str) -> None:
    (tmp_path / "named").write_text("file")
    (tmp_path / "token").write_text("login")
    known = {"HF_TOKEN_PATH": str(tmp_path / "named"), "HF_HOME": str(tmp_path)}
    found = hub_token({**PATH, **known, "MODELBAKE_TOKEN_COMMAND": "echo command", **environ})
    assert found == Secret(expected)


def test_without_a_command_the_login_is_used(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("login")
    assert hub_token({**PATH, "HF_HOME": str(tmp_path), "MODELBAKE_TOKEN_COMMAND": " "}) == Secret("login")


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("'unclosed", "neither words nor a JSON list"),
        ("[1, 2]", "names no program"),
        ("[]", "names no program"),
        ('["a\\u0000b"]', "names no program"),
        ("[" * 100_000, "neither words nor a JSON list"),
        ("absent-program --x", "the program absent-program cannot be started (No such file or directory)"),
        ("/", "the program / cannot be started (Permission denied)"),
        ("true", "the program true printed nothing"),
        ("false", "the program false ended with exit code 1"),
        ("printf 'one two'", "printed more than one word"),
        ("printf 'one\\ntwo'", "printed more than one word"),
        (printing("print('x' * 20_000)"), "printed more than one word"),
        (printing("print('t\\u00f6ken')"), "printed more than one word"),
    ],
)
def test_what_gives_no_token_is_named(command: str, problem: str) -> None:
    assert problem in refused(command)


@pytest.mark.promise("token-leak")
@pytest.mark.parametrize("exit_code", [0, 7])
@pytest.mark.parametrize("stdout", ["{0}", "{0}\n{0} {0}", "Token: {0}"])
def test_nothing_of_the_token_is_shown(exit_code: int, stdout: str) -> None:
    said = f"using {CANARY} of vault\n\x1b[31mother: sk-0123456789abcdefghij\x1b[0m"
    code = (
        f"import sys; sys.stdout.write({stdout.format(CANARY)!r});"
        f"sys.stderr.write({said!r}); sys.exit({exit_code})"
    )
    if exit_code == 0 and stdout == "{0}":
        assert CANARY not in repr(token_from_command(printing(code), PATH))
        return
    shown = refused(printing(code))
    assert CANARY not in shown and "sk-" not in shown and "\x1b" not in shown
    assert exit_code == 0 or "using *** of vault" in shown, "what is no secret is told"
    assert "program" in shown


@pytest.mark.control("token-leak")
def test_what_it_says_is_shown_where_it_is_no_secret() -> None:
    code = "import sys; sys.exit('permission denied on secret/hub')"
    assert refused(printing(code)).splitlines()[0].endswith("exit code 1: permission denied on secret/hub")


def test_a_hanging_one_is_ended_with_its_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tokencommand, "SECONDS", 0.5)
    pid = tmp_path / "pid"
    shell = f"sleep 300 & echo $! > {shlex.quote(str(pid))}; wait"
    began = time.monotonic()
    assert "printed no token within 0.5 s" in refused(json.dumps(["sh", "-c", shell]))
    assert time.monotonic() - began < 60
    deadline = time.monotonic() + 20
    while _runs(int(pid.read_text())):
        assert time.monotonic() < deadline, "the child of the command still runs"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_is_asked_nothing() -> None:
    assert "printed nothing" in refused(printing("import sys; print(sys.stdin.read(), end='')"))

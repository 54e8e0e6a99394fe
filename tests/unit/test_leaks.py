"""A test in which something says a secret fails, whatever it tests: what watches this suite finds a leak."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.environment import ROOT

_TEST = """
import base64, io, logging, sys

import pytest

from modelbake.credentials import Redactor, Secret
from modelbake.output import Output

EARLY = Secret("made-with-the-module")


def test_it(capsys, caplog):
    late = Secret("made-by-the-test")
    {body}
"""

LEAKS = {
    "printed": "print(late.reveal())",
    "printed, and read": "sys.stderr.write(late.reveal()); capsys.readouterr()",
    "of the module": "print('x' + EARLY.reveal())",
    "base64": "print(base64.b64encode(b'user:' + late.reveal_bytes()).decode())",
    "logged": "logging.getLogger('urllib3').warning('%s', late.reveal())",
    "an event": "Output(stderr=io.StringIO()).event('a', late.reveal())",
    "an event in JSON": "Output(stderr=io.StringIO(), log_format='json').event('a', 'b', c=late.reveal())",
    "a result": "Output(stdout=io.StringIO()).result(late.reveal())",
    "a JSON result": "Output(stdout=io.StringIO()).result_json({'a': [late.reveal()]})",
}
HARMLESS = {
    "a secret's repr": "print(late, repr(EARLY), f'{late}')",
    "what is masked": "Output(stderr=io.StringIO(), redactor=Redactor([late])).event('a', late.reveal())",
}


def outcome(folder: Path, body: str) -> tuple[int, str]:
    test = folder / "test_some.py"
    test.write_text(_TEST.format(body=body))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.conftest",
        "-c",
        "/dev/null",
        "-W",
        "ignore",
    ]
    done = subprocess.run(
        [*command, f"--rootdir={folder}", str(test)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


@pytest.mark.control("token-leak")
@pytest.mark.parametrize("body", LEAKS.values(), ids=LEAKS)
def test_a_secret_that_is_said_is_found(tmp_path: Path, body: str) -> None:
    code, said = outcome(tmp_path, body)
    assert code == 1, said
    assert "a secret was said" in said
    assert "1 passed, 1 error" in said


@pytest.mark.parametrize("body", HARMLESS.values(), ids=HARMLESS)
def test_what_is_hidden_is_no_leak(tmp_path: Path, body: str) -> None:
    code, said = outcome(tmp_path, body)
    assert code == 0, said

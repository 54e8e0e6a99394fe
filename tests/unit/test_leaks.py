"""A test in which something says a secret fails, whatever it tests: what watches this suite finds a leak."""

from __future__ import annotations

import os
import re

import pytest

from tests.unit.inner_pytest import run_pytest

_MODULE = """
import base64, io, logging, sys

from modelbake.credentials import Redactor, Secret
from modelbake.output import Output

EARLY = Secret("made-with-the-module")
"""
_TEST = """

def test_{number}(capsys, caplog):
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


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of tests that leak, and of tests that do not."""
    folder = tmp_path_factory.mktemp("leaks")
    tests = [
        _TEST.format(number=number, body=body)
        for number, body in enumerate([*LEAKS.values(), *HARMLESS.values()])
    ]
    (folder / "test_some.py").write_text(_MODULE + "".join(tests))
    # pytest cuts its lines
    done = run_pytest(folder, "-rA", environment={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 1, done.stderr
    return done.stdout


@pytest.mark.control("token-leak")
@pytest.mark.parametrize("number", range(len(LEAKS)), ids=LEAKS)
def test_a_secret_that_is_said_is_found(said: str, number: int) -> None:
    assert re.search(rf"^ERROR .*::test_{number} - a secret was said", said, re.MULTILINE), said
    assert re.search(rf"^PASSED .*::test_{number}$", said, re.MULTILINE), "the test itself is right"


@pytest.mark.parametrize("number", range(len(LEAKS), len(LEAKS) + len(HARMLESS)), ids=HARMLESS)
def test_what_is_hidden_is_no_leak(said: str, number: int) -> None:
    assert re.search(rf"^PASSED .*::test_{number}$", said, re.MULTILINE), said
    assert not re.search(rf"^ERROR .*::test_{number}\b", said, re.MULTILINE)

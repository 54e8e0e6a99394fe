from __future__ import annotations

import copy
import logging
import pickle
import traceback
from pathlib import Path

import pytest

from modelbake.credentials import Redactor, Secret, hub_token
from modelbake.errors import UsageError

CANARY = "hf_canary0123456789"


@pytest.mark.promise("token-leak")
def test_a_secret_shows_itself_to_nobody_who_prints_it() -> None:
    secret = Secret(CANARY)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>10}",
        "%s".__mod__(secret),
        str([secret]),
    ]
    try:
        raise ValueError(secret)
    except ValueError as error:
        shown.append("".join(traceback.format_exception(error)))
    shown.append(logging.makeLogRecord({"msg": "%s", "args": (secret,)}).getMessage())
    assert not any(CANARY in text for text in shown)
    assert CANARY in f"{secret.reveal()}", "control: the search does find a secret that is revealed"


@pytest.mark.promise("token-leak")
def test_a_secret_is_not_pickled_or_copied_by_accident() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Secret(CANARY))
    with pytest.raises(TypeError):
        copy.copy(Secret(CANARY))


def test_secrets_compare_by_value() -> None:
    assert Secret("a") == Secret(b"a") != Secret("b")
    assert Secret("a") != "a"
    assert not Secret("")


def test_redaction_masks_tokens_and_the_passwords_of_urls_and_nothing_else() -> None:
    pip_config = f"[global]\nindex-url = https://user:p%40ss{CANARY}@host/\ntimeout = 60\n"
    redact = Redactor([Secret(CANARY + "1"), Secret(pip_config), Secret("abc")])
    assert redact(f"a {CANARY}1 b") == "a *** b"
    assert redact(pip_config) == "[global]\nindex-url = https://user:***@host/\ntimeout = 60\n"
    assert redact(f"p@ss{CANARY}") == "***", "a decoded password is the same password"
    assert redact("abc") == "abc", "too short to mask without garbling ordinary text"
    assert Redactor()("nothing known") == "nothing known"


def test_the_token_comes_from_the_environment_before_any_file(tmp_path: Path) -> None:
    named, home = tmp_path / "named", tmp_path / "home"
    home.mkdir()
    named.write_text("from-path\n")
    (home / "token").write_text("from-home\n")
    both = {"HF_TOKEN": " from-env ", "HF_TOKEN_PATH": str(named), "HF_HOME": str(home)}
    assert hub_token(both) == Secret("from-env")
    assert hub_token({**both, "HF_TOKEN": ""}) == Secret("from-path")
    assert hub_token({"HF_HOME": str(home)}) == Secret("from-home")
    assert hub_token({"HF_HOME": str(tmp_path)}) is None


def test_a_named_token_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        hub_token({"HF_TOKEN_PATH": str(tmp_path / "absent")})
    with pytest.raises(UsageError, match="IsADirectoryError"):
        hub_token({"HF_TOKEN_PATH": str(tmp_path)})


@pytest.mark.promise("token-leak")
def test_what_is_learned_later_is_masked_too() -> None:
    redact = Redactor([Secret("first-secret")])
    assert redact("first-secret second-secret") == "*** second-secret"
    redact.add(Secret("second-secret"))
    redact.add(Secret("first-secret"))
    assert redact("first-secret second-secret") == "*** ***"

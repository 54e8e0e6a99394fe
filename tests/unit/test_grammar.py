from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbake import grammar
from modelbake.expressions import why_not
from modelbake.grammar import Grammar, names_a_secret
from modelbake.sourceuri import SOURCE

DIGEST = "sha256:" + "ab" * 32

GRAMMARS = {name: value for name, value in vars(grammar).items() if isinstance(value, Grammar)}


@pytest.mark.parametrize("name", GRAMMARS)
def test_grammars_match_their_examples_and_nothing_around_them(name: str) -> None:
    found = GRAMMARS[name]
    for example in found.examples:
        assert found.matches(example)
        for around in ("\n", "\r", "\0", "\x85", "\u2028", "\x1b"):
            assert not found.matches(example + around)
            assert not found.matches(around + example)
        assert not found.matches(example + "a" * found.longest)


TEXTS = {
    "PATTERN",
    "PICKLE",
    "NEED",
    "INSTALLED",
    "LINE",
    "ENV_VALUE",
    "CHECK_NAME",
    "REASON",
    "ARGUMENT",
    "STORE_VERSION",
}


@pytest.mark.parametrize("name", sorted(set(GRAMMARS) - TEXTS))
@settings(deadline=None)  # a busy machine is not a defect
@given(text=st.text() | st.text("ab01./:@-_{}%$#\n \"'\\`;()[]", max_size=30))
def test_nothing_of_jinja_or_a_shell_survives_in_a_name(name: str, text: str) -> None:
    found = GRAMMARS[name]
    if found.matches(text):
        assert not re.search(r"[\s\\\"`{}<>|^]", text)
        assert text.isascii()
        assert name in ("PATH", "PACKAGE", "CLASS") or not re.search(r"[$;()'&*!]", text)
    assert isinstance(found.advise(text), str)


@pytest.mark.parametrize(
    ("found", "text", "matches"),
    [
        (grammar.PERCENT, "20%", True),
        (grammar.PERCENT, "0.5%", True),
        (grammar.PERCENT, "3000%", True),
        (grammar.PERCENT, "0%", False),
        (grammar.PERCENT, "00.0%", False),
        (grammar.PERCENT, "020%", False),
        (grammar.PERCENT, "-5%", False),
        (grammar.PERCENT, "20", False),
        (grammar.SHARE, "99.999%", True),
        (grammar.SHARE, "100%", False),
        (grammar.SHARE, "0%", False),
        (grammar.REGISTRY, "localhost", True),
        (grammar.REGISTRY, "[::1]:5000/a", True),
        (grammar.REGISTRY, "host:5000", True),
        (grammar.REGISTRY, "host", False),
        (grammar.REGISTRY, "r.io:0", False),
        (grammar.REGISTRY, "r.io:65535/a__b/c-d", True),
        (grammar.REGISTRY, "r.io:65536", False),
        (grammar.REGISTRY, "-r.io", False),
        (grammar.VERSION, "1.0.0-rc.1", True),
        (grammar.VERSION, "1.0.0-" + "a" * 122, True),
        (grammar.VERSION, "1.0.0-" + "a" * 123, False),
        (grammar.VERSION, "\u0661.0.0", False),
        (SOURCE, "hf://a/" + "b" * 96, True),
        (SOURCE, "hf://a/" + "b" * 97, False),
        (SOURCE, "hf://a/.b", False),
        (SOURCE, "hf://a..b/c", False),
        (SOURCE, "hf://a--b/c", False),
        (SOURCE, "hf://\u00e9/c", False),
        (grammar.REVISION, "release/1.0", True),
        (grammar.REVISION, "a/.b", False),
        (grammar.REVISION, "a@{1}", False),
        (grammar.REVISION, "a/", False),
        (grammar.REVISION, "a.", False),
        (grammar.PATTERN, "dir with space/*.json", True),
        (grammar.PATTERN, "a/./b", False),
        (grammar.PATTERN, "..", False),
        (grammar.PATTERN, "..a", True),
        (grammar.PATTERN, "a//b", False),
        (grammar.FILE, ".env", False),
        (grammar.FILE, "a/../b", False),
        (grammar.BASE, f"registry:5000/a@{DIGEST}", True),
        (grammar.BASE, f"a@{DIGEST}@{DIGEST}", False),
        (grammar.HUB, "http://[::1]:8000", True),
        (grammar.HUB, "https://h.io/../x", False),
    ],
)
def test_grammars_in_detail(found: Grammar, text: str, matches: bool) -> None:
    assert found.matches(text) is matches


def test_registry_and_model_name_together_fit_into_a_repository_name() -> None:
    # https://github.com/distribution/reference: at most 255 characters
    assert grammar.REGISTRY.longest + 1 + grammar.NAME.longest <= 255


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True),
        ("HF_TOKEN_PATH", True),
        ("MYTOKEN", True),
        ("API_TOKENS", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("OPENAI_API_KEY", True),
        ("DB_PWD", True),
        ("api_key", True),
        ("GOOGLE_APPLICATION_CREDENTIALS", True),
        ("MAX_TOKENS", False),
        ("VLLM_MAX_NUM_BATCHED_TOKENS", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("TOKENISER", False),
        ("KEYBOARD", False),
        ("OMP_NUM_THREADS", False),
    ],
)
def test_names_that_promise_a_secret(name: str, secret: bool) -> None:
    assert names_a_secret(name) is secret


def test_a_pattern_with_many_choices_is_decided_quickly() -> None:
    began = time.perf_counter()
    for found in GRAMMARS.values():
        for piece in ("a", "a-", "a.", "-", "a_", "/a", "1.", "--a", "a/../"):
            text = (piece * found.longest)[: found.longest - 1] + "!"
            found.matches(text)
            found.advise(text)
            found.advise(piece * 100_000)
    assert time.perf_counter() - began < 10


@settings(deadline=None)  # a busy machine is not a defect
@given(st.text("ab.[]{}()@&|!<>='\"`019-*?:, \\\u00e9$%", max_size=12) | st.text(max_size=20))
def test_any_expression_compiles_or_is_explained(text: str) -> None:
    import jmespath

    if not why_not(text):
        jmespath.compile(text)


@pytest.mark.parametrize("text", ["(" * 499, "!" * 499, "[" * 499, "a." * 240, "a|" * 240])
def test_expressions_made_to_overflow_a_parser_are_refused(text: str) -> None:
    assert why_not(text)

"""All that is said while a test runs is searched for every secret that it made: one that is found fails it.

A secret is the value of any `Secret`, of at least as many characters as the program masks in a text. Said is
what goes through `Output` (wherever the test lets it go), what pytest captured, and what a test read of
that. `@pytest.mark.shows_secret("why")` stands at a test that says one itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import Any

import pytest

from modelbake.credentials import Secret
from modelbake.output import Output
from tests.servers.canary import found_in_bytes

_SHORTEST = 8


class LeakSearch:
    """A plugin of pytest: one test at a time, each process of pytest-xdist its own."""

    def __init__(self) -> None:
        self._lasting: set[bytes] = set()  # of modules, made before the first test
        self._secrets = self._lasting
        self._said: list[str] = []
        _heard(Secret, "__init__", lambda secret, *_: self._secrets.add(secret.reveal_bytes()))
        for name in ("_plain_line", "_print_result"):
            _heard(Output, name, lambda _, __, text: self._said.append(text))
        _heard(pytest.CaptureFixture, "readouterr", lambda _, read: self._said.extend(map(str, read)))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """Begin anew with each test."""
        self._secrets, self._said = set(), []
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Fail a test of which something said a secret, whatever it tests."""
        report = yield
        if report.when == "teardown" and report.passed and not item.get_closest_marker("shows_secret"):
            said = "\n".join([*self._said, *(text for _, text in report.sections)]).encode(errors="replace")
            secrets = {each.strip() for each in self._lasting | self._secrets}
            shown = [each for each in secrets if len(each) >= _SHORTEST and found_in_bytes(each, said)]
            if shown:
                line = next((line for line in said.splitlines() if shown[0] in line), b"(as base64)")
                report.outcome = "failed"
                report.longrepr = f"a secret was said: {line.decode(errors='replace')}"
        return report


def _heard(kind: type, name: str, hear: Callable[..., object]) -> None:
    """Have a method's object, result and arguments heard after each call."""
    method = getattr(kind, name)

    @functools.wraps(method)
    def heard(self: Any, *args: Any, **keys: Any) -> Any:
        result = method(self, *args, **keys)
        hear(self, result, *args)
        return result

    setattr(kind, name, heard)

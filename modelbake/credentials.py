"""Secrets: a type that does not print itself, where the hub token comes from, and redaction of text.

A secret is taken from the environment, from a file or from a program that prints it (`tokencommand`), never
from the command line, where every process of the machine could read it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote

from modelbake.errors import UsageError
from modelbake.process import environment

HUB_TOKEN = "hf_token"  # noqa: S105 - the id under which a build asks for it
_MASK = "***"
_URL_PASSWORD = re.compile(r"://[^/@\s]*:([^/@\s]+)@")
_SHORTEST_REDACTED = 6  # shorter values also occur in ordinary text; masking them would garble every log


class Secret:
    """A value that is shown as `***` wherever it is printed, formatted, pickled or compared by accident."""

    __slots__ = ("_value",)

    def __init__(self, value: str | bytes) -> None:
        # As the environment gives it: bytes that are no text come as surrogates, and go as they came.
        self._value = os.fsencode(value) if isinstance(value, str) else value

    def reveal(self) -> str:
        """Return the value as text; call this only where it is handed to the party it is meant for."""
        return os.fsdecode(self._value)

    def reveal_bytes(self) -> bytes:
        """Return the value as bytes."""
        return self._value

    def __repr__(self) -> str:
        return _MASK

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return _MASK

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a Secret is not pickled")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)


class Redactor:
    """Replaces every known secret in a text by `***`."""

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        self._adding = threading.Lock()
        self._values: frozenset[str] = frozenset()
        # A pattern and the values it is of. It is made when it is needed: a build adds hundreds of addresses.
        self._made: tuple[frozenset[str], re.Pattern[str] | None] = (self._values, None)
        for secret in secrets:
            self.add(secret)

    def add(self, secret: Secret) -> None:
        """Learn a secret: one line as a whole; of a longer text (a pip.conf) the passwords in URLs."""
        text = secret.reveal_bytes().decode(errors="replace").strip()
        found = {unquote(word) for word in _URL_PASSWORD.findall(text)} | set(_URL_PASSWORD.findall(text))
        if "\n" not in text:
            found.add(text)
        with self._adding:
            longer = {value for value in found if len(value) >= _SHORTEST_REDACTED}
            if longer - self._values:
                self._values |= longer

    def __call__(self, text: str) -> str:
        """Return the text with every known secret masked."""
        values, (of, pattern) = self._values, self._made
        if of is not values:
            longest_first = sorted(values, key=len, reverse=True)
            pattern = re.compile("|".join(map(re.escape, longest_first)))
            self._made = values, pattern
        return pattern.sub(_MASK, text) if pattern else text


def hub_token(environ: Mapping[str, str] | None = None) -> Secret | None:
    """Return the hub token, or None where there is none.

    The first that is set decides: `HF_TOKEN`, `HF_TOKEN_PATH`, `MODELBAKE_TOKEN_COMMAND`, the file that
    `hf auth login` writes.

    Source of the names: https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables

    Raises:
        UsageError: the file or the program that is named gives no token.
    """
    env = environment() if environ is None else environ
    if value := env.get("HF_TOKEN", "").strip():
        return Secret(value)
    if named := env.get("HF_TOKEN_PATH"):
        return _token_in(Path(named), must_exist=True)
    if command := env.get("MODELBAKE_TOKEN_COMMAND", "").strip():
        from modelbake.tokencommand import token_from_command  # only where it is needed: it needs this module

        return token_from_command(command, env)
    try:
        home = env.get("HF_HOME") or f"{env.get('XDG_CACHE_HOME') or Path.home() / '.cache'}/huggingface"
    except RuntimeError:  # a user without a home, such as a bare uid in a CI container
        return None
    return _token_in(Path(home) / "token", must_exist=False)


def _token_in(path: Path, *, must_exist: bool) -> Secret | None:
    try:
        value = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        if must_exist:
            raise UsageError(
                "no such file", subject=f"HF_TOKEN_PATH={path}", hint="unset it or name the token file"
            ) from error
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the token file ({type(error).__name__})", subject=str(path)) from error
    return Secret(value) if value else None

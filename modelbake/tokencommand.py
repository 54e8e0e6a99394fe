"""The hub token from a program: a vault's command line, a cloud's secret manager.

`MODELBAKE_TOKEN_COMMAND` names it, as words or as a JSON list of words. It is the environment's and not
models.yaml's: who may propose a change of models.yaml must not thereby run programs where the secrets are.
No shell reads it, so that nothing in it is expanded. What it writes to stdout is the token and is shown
nowhere; what it writes to stderr is shown where it fails, with everything masked that looks like a token.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress

from modelbake.credentials import Redactor, Secret
from modelbake.errors import UsageError
from modelbake.process import without_secrets

VARIABLE = "MODELBAKE_TOKEN_COMMAND"
SECONDS = 60.0  # a vault may have to ask a cloud; a hanging one must not hang a build
_LONGEST_TOKEN = 16_384  # bytes
_SHOWN = 300  # characters of what it says on stderr
_LOOKS_SECRET = re.compile(r"[A-Za-z0-9_./+=-]{20,}")  # words have fewer letters, or spaces between


def token_from_command(text: str, environ: Mapping[str, str]) -> Secret:
    """Run the command that `text` means and return what it prints: one line, the token.

    It inherits `environ` without our own secrets, and an empty stdin.

    Raises:
        UsageError: it is no command, cannot be started, fails, hangs, or prints no token.
    """
    words = _words(text)
    program = words[0]
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=without_secrets(environ),
            start_new_session=True,  # so that what it started itself can be ended with it
        )
    except (OSError, ValueError) as error:
        raise _failed(program, f"cannot be started ({_reason(error)})") from error
    try:
        printed, said = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise _failed(program, f"printed no token within {SECONDS:g} s") from None
    finally:
        if process.poll() is None:  # it hangs, or we are interrupted
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    token = printed.strip()
    if process.returncode:
        raise _failed(program, f"ended with exit code {process.returncode}{_told(said, token)}")
    if not token:
        raise _failed(program, f"printed nothing{_told(said, token)}")
    if len(token) > _LONGEST_TOKEN or not re.fullmatch(rb"[\x21-\x7e]+", token):
        raise _failed(program, "printed more than one word, which is no token")
    return Secret(token)


def masked(text: str) -> str:
    """Return what a program said on one line that can be shown: what looks like a token is masked."""
    return _LOOKS_SECRET.sub("***", re.sub(r"[^\x20-\x7e]+", " ", text))


def _words(text: str) -> list[str]:
    try:
        words = json.loads(text) if text.lstrip().startswith("[") else shlex.split(text)
    except (ValueError, RecursionError) as error:
        raise UsageError("is neither words nor a JSON list of words", subject=VARIABLE) from error
    if not words or not all(isinstance(word, str) and "\0" not in word for word in words) or not words[0]:
        raise UsageError(
            "names no program", subject=VARIABLE, hint='for example: vault kv get -field=token "secret/hub"'
        )
    return list(words)


def _told(said: bytes, token: bytes) -> str:
    """Return what it said on stderr as the end of a sentence, masked."""
    redact = Redactor([Secret(line) for line in token.splitlines()])
    text = " ".join(redact(said.decode(errors="replace")).split())
    text = masked(text)
    return f": {text[:_SHOWN]}" if text else ""


def _failed(program: str, problem: str) -> UsageError:
    return UsageError(
        f"the program {program} {problem}",
        subject=VARIABLE,
        hint="run it by hand: it has to print the token, and nothing else, to stdout",
    )


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__

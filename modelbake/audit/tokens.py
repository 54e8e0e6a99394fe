"""What secrets look like in bytes: tokens of known forms, private keys, URLs with passwords, canaries. Pure.

A token is at least 20 characters of one alphabet in a row. Every sixth byte of a buffer is looked at first:
where no three of them in a row are of that alphabet, there is no token, and weights pass at a fraction of the
price of a regular expression. Each grammar wants a boundary at both ends, so that random bytes match none.

Sources: https://github.blog/2021-04-05-behind-githubs-new-authentication-token-formats/,
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html,
https://learn.microsoft.com/azure/storage/common/storage-account-keys-manage,
https://cloud.google.com/docs/authentication/api-keys, RFC 7468, RFC 6750, RFC 7519. The tests compare them
with the rules of detect-secrets, which read lines of text and can therefore not be run over a stream.
"""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from modelbake.credentials import Secret
from modelbake.errors import UsageError

LONGEST = 4096  # bytes of a match that are looked at; whoever reads a stream keeps so many at hand
CONTEXT = 128  # bytes before a token that may belong to it, such as the key of its value
SHORTEST_CANARY = 8  # bytes; shorter ones are in random bytes as well

_STEP, _RUN = 6, 20  # any 20 bytes in a row hold three sixth ones in a row
_ALPHABET = rb"A-Za-z0-9_.\-/+:@%~"
_OF_ALPHABET = bytes(bool(re.match(rb"[" + _ALPHABET + rb"]", bytes((code,)))) for code in range(256))
_SAMPLES = b"\1\1\1"
_LONG_RUN = re.compile(rb"[" + _ALPHABET + rb"]{20,}")

_ALONE = rb"(?<![A-Za-z0-9])"
_END = rb"(?![A-Za-z0-9])"
_IS = rb"""\\?["']?\s{0,3}[=:]\s{0,3}\\?["']?"""


class _Grammar(NamedTuple):
    """A form of secrets: literals that each of them has, how many bytes after its start, and all of it."""

    rule: str
    anchors: tuple[bytes, ...]
    pattern: re.Pattern[bytes]
    before: int = 0


def _grammar(rule: str, anchors: str, pattern: bytes, before: int = 0) -> _Grammar:
    return _Grammar(rule, tuple(each.encode() for each in anchors.split("|")), re.compile(pattern), before)


_BEARER = rb"\s{1,3}[A-Za-z0-9._~+/-]{20,2048}=*"
_GRAMMARS = (
    _grammar("secret-huggingface", "hf_|api_org_", _ALONE + rb"(?:hf|api_org)_[A-Za-z0-9]{34,40}" + _END),
    _grammar("secret-aws", "AKIA|ASIA|ABIA|ACCA", _ALONE + rb"A(?:KI|SI|BI|CC)A[A-Z2-7]{16}" + _END),
    _grammar(
        "secret-aws",
        "aws_secret_access_key|AWS_SECRET_ACCESS_KEY|ecretAccessKey",
        rb"(?i:(?:aws_s)?ecret_?access_?key)" + _IS + rb"[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])",
    ),
    _grammar("secret-gcp", "AIza", _ALONE + rb"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    _grammar("secret-gcp", "ya29.", _ALONE + rb"ya29\.[A-Za-z0-9_-]{30,1024}"),
    _grammar("secret-gcp", "GOCSPX-", _ALONE + rb"GOCSPX-[A-Za-z0-9_-]{28}(?![A-Za-z0-9_-])"),
    _grammar("secret-gcp", "private_key_id", rb"private_key_id" + _IS + rb"[0-9a-f]{40}" + _END),
    _grammar(
        "secret-azure",
        "AccountKey=|SharedAccessKey=",
        rb"(?:AccountKey|SharedAccessKey)=(?:[A-Za-z0-9+/]{86}==|[A-Za-z0-9+/]{43}=)",
    ),
    _grammar("secret-azure", "sig=", rb"(?<=[?&;])sig=[A-Za-z0-9%+/]{43,80}(?:=|%3[dD])"),
    _grammar(
        "secret-azure",
        "Q~",
        rb"(?<![A-Za-z0-9_~.-])[A-Za-z0-9_~.-]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34}(?![A-Za-z0-9_~.-])",
        before=4,
    ),
    _grammar("secret-github", "ghp_|gho_|ghu_|ghs_|ghr_", _ALONE + rb"gh[pousr]_[A-Za-z0-9]{36,255}" + _END),
    _grammar("secret-github", "github_pat_", _ALONE + rb"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}" + _END),
    _grammar(
        "secret-service",
        "glpat-|gldt-|glft-|glrt-|glsoat-|glptt-",
        _ALONE + rb"gl[a-z]{2,4}-[A-Za-z0-9_-]{20,300}",
    ),
    _grammar("secret-service", "npm_", _ALONE + rb"npm_[A-Za-z0-9]{36}" + _END),
    _grammar("secret-service", "pypi-AgE", _ALONE + rb"pypi-AgE[A-Za-z0-9_-]{60,1024}"),
    _grammar("secret-service", "xox", _ALONE + rb"xox[abposr]-(?:[0-9]{6,}-)+[A-Za-z0-9-]{16,255}"),
    _grammar("secret-service", "sk_live_|rk_live_", _ALONE + rb"[sr]k_live_[A-Za-z0-9]{24,255}" + _END),
    _grammar("secret-service", "T3BlbkFJ", rb"(?<=[A-Za-z0-9_-]{20})T3BlbkFJ[A-Za-z0-9_-]{20,120}"),
    _grammar("secret-service", "sk-ant-", _ALONE + rb"sk-ant-[A-Za-z0-9_-]{40,255}"),
    _grammar("secret-service", "SG.", _ALONE + rb"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])"),
    _grammar("secret-service", "dckr_pat_|dckr_oat_", _ALONE + rb"dckr_[po]at_[A-Za-z0-9_-]{20,120}"),
    _grammar("secret-bearer", "Bearer |bearer |BEARER ", rb"(?<![A-Za-z])(?i:bearer)" + _BEARER),
    _grammar(
        "secret-bearer",
        "uthorization|UTHORIZATION",
        rb"(?i:uthorization" + _IS + rb"(?:basic|token))" + _BEARER,
    ),
    _grammar(
        "secret-bearer",
        "eyJ",
        _ALONE + rb"eyJ[A-Za-z0-9_-]{15,1024}\.eyJ[A-Za-z0-9_-]{10,2048}\.[A-Za-z0-9_-]{20,1024}",
    ),
    _grammar("secret-url", "://", rb"""://[^\s/:@"'<>]{0,64}:[^\s/:@"'<>]{12,255}@[A-Za-z0-9\[]"""),
)
_BY_ANCHOR = {anchor: grammar for grammar in _GRAMMARS for anchor in grammar.anchors}
# All begin with a literal: the regular expression's engine then skips quickly what begins otherwise.
_ANCHORS = re.compile(b"|".join(re.escape(each) for each in sorted(_BY_ANCHOR, key=len, reverse=True)))
# A header alone is in every program that reads such keys: the key itself has to follow.
_KEY_ANCHOR = b"PRIVATE KEY"
_KEY = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    rb"(?:\s|\\[rn]|[A-Za-z-]{3,20}: [^\r\n\\]{1,80}(?:[\r\n]|\\[rn]))*[A-Za-z0-9+/]{40}"
)
_KEY_OTHERS = (
    (b"PuTTY-User-Key-File-", re.compile(rb"PuTTY-User-Key-File-[23]: [a-z0-9-]{5,40}\s")),
    (b"AGE-SECRET-KEY-1", re.compile(rb"AGE-SECRET-KEY-1[A-Z0-9]{58}" + _END)),
)
_LAST = re.compile(rb"[^\s:=\"']+=*\Z")
# Known to everybody: AWS's and Azurite's manuals, and the test account in transformers' own source.
_PUBLIC = (b"EXAMPLE", b"Eby8vdM02xNOcqFl", b"hf_94wBhPGp6KrrTH")
_GUESSED = frozenset(("secret-bearer", "secret-url"))  # told by their place and not by a form of their own
_FEWEST_CHARACTERS = 8  # different ones in a token; fewer are a placeholder, such as hf_xxxxxxxx


class Match(NamedTuple):
    """A secret at `start` of a buffer, and the rule that it breaks. Its bytes are nobody's business."""

    rule: str
    start: int


def find_tokens(buffer: bytes, first: int = 0, limit: int | None = None) -> Iterator[Match]:
    """Yield the secrets that start in `buffer[first:limit]`; what is around that is looked at as well."""
    limit = len(buffer) if limit is None else limit
    for begin, end in _runs(buffer):
        for anchor in _ANCHORS.finditer(buffer, begin, end):
            grammar = _BY_ANCHOR[anchor[0]]
            match = grammar.pattern.match(buffer, max(anchor.start() - grammar.before, 0))
            if match and first <= match.start() < limit and _is_credible(grammar.rule, match[0]):
                yield Match(grammar.rule, match.start())
    yield from _find_keys(buffer, first, limit)


def _runs(buffer: bytes) -> Iterator[tuple[int, int]]:
    """Yield where tokens may be, each byte once: what is of their alphabet, and what is before it."""
    samples = buffer[::_STEP].translate(_OF_ALPHABET)
    if samples.count(1) > len(samples) // 2:  # a text: there are too many to look at each by itself
        yield 0, len(buffer)
        return
    looked_at = at = 0
    while (at := samples.find(_SAMPLES, at)) >= 0:
        run = _LONG_RUN.search(buffer, max((at - 1) * _STEP, 0), (at + 3) * _STEP + _RUN)
        at += 1
        if run is None:
            continue
        whole = _LONG_RUN.match(buffer, run.start())
        assert whole is not None
        yield max(run.start() - CONTEXT, looked_at), whole.end()
        looked_at = whole.end()
        at = max(at, looked_at // _STEP)


def _find_keys(buffer: bytes, first: int, limit: int) -> Iterator[Match]:
    at = first
    while (at := buffer.find(_KEY_ANCHOR, at)) >= 0:
        begin = buffer.rfind(b"-----BEGIN ", max(at - 64, 0), at)
        match = _KEY.match(buffer, begin, at + LONGEST) if begin >= 0 else None
        if match and first <= match.start() < limit:
            yield Match("secret-private-key", match.start())
            return  # one is enough to fail
        at += 1
    for anchor, pattern in _KEY_OTHERS:
        at = buffer.find(anchor, first, limit + len(anchor))
        if at >= 0 and pattern.match(buffer, at):
            yield Match("secret-private-key", at)


def _is_credible(rule: str, found: bytes) -> bool:
    """Tell a secret from a placeholder, an example of a manual, or text that happens to stand there."""
    last = _LAST.search(found.removesuffix(b"@"))
    value = last[0] if last else found
    if any(public in found for public in _PUBLIC) or len(set(value)) < _FEWEST_CHARACTERS:
        return False
    if rule not in _GUESSED:
        return True
    if rule == "secret-url":
        value = found.split(b"@")[0].rpartition(b":")[2]
        if re.search(rb"[${}<>*%]|passw|secret|token", value, re.IGNORECASE):
            return False
    kinds = (re.search(rb"[0-9]", value), re.search(rb"[A-Za-z]", value))
    return all(kinds) and _entropy(value) >= 3.0


def _entropy(value: bytes) -> float:
    """Bits a byte."""
    return -sum(count / len(value) * math.log2(count / len(value)) for count in Counter(value).values())


class Canaries:
    """Secrets that must not be in the image, in every form in which they could be: see `_forms`.

    Raises UsageError for one that is too short to tell anything.
    """

    def __init__(self, secrets: Sequence[Secret] = ()) -> None:
        forms: set[bytes] = set()
        for secret in secrets:
            value = secret.reveal_bytes().strip()
            if len(value) < SHORTEST_CANARY:
                raise UsageError(
                    f"a canary has at least {SHORTEST_CANARY} bytes: a shorter one is found by accident"
                )
            if len(value) > LONGEST:
                raise UsageError(f"a canary has at most {LONGEST} bytes")
            forms |= _forms(value)
        self._forms = tuple(sorted(forms))

    def find(self, buffer: bytes, first: int = 0, limit: int | None = None) -> Iterator[Match]:
        """Yield the first place of each form that starts in `buffer[first:limit]`."""
        limit = len(buffer) if limit is None else limit
        for form in self._forms:
            at = buffer.find(form, first, min(limit + len(form) - 1, len(buffer)))
            if at >= 0:
                yield Match("secret-canary", at)


def _forms(value: bytes) -> set[bytes]:
    """Return a secret as it is, in UTF-16, as hex digits, reversed, and in base64 at any offset."""
    found = {value, value[::-1], value.hex().encode(), value.hex().upper().encode()}
    found |= {bytes(byte for pair in zip(value, bytes(len(value)), strict=True) for byte in pair)}
    for before in range(3):
        coded = base64.b64encode(bytes(before) + value)
        # Digits that also depend on what is before or after the secret are left out.
        start = (before * 8 + 5) // 6
        stop = (before + len(value)) * 8 // 6
        found |= {coded[start:stop], coded[start:stop].translate(bytes.maketrans(b"+/", b"-_"))}
    return found

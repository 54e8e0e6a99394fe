"""The bytes of one file as they stream by: secrets, pickles, and what is packed in it, one level deep.

A place is judged when enough of what follows it is at hand, and what is before a place stays at hand for a
while: nothing is missed because a stream was cut there. Memory is a few MiB for a file of any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from modelbake.audit import packed, pickled
from modelbake.audit.documents import shown_name
from modelbake.audit.tokens import CONTEXT, LONGEST, Canaries, find_tokens

_AHEAD = 2 * pickled.HEAD + (128 << 10)  # bytes that are at hand after a place: a zip's header and more
_BEHIND = 1024  # bytes that are at hand before it: a tar header, a token's key
_STEP = 1 << 20  # bytes that are judged at once
_HEAD_OF_PACKED = 16  # bytes by which it is told how something is packed
_TAR, _TAR_AT, _BLOCK = b"ustar", 257, 512
_SHOWN = 200  # characters of a name
_MOST_PACKED = 16  # entries of one archive that are unpacked at the same time
_ENTRY_SUFFIXES = (".pkl", ".pickle", ".joblib")

assert LONGEST <= _AHEAD and CONTEXT <= _BEHIND


class Hit(NamedTuple):
    """What breaks a rule, where in a file it begins, and in which packed file in it ("": in none)."""

    rule: str
    message: str
    offset: int
    inside: str = ""


@dataclass(frozen=True)
class _Inner:
    name: str
    content: Content
    unpacking: packed.Unpacking


class Content:
    """Reads one file: `feed` its bytes, then `close` returns the first hit of each rule.

    `canaries_only`: nothing else is looked for, in what is packed in it neither, at a multiple of the speed.
    """

    def __init__(self, canaries: Canaries, *, depth: int = 0, canaries_only: bool = False) -> None:
        self._canaries = canaries
        self._canaries_only = canaries_only
        self._depth = depth
        self._parts: list[bytes] = []
        self._held = 0  # bytes of the parts
        self._base = 0  # where in the file they begin
        self._judged = 0  # bytes of the parts that have been
        self._began = False
        self._tar = False
        self._inside = pickled.Inside()
        self._inner: list[_Inner] = []
        self._hits: dict[str, Hit] = {}

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        for each in self._inner:
            self._pass_on(each, data)
        self._inner = [each for each in self._inner if not each.unpacking.done]
        self._parts.append(data)
        self._held += len(data)
        if self._held - self._judged >= _STEP + _AHEAD:
            self._judge(final=False)

    def close(self) -> list[Hit]:
        """Judge what is left, and return what was found."""
        self._judge(final=True)
        for each in self._inner:
            self._finish(each)
        return list(self._hits.values())

    def _judge(self, *, final: bool) -> None:
        buffer = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        first, limit = self._judged, len(buffer) if final else len(buffer) - _AHEAD
        if not self._began:
            self._begin(buffer, final=final)
        for match in self._canaries.find(buffer, first, limit):
            self._hit(match.rule, "", match.start)
        if not self._canaries_only:
            self._judge_the_rest(buffer, first, limit, final=final)
        for entry_at in _places(packed.ZIP_HEADER, buffer, first, limit):
            self._zip_entry(buffer, entry_at)
        if self._tar:
            for magic in _places(_TAR, buffer, first, limit):
                self._tar_entry(buffer, magic - _TAR_AT)
        kept = max(limit - _BEHIND, 0)
        self._base += kept
        self._judged = limit - kept
        self._parts = [buffer[kept:]]
        self._held = len(buffer) - kept

    def _judge_the_rest(self, buffer: bytes, first: int, limit: int, *, final: bool) -> None:
        for match in find_tokens(buffer, first, limit):
            self._hit(match.rule, "", match.start)
        for at, what in self._inside.find(buffer, first, limit, whole=final):
            self._hit("pickle-content", what, at)
        if self._inside.exhausted:
            self._hit("unreadable", "more in it looks like pickles than can be followed", first)

    def _begin(self, buffer: bytes, *, final: bool) -> None:
        self._began = True
        head = buffer[: pickled.HEAD]
        if what := pickled.at_start(head, whole=final and len(buffer) <= len(head)):
            self._hit("pickle-content", what, 0)
        elif len(buffer) > len(head):
            what, followed = pickled.long_start(buffer, whole=final)
            if what:
                self._hit("pickle-content", what, 0)
            elif not followed:
                self._hit("unreadable", "it begins like a pickle that is longer than can be followed", 0)
        self._tar = buffer[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR
        if self._depth == 0 and (machine := packed.unpacker(head)) is not None:
            self._unpack("(unpacked)", machine, buffer)

    def _zip_entry(self, buffer: bytes, at: int) -> None:
        entry = packed.zip_entry(buffer, at)
        if entry is None:
            return
        if entry.name.lower().endswith(_ENTRY_SUFFIXES):
            self._hit("pickle-content", "a pickle by its name, in a zip archive", at, entry.name)
        self._entry(buffer, entry.data, entry.name, prefix=False)  # there may be very many
        if self._depth:
            return
        data = memoryview(buffer)[entry.data :]
        for machine in packed.of_zip(bytes(data[:_HEAD_OF_PACKED])):
            if len(self._inner) == _MOST_PACKED:
                self._hit("unreadable", "too many packed files begin in it at the same time", at)
                return
            self._unpack(entry.name, machine, data)

    def _tar_entry(self, buffer: bytes, at: int) -> None:
        if at < 0 or (self._base + at) % _BLOCK:
            return
        name = buffer[at : at + 100].partition(b"\0")[0].decode(errors="replace")
        if name.lower().endswith(_ENTRY_SUFFIXES):
            self._hit("pickle-content", "a pickle by its name, in a tar archive", at, name)
        self._entry(buffer, at + _BLOCK, name)

    def _entry(self, buffer: bytes, start: int, name: str, *, prefix: bool = True) -> None:
        head = buffer[start : start + pickled.HEAD]
        if what := pickled.at_start(head, whole=False, prefix=prefix):
            self._hit("pickle-content", what, start, name)

    def _unpack(self, name: str, machine: object, data: bytes | memoryview) -> None:
        content = Content(self._canaries, depth=self._depth + 1, canaries_only=self._canaries_only)
        inner = _Inner(name, content, packed.Unpacking(content, machine))
        self._pass_on(inner, data)
        if not inner.unpacking.done:
            self._inner.append(inner)

    def _pass_on(self, inner: _Inner, data: bytes | memoryview) -> None:
        inner.unpacking.feed(data)
        if inner.unpacking.done:
            self._finish(inner)

    def _finish(self, inner: _Inner) -> None:
        if inner.unpacking.given_up:
            self._hit("unreadable", "it grows beyond all measure when it is unpacked", 0, inner.name)
        for hit in inner.content.close():
            self._hits.setdefault(hit.rule, hit._replace(inside=shown_name(inner.name)[:_SHOWN]))

    def _hit(self, rule: str, message: str, at: int, inside: str = "") -> None:
        if rule not in self._hits:
            self._hits[rule] = Hit(rule, message, self._base + at, shown_name(inside)[:_SHOWN])


def _places(needle: bytes, buffer: bytes, first: int, limit: int) -> Iterator[int]:
    at = buffer.find(needle, first, limit + len(needle) - 1)
    while at >= 0:
        yield at
        at = buffer.find(needle, at + 1, limit + len(needle) - 1)

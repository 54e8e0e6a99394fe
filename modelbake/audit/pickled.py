"""What pickles look like, by their bytes and never by their name. Pure; nothing is ever loaded.

At the beginning of a file any pickle is told: all protocols, with or without a header, torch's old format,
NumPy's arrays of objects, joblib's. In the middle of one, a pickle with a header that imports something;
after a prefix of up to HEAD bytes, also one without. A pickle without any import can call nothing.

Source: https://github.com/python/cpython/blob/3.11/Lib/pickletools.py, which disassembles without executing.
"""

from __future__ import annotations

import io
import pickletools
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

HEAD = 8192  # bytes of a beginning that are looked at
_MOST_OPCODES = 4096  # of one pickle that are followed
_MOST_LONG = 100_000  # of one that begins a file and has no header
_MOST_TEXTS = 128  # places of a head that are followed

_HEADER = re.compile(rb"\x80[\0-\x05]")
_NAME = r"[A-Za-z_][\w.]*"
_IMPORTED = re.compile(rf"{_NAME} {_NAME}", re.ASCII)
_WORD = re.compile(rf"{_NAME}|<\w+>", re.ASCII)
# Looks ahead: what is before an import may end with one of its letters.
_TEXT_IMPORT = re.compile(rb"(?=[ci][A-Za-z_][\w.]{0,200}\n[A-Za-z_][\w.]{0,200}\n)")
_STRINGS = re.compile(rb"[\x8cXUV]")
_BYTES_NAME = re.compile(rb"[A-Za-z_][\w.]*")
_LONGEST_NAME = 200  # bytes
_KNOWN_MODULES = sys.stdlib_module_names | {"__builtin__", "commands", "numpy", "torch", "transformers"}
_NUMPY = b"\x93NUMPY"
_NUMPY_OBJECTS = re.compile(rb"""'descr': *(?:\[[^\]]{0,2000}?)?['"][|<>=]?O['"0-9]""")
_JOBLIB_OLD = re.compile(rb"ZF0x[0-9a-f]")
_CALLS = frozenset(("REDUCE", "BUILD", "OBJ", "NEWOBJ", "NEWOBJ_EX", "INST"))
_STARTS = frozenset(("MARK", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET"))
_MARK = "MARK"
# What no call can take: the text of another kind of file then only looks like a pickle.
_NO_TUPLE = frozenset(("NONE", "INT", "FLOAT", "LONG", "GLOBAL", "UNICODE", "STRING"))
_WITH_TUPLE = frozenset(("REDUCE", "NEWOBJ"))
_EXTENSIONS = frozenset(("EXT1", "EXT2", "EXT4"))


@dataclass
class _Walk:
    """How a disassembly went: `end` is 'stop', 'cut' (the buffer ended inside), 'bad' or 'long'.

    Unpickling executes as it reads: what was imported and called before a bad end has happened.
    """

    opcodes: int = 0
    first: str = ""
    imports: list[str] = field(default_factory=list)
    calls: int = 0
    end: str = "bad"
    stopped: int = 0


def at_start(head: bytes, *, whole: bool, prefix: bool = True) -> str | None:
    """Return what pickle a file begins with, or has after a short prefix; None where there is none.

    Args:
        head: the first bytes of the file, up to HEAD of them.
        whole: they are all of it.
        prefix: look for one after a prefix as well.
    """
    if head.startswith(_NUMPY):
        return "a NumPy array of objects" if _NUMPY_OBJECTS.search(head[:4096]) else None
    if _JOBLIB_OLD.match(head):
        return "a pickle of joblib"
    walk = _walk(head, 0, whole=whole)
    if _HEADER.match(head) and (walk.end != "bad" or walk.imports):
        return f"a pickle of protocol {head[1]}{_named(walk)}"
    ends_here = walk.end == "stop" and whole and not head[walk.stopped :].strip()
    container = walk.first in _STARTS and walk.opcodes >= 4 and walk.end == "stop"
    if (walk.imports and (walk.calls or ends_here)) or container:
        return f"a pickle without a header{_named(walk)}"
    return _after_prefix(head, whole=whole) if prefix else None


def long_start(buffer: bytes, *, whole: bool) -> tuple[str | None, bool]:
    """Follow a pickle without a header beyond HEAD; False where it goes on for longer than is followed."""
    if _walk(buffer[:HEAD], 0, whole=False).end not in ("cut", "long"):
        return None, True
    walk = _walk(buffer, 0, whole=whole, most=_MOST_LONG)
    if walk.imports and walk.calls:
        return f"a pickle without a header{_named(walk)}", True
    return None, walk.end != "long"


def _after_prefix(head: bytes, *, whole: bool) -> str | None:
    for string in _STRINGS.finditer(head):
        module = _after_name(head, string.start())
        name = _after_name(head, module) if module else None
        if name and head[name : name + 1] == b"\x93":
            return f"a pickle's import, {string.start()} bytes from its beginning"
    for count, text in enumerate(_TEXT_IMPORT.finditer(head)):
        if count == _MOST_TEXTS:
            break
        starts = [text.start()]
        if head[text.start()] == ord("i"):  # its arguments come before it, after a mark
            starts = _marks_before(head, text.start())
        for start in starts:
            walk = _walk(head, start, whole=whole, plausible=True)
            # Base64 of a certificate can go on like one for a while; it does not import what Python has.
            known = walk.imports and walk.imports[0].partition(".")[0] in _KNOWN_MODULES
            if walk.imports and walk.calls and (walk.end == "stop" or known):
                return f"a pickle{_named(walk)}, {start} bytes from its beginning"
    return None


def _after_name(head: bytes, at: int) -> int | None:
    """Return what follows an opcode that pushes a name, and one that puts it into the memo; None: no name."""
    code = head[at : at + 1]
    if code in (b"\x8c", b"U"):
        start, size = at + 2, head[at + 1] if at + 1 < len(head) else 0
    elif code == b"X":
        start, size = at + 5, int.from_bytes(head[at + 1 : at + 5], "little")
    elif code == b"V":
        start = at + 1
        size = head.find(b"\n", start, start + _LONGEST_NAME) - start
    else:
        return None
    end = start + size
    if not 0 < size <= _LONGEST_NAME or not _BYTES_NAME.fullmatch(head, start, end):
        return None
    end += code == b"V"
    memo = head[end : end + 1]
    if memo == b"p":
        return head.find(b"\n", end, end + 12) + 1 or None
    return end + {b"\x94": 1, b"q": 2, b"r": 5}.get(memo, 0)


def _marks_before(head: bytes, position: int) -> list[int]:
    found: list[int] = []
    mark = head.rfind(b"(", max(position - 512, 0), position)
    while mark >= 0 and len(found) < 8:
        found.append(mark)
        mark = head.rfind(b"(", max(position - 512, 0), mark)
    return found


class Inside:
    """Finds pickles with a header in the middle of a file. It gives up where too much looks like one."""

    def __init__(self) -> None:
        self._opcodes = 0
        self._bytes = 0

    @property
    def exhausted(self) -> bool:
        """Whether more looked like pickles than can be followed."""
        return self._opcodes > 200_000 + self._bytes // 4

    def find(self, buffer: bytes, first: int, limit: int, *, whole: bool) -> Iterator[tuple[int, str]]:
        """Yield where pickles start in `buffer[first:limit]`, and what they are."""
        self._bytes += limit - first
        for header in _HEADER.finditer(buffer, first, min(limit + 1, len(buffer))):
            if self.exhausted:
                return
            walk = _walk(buffer, header.start(), whole=whole, plausible=True)
            self._opcodes += walk.opcodes + 1
            if walk.imports:
                yield header.start(), f"a pickle of protocol {buffer[header.start() + 1]}{_named(walk)}"


def _walk(
    buffer: bytes, start: int, *, whole: bool, plausible: bool = False, most: int = _MOST_OPCODES
) -> _Walk:
    """Disassemble from `start`; `plausible`: imports of impossible names end it, as no opcode does."""
    walk = _Walk()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pickletools decodes escapes that Python would complain of
        _follow(walk, buffer, start, whole=whole, plausible=plausible, most=most)
    return walk


def _follow(walk: _Walk, buffer: bytes, start: int, *, whole: bool, plausible: bool, most: int) -> None:
    stream = io.BytesIO(buffer)  # shares the bytes
    stream.seek(start)
    words: list[str] = []
    stack: list[str] = []  # the names of the opcodes that have put something there
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            walk.opcodes += 1
            walk.first = walk.first or opcode.name
            top = stack[-1] if stack else ""
            if not _apply(opcode, stack):
                return
            if opcode.name in ("GLOBAL", "INST"):
                if plausible and not _IMPORTED.fullmatch(str(argument)):
                    return
                walk.imports.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                if plausible and len(words) < 2:
                    return
                walk.imports.append(".".join(words[-2:]))
            elif opcode.name in _EXTENSIONS and not plausible:
                walk.imports.append(f"extension {argument}")
            elif isinstance(argument, str) and _WORD.fullmatch(argument):
                words.append(argument)
            walk.calls += opcode.name in _CALLS and not (opcode.name in _WITH_TUPLE and top in _NO_TUPLE)
            if walk.opcodes == most:
                walk.end = "long"
                return
        walk.end, walk.stopped = "stop", stream.tell()
    except (ValueError, OverflowError, MemoryError, RecursionError, AssertionError):
        if not whole and stream.tell() >= len(buffer):
            walk.end = "cut"


def _apply(opcode: pickletools.OpcodeInfo, stack: list[str]) -> bool:
    """Do to the stack what an opcode does; False where it could not be executed."""
    takes, gives = opcode.stack_before, opcode.stack_after
    if pickletools.markobject in takes:
        if _MARK not in stack:
            return False
        while stack.pop() != _MARK:
            pass
        takes = takes[: takes.index(pickletools.markobject)]
    if len(stack) < len(takes):
        return False
    if takes:
        del stack[-len(takes) :]
    stack.extend([opcode.name] * len(gives))
    return True


def _named(walk: _Walk) -> str:
    return f" that imports {walk.imports[0][:80]}" if walk.imports else ""

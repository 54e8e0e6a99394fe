"""Hostile texts for files that people write, and a watch on what a program does outside its folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

ENDS = ("\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\\\n", "\0")
HOSTILE = (
    # Ends of lines of every kind, and what would then follow.
    *(f"a{end}RUN evil" for end in ENDS),
    *("\nFROM evil AS image\n", "\n# syntax=evil\n", "# syntax=evil", "# escape=`", "\nEOF\nRUN evil"),
    *("<<EOF", "<<-'EOF'"),
    # Quotes, escapes, variables, shells, templates.
    *('"', "'", '"; evil; "', '"] \nRUN ["evil', '", "evil', "\\", "\\\\", 'a\\"', "a\\", "`"),
    *("`evil`", "$(evil)", "$HOME", "${HOME}", "$", "${HOME:-x}", "%(x)s", "%PATH%", "{{ 7*7 }}"),
    *("{% include '/etc/passwd' %}", "{# x #}", "a b", "a=b", "a b=c", " ", "a ", "#", " #", "-", "--"),
    *("--mount=type=bind", "&& evil", "| evil", "> /etc/x", ";"),
    # Paths, names, addresses.
    *("../canary.txt", "../../../../etc/passwd", "/etc/passwd", "..", ".", "/", "a/../b", "a//b", "~"),
    *("~root", "C:\\x", "file:///etc/passwd", "http://evil", "user:pass@evil", "a@b", ".git", ".wh.x"),
    *("CON", "*", "?", "[", "**", "!"),
    # What looks like something else than it is.
    *("\u202eevil", "\u200b", "\ufeff", "\u2066x\u2069", "\x1b[31mred\x1b[0m", "\x1b]0;x\x07"),
    *("\x08\x08", "\x7f", "\t", "é", "e\u0301", "\u212a", "\uff32\uff35\uff2e", "\U0001f600", "\ud800"),
    *("\udfff", "\ufffe", "\U0010ffff", "\u00a0", "\u3000"),
    # Sizes, and nothing.
    *("", "a" * 255, "a" * 5_000, "\u00e9" * 200_000, "9" * 5_000, "(" * 2_000, "[" * 2_000),
    *("/".join("a" * 2_000), "null", "true", "1e999", "NaN", "-1", "0", "0x10", "~", "yes", "1_000"),
    *("2024-01-01", "<<", "*a", "&a", "!!x"),
)

TEXTS = (
    st.sampled_from(HOSTILE)
    | st.text(max_size=20)
    | st.lists(st.sampled_from(HOSTILE[:-30]) | st.text(max_size=3), min_size=2, max_size=4).map("".join)
)
# Where a hostile text stands in the good one: a grammar may look at a beginning or an end alone.
PLACES = st.sampled_from(["alone", "before", "behind", "within"])


def placed(hostile: str, good: str, place: str) -> str:
    """Return a text made of a good one and a hostile one."""
    match place:
        case "before":
            return hostile + good
        case "behind":
            return good + hostile
        case "within":
            return good[: len(good) // 2] + hostile + good[len(good) // 2 :]
        case _:
            return hostile


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.chown"),
    *("os.truncate", "os.utime", "shutil.move", "shutil.rmtree"),
}
_OTHERS = {"subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.connect"}
_seen: list[str] | None = None
_allowed = ""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event in _OTHERS:
        _seen.append(f"{event} {arguments!r:.200}")
        return
    if event == "open":
        if not (isinstance(arguments[2], int) and arguments[2] & _WRITING):
            return
        paths = arguments[:1]
    elif event in _CHANGES:
        paths = arguments[:2]
    else:
        return
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            full = os.path.realpath(os.fsdecode(path))
            if not (full + "/").startswith(_allowed) and "/__pycache__/" not in full:
                _seen.append(f"{event} {full}")


_hooked = False


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Note what is written outside a folder, every process that is started and every connection."""
    global _seen, _allowed, _hooked
    if not _hooked:
        sys.addaudithook(_hook)  # it cannot be taken away again, only be idle
        _hooked = True
    seen: list[str] = []
    _seen, _allowed = seen, f"{folder.resolve()}/"
    try:
        yield seen
    finally:
        _seen = None

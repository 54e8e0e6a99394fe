"""Remove from installed packages what serving never needs; RECORD, and with it pip, keep telling the truth.

What is removed: `slim_rules.RULES`, and what a runtime says in its runtime.yaml, which comes as JSON:

    {"remove": {PATTERN: REASON}, "stub": {PATTERN: REASON}, "keep": [PATTERN]}

`keep` goes before every rule. `stub` replaces a shared library that others are linked with, and never call,
by a small one (see `stub`). Metadata is never touched: versions, requirements and licences stay.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slim_rules import RULES
from stub import StubError, stub_of

_METADATA = re.compile(r"(?:^|/)[^/]+\.(?:dist|egg)-info/")
_PARTS = re.compile(r"/\*\*$|\*\*/|\*\*|\*|\?|[^*?/]+|/")


@dataclass(frozen=True)
class Instructions:
    """What to do: patterns and why; `own` are those of the runtime, which a person wants to see work."""

    remove: Mapping[str, str] = field(default_factory=dict)
    stub: Mapping[str, str] = field(default_factory=dict)
    keep: Sequence[str] = ()


@dataclass(frozen=True)
class Slimmed:
    """What one rule did: to how many files, and how many bytes are gone."""

    pattern: str
    reason: str
    files: int
    bytes: int


def read_instructions(path: Path) -> Instructions:
    """Read a runtime's instructions, and put the rules for every runtime before them.

    Raises:
        ValueError: it is not of the form above.
        OSError: it cannot be read.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    try:
        remove, stub, keep = document["remove"], document["stub"], document["keep"]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: no instructions for slimming: {error}") from error
    return Instructions({**RULES, **remove}, dict(stub), tuple(keep))


def slim(site: Path, instructions: Instructions) -> list[Slimmed]:
    """Apply the instructions to a site-packages folder; return what each rule did, in their order.

    A file goes with the first rule that matches it. Folders that are left empty go too: an empty one would
    still be found by `import`.

    Raises:
        StubError: a library that is to be replaced is none that can be.
        OSError: a file cannot be removed or written.
    """
    keep = [matcher(pattern) for pattern in instructions.keep]
    found = [path for path in _files(site) if not any(each.fullmatch(path) for each in keep)]
    removed: set[str] = set()
    stubbed: dict[str, bytes] = {}
    done = []
    for pattern, reason in instructions.stub.items():
        gone = 0
        matched = [path for path in found if matcher(pattern).fullmatch(path)]
        for path in matched:
            if (site / path).is_symlink():
                continue  # another name of a library, which stays one of the small library
            size = (site / path).stat().st_size
            try:
                stubbed[path] = stub_of((site / path).read_bytes(), reason)
            except StubError as error:
                raise StubError(f"{path} cannot be replaced by a stub: {error}") from error
            gone += size - len(stubbed[path])
        done.append(Slimmed(pattern, reason, len(matched), gone))
    for pattern, reason in instructions.remove.items():
        matches = matcher(pattern).fullmatch
        matched = [path for path in found if path not in removed and path not in stubbed and matches(path)]
        removed.update(matched)
        sizes = [(site / path).lstat().st_size for path in matched]
        done.append(Slimmed(pattern, reason, len(matched), sum(sizes)))
    for path in removed:
        (site / path).unlink()
    for path, content in stubbed.items():
        (site / path).unlink()  # it may be a link to a file that is not ours to change
        (site / path).write_bytes(content)
    _remove_empty_folders(site, {Path(path).parts[0] for path in removed})
    _correct_records(site, removed, stubbed)
    return done


def matcher(pattern: str) -> re.Pattern[str]:
    """Return what matches whole paths of a pattern: `*` and `?` within a name, `**` across folders."""
    translated = {"/**": "/.+", "**/": "(?:.+/)?", "**": ".+", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(translated.get(part) or re.escape(part) for part in _PARTS.findall(pattern)))


def _files(site: Path) -> list[str]:
    """Return all files but metadata, sorted: the same packages are slimmed in the same order."""
    paths = (
        (Path(folder) / name).relative_to(site).as_posix()
        for folder, folders, names in os.walk(site)
        for name in [*names, *(each for each in folders if (Path(folder) / each).is_symlink())]
    )
    return sorted(path for path in paths if not _METADATA.search(path))


def _remove_empty_folders(site: Path, tops: Iterable[str]) -> None:
    for top in tops:
        for folder, _, _ in os.walk(site / top, topdown=False):
            if not any(Path(folder).iterdir()):
                Path(folder).rmdir()


def _correct_records(site: Path, removed: set[str], stubbed: Mapping[str, bytes]) -> None:
    for record in sorted(site.glob("*.dist-info/RECORD")):
        with record.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        corrected = list(_corrected(rows, removed, stubbed))
        if corrected != rows:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(corrected)
            record.unlink()
            record.write_text(text.getvalue(), encoding="utf-8")


def _corrected(
    rows: Iterable[list[str]], removed: set[str], stubbed: Mapping[str, bytes]
) -> Iterator[list[str]]:
    for row in rows:
        if not row or row[0] in removed:
            continue
        if (content := stubbed.get(row[0])) is None:
            yield row
        else:
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            yield [row[0], f"sha256={digest}", str(len(content))]

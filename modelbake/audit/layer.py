"""One layer, read once from its first byte to its last: what is in it, as facts. Nothing is judged here.

A layer is a tar, compressed or not, or any other blob (an attestation): then it is read as one file.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import stat
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelbake.audit.content import Content, Hit
from modelbake.audit.documents import shown_name
from modelbake.audit.tokens import Canaries, find_tokens
from modelbake.imagetar import is_below, unpacked, whiteout
from modelbake.layertar import has_content, members_of, opened, padding
from modelbake.stream.layers import ROOT

MANIFEST, PASSWD, GROUP = "modelbake/manifest.json", "etc/passwd", "etc/group"
_KEPT = {MANIFEST: 64 << 20, PASSWD: 1 << 20, GROUP: 1 << 20}  # bytes of small files that judging reads
_ABOVE_KEPT = frozenset(posixpath.dirname(path) for path in _KEPT)
_PACKAGE_DATABASES = ("var/lib/dpkg/status", "lib/apk/db/installed", "usr/lib/sysimage/rpm/rpmdb.sqlite")
_PIECE = 1 << 20  # bytes
_BLOCK = 512
_MOST_OF_A_RULE = 100  # places of one rule in one layer that are named; all are counted
_CAPABILITIES = "SCHILY.xattr.security.capability"


@dataclass(frozen=True)
class Seen:
    """What breaks a rule, at a path of a layer; `offset` in bytes, -1 where it is about all of the file."""

    rule: str
    path: str
    message: str = ""
    offset: int = -1


@dataclass(frozen=True)
class Entry:
    """An entry below the weights' folder. `kind`: file, folder, symbolic link, hard link, special file."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class LayerFacts:
    """What a layer holds. `weights`: entries at and below the weights' folder, by path.

    `hidden`: what it takes away of the layers below it; `kept`: small files that judging reads; `packages`:
    it changes the database of a distribution's packages; `files` and `size` (bytes) count what was read.
    `replaced`: small files, or folders of theirs, in whose place it puts what is not judged; `folders`: those
    in which its entries are; `links`: where its symbolic links lead, as paths, by theirs.
    """

    files: int = 0
    size: int = 0
    seen: tuple[Seen, ...] = ()
    weights: Mapping[str, Entry] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    kept: Mapping[str, bytes] = field(default_factory=dict)
    packages: bool = False
    replaced: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerReader:
    """Reads layers. `second_look`: what says more of the pickles at these paths, given each as a file.

    `canaries_only`: nothing but the canaries is looked for in files, and that is several times as fast.
    """

    canaries: Canaries
    second_look: Mapping[str, Callable[[Any, str], list[str]]] = field(default_factory=dict)
    canaries_only: bool = False

    def read(self, content: io.BufferedReader) -> LayerFacts:
        """Read a blob. Raises what `imagetar.UNREADABLE` lists where it cannot be read to its end."""
        stream = _Again(unpacked(content))
        return self._tar(stream) if _is_tar(stream.head) else self._blob(stream)

    def _blob(self, stream: _Again) -> LayerFacts:
        size, hits = self._through(stream, None)
        seen = [Seen(hit.rule, "", _said(hit), hit.offset) for hit in hits]
        if not size:  # a zstd stream that was cut off ends without a word
            seen.append(Seen("unreadable", "", "the layer has no byte: it may have been cut off"))
        return LayerFacts(1, size, tuple(seen))

    def _tar(self, stream: _Again) -> LayerFacts:
        facts = _Gathered()
        file: Any = stream  # tarfile reads it, and asks for nothing else
        with opened(file) as archive:
            for member in members_of(archive):
                self._entry(archive, member, facts)
            # Readers differ in where a tar ends: whatever is behind that is read as well.
            rest = _Rest(archive.fileobj)
            size, hits = self._through(rest, None)
        facts.size += size
        if rest.something:
            facts.add(Seen("unreadable", "", "there are bytes after the end of the layer's tar"))
            facts.hits("", hits)
        elif stream.last.strip(b"\0"):
            facts.add(Seen("unreadable", "", "the layer's tar has no end: it may have been cut off"))
        return facts.done()

    def _entry(self, archive: tarfile.TarFile, member: tarfile.TarInfo, facts: _Gathered) -> None:
        path = _normal(member.name)
        facts.files += 1
        path = self._names(path, member, facts)
        if (hidden := whiteout(path)) is not None:
            facts.hidden.add(hidden)
            return
        _look_at_mode(path, member, facts)
        facts.packages |= path in _PACKAGE_DATABASES
        weight = path == ROOT or path.startswith(f"{ROOT}/")
        linked = member.islnk() and _normal(member.linkname).startswith(f"{ROOT}/")
        sha256 = hashlib.sha256() if weight else None
        facts.replaced_by(path, member)
        if has_content(member):
            if not member.isfile():
                facts.add(Seen("unreadable", path, f"an entry of an unknown kind, {member.type!r}"))
            self._file(archive, member, path, sha256, facts)
        if weight or linked:
            digest = sha256.hexdigest() if sha256 and member.isfile() else ""
            facts.weights[path] = Entry(
                _kind(member), member.mode, member.uid, member.gid, member.size, digest
            )

    def _names(self, path: str, member: tarfile.TarInfo, facts: _Gathered) -> str:
        """Look for secrets in what a header says; return the path as it may be repeated."""
        more = (str(each) for pair in member.pax_headers.items() for each in pair)
        said = "\n".join((member.name, member.linkname, member.uname, member.gname, *more))
        raw = said.encode(errors="surrogateescape")
        found = {match.rule for match in (*find_tokens(raw), *self.canaries.find(raw))}
        if found and shown_name(path) == path and not any(self.canaries.find(path.encode(errors="replace"))):
            shown = path
        else:
            shown = "(a name with a secret in it)" if found else path
        for rule in sorted(found):
            facts.add(Seen(rule, shown, "in its name or attributes"))
        return shown

    def _file(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str, sha256: Any, facts: _Gathered
    ) -> None:
        stream = archive.extractfile(member)
        assert stream is not None
        kept: list[bytes] | None = [] if member.size <= _KEPT.get(path, -1) else None
        if look := self.second_look.get(path):
            with tempfile.TemporaryFile() as copy:
                size, hits = self._through(stream, sha256, kept, copy)
                copy.seek(0)
                for objection in look(copy, path):
                    facts.add(Seen("pickle-opinion", path, objection))
        else:
            size, hits = self._through(stream, sha256, kept)
        facts.size += size
        facts.hits(path, hits)
        if kept is not None and member.isfile():
            facts.kept[path] = b"".join(kept)
            facts.replaced.discard(path)
        if (behind := padding(archive, member)).strip(b"\0"):
            for match in (*find_tokens(behind), *self.canaries.find(behind)):
                facts.add(Seen(match.rule, path, "behind its end", member.size + match.start))

    def _through(
        self, stream: Any, sha256: Any, kept: list[bytes] | None = None, copy: Any = None
    ) -> tuple[int, list[Hit]]:
        content = Content(self.canaries, canaries_only=self.canaries_only)
        size = 0
        while piece := stream.read(_PIECE):
            size += len(piece)
            content.feed(piece)
            if sha256 is not None:
                sha256.update(piece)
            if kept is not None:
                kept.append(piece)
            if copy is not None:
                copy.write(piece)
        return size, content.close() if size else []


@dataclass
class _Gathered:
    """The facts of a layer while it is read."""

    files: int = 0
    size: int = 0
    seen: list[Seen] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    weights: dict[str, Entry] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    kept: dict[str, bytes] = field(default_factory=dict)
    packages: bool = False
    replaced: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)

    def replaced_by(self, path: str, member: tarfile.TarInfo) -> None:
        """Note what an entry does to paths of lower layers: it stands in the place of what was there."""
        self.folders.add(posixpath.dirname(path))
        if member.issym():
            target = posixpath.join("/", posixpath.dirname(path), member.linkname)
            self.links[path] = _normal(target)
        else:
            self.links.pop(path, None)
        if path in _KEPT or (path in _ABOVE_KEPT and not member.isdir()):
            self.kept = {each: raw for each, raw in self.kept.items() if not is_below(each, path)}
            self.replaced.add(path)

    def add(self, seen: Seen) -> None:
        self.counts[seen.rule] += 1
        if self.counts[seen.rule] <= _MOST_OF_A_RULE:
            self.seen.append(seen)

    def hits(self, path: str, hits: list[Hit]) -> None:
        for hit in hits:
            self.add(Seen(hit.rule, path, _said(hit), hit.offset))

    def done(self) -> LayerFacts:
        for rule, count in self.counts.items():
            if count > _MOST_OF_A_RULE:
                self.seen.append(Seen(rule, "", f"and {count - _MOST_OF_A_RULE} more in this layer"))
        return LayerFacts(
            self.files,
            self.size,
            tuple(self.seen),
            self.weights,
            frozenset(self.hidden),
            self.kept,
            self.packages,
            frozenset(self.replaced),
            frozenset(self.folders),
            self.links,
        )


class _Again:
    """A stream whose first block was looked at, and is read again. `last`: its last block so far."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        head = b""
        while len(head) < _BLOCK and (piece := stream.read(_BLOCK - len(head))):
            head += piece
        self.head = self._first = self.last = head

    def read(self, size: int) -> bytes:
        if self._first:
            piece, self._first = self._first[:size], self._first[size:]
            return piece
        read: bytes = self._stream.read(size)
        self.last = (self.last + read)[-_BLOCK:] if len(read) < _BLOCK else read[-_BLOCK:]
        return read


class _Rest:
    """What is left of a stream. `something`: it has not only been zeros."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.something = False

    def read(self, size: int) -> bytes:
        piece: bytes = self._stream.read(size)
        self.something |= piece.count(0) != len(piece)
        return piece


def _is_tar(head: bytes) -> bool:
    if not head.strip(b"\0"):
        return len(head) == _BLOCK  # the end of a tar, of an empty layer
    try:
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _normal(name: str) -> str:
    """Return a path as an engine unpacks it: without a way out of the image."""
    return posixpath.normpath("/" + name.lstrip("/")).lstrip("/") or "."


def _kind(member: tarfile.TarInfo) -> str:
    tests: Iterator[tuple[bool, str]] = iter(
        (
            (member.isfile(), "file"),
            (member.isdir(), "folder"),
            (member.issym(), "symbolic link"),
            (member.islnk(), "hard link"),
        )
    )
    return next((kind for found, kind in tests if found), "special file")


def _look_at_mode(path: str, member: tarfile.TarInfo, facts: _Gathered) -> None:
    if not (member.isfile() or member.isdir() or member.islnk()):
        return
    if not member.isdir():
        bits = [
            name for bit, name in ((stat.S_ISUID, "set-uid"), (stat.S_ISGID, "set-gid")) if member.mode & bit
        ]
        if _CAPABILITIES in member.pax_headers:
            bits.append("file capabilities")
        if bits:
            facts.add(Seen("setuid", path, f"{', '.join(bits)}, owner {member.uid}:{member.gid}"))
    if member.mode & stat.S_IWOTH and not (member.isdir() and member.mode & stat.S_ISVTX):
        facts.add(Seen("world-writable", path, f"mode {member.mode & 0o7777:04o}"))


def _said(hit: Hit) -> str:
    return f"{hit.message} ({hit.inside})".strip() if hit.inside else hit.message

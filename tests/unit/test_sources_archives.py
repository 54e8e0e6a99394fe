from __future__ import annotations

import gzip
import hashlib
import io
import random
import tarfile
from collections.abc import Iterator

import pytest
import zstandard

from modelbake.errors import RevisionNotFound, SourceError, SourceUnavailable, WrongBytes
from modelbake.sources.archives import COMPRESSIONS, Archive, Member

FILES = {
    "./model.safetensors": random.Random(1).randbytes(3 << 20),
    "code/inference.py": b"print()\n",
    "empty.json": b"",
    f"{'deep/' * 30}tokenizer é.json": b"{}" * 4000,
}
PLAIN = {name.removeprefix("./"): content for name, content in FILES.items()}


class Bytes:
    """An archive's bytes, in pieces; fails after `breaks_at` of them if told so."""

    attempts = 1

    def __init__(self, content: bytes, breaks_at: int | None = None) -> None:
        self._content, self._breaks_at = content, breaks_at

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._content), 70_000):
            if self._breaks_at is not None and start >= self._breaks_at:
                raise SourceUnavailable("broke", subject="here")
            yield self._content[start : start + 70_000]


class Origin:
    """Counts the passes over an archive."""

    def __init__(self, content: bytes, compression: str = "tar", breaks_at: int | None = None) -> None:
        self._content, self._breaks_at = content, breaks_at
        self.passes = 0
        self.archive = Archive(self._start, compression, "pets: there")

    def _start(self) -> Bytes:
        self.passes += 1
        return Bytes(self._content, self._breaks_at)


def tar(entries: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def entry(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = "elsewhere"
    return info, content


def packed(content: bytes, compression: str) -> bytes:
    if compression == "gzip":  # in two streams, as `pigz` and `cat a.gz b.gz` write
        half = len(content) // 2
        return gzip.compress(content[:half], 1) + gzip.compress(content[half:], 1)
    return zstandard.compress(content) if compression == "zstd" else content


def whole(form: int = tarfile.PAX_FORMAT) -> bytes:
    return tar([entry("code", kind=tarfile.DIRTYPE), *(entry(*each) for each in FILES.items())], form)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_every_member_is_read(compression: str, form: int) -> None:
    origin = Origin(packed(whole(form), compression), compression)
    members = list(origin.archive.members())
    assert members == [Member(path, len(content)) for path, content in PLAIN.items()]
    for member in members:
        for start in {0, member.size // 3, member.size}:
            assert b"".join(origin.archive.read(member, start)) == PLAIN[member.path][start:]


def test_members_in_their_order_take_one_pass_and_others_more() -> None:
    origin = Origin(packed(whole(), "gzip"), "gzip")
    members = [Member(path, len(content)) for path, content in PLAIN.items()]
    for member in members:
        read = origin.archive.read(member)
        assert hashlib.sha256(b"".join(read)).digest() == hashlib.sha256(PLAIN[member.path]).digest()
        assert read.attempts <= 1
    assert origin.passes == 1
    assert b"".join(origin.archive.read(members[1])) == PLAIN[members[1].path]
    assert origin.passes == 2
    origin.archive.close()
    assert b"".join(origin.archive.read(members[3])) == PLAIN[members[3].path]
    assert origin.passes == 3


def test_links_and_devices_are_no_members() -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    origin = Origin(tar([entry(f"n{number}", kind=kind) for number, kind in enumerate(kinds)]))
    others: list[str] = []
    assert list(origin.archive.members(others.append)) == []
    assert others == ["n0", "n1", "n2", "n3"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "./../up"])
def test_names_that_lead_out_are_refused(name: str) -> None:
    origin = Origin(tar([entry("fine", b"1"), entry(name, b"2")]))
    with pytest.raises(SourceError, match="outside"):
        list(origin.archive.members())
    with pytest.raises(SourceError, match="outside"):
        b"".join(origin.archive.read(Member(name, 1)))
    assert b"".join(origin.archive.read(Member("fine", 1))) == b"1"  # control


def test_what_is_not_there_or_of_another_size_is_said() -> None:
    origin = Origin(whole())
    with pytest.raises(RevisionNotFound, match="has no nothing"):
        b"".join(origin.archive.read(Member("nothing", 1)))
    with pytest.raises(WrongBytes, match="8 bytes"):
        b"".join(origin.archive.read(Member("code/inference.py", 9)))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_cut_archives_are_refused(compression: str) -> None:
    content = packed(whole(), compression)
    for share in (0.0, 0.1, 0.5, 0.9):
        origin = Origin(content[: int(len(content) * share)], compression)
        with pytest.raises(SourceError):
            for member in origin.archive.members():
                b"".join(origin.archive.read(member))


def test_damage_is_refused() -> None:
    plain = bytearray(tar([entry("a", b"1" * 600), entry("b", b"2")]))
    plain[512 + 1024 + 20] ^= 1  # in the second header: tarfile alone would take it for the end
    with pytest.raises(SourceError, match="damaged header"):
        list(Origin(bytes(plain)).archive.members())
    squeezed = bytearray(gzip.compress(whole()))
    squeezed[-6] ^= 1  # its checksum
    with pytest.raises(SourceError, match="gzip"):
        list(Origin(bytes(squeezed), "gzip").archive.members())
    with pytest.raises(SourceError, match="packed by gzip"):
        list(Origin(whole(), "gzip").archive.members())
    with pytest.raises(SourceError, match="packed by zstd"):
        list(Origin(whole(), "zstd").archive.members())
    with pytest.raises(SourceError, match="a tar archive"):
        list(Origin(b"GGUF" * 1000).archive.members())


def test_headers_do_not_fill_the_memory() -> None:
    info, content = entry("a", b"1")
    info.pax_headers = {"comment": "x" * (2 << 20)}
    with pytest.raises(SourceError, match="a header of"):
        list(Origin(tar([(info, content)])).archive.members())
    nested = b"".join(tar([entry("x", b"n\0", kind=tarfile.GNUTYPE_LONGNAME)])[:1024] for _ in range(3000))
    with pytest.raises(SourceError):
        list(Origin(nested).archive.members())


def test_errors_of_the_bytes_are_passed_on() -> None:
    origin = Origin(packed(whole(), "gzip"), "gzip", breaks_at=200_000)
    with pytest.raises(SourceUnavailable):
        list(origin.archive.members())
    with pytest.raises(SourceUnavailable):
        b"".join(origin.archive.read(Member("model.safetensors", 3 << 20)))


def test_random_damage_is_an_error_or_other_bytes_and_never_a_traceback() -> None:
    dice = random.Random(7)
    content = tar([entry("a/b", b"1" * 700), entry("c" * 150, b"2" * 10), entry("d", b"3")])
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(3500)] = dice.randrange(256)
        origin = Origin(bytes(damaged))
        try:
            for member in origin.archive.members():
                assert ".." not in member.path.split("/")
                assert not member.path.startswith("/")
        except SourceError:
            pass


def test_any_number_of_folders_is_not_remembered() -> None:
    entries = [entry(f"d{number}/", kind=tarfile.DIRTYPE) for number in range(2000)]
    archive = Origin(tar([*entries, entry("a", b"1")])).archive
    assert [member.path for member in archive.members()] == ["a"]
    assert set(archive._offsets) == {"a"}
    assert b"".join(archive.read(Member("a", 1))) == b"1"
    with archive._at(Member("a", 1)) as passing:
        assert passing._tar is not None and len(passing._tar.members) <= 1  # type: ignore[attr-defined]

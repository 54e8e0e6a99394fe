"""A full disk is named with what is needed and what is free; other errors are left as they are."""

from __future__ import annotations

import errno
from pathlib import Path

import httpx2
import pytest

from modelbake.context import Context
from modelbake.diskspace import disk_full, free_at, require_free, saying_full
from modelbake.errors import DiskFull
from modelbake.registryreply import Reply, says_full
from modelbake.stream.layout import LayoutRepository
from tests.servers.small_disk import small_disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(tmp_path: Path, number: int) -> None:
    expected = pytest.raises(DiskFull, match=r"disk is full: 1,234 bytes needed, [\d,]+ are free")
    with expected, saying_full(tmp_path / "file", 1234):
        raise OSError(number, "no")


@pytest.mark.control("disk-full")
def test_another_error_is_not() -> None:
    with pytest.raises(PermissionError), saying_full(Path("/x"), 1):
        raise PermissionError(errno.EACCES, "no")


def test_the_space_of_what_is_not_there_yet(tmp_path: Path) -> None:
    assert free_at(tmp_path / "a/b/c") == pytest.approx(free_at(tmp_path), rel=0.5)
    require_free(tmp_path / "a", 1)
    with pytest.raises(DiskFull, match="1,000,000,000,000,000 bytes needed"):
        require_free(tmp_path / "a", 10**15)
    assert "more needed" in disk_full(tmp_path).message


def reply(status: int, body: str) -> Reply:
    return Reply(status, httpx2.Headers(), body.encode())


WORDS = '{"errors":[{"code":"UNKNOWN","message":"x","detail":"write /data: no space left on device"}]}'
NUMBER = (
    '{"errors":[{"code":"UNKNOWN","detail":{"DriverName":"filesystem","Enclosed":{"Op":"write","Err":28}}}]}'
)


def test_what_a_registry_says_of_its_disk() -> None:
    """Replies of docker-registry 2.8.3 on a full file system."""
    assert says_full(reply(500, WORDS))
    assert says_full(reply(500, NUMBER))


@pytest.mark.control("disk-full")
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, WORDS),
        (500, ""),
        (500, "no space left on device"),
        (500, NUMBER.replace("28", "280")),
        (500, NUMBER.replace("28", "5")),
        (503, '{"errors":[{"code":"UNAVAILABLE"}]}'),
    ],
)
def test_what_says_nothing_of_a_disk(status: int, body: str) -> None:
    assert not says_full(reply(status, body))


@pytest.mark.promise("disk-full")
def test_a_layout_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        layout = LayoutRepository.create(disk.path / "layout")
        with disk.full(1 << 14), pytest.raises(DiskFull, match="100,000 bytes needed"):
            layout.put(bytes(100_000), "application/octet-stream")
        assert list((disk.path / "layout/blobs/sha256").iterdir()) == []
        layout.put(bytes(100_000), "application/octet-stream")


@pytest.mark.promise("disk-full")
def test_a_context_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        context = Context({"a": bytes(10_000), "b/c": bytes(20_000)})
        with disk.full(1 << 14), pytest.raises(DiskFull, match="30,000 bytes needed"):
            context.write(disk.path / "context")
        context.write(disk.path / "context")


@pytest.mark.promise("crash")
def test_a_context_that_was_killed_in_the_middle_is_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "context"
    Context({"a": b"1", "b/c": b"2"}).write(folder)
    (folder / "b/.c.new").write_bytes(b"half")
    (folder / "..context-files.new").write_bytes(b"half")
    Context({"a": b"1"}).write(folder)
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [".context-files", "a"]

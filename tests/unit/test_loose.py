"""A folder of loose weights: what is in it, what cannot be taken, what is in it twice."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from modelbake.errors import UsageError
from modelbake.loose import duplicates, hash_files, list_folder, not_taken


def _socket(folder: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)  # the name of a socket is short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("s")
    finally:
        os.chdir(here)
        os.close(here)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (lambda folder: (folder / "l").symlink_to("a.bin"), "is a link"),
    "folder link": (lambda folder: (folder / "l").symlink_to("sub", target_is_directory=True), "is a link"),
    "dangling": (lambda folder: (folder / "l").symlink_to("nothing"), "is a link"),
    "pipe": (lambda folder: os.mkfifo(folder / "p"), "is a pipe"),
    "socket": (_socket, "is a socket"),
    "pointer": (
        lambda folder: (folder / "p.bin").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        ),
        "pointer of Git LFS",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "weights"
    (made / "sub").mkdir(parents=True)
    (made / "a.bin").write_bytes(b"a" * 1000)
    (made / "sub/b.txt").write_bytes(b"")
    return made


def test_files_with_sizes_and_sha256_by_path(folder: Path) -> None:
    (folder / ".cache/huggingface").mkdir(parents=True)
    (folder / ".cache/huggingface/x.metadata").write_text("x")
    files = list_folder(folder)
    assert [(file.path, file.size) for file in files] == [("a.bin", 1000), ("sub/b.txt", 0)]
    assert hash_files(files) == {
        "a.bin": "41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3",
        "sub/b.txt": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }


def test_what_else_lies_in_a_folder_is_told(folder: Path) -> None:
    files = [file.path for file in list_folder(folder)]
    assert not_taken(folder, files) == []
    (folder / ".git/objects").mkdir(parents=True)
    (folder / "sub/.cache").mkdir()
    (folder / "sub/late.bin").write_bytes(b"x")
    (folder / "link").symlink_to("sub", target_is_directory=True)
    (folder / "dangling").symlink_to("nothing")
    expected = [".git/", "dangling", "link", "sub/.cache/", "sub/late.bin"]
    assert not_taken(folder, files) == expected
    assert not_taken(folder, []) == sorted([*expected, *files])


@pytest.mark.parametrize("what", ODD)
def test_what_is_no_regular_file_is_refused(folder: Path, what: str) -> None:
    make, said = ODD[what]
    list_folder(folder)  # control: without it the folder is taken
    make(folder)
    with pytest.raises(UsageError, match=said) as caught:
        list_folder(folder)
    assert caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(folder: Path) -> None:
    (folder / "a.bin").chmod(0)
    with pytest.raises(UsageError, match="cannot be read"):
        list_folder(folder)


@pytest.mark.parametrize("name", ["empty", "missing", "a.bin"])
def test_a_folder_with_files_is_asked_for(folder: Path, name: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no files|no such folder|is a file"):
        list_folder(folder / name)


def test_a_file_that_is_written_to_meanwhile_is_noticed(folder: Path) -> None:
    files = list_folder(folder)
    (folder / "a.bin").write_bytes(b"b" * 1000)
    with pytest.raises(UsageError, match="changed meanwhile"):
        hash_files(files)


def test_reading_tells_how_far_it_is(folder: Path) -> None:
    told: list[int] = []
    with list_folder(folder)[0].open(told.append) as opened:
        assert opened.read(2000) == b"a" * 1000
    assert sum(told) == 1000


def test_the_same_twice_is_pointed_out(folder: Path) -> None:
    (folder / "copy.bin").write_bytes(b"a" * 1000)
    files = list_folder(folder)
    assert duplicates(files, hash_files(files)) == ["a.bin and copy.bin are the same bytes"]
    (folder / "model.safetensors").write_bytes(b"s" * 2010)
    (found,) = duplicates(list_folder(folder), {})
    assert "model.safetensors and a.bin, copy.bin" in found and "two formats" in found
    (folder / "model.safetensors").write_bytes(b"s" * 1500)
    assert duplicates(list_folder(folder), {}) == []

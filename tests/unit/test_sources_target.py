"""Files are put into a folder whole or not at all, and never over another; what a killed run left goes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from modelbake import diskspace
from modelbake.config import SourceSpec
from modelbake.errors import DiskFull, SourceError, SourceNotFound, UsageError
from modelbake.sources.files import open_target as open_folder
from modelbake.sources.target import WRITABLE, open_target, require_writable
from modelbake.sourceuri import KINDS


def _spec(folder: Path) -> SourceSpec:
    return SourceSpec(name="llama", source=f"file://{folder}")


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_file_is_there_as_it_was_and_never_written_over(tmp_path: Path) -> None:
    target = open_target(_spec(tmp_path / "llama"), None, create=False)
    assert target.there() == {} and not (tmp_path / "llama").exists(), "asking changes nothing"
    target.upload("sub/a.bin", io.BytesIO(b"abc"), 3, "")
    with pytest.raises(SourceError, match="is there already"):
        target.upload("sub/a.bin", io.BytesIO(b"xyz"), 3, "")
    (found,) = target.there().items()
    assert found[0] == "sub/a.bin" and found[1].size == 3 and found[1].sha256().startswith("ba7816bf")
    assert _names(tmp_path / "llama") == ["sub"], "no temporary file is left"
    assert (tmp_path / "llama/sub/a.bin").read_bytes() == b"abc"


def test_what_a_killed_run_left_is_no_file_of_the_model_and_goes(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / ".modelbake-upload-left").write_bytes(b"half")
    store = open_folder(_spec(folder))
    assert list(store.listing()) == []
    store.upload("a.bin", io.BytesIO(b"abc"), 3)
    assert _names(folder) == ["a.bin"]


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_folder(_spec(tmp_path / "llama"))
    store.upload("a.bin", io.BytesIO(b"abc"), 3)
    monkeypatch.setattr(diskspace, "free_at", lambda path: 2)
    with pytest.raises(DiskFull, match="3 bytes needed"):
        store.upload("b.bin", io.BytesIO(b"abc"), 3)
    assert _names(tmp_path / "llama") == ["a.bin"]


def test_content_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    store = open_folder(_spec(tmp_path / "llama"))
    with pytest.raises(SourceError, match="Input/output error"):
        store.upload("a.bin", Broken(), 3)
    assert _names(tmp_path / "llama") == []


def test_no_folders_are_made_where_a_disk_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="there is no folder") as caught:
        open_folder(_spec(tmp_path / "not/mounted"))
    assert "mounted" in caught.value.hint


def test_kinds_that_cannot_be_written_name_those_that_can() -> None:
    writable = {address.partition(":")[0] for address in WRITABLE}
    assert writable < set(KINDS)
    for kind in set(KINDS) - writable:
        with pytest.raises(UsageError, match="only read") as caught:
            require_writable(f"{kind}://x")
        assert "hf://, s3://" in caught.value.hint
    for address in WRITABLE:
        require_writable(f"{address}x")

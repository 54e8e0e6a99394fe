"""Small files of a bundle are asked for ahead, a few at once, and handed out in their order."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from modelbake.errors import SourceUnavailable
from modelbake.locked import LockedFile
from modelbake.stream.readahead import FILES, SMALL, Kept, ReadAhead


def file_of(number: int, size: int = 3) -> LockedFile:
    return LockedFile(f"{number:03}.json", size, "ab" * 32)


class Answer:
    """A file's bytes that come when the reader's gate is open."""

    def __init__(self, reader: Gated, file: LockedFile, start: int) -> None:
        self.reader, self.file, self.start, self.attempts = reader, file, start, 0

    def __iter__(self) -> Iterator[bytes]:
        self.attempts = 2
        with self.reader.lock:
            self.reader.begun.append(self.file.path)
            self.reader.most = max(self.reader.most, len(self.reader.begun) - self.reader.ended)
            self.reader.changed.notify_all()
        assert self.reader.gate.wait(20)
        with self.reader.lock:
            self.reader.ended += 1
        if self.file.path in self.reader.broken:
            yield b"par"
            raise SourceUnavailable("broken", subject=self.file.path)
        yield self.file.path.encode()[self.start :]


class Gated:
    """A reader whose every answer waits for `gate`; it notes what was begun, and how many at once."""

    def __init__(self, broken: frozenset[str] = frozenset()) -> None:
        self.gate, self.lock = threading.Event(), threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.begun: list[str] = []
        self.ended = self.most = 0
        self.broken = broken

    def read(self, file: LockedFile, start: int = 0) -> Answer:
        return Answer(self, file, start)

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.begun) >= count, 20), self.begun


def test_the_next_ones_are_asked_for_while_the_first_has_not_answered() -> None:
    files = [file_of(number) for number in range(30)]
    reader = Gated()
    ahead = ReadAhead(reader, files)
    first = ahead.read(files[0])
    reader.wait_for(FILES)  # none of these has answered yet
    reader.gate.set()
    assert b"".join(first) == b"000.json" and first.attempts == 2
    rest = [b"".join(ahead.read(file)) for file in files[1:]]
    assert rest == [file.path.encode() for file in files[1:]], "in order, each its own"
    assert sorted(reader.begun) == [file.path for file in files], "each once"
    assert reader.most <= FILES + 1


def test_large_files_are_not_kept_in_memory() -> None:
    files = [file_of(0), file_of(1, SMALL + 1), file_of(2, SMALL)]
    reader = Gated()
    reader.gate.set()
    ahead = ReadAhead(reader, files)
    assert b"".join(ahead.read(files[0])) == b"000.json"
    large = ahead.read(files[1])
    assert isinstance(large, Answer), "straight from the reader"
    reader.wait_for(2)
    assert "001.json" not in reader.begun
    assert b"".join(large) == b"001.json" and b"".join(ahead.read(files[2])) == b"002.json"


def test_a_file_that_is_continued_is_read_from_there() -> None:
    files = [file_of(0), file_of(1)]
    reader = Gated()
    reader.gate.set()
    ahead = ReadAhead(reader, files[1:])
    assert b"".join(ahead.read(files[0], 4)) == b"json"
    assert b"".join(ahead.read(files[1])) == b"001.json"


def test_nothing_more_is_read_once_it_is_closed() -> None:
    reader = Gated()
    ahead = ReadAhead(reader, [file_of(number) for number in range(30)])
    first = ahead.read(file_of(0))
    reader.wait_for(FILES)
    ahead.close()
    reader.gate.set()
    assert isinstance(first, Kept) and list(first) == []
    assert len(reader.begun) == FILES


def test_the_seconds_are_those_of_reading() -> None:
    reader = Gated()
    ahead = ReadAhead(reader, [file_of(0), file_of(1)])
    first, second = ahead.read(file_of(0)), ahead.read(file_of(1))
    threading.Timer(0.3, reader.gate.set).start()
    assert b"".join(first) + b"".join(second) == b"000.json001.json"
    assert isinstance(second, Kept) and second.seconds >= 0.25


def test_an_error_comes_when_it_is_the_files_turn() -> None:
    files = [file_of(number) for number in range(3)]
    reader = Gated(frozenset({"001.json"}))
    reader.gate.set()
    ahead = ReadAhead(reader, files)
    assert b"".join(ahead.read(files[0])) == b"000.json"
    pieces = iter(ahead.read(files[1]))
    assert next(pieces) == b"par"
    with pytest.raises(SourceUnavailable, match="broken"):
        next(pieces)

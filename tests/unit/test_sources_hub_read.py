"""Reading locked files of a hub that breaks off, damages, refuses and waits."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from modelbake.credentials import Secret
from modelbake.errors import (
    ModelbakeError,
    RevisionNotFound,
    SourceAuthError,
    SourceError,
    SourceGatedError,
    SourceNotFound,
    SourceUnavailable,
    WrongBytes,
)
from modelbake.locked import LockedFile, LockedModel
from modelbake.plan import WeightGroup
from modelbake.sources import reader_for
from modelbake.sources.hub_read import HubReader
from modelbake.sources.opener import origin_of
from modelbake.sources.patience import Patience
from modelbake.stream.flow import LayerFlow, Verified
from modelbake.stream.layers import WeightLayer
from tests.promises import cases
from tests.servers.hub import Fault, Hub, Repo

CANARY = "hf_canaryCANARYcanaryCANARYcanary0123"
POOR = "hf_poorPOORpoorPOORpoorPOORpoor012345"  # known to the hub, but it may read nothing
WRONG = "hf_wrongWRONGwrongWRONGwrongWRONG0123"
NAME = "team/model"
WEIGHTS = random.Random(1).randbytes(2_500_000)
FILES = {
    "config.json": b'{"a": 1}' * 50,
    "deep/folder/größe 100%.json": b"[]",
    "empty.txt": b"",
    "model.safetensors": WEIGHTS,
}
MIB = 1 << 20
QUICK = Patience(first_wait=0.01, longest_wait=3, connect=2, read=0.6, answer=5)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    Repo.create(folder, NAME, FILES)
    return folder


@pytest.fixture(scope="module")
def running(shared: Path) -> Iterator[Hub]:
    with Hub(shared, tokens={CANARY: None, POOR: []}) as server:
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def hub(running: Hub) -> Hub:
    running.faults.clear()
    running.reset_log()
    return running


@pytest.fixture(scope="module")
def one(running: Hub) -> Reading:
    """Return one reader for many tests: it keeps its connections."""
    return Reading(running)


def locked_model(hub: Hub, **changes: Any) -> LockedModel:
    files = tuple(
        LockedFile(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in sorted(FILES.items())
    )
    commit = Repo(hub.root, NAME).head.id
    model = LockedModel("m", f"hf://{NAME}", hub.url, "main", commit, ("*",), (), files)
    return replace(model, **changes)


def file_of(model: LockedModel, path: str) -> LockedFile:
    return next(file for file in model.files if file.path == path)


class Reading:
    """A reader of the hub's model, and what its last conversation took."""

    def __init__(
        self, hub: Hub, token: str | None = CANARY, *, patience: Patience = QUICK, **changes: Any
    ) -> None:
        self.model = locked_model(hub, **changes)
        self.stop = threading.Event()
        self.reader = HubReader(
            self.model, Secret(token) if token else None, patience=patience, stop=self.stop
        )
        self.attempts = 0

    def read(self, path: str = "model.safetensors", start: int = 0) -> bytes:
        pieces = self.reader.read(file_of(self.model, path), start)
        try:
            return b"".join(pieces)
        finally:
            self.attempts = pieces.attempts


def refused(hub: Hub, kind: type[SourceError], path: str = "model.safetensors", **options: Any) -> str:
    """Read, and return the whole text of the error, which is of exactly this class and holds no token."""
    with pytest.raises(ModelbakeError) as caught:
        Reading(hub, **options).read(path)
    assert type(caught.value) is kind, caught.value
    text = str(caught.value)
    assert not any(secret in text for secret in (CANARY, POOR, WRONG, "Signature="))
    assert NAME in text
    return text


class TestReading:
    @pytest.mark.parametrize("path", FILES)
    def test_a_file_is_read(self, hub: Hub, path: str) -> None:
        assert Reading(hub).read(path) == FILES[path]

    def test_the_token_goes_to_the_hub_and_nowhere_else(self, hub: Hub) -> None:
        reading = Reading(hub)
        for path in FILES:
            reading.read(path)
        assert all(record.authorization_valid for record in hub.requests(host="hub"))
        assert len(hub.requests(host="cdn")) == 1 and hub.token_leaks() == []

    @pytest.mark.parametrize(
        "url",
        ["http://evil:1\\@{}/x", "http://user@{}/x", "http://{}\\.evil/x", "ftp://{}/x", "http:///x", "x"],
    )
    def test_an_address_that_two_parsers_read_differently_is_refused(self, hub: Hub, url: str) -> None:
        locator = Reading(hub).reader._locator
        own = hub.url.removeprefix("http://")
        assert origin_of(f"http://{own}/x", locator) == origin_of(hub.url, locator), "control"
        assert origin_of("http://evil:1/x", locator) != origin_of(hub.url, locator), "control"
        with pytest.raises(SourceError, match="an address that is none"):
            origin_of(url.format(own), locator)

    def test_no_request_is_made_for_nothing(self, hub: Hub) -> None:
        reading = Reading(hub)
        assert reading.read("empty.txt") == reading.read(start=len(WEIGHTS)) == b""
        assert hub.requests() == [] and reading.attempts == 0

    def test_a_large_file_takes_two_requests(self, hub: Hub) -> None:
        reading = Reading(hub)
        reading.read()
        assert [(record.host, record.method) for record in hub.requests()] == [
            ("hub", "HEAD"),
            ("cdn", "GET"),
        ]
        assert hub.bytes_sent() == len(WEIGHTS) and reading.attempts == 1

    @pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
    def test_from_any_offset(self, hub: Hub, path: str) -> None:
        data, reading = FILES[path], Reading(hub)
        for start in (0, 1, len(data) // 2, len(data) - 1):
            hub.reset_log()
            assert reading.read(path, start) == data[start:]
            (sent,) = [record for record in hub.requests(method="GET") if record.bytes_sent]
            assert sent.range == (f"bytes={start}-" if start else None)
            assert hub.bytes_sent() == len(data) - start

    def test_pieces_are_small(self, hub: Hub) -> None:
        reading = Reading(hub)
        sizes = [len(piece) for piece in reading.reader.read(file_of(reading.model, "model.safetensors"))]
        assert max(sizes) <= MIB and sum(sizes) == len(WEIGHTS)

    def test_several_threads_read_at_once(self, hub: Hub) -> None:
        reading, found = Reading(hub), []
        threads = [threading.Thread(target=lambda: found.append(reading.read(start=1000))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [WEIGHTS[1000:]] * 4

    def test_the_reader_of_an_address(self, hub: Hub) -> None:
        model = locked_model(hub)
        stop = threading.Event()
        reader = reader_for(model, Secret(CANARY), stop)
        assert b"".join(reader.read(file_of(model, "config.json"))) == FILES["config.json"]

    def test_a_public_model_needs_no_token(self, hub: Hub) -> None:
        repo = Repo(hub.root, NAME)
        repo.set_private(False)
        try:
            assert Reading(hub, None).read() == WEIGHTS
        finally:
            repo.set_private(True)
        assert not any(record.had_authorization for record in hub.requests())


class TestBrokenConnections:
    @pytest.mark.promise("resume", "wrong-bytes")
    @pytest.mark.parametrize("seed", range(cases(8, 100)))
    def test_cut_anywhere_it_goes_on_there(self, hub: Hub, one: Reading, seed: int) -> None:
        chosen = random.Random(seed)
        cuts = chosen.randint(1, 4)
        for _ in range(cuts):
            offset = chosen.randint(0, len(WEIGHTS) // 5)
            hub.faults.add(Fault("drop", "*.safetensors", count=1, offset=offset))
        assert one.read() == WEIGHTS
        assert one.attempts == cuts + 1
        assert hub.token_leaks() == []
        assert len(hub.requests(method="HEAD")) == 1, "the address is good for all of it"
        assert hub.bytes_sent() <= len(WEIGHTS) + cuts * MIB, "a piece that had not come whole is read again"

    @pytest.mark.promise("wrong-bytes")
    def test_it_goes_on_only_with_the_same_version(self, hub: Hub) -> None:
        hub.faults.add(Fault("drop", "*.safetensors", count=1, offset=1_500_000))
        assert Reading(hub).read() == WEIGHTS
        first, second = hub.requests(host="cdn")
        assert first.range is None and "if-range" not in first.headers
        assert second.range is not None and 0 < int(second.range[6:-1]) <= 1_500_000
        assert second.headers["if-range"].startswith('"')

    @pytest.mark.parametrize("fault", ["drop", "truncate"])
    def test_a_hub_without_ranges_sends_all_again(self, shared: Path, fault: Any) -> None:
        with Hub(shared, tokens={CANARY: None}, ranges=False) as hub:
            hub.faults.add(Fault(fault, "*.safetensors", count=1, offset=1_200_000, size=900_000))
            assert Reading(hub).read() == WEIGHTS
            assert Reading(hub).read(start=123_456) == WEIGHTS[123_456:]
            huggingface_hub.close_session()

    @pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
    def test_one_that_ends_early_is_continued(self, hub: Hub, path: str) -> None:
        hub.faults.add(Fault("truncate", path, count=2, size=100))
        reading = Reading(hub)
        assert reading.read(path) == FILES[path]
        assert reading.attempts == 3

    @pytest.mark.promise("wrong-bytes")
    def test_another_range_than_asked_for_is_not_taken(self, hub: Hub) -> None:
        hub.faults.add(Fault("drop", "*.safetensors", count=1, offset=1_500_000))
        hub.faults.add(Fault("content_range", "*.safetensors", count=2, size=5))
        assert Reading(hub).read() == WEIGHTS
        hub.faults.add(Fault("content_range", "*.safetensors", size=5))
        with pytest.raises(SourceUnavailable, match="another range"):
            Reading(hub).read(start=1000)

    def test_it_is_given_up_when_no_byte_more_comes(self, hub: Hub) -> None:
        hub.faults.add(Fault("drop", "*.safetensors", offset=0))
        text = refused(hub, SourceUnavailable)
        assert "broke" in text and f"({QUICK.busy_attempts} attempts)" in text and "model.safetensors" in text
        assert len(hub.requests(host="cdn")) == QUICK.busy_attempts

    def test_as_long_as_bytes_come_it_goes_on(self, hub: Hub) -> None:
        hub.faults.add(Fault("drop", "*.safetensors", offset=1_100_000))
        assert Reading(hub, patience=replace(QUICK, busy_attempts=2)).read() == WEIGHTS

    def test_cut_before_a_piece_is_whole_it_goes_on_too(self, hub: Hub) -> None:
        hub.faults.add(Fault("drop", "*.safetensors", offset=900_000))
        assert Reading(hub, patience=replace(QUICK, busy_attempts=2)).read() == WEIGHTS

    def test_a_hub_that_is_down_for_a_moment(self, hub: Hub) -> None:
        hub.faults.add(Fault("down", count=1))
        assert Reading(hub).read() == WEIGHTS

    def test_a_hub_that_is_down(self, hub: Hub) -> None:
        hub.faults.add(Fault("down"))
        started = time.monotonic()
        refused(hub, SourceUnavailable)
        assert time.monotonic() - started < 20

    def test_a_hub_that_falls_silent(self, hub: Hub) -> None:
        hub.faults.add(Fault("delay", "*.safetensors", host="cdn", seconds=1.2, count=1))
        reading = Reading(hub)
        started = time.monotonic()
        assert reading.read() == WEIGHTS
        assert time.monotonic() - started < 10 and reading.attempts == 2

    @pytest.mark.promise("hub-hang")
    def test_one_that_stays_silent(self, hub: Hub) -> None:
        hub.faults.add(Fault("delay", host="cdn", seconds=1.2))
        patience = replace(QUICK, read=0.2)
        assert "does not answer" in refused(hub, SourceUnavailable, patience=patience)


@pytest.mark.promise("wrong-bytes")
class TestWrongBytes:
    @pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
    @pytest.mark.parametrize("kind", ["short", "extra"])
    def test_another_size_than_locked(self, hub: Hub, path: str, kind: Any) -> None:
        hub.faults.add(Fault(kind, path, size=7))
        text = refused(hub, WrongBytes, path)
        size = len(FILES[path]) + (7 if kind == "extra" else -7)
        assert f"{size:,} bytes instead of the {len(FILES[path]):,}" in text

    def test_a_web_page_instead(self, hub: Hub) -> None:
        hub.faults.add(Fault("html", "*.safetensors", host="cdn"))
        assert "instead of the 2,500,000" in refused(hub, WrongBytes)

    def test_a_lock_that_was_edited(self, hub: Hub) -> None:
        for size in (len(WEIGHTS) - 1, len(WEIGHTS) + 1):
            edited = (LockedFile("model.safetensors", size, "ab" * 32),)
            refused(hub, WrongBytes, files=edited)
            with pytest.raises(WrongBytes):
                Reading(hub, files=edited).read(start=1000)
        edited = (LockedFile("model.safetensors", 3_000_000, "ab" * 32),)
        with pytest.raises(WrongBytes, match="no bytes from 2,700,000 on"):
            Reading(hub, files=edited).read(start=2_700_000)

    @pytest.mark.parametrize("offset", [0, 1_250_000, -1])
    def test_a_flipped_bit_is_found_by_the_layers_flow(self, hub: Hub, offset: int) -> None:
        hub.faults.add(Fault("corrupt", "*.safetensors", offset=offset))
        reading = Reading(hub)
        flow = LayerFlow(WeightLayer(WeightGroup(reading.model.files)), reading.reader)
        passed = 0
        with pytest.raises(WrongBytes, match="sha256"):
            for piece in flow.read():
                passed += len(piece)
        assert passed < flow.layer.segments[-2].start + len(WEIGHTS)

    def test_a_whole_layer_flows_through_broken_connections(self, hub: Hub) -> None:
        for offset in (10, 600_000, 1_300_000):
            hub.faults.add(Fault("drop", "*.safetensors", count=1, offset=offset))
        hub.faults.add(Fault("truncate", "config.json", count=1, size=30))
        verified: list[Verified] = []
        reading = Reading(hub)
        flow = LayerFlow(
            WeightLayer(WeightGroup(reading.model.files)), reading.reader, on_verified=verified.append
        )
        whole = b"".join(flow.read())
        assert flow.digest == f"sha256:{hashlib.sha256(whole).hexdigest()}"
        assert {each.file.path: each.attempts for each in verified} == {
            "config.json": 2,
            "deep/folder/größe 100%.json": 1,
            "model.safetensors": 4,
        }
        assert b"".join(flow.read(1_000_000)) == whole[1_000_000:]


class TestSignedAddresses:
    @pytest.mark.parametrize("status", [401, 403, 404, 410])
    def test_one_that_has_expired_is_signed_anew(self, hub: Hub, status: int) -> None:
        hub.faults.add(Fault("status", "*.safetensors", host="cdn", status=status, count=1))
        reading = Reading(hub)
        assert reading.read() == WEIGHTS
        assert len(hub.requests(method="HEAD")) == 2 and reading.attempts == 2

    def test_in_the_middle_of_a_file_too(self, shared: Path) -> None:
        with Hub(shared, tokens={CANARY: None}, url_seconds=3) as hub:
            hub.faults.add(Fault("drop", "*.safetensors", count=1, offset=1_500_000))
            hub.faults.add(Fault("truncate", "*.safetensors", count=1, size=10))
            reading = Reading(hub)
            pieces = iter(reading.reader.read(file_of(reading.model, "model.safetensors")))
            found = next(pieces)
            time.sleep(4.1)  # a signed address says until which second it is good
            assert found + b"".join(pieces) == WEIGHTS
            assert 403 in {record.status for record in hub.requests(host="cdn")}
            assert len(hub.requests(method="HEAD")) == 2
            huggingface_hub.close_session()

    def test_one_that_is_refused_at_once_again_is_not_asked_for_ever(self, hub: Hub) -> None:
        hub.faults.add(Fault("status", "*.safetensors", host="cdn", status=403))
        text = refused(hub, SourceUnavailable)
        assert "answers 403 to an address that the hub has just signed" in text
        assert len(hub.requests(host="cdn")) == 2

    def test_a_later_expiry_is_another_one(self, hub: Hub) -> None:
        expired = Fault("status", "*.safetensors", host="cdn", status=403, count=1)
        hub.faults.add(expired, Fault("drop", "*.safetensors", host="cdn", offset=1_100_000, count=1))
        reading = Reading(hub)
        pieces = iter(reading.reader.read(file_of(reading.model, "model.safetensors")))
        found = bytearray()
        while len(found) < 1_000_000:
            found += next(pieces)
        hub.faults.add(expired)
        assert found + b"".join(pieces) == WEIGHTS
        assert [record.status for record in hub.requests(host="cdn")] == [403, 200, 403, 206]


class TestRefusals:
    @pytest.mark.parametrize(
        ("token", "kind"), [(None, SourceAuthError), (WRONG, SourceAuthError), (POOR, SourceNotFound)]
    )
    @pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
    def test_tokens_that_do_not_do_are_not_tried_again(
        self, hub: Hub, token: str | None, kind: type[SourceError], path: str
    ) -> None:
        refused(hub, kind, path, token=token)
        assert len(hub.requests()) == 1 and hub.token_leaks() == []

    @pytest.mark.parametrize("status", [401, 403])
    @pytest.mark.parametrize("method", ["HEAD", "GET"])
    def test_nor_is_a_refusal_by_the_hub_itself(self, hub: Hub, status: int, method: str) -> None:
        hub.faults.add(Fault("status", "config.json", host="hub", status=status, method=method))
        refused(hub, SourceAuthError, "config.json")
        assert len([record for record in hub.requests() if record.status == status]) == 1

    def test_terms_that_were_not_accepted(self, tmp_path: Path) -> None:
        repo = Repo.create(tmp_path, NAME, {"config.json": FILES["config.json"]}, private=False)
        repo.set_gated("manual")
        with Hub(tmp_path, tokens={POOR: []}) as hub:
            refused(hub, SourceGatedError, "config.json", token=POOR)
            huggingface_hub.close_session()

    def test_a_commit_that_is_gone(self, hub: Hub) -> None:
        refused(hub, RevisionNotFound, commit="f" * 40)
        assert len(hub.requests()) == 1

    def test_a_repository_that_is_gone(self, hub: Hub) -> None:
        with pytest.raises(SourceNotFound, match="team/other"):
            Reading(hub, source="hf://team/other").read()

    def test_a_file_that_is_gone(self, hub: Hub) -> None:
        with pytest.raises(SourceError):
            Reading(hub, files=(LockedFile("gone.bin", 9, "ab" * 32),)).read("gone.bin")
        assert len(hub.requests()) == 1

    @pytest.mark.parametrize("host", ["hub", "cdn"])
    def test_a_redirect_is_followed(self, hub: Hub, host: Any) -> None:
        hub.faults.add(Fault("loop", "*.safetensors", host=host, count=2))
        reading = Reading(hub)
        assert reading.read() == WEIGHTS
        assert reading.attempts == 1 and hub.token_leaks() == []

    @pytest.mark.promise("hub-hang")
    def test_a_redirect_without_end(self, hub: Hub) -> None:
        hub.faults.add(Fault("loop", "*.safetensors", host="hub"))
        assert "redirects without end" in refused(hub, SourceError)
        hub.faults.clear()
        hub.faults.add(Fault("loop", "*.safetensors", host="cdn"))
        assert "redirects without end" in refused(hub, SourceError)
        assert len(hub.requests()) < 20


class TestPatience:
    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    @pytest.mark.parametrize("host", ["hub", "cdn"])
    def test_a_busy_hub_is_waited_for(self, hub: Hub, one: Reading, host: Any, status: int) -> None:
        hub.faults.add(Fault("status", "*.safetensors", host=host, status=status, count=3))
        assert one.read() == WEIGHTS

    @pytest.mark.parametrize("host", ["hub", "cdn"])
    def test_as_long_as_it_asks_for(self, hub: Hub, host: Any) -> None:
        hub.faults.add(Fault("status", "*.safetensors", host=host, status=429, retry_after=1, count=1))
        started = time.monotonic()
        assert Reading(hub).read() == WEIGHTS
        assert 1 <= time.monotonic() - started < 10

    @pytest.mark.promise("hub-hang")
    @pytest.mark.parametrize("host", ["hub", "cdn"])
    def test_but_not_for_hours(self, hub: Hub, host: Any) -> None:
        hub.faults.add(Fault("status", "*.safetensors", host=host, status=429, retry_after=3600))
        started = time.monotonic()
        assert "429" in refused(hub, SourceUnavailable)
        assert time.monotonic() - started < 20
        assert len([record for record in hub.requests() if record.status == 429]) == 1

    @pytest.mark.promise("hub-hang")
    @pytest.mark.parametrize("host", ["hub", "cdn"])
    def test_nor_for_ever(self, hub: Hub, host: Any) -> None:
        hub.faults.add(Fault("status", "*.safetensors", host=host, status=503))
        assert "503" in refused(hub, SourceUnavailable)
        assert len([record for record in hub.requests() if record.status == 503]) == QUICK.busy_attempts

    @pytest.mark.promise("hub-hang")
    def test_a_hub_that_drips_is_given_up(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        """A byte now and then, with which no whole piece is ever read."""
        monkeypatch.setattr("modelbake.sources.reading._SLOWEST", 1 << 30)
        hub.faults.add(Fault("trickle", "*.safetensors", host="cdn", offset=1_200_000, seconds=0.1))
        began = time.monotonic()
        with pytest.raises(SourceUnavailable, match="too slow"):
            Reading(hub, patience=replace(QUICK, answer=1)).read()
        assert time.monotonic() - began < 10


class TestStop:
    def test_reading_ends_within_a_piece(self, hub: Hub) -> None:
        reading = Reading(hub)
        pieces = iter(reading.reader.read(file_of(reading.model, "model.safetensors")))
        next(pieces)
        reading.stop.set()
        with pytest.raises(SourceUnavailable, match="stopped"):
            next(pieces)

    def test_nothing_is_asked_any_more(self, hub: Hub) -> None:
        reading = Reading(hub)
        reading.stop.set()
        with pytest.raises(SourceUnavailable, match="stopped"):
            reading.read()
        assert hub.requests() == []

    @pytest.mark.parametrize("host", ["hub", "cdn"])
    def test_waiting_ends_at_once(self, hub: Hub, host: Any) -> None:
        hub.faults.add(Fault("status", "*.safetensors", host=host, status=429, retry_after=3))
        reading = Reading(hub)
        threading.Timer(0.2, reading.stop.set).start()
        started = time.monotonic()
        with pytest.raises(SourceUnavailable, match="stopped"):
            reading.read()
        assert time.monotonic() - started < 2.9

"""Uploads to a real registry in memory that breaks, refuses, waits and lies."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs

import pytest

from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.errors import (
    Interrupted,
    ModelbakeError,
    ReadBackMismatch,
    RegistryAuthError,
    RegistryError,
    RegistryUnavailable,
    WrongBytes,
)
from modelbake.manifest import Descriptor, digest_of
from modelbake.registry import Registry
from modelbake.registryupload import open_upload, transfer_blob, upload_flow
from modelbake.stream.flow import LayerFlow
from modelbake.stream.repository import checked
from tests.servers.upload_registry import PASSWORD, USER, Kind, UploadRegistry
from tests.unit.stream.material import MemoryReader, bytes_of, content, flow_of, layer_of

PATH = "ml/weights"
FILES = {
    "config.json": b'{"a": 1}',
    "model-1.safetensors": content(900_000, 1),
    "model-2.safetensors": content(700_001, 2),
}
WHOLE = bytes_of(FILES)
DIGEST = digest_of(WHOLE)
SMALL = {"config.json": b"{}"}
FOR_EVER = 1000


class Client:
    """A registry's client, and how long it would have slept."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.waits: list[float] = []
        registry.sleep = self.waits.append


@contextmanager
def connected(server: UploadRegistry, password: str = PASSWORD) -> Iterator[Registry]:
    with Registry(server.host, RegistryCredentials(USER, Secret(password)), timeout=5) as registry:
        yield registry


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[UploadRegistry, Registry]]:
    with UploadRegistry() as server, connected(server) as registry:
        registry.ping()  # from now on it shows its password unasked
        yield server, registry


@pytest.fixture
def server(running: tuple[UploadRegistry, Registry]) -> UploadRegistry:
    running[0].reset()
    return running[0]


@pytest.fixture
def client(server: UploadRegistry, running: tuple[UploadRegistry, Registry]) -> Client:
    return Client(running[1])


def flowing(contents: Mapping[str, bytes] = FILES, **options: Any) -> LayerFlow:
    return LayerFlow(layer_of(contents), MemoryReader(contents, largest=1 << 16), **options)


def refused(
    server: UploadRegistry, client: Client, kind: type[ModelbakeError], flow: LayerFlow | None = None
) -> ModelbakeError:
    """Upload, and return the error, of exactly this class; nothing was committed, the session is gone."""
    with pytest.raises(ModelbakeError) as caught:
        upload_flow(client.registry, PATH, flow or flowing())
    assert type(caught.value) is kind, caught.value
    assert server.blobs(PATH) == {}
    assert server.sessions == {}, "cancelled"
    assert PASSWORD not in str(caught.value)
    return caught.value


class TestUploadFlow:
    @pytest.mark.parametrize("absolute", [False, True])
    def test_a_layer_becomes_a_blob(self, server: UploadRegistry, client: Client, absolute: bool) -> None:
        flow = flowing()
        server.reset(absolute=absolute)
        upload_flow(client.registry, PATH, flow)
        assert server.blobs(PATH) == {DIGEST: WHOLE}
        assert server.received() == flow.sent == len(WHOLE)
        assert [each.kind for each in server.seen] == ["open", "patch", "commit", "head"]
        assert server.sessions == {} and client.waits == []
        (patch,) = [each for each in server.seen if each.kind == "patch"]
        assert patch.headers["content-length"] == str(len(WHOLE))
        assert "content-range" not in patch.headers

    def test_a_compressed_one_too(self, server: UploadRegistry, client: Client) -> None:
        flow = flowing(compression="zstd")
        upload_flow(client.registry, PATH, flow)
        assert {digest: len(data) for digest, data in server.blobs(PATH).items()} == {flow.digest: flow.sent}
        assert flow.digest == digest_of(server.blobs(PATH)[flow.digest])
        (patch,) = [each for each in server.seen if each.kind == "patch"]
        assert patch.headers["transfer-encoding"] == "chunked"

    def test_the_digest_is_said_only_at_the_end(self, server: UploadRegistry, client: Client) -> None:
        upload_flow(client.registry, PATH, flowing())
        asked = [(each.kind, parse_qs(each.query).get("digest")) for each in server.seen]
        assert asked[:3] == [("open", None), ("patch", None), ("commit", [DIGEST])]


class TestResume:
    @pytest.mark.parametrize("seed", range(50))
    def test_cut_anywhere_it_goes_on_at_the_registrys_offset(
        self, server: UploadRegistry, client: Client, seed: int
    ) -> None:
        chosen = random.Random(seed)
        told: list[int] = []
        flow = flowing(on_bytes=told.append)
        cuts = chosen.randint(1, 5)
        for number in range(1, cuts + 1):
            server.trouble("patch", at=number, cut=chosen.randint(2, len(WHOLE) // 6))
        upload_flow(client.registry, PATH, flow)
        assert server.blobs(PATH) == {DIGEST: WHOLE}
        assert server.received() == len(WHOLE), "no byte arrived twice"
        assert (server.count("patch"), server.count("status"), server.count("open")) == (cuts + 1, cuts, 1)
        assert server.sessions == {} and server.count("cancel") == 0
        assert client.waits == [0.5] * cuts, "bytes have arrived: these are no failures in a row"
        assert sum(told) == len(WHOLE)
        patches = [each for each in server.seen if each.kind == "patch"]
        begins = [int(each.headers.get("content-range", "0-").partition("-")[0]) for each in patches]
        assert begins == [sum(each.received for each in patches[:number]) for number in range(len(patches))]

    @pytest.mark.parametrize("cut", [0, 1, 2, 511, len(WHOLE) - 1, len(WHOLE)])
    def test_cut_at_the_edges(self, server: UploadRegistry, client: Client, cut: int) -> None:
        server.trouble("patch", cut=cut)
        upload_flow(client.registry, PATH, flowing())
        assert server.blobs(PATH) == {DIGEST: WHOLE}
        assert server.sessions == {}
        if cut > 1:  # of one byte, 0-0 does not say whether it is there
            assert server.received() == len(WHOLE)

    def test_a_session_that_is_forgotten_is_begun_anew(self, server: UploadRegistry, client: Client) -> None:
        server.trouble("patch", cut=100_000)
        server.trouble("status", status=404)
        upload_flow(client.registry, PATH, flowing())
        assert server.blobs(PATH) == {DIGEST: WHOLE}
        assert server.received() == 100_000 + len(WHOLE)
        assert (server.count("open"), server.count("cancel")) == (2, 1)
        assert server.sessions == {}

    @pytest.mark.parametrize("says", ["", "bytes", "17-400", "0--1", "0-1e3"])
    def test_so_is_one_whose_state_makes_no_sense(
        self, server: UploadRegistry, client: Client, says: str
    ) -> None:
        server.trouble("patch", cut=100_000)
        server.trouble("status", says=says)
        upload_flow(client.registry, PATH, flowing())
        assert server.blobs(PATH) == {DIGEST: WHOLE}
        assert server.count("open") == 2 and server.sessions == {}

    def test_the_range_may_name_its_unit(self, server: UploadRegistry, client: Client) -> None:
        server.trouble("patch", cut=100_000)
        server.trouble("status", says="bytes=0-99999")
        upload_flow(client.registry, PATH, flowing())
        assert server.received() == len(WHOLE) and server.blobs(PATH) == {DIGEST: WHOLE}

    @pytest.mark.parametrize("says", ["0-99999999", f"0-{len(WHOLE)}", "0-1199999"])
    def test_a_registry_that_says_it_has_more_than_was_sent_is_not_believed(
        self, server: UploadRegistry, client: Client, says: str
    ) -> None:
        server.trouble("patch", times=FOR_EVER, cut=1_000_000)
        server.trouble("status", times=FOR_EVER, says=says)
        with pytest.raises(RegistryError):
            upload_flow(client.registry, PATH, flowing())
        assert server.blobs(PATH) == {} and server.sessions == {}

    def test_a_compressed_layer_is_begun_anew(self, server: UploadRegistry, client: Client) -> None:
        flow = flowing(compression="zstd")
        server.trouble("patch", cut=100_000)
        upload_flow(client.registry, PATH, flow)
        assert set(server.blobs(PATH)) == {flow.digest}
        assert server.received() == 100_000 + flow.sent
        assert (server.count("status"), server.count("cancel")) == (0, 1)
        assert server.sessions == {}

    @pytest.mark.parametrize("contents", [SMALL, FILES, {"large.bin": content(12_000_000)}])
    def test_it_is_given_up_when_no_byte_more_arrives(
        self, server: UploadRegistry, client: Client, contents: Mapping[str, bytes]
    ) -> None:
        server.trouble("patch", times=FOR_EVER, cut=0)
        error = refused(server, client, RegistryUnavailable, flowing(contents))
        assert "5 attempts" in error.message and "run it again" in error.hint
        assert server.count("patch") == 5
        assert client.waits == [0.5, 1, 2, 4]
        assert server.count("cancel") >= 1

    def test_as_long_as_bytes_arrive_it_goes_on(self, server: UploadRegistry, client: Client) -> None:
        server.trouble("patch", times=FOR_EVER, cut=150_000)
        upload_flow(client.registry, PATH, flowing())
        assert server.received() == len(WHOLE)
        assert server.count("patch") == len(WHOLE) // 150_000 + 1
        assert set(client.waits) == {0.5}


class TestLostAnswers:
    @pytest.mark.parametrize("compression", ["none", "zstd"])
    def test_a_commit_whose_answer_is_lost_has_happened(
        self, server: UploadRegistry, client: Client, compression: str
    ) -> None:
        flow = flowing(compression=compression)
        server.trouble("commit", lose=True)
        upload_flow(client.registry, PATH, flow)
        assert set(server.blobs(PATH)) == {flow.digest}
        assert server.received() == flow.sent and server.count("commit") == 1

    def test_bytes_whose_answer_is_lost_are_not_sent_again(
        self, server: UploadRegistry, client: Client
    ) -> None:
        server.trouble("patch", lose=True)
        upload_flow(client.registry, PATH, flowing())
        assert server.blobs(PATH) == {DIGEST: WHOLE}
        assert server.received() == len(WHOLE) and server.count("open") == 1

    def test_a_blob_that_is_not_there_after_its_commit_is_no_success(
        self, server: UploadRegistry, client: Client
    ) -> None:
        server.trouble("head", status=404)
        with pytest.raises(ReadBackMismatch, match="now says None"):
            upload_flow(client.registry, PATH, flowing())


class TestRefusals:
    @pytest.mark.parametrize("status", [401, 403])
    @pytest.mark.parametrize("kind", ["open", "patch", "status", "commit"])
    def test_401_and_403_are_not_retried(
        self, server: UploadRegistry, client: Client, kind: Kind, status: int
    ) -> None:
        if kind == "status":
            server.trouble("patch", cut=1000)
        server.trouble(kind, times=FOR_EVER, status=status, retry_after=1)
        error = refused(server, client, RegistryAuthError)
        assert f"HTTP {status}" in error.message
        # After a 401 the credentials are shown once more, where the request can be sent once more.
        assert server.count(kind) == (2 if status == 401 and kind != "patch" else 1)
        assert client.waits == ([0.5] if kind == "status" else [])
        assert server.count("cancel") == (0 if kind == "open" else 1)

    def test_a_wrong_password(self, server: UploadRegistry) -> None:
        with connected(server, "wrong") as registry:
            refused(server, Client(registry), RegistryAuthError)
        assert server.seen == []

    @pytest.mark.parametrize("contents", [SMALL, {"large.bin": content(8_000_000)}])
    def test_413_says_what_limits_the_size(
        self, server: UploadRegistry, client: Client, contents: Mapping[str, bytes]
    ) -> None:
        server.trouble("patch", times=FOR_EVER, status=413)
        error = refused(server, client, RegistryError, flowing(contents))
        assert "HTTP 413" in error.message and "limits the size" in error.hint
        assert server.count("patch") == 1 and client.waits == []

    def test_404_asks_whether_the_repository_exists(self, server: UploadRegistry, client: Client) -> None:
        server.trouble("open", status=404, code="NAME_UNKNOWN")
        error = refused(server, client, RegistryError)
        assert "NAME_UNKNOWN" in error.message and "does the repository exist" in error.hint
        assert server.count("open") == 1

    @pytest.mark.parametrize("status", [400, 405, 409, 507])
    @pytest.mark.parametrize("kind", ["open", "patch", "commit"])
    def test_other_refusals_are_final(
        self, server: UploadRegistry, client: Client, kind: Kind, status: int
    ) -> None:
        server.trouble(kind, times=FOR_EVER, status=status)
        with pytest.raises(RegistryError, match=f"HTTP {status}"):
            upload_flow(client.registry, PATH, flowing())
        assert server.blobs(PATH) == {} and server.sessions == {}
        if status < 500:
            assert server.count(kind) == 1

    @pytest.mark.parametrize("flip", [0, 600, 800_000, len(WHOLE) - 1])
    def test_a_bit_that_flips_on_the_way_is_never_committed(
        self, server: UploadRegistry, client: Client, flip: int
    ) -> None:
        server.trouble("patch", flip=flip)
        error = refused(server, client, ReadBackMismatch)
        assert DIGEST in error.message
        assert (server.count("commit"), server.count("cancel"), server.count("patch")) == (1, 1, 1)

    def test_nor_one_that_flips_before_a_cut(self, server: UploadRegistry, client: Client) -> None:
        server.trouble("patch", flip=5000, cut=100_000)
        refused(server, client, ReadBackMismatch)
        assert server.received() == len(WHOLE)


class TestPatience:
    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    @pytest.mark.parametrize("kind", ["open", "patch", "commit", "head", "status"])
    def test_a_busy_registry_is_waited_for(
        self, server: UploadRegistry, client: Client, kind: Kind, status: int
    ) -> None:
        if kind == "status":
            server.trouble("patch", cut=1000)
        server.trouble(kind, times=2, status=status)
        upload_flow(client.registry, PATH, flowing())
        assert server.blobs(PATH) == {DIGEST: WHOLE}
        assert server.received() == len(WHOLE)
        assert len(client.waits) >= 2 and server.sessions == {}

    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize("kind", ["open", "patch", "commit", "head", "status"])
    def test_as_long_as_it_asks_for(
        self, server: UploadRegistry, client: Client, kind: Kind, status: int
    ) -> None:
        if kind == "status":
            server.trouble("patch", cut=1000)
        server.trouble(kind, status=status, retry_after=7)
        upload_flow(client.registry, PATH, flowing())
        assert server.blobs(PATH) == {DIGEST: WHOLE}
        assert 7 in client.waits

    def test_a_date_is_understood_too(self, server: UploadRegistry, client: Client) -> None:
        server.trouble("patch", status=429, retry_after=formatdate(time.time() + 20, usegmt=True))
        upload_flow(client.registry, PATH, flowing())
        assert 15 < max(client.waits) <= 20

    @pytest.mark.parametrize("kind", ["open", "patch", "commit"])
    def test_but_not_for_hours(self, server: UploadRegistry, client: Client, kind: Kind) -> None:
        server.trouble(kind, times=FOR_EVER, status=429, retry_after=3600)
        refused(server, client, RegistryUnavailable)
        assert client.waits == [] and server.count(kind) == 1

    @pytest.mark.parametrize("kind", ["open", "patch", "commit"])
    def test_nor_for_ever(self, server: UploadRegistry, client: Client, kind: Kind) -> None:
        server.trouble(kind, times=FOR_EVER, status=503)
        refused(server, client, RegistryUnavailable)
        assert server.count(kind) <= 6 and sum(client.waits) < 60


class TestTheFlowsOwnErrors:
    def test_wrong_bytes_are_never_committed(self, server: UploadRegistry, client: Client) -> None:
        for path in FILES:
            data = bytearray(FILES[path])
            data[-1] ^= 1
            refused(server, client, WrongBytes, flow_of(FILES, served={**FILES, path: bytes(data)}))
        assert server.count("commit") == 0
        assert server.count("cancel") == server.count("open") == len(FILES)

    def test_wrong_bytes_in_a_compressed_layer(self, server: UploadRegistry, client: Client) -> None:
        served = {**FILES, "model-2.safetensors": content(700_001, 3)}
        refused(server, client, WrongBytes, flow_of(FILES, served=served, compression="zstd"))
        assert server.count("commit") == 0

    def test_a_layer_that_is_stopped(self, server: UploadRegistry, client: Client) -> None:
        stop = threading.Event()
        refused(
            server,
            client,
            Interrupted,
            flowing(stop=stop, on_bytes=lambda count: stop.set() if count > 999 else None),
        )
        assert server.count("commit") == 0

    def test_ctrl_c(self, server: UploadRegistry, client: Client) -> None:
        def interrupt(count: int) -> None:
            if count > 999:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            upload_flow(client.registry, PATH, flowing(on_bytes=interrupt))
        assert server.blobs(PATH) == {} and server.sessions == {} and server.count("cancel") == 1

    def test_where_even_the_cancelling_fails_the_first_error_is_told(
        self, server: UploadRegistry, client: Client
    ) -> None:
        server.trouble("patch", times=FOR_EVER, status=403)
        server.trouble("cancel", times=FOR_EVER, status=500)
        with pytest.raises(RegistryAuthError, match="403"):
            upload_flow(client.registry, PATH, flowing())
        assert server.count("cancel") == 1 and client.waits == []


class TestTransferBlob:
    BLOB = Descriptor("application/octet-stream", DIGEST, len(WHOLE))

    @staticmethod
    def pieces() -> Iterator[bytes]:
        return (WHOLE[start : start + 65_536] for start in range(0, len(WHOLE), 65_536))

    def transfer(self, client: Client) -> None:
        transfer_blob(client.registry, PATH, self.BLOB, self.pieces)

    def test_a_blob_is_copied(self, server: UploadRegistry, client: Client) -> None:
        self.transfer(client)
        assert server.blobs(PATH) == {DIGEST: WHOLE}
        assert [each.kind for each in server.seen] == ["open", "patch", "commit"]

    @pytest.mark.parametrize("what", [{"cut": 1000}, {"lose": True}, {"status": 500}, {"status": 429}])
    @pytest.mark.parametrize("kind", ["patch", "commit"])
    def test_it_is_begun_anew_after_trouble(
        self, server: UploadRegistry, client: Client, kind: Kind, what: dict[str, Any]
    ) -> None:
        server.trouble(kind, **what)
        self.transfer(client)
        assert server.blobs(PATH) == {DIGEST: WHOLE} and server.sessions == {}
        assert client.waits == [0.5] or (kind, what) == ("commit", {"cut": 1000})

    def test_retry_after_is_heeded(self, server: UploadRegistry, client: Client) -> None:
        server.trouble("patch", status=429, retry_after=9)
        self.transfer(client)
        assert client.waits == [9]

    def test_a_commit_whose_answer_is_lost_is_not_repeated(
        self, server: UploadRegistry, client: Client
    ) -> None:
        server.trouble("commit", lose=True)
        self.transfer(client)
        assert server.received() == len(WHOLE) and server.count("open") == 1

    @pytest.mark.parametrize("what", [{"cut": 1000}, {"status": 503}, {"status": 429, "retry_after": 3600}])
    def test_given_up_it_leaves_no_session(
        self, server: UploadRegistry, client: Client, what: dict[str, Any]
    ) -> None:
        server.trouble("patch", times=FOR_EVER, **what)
        with pytest.raises(RegistryUnavailable):
            self.transfer(client)
        assert server.blobs(PATH) == {}
        assert server.sessions == {}, "the last one is cancelled too"

    @pytest.mark.parametrize(
        ("status", "kind"), [(401, RegistryAuthError), (403, RegistryAuthError), (413, RegistryError)]
    )
    def test_refusals_are_final(
        self, server: UploadRegistry, client: Client, status: int, kind: type[RegistryError]
    ) -> None:
        server.trouble("patch", times=FOR_EVER, status=status)
        with pytest.raises(kind, match=f"HTTP {status}"):
            self.transfer(client)
        assert server.count("patch") == 1 and server.blobs(PATH) == {} and server.sessions == {}

    def test_another_content_than_the_digest_says_is_never_committed(
        self, server: UploadRegistry, client: Client
    ) -> None:
        turned = bytes([WHOLE[0] ^ 1]) + WHOLE[1:]
        with pytest.raises(ReadBackMismatch, match="than its digest says"):
            transfer_blob(
                client.registry, PATH, self.BLOB, lambda: checked(self.BLOB, iter((turned,)), "source")
            )
        assert server.count("commit") == 0
        with pytest.raises(ReadBackMismatch, match="other bytes than were sent"):
            transfer_blob(client.registry, PATH, self.BLOB, lambda: iter((turned,)))
        assert server.blobs(PATH) == {} and server.sessions == {}

    def test_an_empty_blob(self, server: UploadRegistry, client: Client) -> None:
        blob = Descriptor("application/octet-stream", digest_of(b""), 0)
        transfer_blob(client.registry, PATH, blob, lambda: iter(()))
        assert server.blobs(PATH) == {digest_of(b""): b""}


class TestMount:
    def test_a_blob_of_a_sibling_is_mounted(self, server: UploadRegistry, client: Client) -> None:
        server.blobs("ml/other")[DIGEST] = WHOLE
        assert open_upload(client.registry, PATH, mount=DIGEST, source="ml/other") is None
        assert server.blobs(PATH) == {DIGEST: WHOLE}
        assert server.received() == 0 and server.sessions == {}

    def test_where_it_is_not_an_upload_has_begun(self, server: UploadRegistry, client: Client) -> None:
        upload = open_upload(client.registry, PATH, mount=DIGEST, source="ml/other")
        assert upload is not None and len(server.sessions) == 1
        upload.cancel()
        assert server.sessions == {} and server.blobs(PATH) == {}

    def test_an_answer_that_is_none_of_an_upload(self, server: UploadRegistry, client: Client) -> None:
        server.trouble("open", status=201)
        with pytest.raises(RegistryError, match="would not begin an upload"):
            open_upload(client.registry, PATH)
        server.trouble("open", status=202)
        with pytest.raises(RegistryError, match="would not begin an upload"):
            open_upload(client.registry, PATH)  # no Location

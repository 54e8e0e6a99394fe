"""Documents beside an image, in a registry that lists them by itself and in one that does not."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.errors import ReadBackMismatch, RegistryAuthError, RegistryError, RegistryUnavailable
from modelbake.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, digest_of
from modelbake.referrers import Document, artifact_manifest, attach, read, referrers, referrers_tag
from modelbake.registry import Registry
from modelbake.stream.repository import RegistryRepository
from tests.servers.upload_registry import PASSWORD, USER, UploadRegistry

PATH = "ml/minilm"
TYPE = "application/vnd.example.report.v1+json"
IMAGE = Manifest.of(OCI_MANIFEST, json.dumps({"layers": [], "annotations": {"made": "here"}}).encode())
OTHER = Manifest.of(OCI_MANIFEST, json.dumps({"layers": [], "annotations": {"made": "there"}}).encode())
REPORT = Document(b'{"fast": true}', TYPE, "report.json", {"org.example.note": "first"})
SECOND = Document(b'{"fast": false}', TYPE, "report.json", {"org.example.note": "second"})
TAG = referrers_tag(IMAGE.digest)


@pytest.fixture(params=[True, False], ids=["with the API", "without"])
def server(request: pytest.FixtureRequest) -> Iterator[UploadRegistry]:
    with UploadRegistry(referrers=request.param) as running:
        yield running


@pytest.fixture
def plain() -> Iterator[UploadRegistry]:
    with UploadRegistry() as running:
        yield running


_opened: list[Registry] = []


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def repository_of(server: UploadRegistry) -> RegistryRepository:
    credentials = RegistryCredentials(USER, Secret(PASSWORD))
    registry = Registry(server.host, credentials, timeout=5, sleep=lambda seconds: None)
    _opened.append(registry)
    held = server.repository(PATH)
    for manifest in (IMAGE, OTHER):
        held.manifests[manifest.digest] = (manifest.media_type, manifest.body)
    return RegistryRepository(registry, PATH)


def listed(server: UploadRegistry) -> list[dict[str, object]]:
    """What the index of the referrers tag lists."""
    held = server.repository(PATH)
    entries: list[dict[str, object]] = json.loads(held.manifests[held.tags[TAG]][1])["manifests"]
    return entries


def put(server: UploadRegistry, tag: str, media_type: str, document: object) -> str:
    body = json.dumps(document).encode()
    held = server.repository(PATH)
    held.manifests[digest_of(body)] = (media_type, body)
    held.tags[tag] = digest_of(body)
    return digest_of(body)


@pytest.mark.parametrize(
    ("digest", "tag"),
    [  # https://github.com/opencontainers/distribution-spec/blob/main/spec.md#referrers-tag-schema
        (f"sha256:{'a' * 64}", f"sha256-{'a' * 64}"),
        (f"sha512:{'a' * 128}", f"sha512-{'a' * 64}"),
    ],
)
def test_the_tag_is_that_of_the_specification(digest: str, tag: str) -> None:
    assert referrers_tag(digest) == tag


def test_the_manifest_is_that_of_an_artifact_without_a_configuration() -> None:
    document = artifact_manifest(IMAGE, REPORT).document()
    assert document["artifactType"] == TYPE
    assert document["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
    }
    assert document["subject"] == {
        "mediaType": IMAGE.media_type,
        "digest": IMAGE.digest,
        "size": len(IMAGE.body),
    }
    assert artifact_manifest(IMAGE, REPORT) == artifact_manifest(IMAGE, REPORT)


class TestEither:
    def test_what_is_attached_is_listed_and_read(self, server: UploadRegistry) -> None:
        repository = repository_of(server)
        assert referrers(repository, IMAGE, TYPE) == []
        digest = attach(repository, IMAGE, REPORT)
        (found,) = referrers(repository, IMAGE, TYPE)
        assert (found.digest, found.annotations) == (digest, REPORT.annotations)
        assert read(repository, IMAGE, digest, TYPE, 1000) == REPORT.content
        assert (TAG in server.repository(PATH).tags) == (not server.referrers)

    def test_the_same_twice_is_one(self, server: UploadRegistry) -> None:
        repository = repository_of(server)
        assert attach(repository, IMAGE, REPORT) == attach(repository, IMAGE, REPORT)
        assert len(referrers(repository, IMAGE, TYPE)) == 1

    def test_several_are_all_there_on_several_pages(self, server: UploadRegistry) -> None:
        repository = repository_of(server)
        documents = [Document(b"%d" % number, TYPE, "n", {}) for number in range(5)]
        digests = [attach(repository, IMAGE, document) for document in documents]
        assert [each.digest for each in referrers(repository, IMAGE, TYPE)] == digests
        assert not server.referrers or server.count("referrers") == 3, "control: two a page"

    def test_other_types_and_other_images_are_not_listed(self, server: UploadRegistry) -> None:
        repository = repository_of(server)
        attach(repository, IMAGE, Document(b"x", "application/vnd.example.signature", "s", {}))
        attach(repository, OTHER, SECOND)
        assert referrers(repository, IMAGE, TYPE) == []
        assert len(referrers(repository, OTHER, TYPE)) == 1, "control: it is there"

    def test_an_image_that_is_not_there_yet_can_have_one(self, server: UploadRegistry) -> None:
        repository = repository_of(server)
        del server.repository(PATH).manifests[IMAGE.digest]
        attach(repository, IMAGE, REPORT)
        assert len(referrers(repository, IMAGE, TYPE)) == 1

    @pytest.mark.parametrize("status", [401, 403])
    def test_without_the_right_to_push_it_is_an_error(self, server: UploadRegistry, status: int) -> None:
        repository = repository_of(server)
        server.trouble("put-manifest", times=99, status=status)
        with pytest.raises(RegistryAuthError):
            attach(repository, IMAGE, REPORT)

    def test_a_registry_that_stays_busy_is_an_error(self, server: UploadRegistry) -> None:
        repository = repository_of(server)
        server.trouble("put-manifest", times=99, status=503)
        with pytest.raises(RegistryUnavailable):
            attach(repository, IMAGE, REPORT)
        server.reset(referrers=server.referrers)
        attach(repository_of(server), IMAGE, REPORT)


class TestWhatIsRead:
    def test_what_is_about_another_image_is_refused(self, server: UploadRegistry) -> None:
        repository = repository_of(server)
        digest = attach(repository, OTHER, REPORT)
        with pytest.raises(RegistryError, match=f"is not about {IMAGE.digest}"):
            read(repository, IMAGE, digest, TYPE, 1000)
        assert read(repository, OTHER, digest, TYPE, 1000) == REPORT.content, "control"

    def test_what_is_larger_than_wanted_is_not_read(self, server: UploadRegistry) -> None:
        repository = repository_of(server)
        digest = attach(repository, IMAGE, REPORT)
        with pytest.raises(RegistryError, match="at most 5 bytes"):
            read(repository, IMAGE, digest, TYPE, 5)

    def test_other_bytes_than_the_digest_says_are_refused(self, server: UploadRegistry) -> None:
        repository = repository_of(server)
        digest = attach(repository, IMAGE, REPORT)
        server.blobs(PATH)[digest_of(REPORT.content)] = b'{"fast": TRUE}'
        with pytest.raises(ReadBackMismatch, match="other bytes"):
            read(repository, IMAGE, digest, TYPE, 1000)

    def test_what_is_listed_and_gone_is_named(self, server: UploadRegistry) -> None:
        repository = repository_of(server)
        for digest in ("nonsense", f"sha256:{'0' * 64}"):
            with pytest.raises(RegistryError, match="is not there"):
                read(repository, IMAGE, digest, TYPE, 1000)


class TestTheTag:
    def test_what_others_have_listed_stays(self, plain: UploadRegistry) -> None:
        repository = repository_of(plain)
        theirs = {"mediaType": OCI_MANIFEST, "digest": OTHER.digest, "size": 1, "artifactType": "theirs"}
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [theirs], "annotations": {"a": "b"}}
        put(plain, TAG, OCI_INDEX, index)
        digest = attach(repository, IMAGE, REPORT)
        first, second = listed(plain)
        assert first == theirs
        assert (second["digest"], second["artifactType"]) == (digest, TYPE)
        assert second["annotations"] == REPORT.annotations
        held = plain.repository(PATH)
        assert json.loads(held.manifests[held.tags[TAG]][1])["annotations"] == {"a": "b"}

    def test_a_list_that_somebody_overwrites_is_written_again(self, plain: UploadRegistry) -> None:
        repository = repository_of(plain)
        lost: list[str] = []
        write = repository.registry.put_manifest

        def overwritten(repository: str, tag: str, manifest: Manifest) -> str:
            digest = write(repository, tag, manifest)
            if not lost:  # another client had read the list before ours was written
                lost.append(put(plain, TAG, OCI_INDEX, {"manifests": []}))
            return digest

        repository.registry.put_manifest = overwritten  # type: ignore[method-assign]
        digest = attach(repository, IMAGE, REPORT)
        assert lost and [each["digest"] for each in listed(plain)] == [digest]

    def test_a_list_that_is_always_overwritten_is_an_error(self, plain: UploadRegistry) -> None:
        repository = repository_of(plain)
        write = repository.registry.put_manifest

        def overwritten(repository: str, tag: str, manifest: Manifest) -> str:
            digest = write(repository, tag, manifest)
            put(plain, TAG, OCI_INDEX, {"manifests": []})
            return digest

        repository.registry.put_manifest = overwritten  # type: ignore[method-assign]
        with pytest.raises(ReadBackMismatch, match="others write this list") as caught:
            attach(repository, IMAGE, REPORT)
        assert caught.value.hint == "run it again"

    def test_an_image_under_the_tag_is_not_overwritten(self, plain: UploadRegistry) -> None:
        repository = repository_of(plain)
        there = put(plain, TAG, OCI_MANIFEST, {"layers": []})
        with pytest.raises(RegistryError, match="names something else"):
            attach(repository, IMAGE, REPORT)
        assert plain.repository(PATH).tags[TAG] == there
        assert referrers(repository, IMAGE, TYPE) == []

    def test_a_list_that_the_registry_refuses_says_what_it_may_be(self, plain: UploadRegistry) -> None:
        repository = repository_of(plain)
        gone = {"mediaType": OCI_MANIFEST, "digest": f"sha256:{'0' * 64}", "size": 1, "artifactType": TYPE}
        put(plain, TAG, OCI_INDEX, {"manifests": [gone]})
        with pytest.raises(RegistryError, match="MANIFEST_BLOB_UNKNOWN") as caught:
            attach(repository, IMAGE, REPORT)
        assert "retention" in caught.value.hint

    @pytest.mark.parametrize("entries", [None, {}, ["x", 1, {"digest": 5, "artifactType": TYPE}]])
    def test_nonsense_in_a_list_is_no_traceback(self, plain: UploadRegistry, entries: object) -> None:
        repository = repository_of(plain)
        put(plain, TAG, OCI_INDEX, {"manifests": entries})
        found = referrers(repository, IMAGE, TYPE)
        for each in found:
            with pytest.raises(RegistryError, match="is not there"):
                read(repository, IMAGE, each.digest, TYPE, 1000)


def test_a_list_that_is_none_is_an_error() -> None:
    with UploadRegistry(referrers=True) as server:
        repository = repository_of(server)
        server.trouble("referrers", status=418)
        with pytest.raises(RegistryError, match="would not list what refers"):
            referrers(repository, IMAGE, TYPE)
        server.trouble("referrers", status=404)
        assert referrers(repository, IMAGE, TYPE) == [], "as of a registry without the API"

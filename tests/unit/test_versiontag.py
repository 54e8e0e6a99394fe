"""Which version is newer, and a tag that is put last and never moved."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.errors import (
    ReadBackMismatch,
    RegistryAuthError,
    RegistryError,
    RegistryUnavailable,
    TagConflict,
)
from modelbake.manifest import OCI_MANIFEST, Manifest
from modelbake.registry import Registry
from modelbake.versiontag import VersionTag, precedence
from tests.servers.upload_registry import PASSWORD, USER, UploadRegistry

# https://semver.org/#spec-item-11
SEMVER = [
    "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
    "1.0.0-rc.1", "1.0.0", "2.0.0", "2.1.0", "2.1.1",
]  # fmt: skip
MORE = [
    "0.0.0-0", "0.0.0", "0.0.9", "0.0.10", "0.9.0", "0.10.0", "1.0.0-0", "1.0.0-1", "1.0.0-9", "1.0.0-10",
    "1.0.0-10.0", "1.0.0--", "1.0.0-0a", "1.0.0-A", "1.0.0-a", "1.0.0-a-b", "1.0.0-a0", "1.0.0", "9.0.0",
    "10.0.0", "99999999999999999999.0.0",
]  # fmt: skip


@pytest.mark.parametrize("ordered", [SEMVER, MORE])
def test_the_order_of_versions(ordered: list[str]) -> None:
    for seed in range(10):
        shuffled = list(ordered)
        random.Random(seed).shuffle(shuffled)
        assert sorted(shuffled, key=precedence) == ordered
    keys = [precedence(version) for version in ordered]
    assert len(set(keys)) == len(keys)


PATH = "ml/minilm"
OURS = Manifest.of(OCI_MANIFEST, json.dumps({"layers": [], "annotations": {"made": "here"}}).encode())
THEIRS = Manifest.of(OCI_MANIFEST, json.dumps({"layers": [], "annotations": {"made": "there"}}).encode())


@pytest.fixture
def server() -> Iterator[UploadRegistry]:
    with UploadRegistry() as running:
        yield running


@pytest.fixture
def tag(server: UploadRegistry) -> Iterator[VersionTag]:
    with Registry(
        server.host, RegistryCredentials(USER, Secret(PASSWORD)), timeout=5, sleep=lambda seconds: None
    ) as registry:
        yield VersionTag(registry, PATH, "1.0.0", lambda manifest: manifest == OURS)


def tagged(server: UploadRegistry) -> str | None:
    return server.repository(PATH).tags.get("1.0.0")


def hold(server: UploadRegistry, manifest: Manifest) -> None:
    repository = server.repository(PATH)
    repository.manifests[manifest.digest] = (manifest.media_type, manifest.body)
    repository.tags["1.0.0"] = manifest.digest


class TestCurrent:
    def test_no_tag_is_none(self, tag: VersionTag) -> None:
        assert tag.current() is None

    def test_our_image_is_returned(self, server: UploadRegistry, tag: VersionTag) -> None:
        hold(server, OURS)
        assert tag.current() == OURS

    def test_another_image_is_a_conflict(self, server: UploadRegistry, tag: VersionTag) -> None:
        hold(server, THEIRS)
        with pytest.raises(TagConflict, match=THEIRS.digest) as caught:
            tag.current()
        assert caught.value.subject == f"{server.host}/{PATH}:1.0.0"
        assert "raise `version`" in caught.value.hint


class TestPut:
    def test_it_is_put_and_read_back(self, server: UploadRegistry, tag: VersionTag) -> None:
        assert tag.put(OURS) == OURS
        assert tagged(server) == OURS.digest
        assert [each.kind for each in server.seen] == ["manifest", "put-manifest", "manifest"]

    def test_what_is_there_is_not_put_again(self, server: UploadRegistry, tag: VersionTag) -> None:
        hold(server, OURS)
        assert tag.put(OURS) == OURS
        assert server.count("put-manifest") == 0

    def test_another_image_is_never_replaced(self, server: UploadRegistry, tag: VersionTag) -> None:
        hold(server, THEIRS)
        with pytest.raises(TagConflict):
            tag.put(OURS)
        assert tagged(server) == THEIRS.digest and server.count("put-manifest") == 0

    def test_one_whose_answer_is_lost_has_been_put(self, server: UploadRegistry, tag: VersionTag) -> None:
        server.trouble("put-manifest", lose=True, times=99)
        assert tag.put(OURS) == OURS
        assert tagged(server) == OURS.digest

    def test_one_that_never_arrived_is_an_error(self, server: UploadRegistry, tag: VersionTag) -> None:
        server.trouble("put-manifest", times=99, status=503)
        with pytest.raises(RegistryUnavailable, match="503"):
            tag.put(OURS)
        assert tagged(server) is None

    @pytest.mark.parametrize("status", [401, 403])
    def test_what_may_not_be_put_is_not_tried_again(
        self, server: UploadRegistry, tag: VersionTag, status: int
    ) -> None:
        server.trouble("put-manifest", times=99, status=status)
        with pytest.raises(RegistryAuthError):
            tag.put(OURS)
        assert tagged(server) is None and server.count("put-manifest") <= 2

    def test_one_that_cannot_be_read_back_is_not_said_to_be_there(
        self, server: UploadRegistry, tag: VersionTag
    ) -> None:
        server.trouble("manifest", at=2, times=99, status=500)
        with pytest.raises(RegistryUnavailable, match="could not be read back") as caught:
            tag.put(OURS)
        assert "run it again" in caught.value.hint

    def test_one_that_the_registry_forgot(self, server: UploadRegistry, tag: VersionTag) -> None:
        server.trouble("manifest", at=2, status=404)
        with pytest.raises(ReadBackMismatch, match="does not have it"):
            tag.put(OURS)

    def test_somebody_who_is_faster_is_told(self, server: UploadRegistry, tag: VersionTag) -> None:
        put = tag.registry.put_manifest

        def slower(repository: str, tag: str, manifest: Manifest) -> str:
            digest = put(repository, tag, manifest)
            hold(server, THEIRS)
            return digest

        tag.registry.put_manifest = slower  # type: ignore[method-assign]
        with pytest.raises(TagConflict, match=f"moved the tag to {THEIRS.digest}") as caught:
            tag.put(OURS)
        assert "immutable" in caught.value.hint

    def test_errors_are_of_the_registry(self, server: UploadRegistry, tag: VersionTag) -> None:
        server.trouble("put-manifest", times=99, status=400, code="MANIFEST_INVALID")
        with pytest.raises(RegistryError, match="MANIFEST_INVALID"):
            tag.put(OURS)
        assert tagged(server) is None

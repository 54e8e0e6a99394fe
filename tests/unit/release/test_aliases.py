"""Which moving tags a version has, when it may move them, and what a hand-made one leads to."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from modelbake.errors import RegistryUnavailable, ReleaseError
from modelbake.manifest import Manifest
from modelbake.output import Output
from modelbake.release.aliases import ALIAS, aliases_of, aliases_to_move, line_of, move_alias, require_ours
from modelbake.versiontag import next_free
from tests.servers.upload_registry import UploadRegistry
from tests.unit.planning import planned
from tests.unit.release.registry import connected, hold_image, tags_of


@pytest.fixture
def server() -> Iterator[UploadRegistry]:
    with UploadRegistry() as running:
        yield running


def output() -> Output:
    return Output(stdout=io.StringIO(), stderr=io.StringIO())


def hold_version(server: UploadRegistry, version: str, *more: str) -> Manifest:
    return hold_image(server, planned(version=version), version, *more)


@pytest.mark.parametrize(
    ("version", "aliases"),
    [
        ("1.4.2", ("1.4", "1")),
        ("10.0.0", ("10.0", "10")),
        ("0.4.2", ("0.4",)),
        ("0.0.1", ("0.0",)),
        ("1.4.2-rc.1", ()),
        ("0.1.0-alpha", ()),
    ],
)
def test_the_aliases_of_a_version(version: str, aliases: tuple[str, ...]) -> None:
    assert aliases_of(version) == aliases
    assert all(ALIAS.fullmatch(alias) for alias in aliases) and not ALIAS.fullmatch(version)


@pytest.mark.parametrize(
    ("version", "released", "moved"),
    [
        ("1.4.2", [], ["1.4", "1"]),
        ("1.4.2", ["1.4.1", "1.3.9", "0.9.0"], ["1.4", "1"]),
        ("1.4.2", ["1.4.2"], ["1.4", "1"]),
        ("1.4.2", ["1.5.0"], ["1.4"]),
        ("1.4.2", ["1.4.10"], []),
        ("1.4.2", ["1.4.3-rc.1", "1.5.0-rc.1", "2.0.0"], ["1.4", "1"]),
        ("1.10.0", ["1.9.0"], ["1.10", "1"]),
        ("0.4.0", ["0.3.0", "0.5.0"], ["0.4"]),
        ("1.4.2-rc.1", [], []),
    ],
)
def test_only_the_newest_of_a_line_moves_its_alias(
    version: str, released: list[str], moved: list[str]
) -> None:
    assert aliases_to_move(version, released) == moved


def test_a_line_is_sorted_by_precedence_and_has_no_pre_releases() -> None:
    versions = ["1.9.0", "1.10.0", "1.10.0-rc.1", "2.0.0", "0.9.0"]
    assert line_of("1", versions) == ["1.10.0", "1.9.0"]
    assert line_of("1.1", versions) == []


@pytest.mark.parametrize(
    ("version", "released", "free"),
    [
        ("1.4.2", [], "1.4.3"),
        ("1.4.2", ["1.4.2", "1.4.9", "1.5.0", "2.4.20"], "1.4.10"),
        ("1.4.2", ["1.4.3-rc.1"], "1.4.3"),
        ("1.4.2-rc.1", ["1.4.2-rc.2"], "1.4.2-rc.3"),
        ("1.4.2-alpha", ["1.4.2-alpha.0"], "1.4.2-alpha.1"),
    ],
)
def test_the_next_free_version(version: str, released: list[str], free: str) -> None:
    assert next_free(version, released) == free


class TestMove:
    def test_it_is_put_once_and_read_back(self, server: UploadRegistry) -> None:
        manifest = hold_version(server, "1.4.2")
        with connected(server) as repository:
            for _ in range(2):
                move_alias(repository, "1.4", "1.4.2", manifest, output())
        assert tags_of(server)["1.4"] == manifest.digest
        assert server.count("put-manifest") == 1

    def test_it_moves_from_an_older_release(self, server: UploadRegistry) -> None:
        hold_version(server, "1.4.1", "1.4")
        manifest = hold_version(server, "1.4.2")
        with connected(server) as repository:
            move_alias(repository, "1.4", "1.4.2", manifest, output())
        assert tags_of(server)["1.4"] == manifest.digest

    def test_two_releases_at_once_settle_on_the_newer_one(self, server: UploadRegistry) -> None:
        manifest = hold_version(server, "1.4.2")
        with connected(server) as repository:
            put = repository.registry.put_manifest

            def slower(repository: str, tag: str, manifest: Manifest) -> str:
                if not server.count("put-manifest"):
                    hold_version(server, "1.4.3", "1.4")  # the other one has done all of it just before
                return put(repository, tag, manifest)

            repository.registry.put_manifest = slower  # type: ignore[method-assign]
            move_alias(repository, "1.4", "1.4.2", manifest, output())
        assert tags_of(server)["1.4"] == tags_of(server)["1.4.3"]

    def test_a_registry_that_fails_is_an_error(self, server: UploadRegistry) -> None:
        manifest = hold_version(server, "1.4.2")
        server.trouble("put-manifest", times=99, status=503)
        with connected(server) as repository, pytest.raises(RegistryUnavailable):
            move_alias(repository, "1.4", "1.4.2", manifest, output())


class TestByHand:
    @pytest.mark.parametrize("theirs", ["candidate-1", "1.4.2-rc.1", "2.0.0", "nightly"])
    def test_what_is_no_release_of_the_line_is_refused(self, server: UploadRegistry, theirs: str) -> None:
        hold_image(server, planned(), theirs, "1.4", marker="theirs")
        hold_version(server, "1.4.1")
        manifest = hold_version(server, "1.4.2")
        with connected(server) as repository, pytest.raises(ReleaseError, match="by hand") as caught:
            require_ours(repository, "1.4", ["1.4.1", "1.4.2-rc.1", "2.0.0"], manifest)
        assert caught.value.subject.endswith("/ml/minilm:1.4")

    def test_releases_of_the_line_and_nothing_are_ours(self, server: UploadRegistry) -> None:
        hold_version(server, "1.4.0", "1.4")
        manifest = hold_version(server, "1.4.2", "1")
        with connected(server) as repository:
            for alias in ("1.4", "1", "2"):
                require_ours(repository, alias, ["1.4.0", "1.4.1"], manifest)

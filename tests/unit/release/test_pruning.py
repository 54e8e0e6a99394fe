"""Reading what repositories hold, and deleting of it; in a registry that lists referrers, and in others."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from modelbake.errors import DeleteRefused, RegistryError, RegistryUnavailable, ReleaseError
from modelbake.manifest import OCI_MANIFEST, Manifest, digest_of
from modelbake.output import Output
from modelbake.referrers import Document, attach, referrers_tag
from modelbake.release.pruning import Pruning, carry_out, in_words, plan_pruning, shared_repositories
from modelbake.release.retention import Wanted
from modelbake.reportstore import keep_report
from modelbake.stream.repository import RegistryRepository
from tests.conftest import Tally
from tests.promises import cases
from tests.servers.upload_registry import UploadRegistry
from tests.unit.planning import planned
from tests.unit.release.registry import (
    PATH,
    Killed,
    MortalRegistry,
    client_of,
    hold,
    hold_image,
    hold_index,
    report_of,
    restore,
    snapshot,
)

OTHER = "ml/other"
WEIGHTS, RUNTIMES = "ml/weights", "ml/runtimes"
NOTE = "application/vnd.example.note.v1+json"


@dataclass
class Bench:
    """Two models, the shared repositories, and a prune of them."""

    server: UploadRegistry
    client: MortalRegistry

    def repository(self, path: str = PATH) -> RegistryRepository:
        return RegistryRepository(self.client, path)

    @property
    def output(self) -> Output:
        return Output(stdout=io.StringIO(), stderr=io.StringIO())

    def image(self, *tags: str, path: str = PATH, version: str = "1.0.0", **more: Any) -> Manifest:
        """Hold an image with a report beside it."""
        plan = planned(version=version)
        manifest = hold_image(self.server, plan, *tags, path=path, marker=" ".join(tags), **more)
        facts = {"started_at": more["created"]} if "created" in more else {}
        keep_report(self.repository(path), manifest, report_of(plan, manifest, **facts), self.output)
        return manifest

    def plan(self, keep: int, names: tuple[str, ...] = ("minilm", "other")) -> Pruning:
        models = {"minilm": self.repository(), "other": self.repository(OTHER)}
        weights, runtimes = shared_repositories(models)
        return plan_pruning(
            models, weights, runtimes, names=names, keep=keep, wanted=Wanted(), output=self.output
        )

    def prune(self, keep: int, names: tuple[str, ...] = ("minilm", "other")) -> Pruning:
        pruning = self.plan(keep, names)
        carry_out(pruning, self.output)
        return pruning

    def tags(self, path: str = PATH) -> list[str]:
        return sorted(self.server.repository(path).tags)

    def manifests(self, path: str = PATH) -> set[str]:
        return set(self.server.repository(path).manifests)


@pytest.fixture(params=[True, False], ids=["with the API", "without"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with UploadRegistry(referrers=request.param) as server, client_of(server) as client:
        for path in (PATH, OTHER, WEIGHTS, RUNTIMES):
            server.repository(path)
        yield Bench(server, client)


def test_old_candidates_go_with_all_that_is_attached(bench: Bench) -> None:
    old = bench.image("candidate-1", created="2025-01-01T00:00:00Z")
    new = bench.image("candidate-2", created="2025-01-02T00:00:00Z")
    before = bench.manifests()
    pruning = bench.prune(1)
    assert [each.digest for each in pruning.removals] == [old.digest]
    kept = {new.digest, *(each for each in bench.manifests() if each in before)}
    assert bench.manifests() == kept and old.digest not in kept
    subjects = [
        json.loads(body).get("subject", {}) for _, body in bench.server.repository(PATH).manifests.values()
    ]
    assert old.digest not in {each.get("digest") for each in subjects}
    assert referrers_tag(old.digest) not in bench.tags() and "candidate-2" in bench.tags()
    assert len(pruning.removals[0].deletes) == (2 if bench.server.referrers else 3)
    again = bench.prune(1)
    assert again.removals == () and in_words(again, dry=False) == ["nothing may go"]


def test_a_report_makes_an_old_image_newer(bench: Bench) -> None:
    """As the stream lane dates images by their runtime."""
    tested = hold_image(bench.server, planned(), "candidate-1", marker="a", created="1970-01-01T00:00:00Z")
    hold_image(bench.server, planned(), "candidate-2", marker="b", created="2024-12-31T23:59:59.123456789Z")
    keep_report(bench.repository(), tested, report_of(planned(), tested), bench.output)
    bench.prune(1)
    assert "candidate-1" in bench.tags() and "candidate-2" not in bench.tags()


def test_what_versions_aliases_channels_and_records_name_stays(bench: Bench) -> None:
    kept = [
        bench.image("candidate-1", "1.0.0"),
        bench.image("candidate-2", "1.4"),
        bench.image("candidate-3", "production"),
        bench.image("candidate-4"),
    ]
    hold_index(bench.server, "staging-0001", kept[3])
    gone = bench.image("candidate-5")
    pruning = bench.prune(0)
    assert [each.digest for each in pruning.removals] == [gone.digest], "and the control went"
    assert {each.digest for each in kept} <= bench.manifests()


def test_what_is_signed_or_has_something_foreign_stays(bench: Bench) -> None:
    signed, noted, gone = (bench.image(f"candidate-{number}") for number in range(3))
    hold_image(bench.server, planned(), f"{referrers_tag(signed.digest)}.sig", marker="signature")
    attach(bench.repository(), noted, Document(b"{}", NOTE, "note.json", {}))
    assert [each.digest for each in bench.prune(0).removals] == [gone.digest]


def test_only_the_named_models_lose_candidates(bench: Bench) -> None:
    bench.image("candidate-1")
    bench.image("candidate-2", path=OTHER)
    bench.prune(0, ("other",))
    assert "candidate-1" in bench.tags() and "candidate-2" not in bench.tags(OTHER)


def test_layers_and_runtimes_that_no_image_has_are_forgotten(bench: Bench) -> None:
    groups = {letter: f"group-{letter * 64}" for letter in "abc"}
    for letter, tag in groups.items():
        hold_image(bench.server, planned(), tag, path=WEIGHTS, layers=(letter.encode(),), marker=letter)
    hold_image(bench.server, planned(), f"tiny-{'1' * 32}", path=RUNTIMES, layers=(b"base", b"app"))
    hold_image(bench.server, planned(), f"tiny-{'2' * 32}", path=RUNTIMES, layers=(b"base", b"old"))
    bench.image("1.0.0", layers=(b"a", b"base", b"app"))
    bench.image("candidate-1", layers=(b"b", b"base", b"old"))
    bench.image("candidate-2", path=OTHER, layers=(b"c",))
    assert len(bench.plan(9).removals) == 0
    pruning = bench.prune(0, ("minilm",))
    assert bench.tags(WEIGHTS) == [groups["a"], groups["c"]]
    assert bench.tags(RUNTIMES) == [f"tiny-{'1' * 32}"]
    words = in_words(pruning, dry=True)
    assert len(words) == 5 and "3 would go" in words[-1] and f"{pruning.freed:,} bytes" in words[-1]
    bench.prune(0)
    assert bench.tags(WEIGHTS) == [groups["a"]]


def test_a_broken_candidate_is_the_first_to_go(bench: Bench) -> None:
    broken = bench.image("candidate-1", created="2025-02-02T00:00:00Z")
    del bench.server.blobs(PATH)[broken.config.digest]
    hold_image(bench.server, planned(), "candidate-2", created="2024-01-01T00:00:00Z", marker="x")
    hold_image(bench.server, planned(), "candidate-3", created="2025-03-03T00:00:00Z", marker="y")
    bench.prune(2)
    assert "candidate-1" in bench.tags(), "its report says when it was tested"
    bench.prune(1)
    assert "candidate-3" in bench.tags() and "candidate-1" not in bench.tags()


class TestRefused:
    def test_a_registry_without_delete(self, bench: Bench) -> None:
        bench.image("candidate-1")
        bench.server.deletes = False
        before = snapshot(bench.server)
        with pytest.raises(DeleteRefused, match=r"does not delete .*405") as caught:
            bench.prune(0)
        assert "delete: enabled: true" in caught.value.hint
        assert bench.server.repositories == before

    @pytest.mark.parametrize("status", [401, 403])
    def test_an_account_without_the_right(self, bench: Bench, status: int) -> None:
        bench.image("candidate-1")
        before = snapshot(bench.server)
        bench.server.trouble("delete-manifest", times=9, status=status, code="DENIED")
        with pytest.raises(DeleteRefused, match="may not delete") as caught:
            bench.prune(0)
        assert "right to delete" in caught.value.hint
        assert bench.server.repositories == before

    def test_one_that_says_yes_and_keeps_it(self, bench: Bench) -> None:
        bench.image("candidate-1")
        bench.server.trouble("delete-manifest", status=202)
        with pytest.raises(DeleteRefused, match="still has it"):
            bench.prune(0)

    def test_one_that_fails(self, bench: Bench) -> None:
        bench.image("candidate-1")
        bench.server.trouble("delete-manifest", times=9, status=503)
        with pytest.raises(RegistryUnavailable):
            bench.prune(0)

    def test_a_tag_that_comes_meanwhile(self, bench: Bench) -> None:
        manifest = bench.image("candidate-1")
        pruning = bench.plan(0)
        hold(bench.server, manifest, "1.0.0")
        with pytest.raises(ReleaseError, match=r"has put 1\.0\.0 here meanwhile"):
            carry_out(pruning, bench.output)
        assert manifest.digest in bench.manifests()

    def test_what_cannot_be_read_stops_it(self, bench: Bench) -> None:
        bench.image("candidate-1")
        body = b'{"schemaVersion": 1}'
        held = bench.server.repository(PATH)
        held.manifests[digest_of(body)] = ("application/vnd.example.unknown", body)
        held.tags["odd"] = digest_of(body)
        before = snapshot(bench.server)
        with pytest.raises(RegistryError, match="unknown media type"):
            bench.prune(0)
        assert bench.server.repositories == before
        held.manifests[digest_of(body)] = (OCI_MANIFEST, b"not JSON")
        with pytest.raises(RegistryError):
            bench.prune(0)


@pytest.mark.promise("interrupt")
def test_killed_at_each_request_and_run_again(bench: Bench, tally: Tally) -> None:
    """The next run goes on: what is left of a candidate is found by the tags that are left."""
    released = bench.image("1.0.0", "candidate-1")
    part = hold_image(bench.server, planned(), marker="part")
    whole = hold_index(bench.server, "candidate-2", part)
    plan = planned()
    keep_report(bench.repository(), whole, report_of(plan, part, image_id=whole.digest), bench.output)
    bench.image("candidate-3")
    state = snapshot(bench.server)
    bench.client.live_until()
    bench.prune(0)
    clean, requests = snapshot(bench.server), bench.client.count
    assert part.digest not in bench.manifests() and released.digest in bench.manifests()
    for number in range(1, requests + 1, cases(3, 1)):
        restore(bench.server, state)
        bench.client.live_until(number)
        with pytest.raises(Killed):
            bench.prune(0)
        bench.client.live_until()
        bench.prune(0)
        assert bench.server.repositories == clean
        tally.count()

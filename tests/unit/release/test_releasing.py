"""A release from its beginning to its end: what it needs, what it changes, and an end at any request."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from modelbake.audit.auditing import expected_of
from modelbake.audit.findings import Findings
from modelbake.errors import (
    AuditFailed,
    PerformanceRegressed,
    PolicyRefused,
    ReadBackMismatch,
    ReleaseError,
    ReportMissing,
    SignatureError,
    TagConflict,
)
from modelbake.manifest import Manifest
from modelbake.output import Output
from modelbake.plan import LOCK_LABEL, PLAN_LABEL, BuildPlan
from modelbake.referrers import Document, attach, referrers
from modelbake.release.audits import keep_audit
from modelbake.release.quarantine import Quarantine, put_into_quarantine
from modelbake.release.releasing import (
    DOCUMENTS,
    ReleasedImage,
    Releasing,
    attach_report,
    needs_gpu,
    release,
)
from modelbake.release.signing import Signing
from modelbake.report import write_report
from modelbake.reportstore import REPORT_TYPE, keep_report
from modelbake.stream.repository import RegistryRepository
from modelbake.workspace import Workspace
from tests.conftest import Tally
from tests.promises import cases
from tests.servers.signed_images import MemoryKey
from tests.servers.upload_registry import UploadRegistry
from tests.unit.audit.building import layer_tar
from tests.unit.audit.secrets import SECRETS
from tests.unit.planning import planned
from tests.unit.release.registry import (
    PATH,
    PLAN_DIGEST,
    Killed,
    MortalRegistry,
    client_of,
    hold_image,
    report_of,
    restore,
    snapshot,
    tags_of,
)
from tests.unit.reporting import ASKED

NOTE = "application/vnd.example.note.v1+json"
GPU = {"device": "cuda:NVIDIA H200", "gpu": True}
OTHER = "sha256:" + "8" * 64


def attach_note(image: Releasing) -> None:
    attach(image.repository, image.manifest, Document(b"{}", NOTE, "note.json", {}))


@dataclass
class Bench:
    """A model's repository, and a release of it."""

    server: UploadRegistry
    client: MortalRegistry
    folder: Path
    plan: BuildPlan
    said: io.StringIO = field(default_factory=io.StringIO)

    @property
    def workspace(self) -> Workspace:
        return Workspace(file=self.folder / "models.yaml")

    @property
    def output(self) -> Output:
        return Output(stdout=io.StringIO(), stderr=self.said)

    def image(self, *tags: str, plan: BuildPlan | None = None, **changes: Any) -> Manifest:
        return hold_image(self.server, plan or self.plan, *tags, **changes)

    def tested(
        self, *tags: str, plan: BuildPlan | None = None, facts: Any = None, **changes: Any
    ) -> Manifest:
        """Hold an image with a passing report beside it."""
        plan = plan or self.plan
        manifest = self.image(*tags, plan=plan, **changes)
        keep_report(self.repository, manifest, report_of(plan, manifest, **(facts or {})), self.output)
        return manifest

    @property
    def repository(self) -> RegistryRepository:
        """The model's, of which nothing is remembered."""
        return RegistryRepository(self.client, PATH)

    def __call__(self, plan: BuildPlan | None = None, **more: Any) -> ReleasedImage:
        usual = {"plan_digest": PLAN_DIGEST, "asked": ASKED, "documents": (attach_report, attach_note)}
        return release(
            self.repository, self.workspace, plan or self.plan, output=self.output, **{**usual, **more}
        )

    def refused(self, error: type[Exception], match: str, **more: Any) -> Any:
        """Release; expect an error, and that nothing was changed."""
        before = snapshot(self.server)
        with pytest.raises(error, match=match) as caught:
            self(**more)
        assert self.server.repositories == before
        return caught.value

    def kept(self, manifest: Manifest, kind: str) -> int:
        return len(referrers(self.repository, manifest, kind))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with UploadRegistry() as server, client_of(server) as client:
        server.repository(PATH)
        yield Bench(server, client, tmp_path, planned(version="1.4.2", device="any"))


class TestCandidates:
    def test_one_becomes_a_release(self, bench: Bench) -> None:
        manifest = bench.tested("candidate-1")
        bench.image("candidate-2", plan=planned(version="1.4.1"))
        bench.image("candidate-3", marker="changed", labels={PLAN_LABEL: OTHER})
        released = bench()
        assert released.reference == f"registry.example.com/ml/minilm@{manifest.digest}"
        assert released.moved == ("1.4", "1")
        assert tags_of(bench.server) == dict.fromkeys(["1.4.2", "1.4", "1"], manifest.digest)
        assert bench.kept(manifest, REPORT_TYPE) == bench.kept(manifest, NOTE) == 1

    def test_again_it_changes_nothing(self, bench: Bench) -> None:
        bench.tested("candidate-1")
        first = bench()
        state = snapshot(bench.server)
        assert bench() == first
        assert bench.server.repositories == state
        assert "as before" in bench.said.getvalue()

    def test_none(self, bench: Bench) -> None:
        error = bench.refused(ReleaseError, "has no image of it")
        assert "publish minilm --untagged" in error.hint
        bench.image("candidate-1", plan=planned(version="1.4.1"))
        bench.refused(ReleaseError, "has no image of it")

    def test_one_of_another_plan_is_named(self, bench: Bench) -> None:
        manifest = bench.tested("candidate-1", labels={PLAN_LABEL: OTHER})
        error = bench.refused(ReleaseError, "of another models.yaml")
        assert manifest.digest in error.message and "--digest" in error.hint
        assert bench(digest=manifest.digest).digest == manifest.digest

    def test_several_are_listed(self, bench: Bench) -> None:
        first, second = bench.tested("candidate-1", marker="a"), bench.tested("candidate-2", marker="b")
        error = bench.refused(ReleaseError, "has 2 images of it")
        assert first.digest in error.message and "candidate-2" in error.message
        assert "--digest" in error.hint
        assert bench(digest=second.digest).digest == second.digest

    def test_two_names_of_one_image_are_one(self, bench: Bench) -> None:
        manifest = bench.tested("candidate-1", "candidate-2")
        assert bench().digest == manifest.digest

    def test_broken_ones_are_passed_over(self, bench: Bench) -> None:
        broken = bench.image("candidate-0", marker="broken")
        del bench.server.blobs(PATH)[broken.config.digest]
        manifest = bench.tested("candidate-1")
        assert bench().digest == manifest.digest

    def test_one_that_lacks_a_layer_is_not_released(self, bench: Bench) -> None:
        manifest = bench.tested("candidate-1")
        del bench.server.blobs(PATH)[manifest.layers[0].digest]
        bench.refused(ReadBackMismatch, "lacks 1 of its parts")


class TestByDigest:
    def test_what_is_not_there(self, bench: Bench) -> None:
        bench.refused(ReleaseError, "no such image", digest=OTHER)

    def test_what_is_another_model_or_version(self, bench: Bench) -> None:
        theirs = bench.tested("candidate-1", plan=planned(version="1.4.1"))
        bench.refused(ReleaseError, "its labels say minilm 1.4.1", digest=theirs.digest)

    def test_what_has_other_weights(self, bench: Bench) -> None:
        theirs = bench.tested("candidate-1", labels={LOCK_LABEL: OTHER})
        error = bench.refused(ReleaseError, "has other weights", digest=theirs.digest)
        assert "check out the commit" in error.hint and "to 1.4.3" in error.hint

    def test_what_is_not_the_released_one(self, bench: Bench) -> None:
        bench.tested("1.4.2")
        bench.image("1.4.5", plan=planned(version="1.4.5"))
        theirs = bench.tested("candidate-1", marker="theirs")
        error = bench.refused(TagConflict, "is released as", digest=theirs.digest)
        assert "to 1.4.6" in error.hint


class TestTagged:
    def test_what_push_has_tagged_gets_what_it_lacks(self, bench: Bench) -> None:
        manifest = bench.tested("1.4.2", labels={PLAN_LABEL: OTHER}, facts={"asked": OTHER})
        assert bench().digest == manifest.digest
        assert tags_of(bench.server) == dict.fromkeys(["1.4.2", "1.4", "1"], manifest.digest)
        assert bench.kept(manifest, NOTE) == 1

    def test_changed_content_needs_another_version(self, bench: Bench) -> None:
        bench.tested("1.4.2", labels={PLAN_LABEL: OTHER})
        bench.image("1.4.3-rc.1", plan=planned(version="1.4.3-rc.1"))
        bench.tested("candidate-1", marker="changed")
        error = bench.refused(TagConflict, "than the candidate that is there")
        assert "raise `version` in models.yaml to 1.4.3" in error.hint

    def test_another_lock_needs_another_version(self, bench: Bench) -> None:
        bench.tested("1.4.2", labels={LOCK_LABEL: OTHER})
        error = bench.refused(ReleaseError, "has other weights")
        assert "check out the commit" in error.hint and "to 1.4.3" in error.hint

    def test_a_tag_put_by_hand(self, bench: Bench) -> None:
        bench.tested("1.4.2", plan=planned(version="1.4.1"))
        bench.refused(ReleaseError, "put the tag by hand")

    def test_an_alias_put_by_hand(self, bench: Bench) -> None:
        bench.image("1", marker="theirs")
        bench.tested("candidate-1")
        error = bench.refused(ReleaseError, "by hand")
        assert error.subject.endswith(":1")
        bench.server.repository(PATH).tags.pop("1")
        bench()  # control: without it the version is released


class TestReports:
    def test_without_one(self, bench: Bench) -> None:
        bench.image("candidate-1")
        error = bench.refused(ReportMissing, "no passing report")
        assert "publish minilm --untagged" in error.hint

    def test_one_of_this_machine_is_kept_beside_it(self, bench: Bench) -> None:
        manifest = bench.image("candidate-1")
        write_report(bench.workspace.reports, report_of(bench.plan, manifest))
        bench()
        assert bench.kept(manifest, REPORT_TYPE) == 1

    @pytest.mark.parametrize(
        "facts",
        [
            {"image_id": OTHER},
            {
                "passed": False,
                "checks": [{"name": "x", "passed": False, "expected": 1, "actual": 2, "seconds": 1.0}],
            },
        ],
    )
    def test_one_of_this_machine_that_says_nothing_of_it(self, bench: Bench, facts: dict[str, Any]) -> None:
        manifest = bench.image("candidate-1")
        write_report(bench.workspace.reports, report_of(bench.plan, manifest, **facts))
        bench.refused(ReportMissing, "no passing report")

    def test_other_checks_than_are_asked_now(self, bench: Bench) -> None:
        bench.tested("candidate-1", facts={"asked": OTHER})
        bench.refused(ReportMissing, "about other checks")

    @pytest.mark.parametrize("keys", [{"device": "cuda"}, {"device": "any", "smoke": {"require_gpu": True}}])
    def test_one_of_a_gpu_where_that_is_asked(self, bench: Bench, keys: dict[str, Any]) -> None:
        bench.plan = planned(version="1.4.2", **keys)
        assert needs_gpu(bench.plan)
        manifest = bench.tested("candidate-1")
        bench.refused(ReportMissing, "a run on a GPU is asked for, and its reports are of cpu")
        keep_report(bench.repository, manifest, report_of(bench.plan, manifest, **GPU), bench.output)
        assert bench().digest == manifest.digest

    def test_what_serves_nothing_needs_no_gpu(self, bench: Bench) -> None:
        plan = planned(device="cuda")
        assert not needs_gpu(replace(plan, runtime=plan.runtime.model_copy(update={"serves": False})))

    def test_a_candidate_that_is_slower_than_tolerated(self, bench: Bench) -> None:
        request = {"request": OTHER}
        bench.tested("1.4.1", plan=planned(version="1.4.1", device="any"), facts=request)
        slow = {"latency_seconds": {"p50": 1.0, "p95": 2.0, "max": 3.0}, **request}
        bench.tested("candidate-1", facts=slow)
        plan = planned(version="1.4.2", device="any", smoke={"tolerance": {"latency": "20%"}})
        bench.refused(PerformanceRegressed, "worse than 1.4.1", plan=plan)
        bench()  # control: where nothing is said of it, it is released


@pytest.mark.promise("audit", "signature")
def test_a_forged_audit_gets_nothing_signed(bench: Bench, tmp_path: Path) -> None:
    """The real steps, and the audit that somebody has attached who may push and has no key."""
    manifest = bench.image(
        "candidate-1", layers=(layer_tar({"etc/token": SECRETS["hugging face"][1]().encode()}),)
    )
    write_report(bench.workspace.reports, report_of(bench.plan, manifest))
    expected = expected_of(bench.plan.spec, bench.plan.locked)
    keep_audit(bench.repository, manifest, expected, Findings("minilm", manifest.digest, 1, 1, 1, ()))
    (tmp_path / "cosign.pub").write_bytes(MemoryKey.generate().public)
    signer = Signing.by_key(str(tmp_path / "cosign.pub"), bench.output)
    signer.__dict__["_means"] = None  # that there is a key and a program is asked first
    bench.refused(AuditFailed, "secret-huggingface", documents=DOCUMENTS, signer=signer)


@dataclass(frozen=True)
class SaysItSigned(Signing):
    """Remembers what was to be signed."""

    signed: list[str] = field(default_factory=list)

    def verify(self, repository: RegistryRepository, manifest: Manifest) -> None:
        raise SignatureError("nobody has")

    def prepare(self, repository: RegistryRepository, manifest: Manifest) -> None:
        pass

    def sign(self, repository: RegistryRepository, manifest: Manifest) -> bool:
        self.signed.append(manifest.digest)
        return True


@pytest.mark.promise("signature")
def test_what_others_attach_meanwhile_is_not_signed(bench: Bench) -> None:
    """An audit takes minutes: whoever may push has them to put an audit of their own beside the image."""
    manifest = bench.image("candidate-1")
    write_report(bench.workspace.reports, report_of(bench.plan, manifest))
    theirs: list[str] = []

    def others(image: Releasing) -> None:
        expected = expected_of(image.plan.spec, image.plan.locked)
        findings = Findings("minilm", manifest.digest, 1, 1, 1, ())
        theirs.append(keep_audit(image.repository, image.manifest, expected, findings))

    signer = SaysItSigned(bench.output)
    bench(documents=(attach_report, others), signer=signer)
    (report,) = referrers(bench.repository, manifest, REPORT_TYPE)
    assert signer.signed == [manifest.digest, report.digest] and theirs[0] not in signer.signed


@pytest.mark.promise("quarantine")
def test_a_candidate_in_quarantine_is_not_released(bench: Bench) -> None:
    """Else `1.4` and `1` would name it."""
    manifest = bench.tested("candidate-1")
    put_into_quarantine(bench.repository, manifest, Quarantine("holds a token"))
    bench.refused(PolicyRefused, "in quarantine: holds a token")


def test_an_audit_that_finds_something_stops_it_before_anything_is_attached(bench: Bench) -> None:
    """The real steps, and a layer with a token in it."""
    manifest = bench.image(
        "candidate-1", layers=(layer_tar({"etc/token": SECRETS["hugging face"][1]().encode()}),)
    )
    write_report(bench.workspace.reports, report_of(bench.plan, manifest))
    bench.refused(AuditFailed, "secret-huggingface", documents=DOCUMENTS)
    assert "etc/token" in bench.said.getvalue()


@pytest.mark.promise("tags", "interrupt")
def test_killed_at_each_request_and_run_again(bench: Bench, tally: Tally) -> None:
    """What is left is the old state, or a version without its aliases; the next run completes it.

    Killed after one request is done is the same to a registry as before the next one is sent.
    """
    before = bench.tested("1.4.1", "1.4", "1", plan=planned(version="1.4.1", device="any"))
    manifest = bench.image("candidate-1")
    write_report(bench.workspace.reports, report_of(bench.plan, manifest))
    state = snapshot(bench.server)
    bench.client.live_until()
    bench()
    whole, requests = tags_of(bench.server), bench.client.count
    partial = 0
    for number in range(1, requests + 1, cases(3, 1)):
        restore(bench.server, state)
        bench.client.live_until(number)
        with pytest.raises(Killed):
            bench()
        bench.client.live_until()
        left = tags_of(bench.server)
        aliases = [left["1.4"], left["1"]]
        if "1.4.2" in left:
            assert bench.kept(manifest, REPORT_TYPE) == bench.kept(manifest, NOTE) == 1
            partial += left != whole
        assert left.get("1.4.2", manifest.digest) == manifest.digest
        assert set(aliases) <= {before.digest} or "1.4.2" in left
        assert set(aliases) <= {before.digest, manifest.digest}
        bench()
        assert tags_of(bench.server) == whole
        assert bench.kept(manifest, REPORT_TYPE) == bench.kept(manifest, NOTE) == 1
        tally.count()
    assert partial, "control: it was killed between the version tag and the aliases as well"

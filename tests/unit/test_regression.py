"""When a version is worse than the one before it, and when that cannot be said."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest

from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.errors import PerformanceRegressed, ReportMissing
from modelbake.manifest import OCI_MANIFEST, Manifest
from modelbake.output import Output
from modelbake.referrers import Document, attach
from modelbake.registry import Registry
from modelbake.regression import Gate, change, judge
from modelbake.report import Report, encode_report
from modelbake.reportstore import REPORT_TYPE, add_report, keep_report, kept_reports
from modelbake.smokeentry import ToleranceEntry
from modelbake.stream.repository import RegistryRepository
from tests.servers.upload_registry import PASSWORD, USER, UploadRegistry
from tests.unit.historical import measured

PATH = "ml/minilm"
FAILED = {"name": "c", "passed": False, "expected": 1, "actual": 2, "seconds": 0.1}


ALL = ToleranceEntry(latency="20%", throughput="20%", load="50%", gpu_memory="10%")


class TestJudge:
    def test_what_is_the_same_is_tolerated(self) -> None:
        judgement = judge(ALL, measured(), measured())
        assert (judgement.worse, judgement.unjudged) == ((), ())
        assert len(judgement.tolerated) == 4

    @pytest.mark.parametrize(
        ("at_the_edge", "beyond"),
        [
            (measured(latency=0.012), measured(latency=0.0121)),
            (measured(throughput=80.0), measured(throughput=79.9)),
            (measured(load=3.0), measured(load=3.01)),
            (measured(peak=1100), measured(peak=1101)),
        ],
    )
    def test_the_edge_is_tolerated_and_what_is_beyond_it_not(
        self, at_the_edge: Report, beyond: Report
    ) -> None:
        assert judge(ALL, measured(), at_the_edge).worse == ()
        assert len(judge(ALL, measured(), beyond).worse) == 1

    def test_what_is_better_is_never_worse(self) -> None:
        better = measured(latency=0.0001, throughput=1e6, load=0.0, peak=0)
        assert judge(ALL, measured(), better).worse == ()
        assert len(judge(ALL, better, measured()).worse) == 4, "control: the other way round"

    def test_both_figures_are_named(self) -> None:
        (line,) = judge(ToleranceEntry(latency="20%"), measured(), measured(latency=0.025)).worse
        assert line == "latency p95: 25 ms, 1.0.0 had 10 ms (+150.0%, 20% more is tolerated)"
        (line,) = judge(ToleranceEntry(throughput="5%"), measured(), measured(throughput=50)).worse
        assert line == "throughput: 50/s, 1.0.0 had 100/s (-50.0%, 5% less is tolerated)"

    def test_what_is_not_named_is_not_compared(self) -> None:
        judgement = judge(ToleranceEntry(load="10%"), measured(), measured(latency=9.0, throughput=1.0))
        assert judgement.worse == () and len(judgement.tolerated) == 1

    def test_other_requests_say_nothing_about_each_other(self) -> None:
        slower = measured(latency=9.0, throughput=1.0, load=9.0, request="sha256:" + "5" * 64)
        judgement = judge(ALL, measured(), slower)
        assert [line.partition(":")[0] for line in judgement.worse] == ["load time"]
        assert all("different requests" in line for line in judgement.unjudged)
        assert len(judgement.unjudged) == 2

    def test_what_was_not_measured_is_said(self) -> None:
        judgement = judge(ALL, measured(), measured(gpu_memory=None))
        assert judgement.unjudged == ("peak GPU memory: not measured in both versions",)

    def test_only_one_kind_of_gpu_memory_is_compared(self) -> None:
        judgement = judge(ALL, measured(), measured(peak=None))
        assert not judgement.worse, "the driver's are equal; torch's and the driver's are not compared"

    def test_a_change_from_nothing(self) -> None:
        assert [change(0, 0), change(0, 1), change(2, 1)] == ["unchanged", "was 0", "-50.0%"]
        assert len(judge(ALL, measured(peak=0), measured(peak=1)).worse) == 1


# --- in a registry ------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[UploadRegistry]:
    with UploadRegistry() as running:
        yield running


@pytest.fixture
def repository(server: UploadRegistry) -> Iterator[RegistryRepository]:
    with Registry(server.host, RegistryCredentials(USER, Secret(PASSWORD)), timeout=5) as registry:
        yield RegistryRepository(registry, PATH)


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def output(log: io.StringIO) -> Output:
    return Output(stderr=log)


def release(server: UploadRegistry, version: str) -> Manifest:
    """Put an image under a version tag."""
    config = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": f"sha256:{'1' * 64}",
        "size": 2,
    }
    body = json.dumps({"config": config, "layers": [], "annotations": {"version": version}}).encode()
    manifest = Manifest.of(OCI_MANIFEST, body)
    held = server.repository(PATH)
    held.manifests[manifest.digest] = (manifest.media_type, body)
    held.tags[version] = manifest.digest
    return manifest


def gate(repository: RegistryRepository, output: Output, tolerance: ToleranceEntry = ALL) -> Gate:
    return Gate(repository, "minilm", "2.0.0", tolerance, output)


class TestGate:
    def test_a_slower_version_is_refused_with_both_figures(
        self, server: UploadRegistry, repository: RegistryRepository, output: Output
    ) -> None:
        manifest = release(server, "1.9.0")
        keep_report(repository, manifest, measured(version="1.9.0"), output)
        with pytest.raises(PerformanceRegressed) as caught:
            gate(repository, output).require(measured(version="2.0.0", latency=0.05))
        said = str(caught.value)
        assert "minilm 2.0.0: worse than 1.9.0 on cuda:NVIDIA H200" in said
        assert "latency p95: 50 ms, 1.9.0 had 10 ms (+400.0%" in said
        assert "build.py smoke minilm" in caught.value.hint
        gate(repository, output).require(measured(version="2.0.0"))  # control: as fast as before

    def test_without_a_tolerance_nothing_is_asked(
        self, server: UploadRegistry, repository: RegistryRepository, output: Output
    ) -> None:
        keep_report(repository, release(server, "1.9.0"), measured(version="1.9.0"), output)
        asked = len(server.seen)
        open_gate = gate(repository, output, ToleranceEntry())
        open_gate.require(measured(version="2.0.0", latency=9.0))
        assert open_gate.lets_pass(measured(latency=9.0)) and len(server.seen) == asked

    def test_it_is_compared_with_the_newest_earlier_version(
        self, server: UploadRegistry, repository: RegistryRepository, output: Output, log: io.StringIO
    ) -> None:
        for version, latency in (("1.2.0", 0.001), ("1.10.0", 0.01), ("2.0.0", 0.001), ("2.1.0", 0.001)):
            kept = measured(version=version, latency=latency)
            keep_report(repository, release(server, version), kept, output)
        gate(repository, output).require(measured(version="2.0.0", latency=0.011))
        assert "latency p95: 11 ms, 1.10.0 had 10 ms" in log.getvalue()

    def test_another_device_is_looked_past(
        self, server: UploadRegistry, repository: RegistryRepository, output: Output, log: io.StringIO
    ) -> None:
        keep_report(repository, release(server, "1.0.0"), measured(version="1.0.0"), output)
        on_cpu = measured(version="1.1.0", latency=5.0, device="cpu")
        keep_report(repository, release(server, "1.1.0"), on_cpu, output)
        judged = gate(repository, output)
        assert not judged.lets_pass(measured(version="2.0.0", latency=1.0))
        assert judged.lets_pass(measured(version="2.0.0", latency=5.5, device="cpu"))
        judged.require(measured(version="2.0.0", latency=99.0, device="cuda:NVIDIA L4"))
        assert "no earlier version has a report of cuda:NVIDIA L4" in log.getvalue()

    def test_the_first_version_passes_and_says_so(
        self, repository: RegistryRepository, output: Output, log: io.StringIO
    ) -> None:
        gate(repository, output).require(measured(version="2.0.0"))
        assert "nothing to compare it with" in log.getvalue()


class TestStore:
    def test_a_report_of_another_image_is_not_kept(
        self, server: UploadRegistry, repository: RegistryRepository, output: Output
    ) -> None:
        with pytest.raises(ReportMissing, match="another image"):
            keep_report(repository, release(server, "1.0.0"), measured(image_id=f"sha256:{'9' * 64}"), output)

    def test_both_names_of_an_image_are_known(
        self, server: UploadRegistry, repository: RegistryRepository, output: Output
    ) -> None:
        manifest = release(server, "1.0.0")
        keep_report(repository, manifest, measured(image_id=manifest.digest), output)
        assert len(kept_reports(repository, manifest, "minilm", "1.0.0", output)) == 1

    def test_of_each_device_the_newest_counts(
        self, server: UploadRegistry, repository: RegistryRepository, output: Output
    ) -> None:
        manifest = release(server, "1.0.0")
        newer = measured(started_at="2025-02-01T00:00:00Z", latency=0.5)
        for kept in (measured(), newer, measured(load=9.0), measured(device="cpu")):
            keep_report(repository, manifest, kept, output)
        found = kept_reports(repository, manifest, "minilm", "1.0.0", output)
        assert [each.device for each in found] == ["cpu", "cuda:NVIDIA H200"]
        assert found[1] == newer

    def test_a_released_version_gets_a_report_of_a_new_device_only(
        self, server: UploadRegistry, repository: RegistryRepository, output: Output
    ) -> None:
        manifest = release(server, "1.0.0")
        add_report(repository, manifest, measured(), output)
        add_report(repository, manifest, measured(started_at="2026-01-01T00:00:00Z"), output)
        add_report(repository, manifest, measured(device="cpu"), output)
        add_report(repository, manifest, measured(image_id=f"sha256:{'9' * 64}", device="cuda:x"), output)
        found = kept_reports(repository, manifest, "minilm", "1.0.0", output)
        assert [each.started_at for each in found] == ["2025-01-31T12:00:00Z"] * 2

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"{}", "is not a report"),
            (b"\xff", "is not a report"),
            (encode_report(measured(model="other")), "is not about this version and image"),
            (encode_report(measured(version="1.0.1")), "is not about this version and image"),
            (encode_report(measured(image_id=f"sha256:{'9' * 64}")), "is not about this version and image"),
            (
                encode_report(measured(passed=False, checks=[FAILED])),
                "smoke run that failed",
            ),
        ],
    )
    def test_what_somebody_else_attached_is_passed_over_with_a_warning(
        self,
        server: UploadRegistry,
        repository: RegistryRepository,
        output: Output,
        log: io.StringIO,
        content: bytes,
        problem: str,
    ) -> None:
        manifest = release(server, "1.0.0")
        attach(repository, manifest, Document(content, REPORT_TYPE, "report.json", {}))
        assert kept_reports(repository, manifest, "minilm", "1.0.0", output) == []
        assert (
            f"warning: minilm 1.0.0: a report in the registry is passed over: {server.host}" in log.getvalue()
        )
        assert problem in log.getvalue()
        keep_report(repository, manifest, measured(), output)
        assert kept_reports(repository, manifest, "minilm", "1.0.0", output) == [measured()], "control"

"""A model's versions: which there are, in which order, and how they are shown."""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbake.comparison import Image, Layer, choose_reports, compare, image_of, in_words
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.errors import ReportMissing
from modelbake.figures import shown
from modelbake.history import as_document, as_table, read_history
from modelbake.manifest import OCI_INDEX, OCI_MANIFEST, Manifest
from modelbake.output import Output
from modelbake.referrers import Document, attach
from modelbake.registry import Registry
from modelbake.report import write_report
from modelbake.reportstore import REPORT_TYPE, keep_report
from modelbake.stream.repository import RegistryRepository
from modelbake.tables import table
from modelbake.verbs import compare as compare_verb
from modelbake.workspace import Workspace
from tests.servers.upload_registry import PASSWORD, USER, UploadRegistry
from tests.unit.historical import GPU, HISTORY, measured, version
from tests.unit.reporting import IMAGE_ID, document, report

PATH = "ml/minilm"


@pytest.fixture
def server() -> Iterator[UploadRegistry]:
    with UploadRegistry(referrers=True) as running:
        yield running


@pytest.fixture
def repository(server: UploadRegistry) -> Iterator[RegistryRepository]:
    with Registry(server.host, RegistryCredentials(USER, Secret(PASSWORD)), timeout=5) as registry:
        yield RegistryRepository(registry, PATH)


def put(server: UploadRegistry, tag: str, media_type: str = OCI_MANIFEST, **document: object) -> Manifest:
    config = {"mediaType": "x", "digest": IMAGE_ID, "size": 10}
    layers = [{"mediaType": "x", "digest": f"sha256:{'a' * 64}", "size": 1000}]
    body = json.dumps({"config": config, "layers": layers, "annotations": {"tag": tag}, **document}).encode()
    manifest = Manifest.of(media_type, body)
    held = server.repository(PATH)
    held.manifests[manifest.digest] = (media_type, body)
    held.tags[tag] = manifest.digest
    return manifest


class TestRead:
    def test_the_registry_has_the_released_and_the_reports_here_the_others(
        self, server: UploadRegistry, repository: RegistryRepository, tmp_path: Path
    ) -> None:
        output, log = Output(stderr=(stream := io.StringIO())), stream
        for tag in ("1.2.0", "1.10.0", "1.10.0-rc.1"):
            keep_report(repository, put(server, tag), measured(tag), output)
        put(server, "candidate-0123456789ab")
        put(server, "1.3.0")
        for here in ("1.10.0", "2.0.0"):
            write_report(tmp_path, measured(here, load=77.0))
        (tmp_path / "minilm" / "3.0.0.json").write_text("{}")
        (tmp_path / "minilm" / "notes.json").write_text("{}")
        history = read_history(repository, "minilm", tmp_path, output)
        assert [each.version for each in history] == ["2.0.0", "1.10.0", "1.10.0-rc.1", "1.3.0", "1.2.0"]
        assert [each.released for each in history] == [False, True, True, True, True]
        assert [each.size for each in history] == [None, 1010, 1010, 1010, 1010]
        assert [len(each.reports) for each in history] == [1, 1, 1, 0, 1]
        loads = [report.load_seconds for each in history for report in each.reports]
        assert loads == [77.0, 2.0, 2.0, 2.0], "what is released is as the registry says"
        assert "passed over" in log.getvalue() and "3.0.0.json" in log.getvalue()
        assert "notes" not in log.getvalue()

    def test_a_report_of_impossible_numbers_is_passed_over(
        self, server: UploadRegistry, repository: RegistryRepository, tmp_path: Path
    ) -> None:
        output = Output(stderr=(log := io.StringIO()))
        for tag, peak in (("1.0.0", 5), ("1.1.0", 10**400)):
            memory = {"torch_peak_bytes": peak, "driver_bytes": 5}
            content = document(version=tag, device=GPU, gpu=True, gpu_memory=memory)
            held = Document(json.dumps(content).encode(), REPORT_TYPE, "report.json", {})
            attach(repository, put(server, tag), held)
        history = read_history(repository, "minilm", tmp_path, output)
        assert [len(each.reports) for each in history] == [0, 1], "the other one is the control"
        assert "passed over" in log.getvalue() and "torch_peak_bytes" in log.getvalue()
        assert len(as_table(history)) == 3

    def test_without_anything_it_is_empty(self, repository: RegistryRepository, tmp_path: Path) -> None:
        assert read_history(repository, "minilm", tmp_path, Output(stderr=io.StringIO())) == []

    def test_an_index_of_one_image_has_its_size(
        self, server: UploadRegistry, repository: RegistryRepository, tmp_path: Path
    ) -> None:
        output = Output(stderr=io.StringIO())
        image = put(server, "candidate-0")
        entries = [
            {"mediaType": OCI_MANIFEST, "digest": image.digest, "size": 1, "platform": platform}
            for platform in (
                {"os": "linux", "architecture": "amd64"},
                {"os": "unknown", "architecture": "unknown"},
            )
        ]
        index = put(server, "1.0.0", OCI_INDEX, manifests=entries)
        keep_report(repository, index, measured("1.0.0", image_id=index.digest), output)
        put(server, "2.0.0", OCI_INDEX, manifests=[entries[0], entries[0]])
        two, one = read_history(repository, "minilm", tmp_path, output)
        assert (one.size, len(one.reports)) == (1010, 1)
        assert two.size is None


class TestCompareVerb:
    def test_a_broken_report_is_not_taken_for_none(
        self, server: UploadRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        auth = {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
        (tmp_path / "config.json").write_text(json.dumps({"auths": {server.host: auth}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        model = '{version: "1.0.0", source: "hf://a/b", runtime: weights}'
        (tmp_path / "models.yaml").write_text(f"registry: {server.host}/ml\nmodels: {{minilm: {model}}}\n")
        workspace = Workspace(tmp_path / "models.yaml")
        write_report(workspace.reports, report())
        asked = argparse.Namespace(name="minilm", before="1.0.0", now="1.1.0", json=False)
        output = Output(stdout=(told := io.StringIO()), stderr=io.StringIO())
        with pytest.raises(ReportMissing, match="has this version"):
            compare_verb.run(asked, workspace, output)
        broken = workspace.reports / "minilm/1.1.0.json"
        broken.write_text("{broken")
        with pytest.raises(ReportMissing, match="is not a report") as caught:
            compare_verb.run(asked, workspace, output)
        assert str(broken) in str(caught.value)
        write_report(workspace.reports, report(version="1.1.0"))
        compare_verb.run(asked, workspace, output)
        assert "load time" in told.getvalue(), "control"


class TestShown:
    def test_the_table(self) -> None:
        lines = as_table(HISTORY)
        assert lines[0].split() == [
            "VERSION", "DIGEST", "SIZE", "LOAD", "THROUGHPUT", "P95", "GPU", "MEMORY", "DATE", "DEVICE",
        ]  # fmt: skip
        assert lines[1].startswith("2.1.0-rc.1  not released")
        assert lines[2].endswith("2025-01-31  cpu") and lines[3].endswith(f"2025-01-31  {GPU}")
        assert "20 ms" in lines[3] and "100/s" in lines[3] and "1 kB" in lines[3]
        assert lines[4].startswith("1.1.0") and lines[4].endswith("no report")
        assert len(lines) == 7

    def test_the_document_has_whole_reports(self) -> None:
        document = json.loads(json.dumps(as_document(HISTORY)))
        assert [each["version"] for each in document] == ["2.1.0-rc.1", "2.0.0", "1.1.0", "1.0.0"]
        assert document[0]["released"] is False and document[0]["digest"] is None
        assert document[1]["pulled_bytes"] == 5_000_000
        assert document[1]["reports"][1]["latency_seconds"]["p95"] == 0.02

    def test_a_failed_report_is_marked(self) -> None:
        failed = {"name": "c", "passed": False, "expected": 1, "actual": 2, "seconds": 0.1}
        here = version("1.0.0", measured(passed=False, checks=[failed]), released=False)
        assert as_table([here])[1].endswith(f"{GPU} (failed)")

    @pytest.mark.parametrize(
        ("value", "unit", "text"),
        [
            (None, "s", "-"),
            (0, "s", "0 s"),
            (0.00012, "s", "0.12 ms"),
            (0.0123, "s", "12.3 ms"),
            (1, "s", "1 s"),
            (12.345, "s", "12.3 s"),
            (1234.5, "s", "1,234 s"),
            (95.5, "/s", "95.5/s"),
            (0, "bytes", "0 bytes"),
            (999, "bytes", "999 bytes"),
            (1_000_000, "bytes", "1 MB"),
            (5_310_000_000, "bytes", "5.31 GB"),
        ],
    )
    def test_amounts(self, value: float | None, unit: str, text: str) -> None:
        assert shown(value, unit) == text  # type: ignore[arg-type]

    def test_columns_are_as_wide_as_their_widest_cell(self) -> None:
        assert table(("A", "BB"), [("xxx", "1")], right={1}) == ["A    BB", "xxx   1"]

    def test_nothing_steers_the_terminal(self) -> None:
        bad = "cuda:\x1b]0;title\x07 x\u202e"
        (_, line) = as_table([version("1.0.0", measured(device=bad))])
        assert line.endswith("cuda: ]0;title x") and line.isprintable()
        told = compare(version("1.0.0", measured()), version("1.1.0", measured(device=bad)), None, None)
        assert all(each.isprintable() for each in in_words(told))


class TestCompare:
    def test_a_gpu_is_compared_with_the_same_gpu(self) -> None:
        one, other = choose_reports(HISTORY[3], HISTORY[1])
        assert one and other and one.device == other.device == GPU
        assert choose_reports(HISTORY[2], HISTORY[1])[0] is None

    def test_figures_have_ratios(self) -> None:
        told = compare(HISTORY[3], HISTORY[1], None, None)
        figures = {each["figure"]: each for each in told["figures"]}
        assert figures["latency"]["ratio"] == 2.0 and figures["latency"]["change"] == "+100.0%"
        assert figures["load"]["ratio"] == 1.0
        lines = in_words(json.loads(json.dumps(told)))
        assert any("latency p95" in each and each.endswith("x2.00 (+100.0%, worse)") for each in lines)
        assert any("load time" in each and each.endswith("unchanged") for each in lines)
        assert "image: nothing to compare" in lines[-1]

    @pytest.mark.parametrize(
        ("now", "remark", "compared"),
        [
            (measured("2.0.0", device="cuda:NVIDIA L4"), "different devices", set()),
            (
                measured("2.0.0", request=f"sha256:{'5' * 64}"),
                "different requests",
                {"load", "ready", "gpu_memory"},
            ),
            (
                measured("2.0.0", lock=f"sha256:{'6' * 64}"),
                "the weights are different ones",
                {"load", "ready", "gpu_memory", "latency", "latency_p50", "throughput"},
            ),
        ],
    )
    def test_what_cannot_be_compared_has_no_ratio(self, now: object, remark: str, compared: set[str]) -> None:
        told = compare(version("1.0.0", measured()), version("2.0.0", now), None, None)  # type: ignore[arg-type]
        assert remark in " ".join(told["remarks"])
        assert {each["figure"] for each in told["figures"] if each["ratio"] is not None} == compared

    def test_without_reports_the_images_are_left(self) -> None:
        told = compare(version("1.0.0"), version("2.0.0"), None, None)
        assert told["remarks"] == ["without two reports there is nothing to compare but the images"]
        assert in_words(told)

    def test_what_changed_in_the_image(self) -> None:
        base = "org.opencontainers.image.base.digest"
        same, old, new = (
            Layer("a", 900, "weights"),
            Layer("b", 50, "RUN old"),
            Layer("c", 60, "RUN  new\x1b\n"),
        )
        first = Image({base: "sha256:1", "io.modelbake.lock": "sha256:l"}, (same, old))
        second = Image({base: "sha256:2", "io.modelbake.lock": "sha256:l"}, (same, new))
        told = compare(HISTORY[3], HISTORY[1], first, second)
        assert told["image"]["changed"] == {"base digest": {"before": "sha256:1", "now": "sha256:2"}}
        assert (told["image"]["same_layers"], told["image"]["layers"]) == (1, 2)
        lines = in_words(told)
        assert "base digest: sha256:1 -> sha256:2" in lines
        assert "layers: 1 of 2 are those of 1.0.0" in lines
        assert lines[-2:] == ["  + 60 bytes  RUN new", "  - 50 bytes  RUN old"]

    @pytest.mark.parametrize(
        "config", [b"", b"[]", b'{"config": 1, "rootfs": {"diff_ids": [1]}, "history": 3}']
    )
    def test_a_configuration_that_makes_no_sense_is_no_traceback(self, config: bytes) -> None:
        layer = {"mediaType": "x", "digest": f"sha256:{'a' * 64}", "size": 7}
        body = json.dumps({"config": layer, "layers": [layer, layer]}).encode()
        image = image_of(Manifest.of(OCI_MANIFEST, body), config)
        assert [each.size for each in image.layers] == [7, 7]

    def test_layers_are_told_by_their_history(self) -> None:
        layer = {"mediaType": "x", "digest": f"sha256:{'a' * 64}", "size": 7}
        body = json.dumps({"config": layer, "layers": [layer]}).encode()
        config = {
            "config": {"Labels": {"a": "b", "n": 1}},
            "rootfs": {"diff_ids": ["sha256:d"]},
            "history": [{"created_by": "ENV", "empty_layer": True}, {"created_by": "COPY"}],
        }
        image = image_of(Manifest.of(OCI_MANIFEST, body), json.dumps(config).encode())
        assert image == Image({"a": "b"}, (Layer("sha256:d", 7, "COPY"),))

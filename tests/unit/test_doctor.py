"""What `doctor` says of hubs, against the hub of tests/servers; the rest is tested with a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from modelbake.config import ModelSpec
from modelbake.credentials import Redactor
from modelbake.doctor import examine_sources
from tests.servers.hub import Hub, Repo

TOKEN = "hf_doctorDOCTORdoctorDOCTOR0123456"
OPEN = ("team/first", "team/second")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub whose token may read two repositories of four; of the others one is gated, one is hidden."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in (*OPEN, "team/hidden"):
        Repo.create(tmp_path, name, {"model.safetensors": b"weights", "config.json": b"{}"})
    gated = Repo.create(tmp_path, "team/gated", {"model.safetensors": b"weights"})
    gated.set_private(False)
    gated.set_gated("manual")
    with Hub(tmp_path, tokens={TOKEN: OPEN}) as server:
        yield server
        huggingface_hub.close_session()


def make_spec(hub: Hub, source: str, name: str = "m") -> ModelSpec:
    return ModelSpec(name=name, version="1.0.0", source=f"hf://{source}", runtime="r", hub=hub.url)


def test_a_hub_whose_repositories_can_all_be_read_is_one_line(hub: Hub) -> None:
    specs = [make_spec(hub, source) for source in (*OPEN, *OPEN)]
    (finding,) = examine_sources(specs, Redactor())
    assert str(finding) == f"ok   hub: {hub.url} hands out hf://team/first, hf://team/second with the token"
    asked = hub.requests(method="HEAD")
    assert sorted(record.repo for record in asked) == sorted(OPEN), "a file of each, once"
    assert hub.bytes_sent("*.safetensors") == 0


def test_every_repository_that_cannot_be_read_is_a_line(hub: Hub) -> None:
    sources = ("team/gated", "team/first", "team/hidden", "team/absent")
    specs = [make_spec(hub, source, name=source.rpartition("/")[2]) for source in sources]
    redactor = Redactor()
    findings = examine_sources(specs, redactor)
    assert [finding.state for finding in findings] == ["fix", "fix", "fix", "ok"]
    for finding, source in zip(findings, ("gated", "hidden", "absent"), strict=False):
        assert f"hf://team/{source}" in finding.text and finding.remedy
    assert "terms have to be accepted" in findings[0].text
    assert findings[3].text == f"{hub.url} hands out hf://team/first with the token"
    assert redactor(TOKEN) == "***"


def test_a_token_file_that_is_not_there_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", "absent")
    (finding,) = examine_sources([make_spec(hub, source) for source in OPEN], Redactor())
    assert (finding.subject, finding.state) == ("hub", "fix")
    assert "HF_TOKEN_PATH=absent" in finding.text


def test_a_ca_bundle_that_is_none_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub.close_session()
    monkeypatch.setenv("MODELBAKE_CA_BUNDLE", __file__)
    (finding,) = examine_sources([make_spec(hub, source) for source in OPEN], Redactor())
    assert finding.state == "fix" and "MODELBAKE_CA_BUNDLE" in finding.text

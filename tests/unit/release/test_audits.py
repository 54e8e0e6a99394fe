"""Audits kept beside an image: made once for the same rules, believed only about the same image."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from modelbake.audit.findings import Findings
from modelbake.audit.judging import Expected
from modelbake.errors import AuditFailed, RegistryUnavailable
from modelbake.manifest import Manifest
from modelbake.output import Output
from modelbake.referrers import Document, attach
from modelbake.release import audits
from modelbake.release.audits import (
    AUDIT_TYPE,
    audit_image,
    decode_audit,
    keep_audit,
    kept_audit,
    rules_digest,
)
from modelbake.stream.repository import RegistryRepository
from tests.servers.upload_registry import UploadRegistry
from tests.unit.audit.building import WEIGHTS, Made, facts, layer_tar
from tests.unit.planning import planned
from tests.unit.release.registry import connected, hold_image

EXPECTED = Expected(facts(WEIGHTS))
OTHER = "sha256:" + "8" * 64


@pytest.fixture
def server() -> Iterator[UploadRegistry]:
    with UploadRegistry() as running:
        yield running


@pytest.fixture
def repository(server: UploadRegistry) -> Iterator[RegistryRepository]:
    with connected(server) as opened:
        yield opened


def hold_clean(server: UploadRegistry, **changes: Any) -> Manifest:
    made = Made.clean()
    layers = tuple(layer_tar(layer) for layer in made.layers)
    return hold_image(server, planned(), "1.0.0", layers=layers, settings=made.config, **changes)


def audited(repository: RegistryRepository, manifest: Manifest, expected: Expected = EXPECTED) -> bool:
    """Audit and keep it, as a release does; tell whether anything was read."""
    output = Output(stdout=io.StringIO(), stderr=io.StringIO())
    findings = audit_image(repository, manifest, expected, output)
    if findings is not None:
        keep_audit(repository, manifest, expected, findings)
    return findings is not None


def test_a_clean_one_is_kept_and_not_made_again(
    server: UploadRegistry, repository: RegistryRepository
) -> None:
    manifest = hold_clean(server)
    assert kept_audit(repository, manifest) is None
    assert audited(repository, manifest)
    kept = kept_audit(repository, manifest)
    assert kept is not None and kept.is_current
    assert kept.audit["digest"] == manifest.digest
    server.seen.clear()
    assert not audited(repository, manifest)
    assert not [each for each in server.seen if manifest.layers[0].digest in each.path]


def test_it_is_made_again_for_other_rules_or_other_files(
    server: UploadRegistry, repository: RegistryRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = hold_clean(server)
    audited(repository, manifest)
    assert audited(repository, manifest, Expected(EXPECTED.files, frozenset({"x.bin"})))
    assert not audited(repository, manifest), "control"
    monkeypatch.setattr(audits, "rules_digest", lambda: OTHER)
    kept = kept_audit(repository, manifest)
    assert kept is not None and not kept.is_current
    assert audited(repository, manifest)
    newest = kept_audit(repository, manifest)
    assert newest is not None


@pytest.mark.promise("audit", "signature")
def test_where_releases_are_signed_an_unsigned_one_is_not_believed(
    server: UploadRegistry, repository: RegistryRepository
) -> None:
    """Whoever may push can write that the audit was clean; the release would then sign the image."""
    manifest = hold_clean(server, marker="root", labels={"org.example.password": "x" * 20})
    digest = keep_audit(repository, manifest, EXPECTED, Findings("minilm", manifest.digest, 1, 1, 1, ()))
    output = Output(stdout=io.StringIO(), stderr=io.StringIO())
    with pytest.raises(AuditFailed, match="secret-name"):
        audit_image(repository, manifest, EXPECTED, output, lambda each: False)
    assert audit_image(repository, manifest, EXPECTED, output, digest.__eq__) is None, "control"


def test_what_is_found_is_not_kept(server: UploadRegistry, repository: RegistryRepository) -> None:
    manifest = hold_clean(server, marker="root", labels={"org.example.password": "x" * 20})
    with pytest.raises(AuditFailed, match="secret-name"):
        audited(repository, manifest)
    assert kept_audit(repository, manifest) is None


def test_the_rules_are_all_programs_of_the_audit() -> None:
    assert rules_digest() == rules_digest() and rules_digest().startswith("sha256:")


class TestWhatIsAttached:
    def document(self, manifest: Manifest, **changes: Any) -> dict[str, Any]:
        audit = {"digest": manifest.digest, "passed": True, "findings": [{"severity": "note"}]}
        return {
            "schema": 1,
            "rules": OTHER,
            "expected": OTHER,
            "created": "2025-01-31T12:00:00Z",
            "toolkit_version": "0.1.0",
            "audit": {**audit, **changes},
        }

    def test_one_that_is_right(self, server: UploadRegistry) -> None:
        manifest = hold_clean(server)
        found = decode_audit(json.dumps(self.document(manifest)).encode(), manifest, OTHER)
        assert found is not None and not found.is_current

    @pytest.mark.parametrize(
        "changes",
        [
            {"digest": OTHER},
            {"passed": False},
            {"passed": 1},
            {"findings": [{"severity": "error"}]},
            {"findings": ["x"]},
            {"findings": None},
        ],
    )
    def test_one_of_another_image_or_with_findings(
        self, server: UploadRegistry, changes: dict[str, Any]
    ) -> None:
        manifest = hold_clean(server)
        assert decode_audit(json.dumps(self.document(manifest, **changes)).encode(), manifest, OTHER) is None

    @pytest.mark.parametrize(
        "raw", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"schema": 1, "audit": {}}']
    )
    def test_nonsense(self, server: UploadRegistry, repository: RegistryRepository, raw: bytes) -> None:
        manifest = hold_clean(server)
        attach(repository, manifest, Document(raw, AUDIT_TYPE, "audit.json", {}))
        assert kept_audit(repository, manifest) is None
        assert audited(repository, manifest)
        assert kept_audit(repository, manifest) is not None, "control: a real one beside it is found"

    def test_a_registry_that_fails_is_no_missing_audit(
        self, server: UploadRegistry, repository: RegistryRepository
    ) -> None:
        manifest = hold_clean(server)
        audited(repository, manifest)
        server.trouble("blob", times=99, status=503)
        with pytest.raises(RegistryUnavailable):
            kept_audit(repository, manifest)

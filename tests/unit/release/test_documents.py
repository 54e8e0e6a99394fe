"""SBOM and provenance beside an image: made once, read back, believed only where they are about it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from modelbake.errors import NotReleased, RegistryUnavailable
from modelbake.manifest import Manifest
from modelbake.output import Output
from modelbake.plan import BuildPlan
from modelbake.referrers import Document, attach, referrers
from modelbake.release.documents import (
    PREDICATE_NOTE,
    SBOM_TYPE,
    find_provenance,
    find_sbom,
    keep_documents,
    released_document,
)
from modelbake.release.provenance import PROVENANCE_TYPE
from modelbake.stream.repository import RegistryRepository
from tests.servers.upload_registry import UploadRegistry
from tests.unit.planning import planned
from tests.unit.release.conftest import Open
from tests.unit.release.made import put_image, usual_layers


@pytest.fixture
def output() -> Output:
    return Output(stdout=io.StringIO(), stderr=io.StringIO())


@pytest.fixture
def plan(tmp_path: Path) -> BuildPlan:
    (tmp_path / "requirements.cuda.txt").write_text("torch==2.0\n")
    return planned(directory=tmp_path)


def keep(
    repository: RegistryRepository, image: Manifest, plan: BuildPlan, folder: Path, output: Output
) -> None:
    keep_documents(repository, image, plan, folder=folder, context="sha256:" + "11" * 32, output=output)


def test_both_are_kept_once(
    server: UploadRegistry, open_repository: Open, plan: BuildPlan, tmp_path: Path, output: Output
) -> None:
    repository = open_repository(server, "ml/minilm")
    image = put_image(repository, "1.0.0", layers=usual_layers())
    assert find_sbom(repository, image, output) is None
    keep(repository, image, plan, tmp_path, output)
    sbom = json.loads(released_document(repository, "minilm", "1.0.0", SBOM_TYPE, output))
    assert {each["name"] for each in sbom["components"]} >= {"torch", "minilm", "libc6"}
    statement = json.loads(released_document(repository, "minilm", "1.0.0", PROVENANCE_TYPE, output))
    assert statement["subject"][0]["digest"]["sha256"] == image.digest.removeprefix("sha256:")
    (listed,) = referrers(repository, image, PROVENANCE_TYPE)
    assert listed.annotations[PREDICATE_NOTE] == "https://slsa.dev/provenance/v1"

    writes, reads = server.count("put-manifest"), server.count("blob")
    keep(repository, image, plan, tmp_path, output)
    assert server.count("put-manifest") == writes
    assert server.count("blob") == reads + 2, "no layer is read again"


@pytest.mark.promise("signature")
def test_where_releases_are_signed_unsigned_ones_do_not_keep_the_right_ones_out(
    server: UploadRegistry, open_repository: Open, plan: BuildPlan, tmp_path: Path, output: Output
) -> None:
    repository = open_repository(server, "ml/minilm")
    image = put_image(repository, "1.0.0", layers=usual_layers())
    hashes = [{"alg": "SHA-256", "content": image.digest.removeprefix("sha256:")}]
    forged = {"bomFormat": "CycloneDX", "metadata": {"component": {"hashes": hashes}}, "components": []}
    theirs = attach(repository, image, Document(json.dumps(forged).encode(), SBOM_TYPE, "x"))

    def made(signed: set[str]) -> list[str]:
        return keep_documents(
            repository, image, plan, folder=tmp_path, context="sha256:" + "11" * 32, output=output,
            is_signed=signed.__contains__,
        )  # fmt: skip

    first = made(set())
    assert len(first) == 2 and theirs not in first
    assert made(set(first)) == []
    assert made(set()) == first, "the same bytes again: there once, and known to be ours"
    for signed, components in ((set(first), True), ({theirs}, False)):
        printed = released_document(repository, "minilm", "1.0.0", SBOM_TYPE, output, signed.__contains__)
        assert bool(json.loads(printed)["components"]) is components
    assert isinstance(output.stderr, io.StringIO) and "not signed" not in output.stderr.getvalue()
    released_document(repository, "minilm", "1.0.0", SBOM_TYPE, output, lambda digest: False)
    assert "it is not signed: whoever may push" in output.stderr.getvalue()


def test_what_is_about_another_image_does_not_count(
    server: UploadRegistry, open_repository: Open, plan: BuildPlan, tmp_path: Path, output: Output
) -> None:
    repository = open_repository(server, "ml/minilm")
    image = put_image(repository, "1.0.0", layers=usual_layers())
    other = put_image(repository, "1.1.0", layers=usual_layers(), note="other")
    keep(repository, other, plan, tmp_path, output)
    for media_type in (SBOM_TYPE, PROVENANCE_TYPE):
        theirs = released_document(repository, "minilm", "1.1.0", media_type, output)
        for content in (theirs, b"{}", b"nonsense", b"[]", b'{"bomFormat": "CycloneDX"}'):
            attach(repository, image, Document(content, media_type, "x"))
        with pytest.raises(NotReleased, match="released without"):
            released_document(repository, "minilm", "1.0.0", media_type, output)
    keep(repository, image, plan, tmp_path, output)
    assert find_sbom(repository, image, output) and find_provenance(repository, image, output)


def test_an_unknown_version_and_a_busy_registry_are_errors(
    plain: UploadRegistry, open_repository: Open, plan: BuildPlan, tmp_path: Path, output: Output
) -> None:
    repository = open_repository(plain, "ml/minilm")
    with pytest.raises(NotReleased, match="no such version"):
        released_document(repository, "minilm", "9.9.9", SBOM_TYPE, output)
    image = put_image(repository, "1.0.0", layers=usual_layers())
    plain.trouble("put-manifest", times=99, status=503)
    with pytest.raises(RegistryUnavailable):
        keep(repository, image, plan, tmp_path, output)

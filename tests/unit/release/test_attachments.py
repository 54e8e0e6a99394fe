"""All that is about an image, of either kind of list, and what is about that."""

from __future__ import annotations

import pytest

from modelbake.errors import RegistryError
from modelbake.referrers import Document, attach, referrers_tag
from modelbake.release.attachments import attachments, subject_of_tag
from tests.servers.upload_registry import UploadRegistry
from tests.unit.release.conftest import Open
from tests.unit.release.made import put_image

REPORT = Document(b"{}", "application/vnd.modelbake.report.v1+json", "report.json")
SBOM = Document(b"{}", "application/vnd.cyclonedx+json", "sbom.json")


def test_what_is_listed_and_what_cosign_has_named(server: UploadRegistry, open_repository: Open) -> None:
    repository = open_repository(server, "ml/minilm")
    image, other = put_image(repository, "1.0.0"), put_image(repository, "1.1.0", note="other")
    assert attachments(repository, image) == []
    report, sbom = attach(repository, image, REPORT), attach(repository, image, SBOM)
    attach(repository, other, REPORT)
    signature = put_image(repository, f"{referrers_tag(image.digest)}.sig", note="signature")
    of_sbom = put_image(repository, f"{referrers_tag(sbom)}.sig", note="signature of the SBOM")
    found = attachments(repository, image)
    assert {each.digest for each in found} == {report, sbom, signature.digest, of_sbom.digest}
    assert {each.digest: each.artifact_type for each in found if not each.tag} == {
        report: REPORT.media_type,
        sbom: SBOM.media_type,
    }
    assert {each.digest: each.subject for each in found}[of_sbom.digest] == sbom
    assert [each.digest for each in found].index(of_sbom.digest) > [each.digest for each in found].index(sbom)


def test_a_registry_that_has_learned_to_list_keeps_what_the_tag_lists(
    plain: UploadRegistry, open_repository: Open
) -> None:
    repository = open_repository(plain, "ml/minilm")
    image = put_image(repository, "1.0.0")
    before = attach(repository, image, REPORT)
    plain.referrers = True
    after = attach(repository, image, SBOM)
    assert {each.digest for each in attachments(repository, image)} == {before, after}


def test_what_is_listed_and_gone_is_an_error(plain: UploadRegistry, open_repository: Open) -> None:
    repository = open_repository(plain, "ml/minilm")
    image = put_image(repository, "1.0.0")
    del plain.repository("ml/minilm").manifests[attach(repository, image, REPORT)]
    with pytest.raises(RegistryError, match="is not there"):
        attachments(repository, image)


def test_tags_that_are_about_something() -> None:
    name = f"sha256-{'ab' * 32}"
    for suffix in ("", ".sig", ".att", ".sbom"):
        assert subject_of_tag(name + suffix) == f"sha256:{'ab' * 32}"
    for tag in ("1.0.0", "production", name[:-1], f"{name}.txt", "sha256-x"):
        assert subject_of_tag(tag) is None

"""A channel's records: what they say, which tags they have, and what is no record."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from modelbake.errors import RegistryError, ReleaseError
from modelbake.grammar import CHANNEL, VERSION
from modelbake.manifest import OCI_INDEX, OCI_MANIFEST, Manifest
from modelbake.release.records import (
    RecordTag,
    channels_of,
    claim_tag,
    decode,
    encode,
    listing,
    next_number,
    parse_tag,
    record_tag,
    tags_of,
)
from tests.unit.release.moving_channels import CONFIG, IMAGES, NAME, record

RECORD = replace(
    record("a", 7, IMAGES["z"].digest, "me@host"), commit="a" * 40, changes="1 -> 2; size: x", over=True
)
INDEX = encode(RECORD, listing(IMAGES["a"], CONFIG))
NOTES = INDEX.document()["annotations"]


def changed(**keys: object) -> Manifest:
    return Manifest.of(OCI_INDEX, json.dumps({**INDEX.document(), **keys}).encode())


def said(**annotations: object) -> Manifest:
    prefix = "io.modelbake.channel"
    more = {f"{prefix}.{name}" if name else prefix: value for name, value in annotations.items()}
    return changed(annotations={**NOTES, **more})


class TestTags:
    def test_a_record_and_a_claim(self) -> None:
        assert record_tag("production", 7) == RECORD.tag == "production-0007"
        claim = claim_tag("production", 7, INDEX.digest)
        assert parse_tag(claim) == RecordTag("production", 7, INDEX.digest[7:19])
        assert parse_tag("a-b-0001") == RecordTag("a-b", 1)

    @pytest.mark.parametrize(
        "tag",
        [
            "production", "1.0.0", "1.4", "1", "1.0.0-0001", "candidate-0001", "candidate-0123456789ab",
            f"sha256-{'0' * 64}", "sha256-0001", "latest", "latest-0001", "production-0000", "production-007",
            "production-00007", "production-0007.abc", "production-0007.0123456789AB", "Production-0007",
            "production-0007-0008", "-0007", "production-0007.0123456789ab.sig",
        ],
    )  # fmt: skip
    def test_tags_of_any_other_kind_are_none(self, tag: str) -> None:
        assert parse_tag(tag) is None

    def test_no_channel_is_a_version_or_a_record_and_the_other_way_round(self) -> None:
        for version in ("1.0.0", "2.1.0-rc.1", "1.0.0-rc-0001"):
            assert VERSION.matches(version) and not CHANNEL.matches(version) and parse_tag(version) is None
        for tag in ("production", "production-0007", claim_tag("production", 7, INDEX.digest)):
            assert not VERSION.matches(tag)
        assert not CHANNEL.matches("production-0007") and not CHANNEL.matches("production-0007.0123456789ab")

    def test_of_one_channel(self) -> None:
        tags = [
            "production-0001",
            "production-0002.0123456789ab",
            "pre-production-0009",
            "production",
            "1.0.0",
        ]
        assert sorted(tags_of("production", tags)) == sorted(tags[:2])
        assert channels_of(tags) == ["pre-production", "production"]
        assert next_number("production", tags) == 3, "a claimed number is taken"
        assert next_number("staging", tags) == 1

    def test_the_last_number(self) -> None:
        with pytest.raises(ReleaseError, match="9999 times"):
            next_number("production", ["production-9999"])


class TestRecord:
    def test_it_comes_back_and_has_the_same_bytes(self) -> None:
        assert decode(INDEX, NAME, 7) == RECORD
        assert encode(RECORD, listing(IMAGES["a"], CONFIG)) == INDEX
        bare = record("a", 1, None, "me")
        assert decode(encode(bare, listing(IMAGES["a"], CONFIG)), NAME, 1) == bare

    def test_it_lists_the_image_with_its_platform(self) -> None:
        (entry,) = INDEX.manifests
        assert (entry.digest, entry.platform) == (IMAGES["a"].digest, "linux/amd64")
        arm = json.dumps({"os": "linux", "architecture": "arm64", "variant": "v8"}).encode()
        assert listing(IMAGES["a"], arm)[0]["platform"]["variant"] == "v8"
        assert "platform" not in listing(IMAGES["a"], b"{}")[0]

    def test_of_an_index_what_it_lists_comes_first(self) -> None:
        inner = {"mediaType": OCI_MANIFEST, "digest": IMAGES["a"].digest, "size": 1}
        entry = {**inner, "platform": {"os": "linux", "architecture": "amd64"}}
        index = Manifest.of(OCI_INDEX, json.dumps({"manifests": [entry]}).encode())
        platforms = [each["platform"]["os"] for each in listing(index, None)]
        assert platforms == ["linux", "unknown"] and listing(index, None)[1]["digest"] == index.digest
        made = replace(RECORD, digest=index.digest)
        assert decode(encode(made, listing(index, None)), NAME, 7).digest == index.digest

    def test_nothing_in_it_steers_a_terminal(self) -> None:
        shown = decode(said(who="\x1b]0;x\x07me", changes="a\nb"), NAME, 7)
        assert shown.who.isprintable() and shown.changes == "a b"
        assert decode(encode(replace(RECORD, who="a\n" * 900), listing(IMAGES["a"], CONFIG)), NAME, 7)

    @pytest.mark.parametrize(
        "manifest",
        [
            IMAGES["a"],
            changed(annotations=None),
            changed(manifests=[]),
            said(number="8"),
            said(digest="sha256:abc"),
            said(digest=IMAGES["b"].digest),
            said(previous="x"),
            said(version="latest"),
            said(model="../x"),
            said(commit="main"),
            changed(annotations={**NOTES, "org.opencontainers.image.created": "2026-02-31T00:00:00Z"}),
            said(who=7),
            said(changes="x" * 5000),
            said(**{"": "staging"}),
        ],
    )
    def test_what_is_none_is_an_error_that_names_the_tag(self, manifest: Manifest) -> None:
        with pytest.raises(RegistryError) as caught:
            decode(manifest, NAME, 7)
        assert caught.value.subject == "production-0007"

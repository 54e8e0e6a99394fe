"""What may go and what has to stay, decided over what repositories hold."""

from __future__ import annotations

import json
import random

import pytest

from modelbake.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, digest_of
from modelbake.plan import LOCK_LABEL
from modelbake.referrers import referrers_tag
from modelbake.release.retention import (
    Holding,
    Wanted,
    candidates_to_remove,
    freed,
    is_foreign,
    memory_to_remove,
    protected,
    runtimes_to_remove,
)

LOCK = "sha256:" + "7" * 64


def image(*layers: str, lock: str = "") -> Manifest:
    """An image of layers with these names, each of 100 bytes; what is alike is one digest."""
    config = digest_of(f"configuration of {layers}".encode())
    document = {
        "config": {"mediaType": "c", "digest": config, "size": 10},
        "layers": [{"mediaType": "l", "digest": digest_of(each.encode()), "size": 100} for each in layers],
        "annotations": {LOCK_LABEL: lock} if lock else {},
    }
    return Manifest.of(OCI_MANIFEST, json.dumps(document).encode())


def index(*listed: Manifest) -> Manifest:
    entries = [{"mediaType": each.media_type, "digest": each.digest, "size": 5} for each in listed]
    return Manifest.of(OCI_INDEX, json.dumps({"manifests": entries}).encode())


def holding(path: str = "ml/a", /, **tags: Manifest) -> Holding:
    """A repository; `_` in a tag's name is `-`, and `v1_0_0` is 1.0.0."""
    named = {
        tag[1:].replace("_", ".") if tag.startswith("v") else tag.replace("_", "-"): manifest
        for tag, manifest in tags.items()
    }
    manifests = {manifest.digest: manifest for manifest in named.values()}
    return Holding(path, {tag: manifest.digest for tag, manifest in named.items()}, manifests)


def dated(held: Holding, *digests: str) -> Holding:
    """The same with dates, the oldest first."""
    made = {digest: f"2025-01-{day + 1:02}T00:00:00Z" for day, digest in enumerate(digests)}
    return Holding(held.path, held.tags, held.manifests, held.listed, held.about, made)


OLD, MIDDLE, NEW = (image(name) for name in ("old", "middle", "new"))


def digests(removals: object) -> list[str]:
    return [each.digest for each in removals]  # type: ignore[attr-defined]


class TestCandidates:
    @pytest.mark.parametrize(
        ("keep", "gone"), [(0, [NEW, MIDDLE, OLD]), (1, [MIDDLE, OLD]), (2, [OLD]), (3, []), (99, [])]
    )
    def test_the_newest_stay(self, keep: int, gone: list[Manifest]) -> None:
        held = holding(candidate_1=MIDDLE, candidate_2=OLD, candidate_3=NEW)
        held = dated(held, OLD.digest, MIDDLE.digest, NEW.digest)
        assert digests(candidates_to_remove(held, keep)) == [each.digest for each in gone]

    def test_the_higher_version_is_newer_where_dates_are_alike(self) -> None:
        held = holding(candidate_1=OLD, candidate_2=NEW)
        versions = {OLD.digest: "1.9.0", NEW.digest: "1.10.0"}
        held = Holding(held.path, held.tags, held.manifests, versions=versions)
        assert digests(candidates_to_remove(held, 1)) == [OLD.digest]

    def test_what_is_released_neither_goes_nor_counts(self) -> None:
        held = holding(candidate_1=NEW, v1_0_0=NEW, candidate_2=MIDDLE, candidate_3=OLD)
        held = dated(held, OLD.digest, MIDDLE.digest, NEW.digest)
        assert digests(candidates_to_remove(held, 1)) == [OLD.digest]

    @pytest.mark.parametrize("tag", ["v1_4", "v1", "production", "production-0007", "nightly", "latest"])
    def test_any_other_tag_protects(self, tag: str) -> None:
        held = holding(**{"candidate_1": OLD, tag: OLD})
        assert candidates_to_remove(held, 0) == []
        assert candidates_to_remove(holding(candidate_1=OLD), 0) != [], "control"

    def test_a_record_protects_what_it_lists(self) -> None:
        record = index(OLD)
        held = holding(candidate_1=OLD, production_0007=record)
        listed = Holding(held.path, held.tags, held.manifests, {record.digest: (OLD.digest,)})
        assert candidates_to_remove(listed, 0) == []
        assert candidates_to_remove(held, 0) != [], "control: without its list"

    def test_what_is_signed_stays(self) -> None:
        held = holding(candidate_1=OLD, candidate_2=NEW)
        assert digests(candidates_to_remove(held, 0, [OLD.digest])) == [NEW.digest]

    def test_what_is_attached_goes_first_and_the_image_last(self) -> None:
        report, signature = image("report"), image("signature of the report")
        listing, whole = index(report), index(OLD)
        held = holding(candidate_1=whole, **{referrers_tag(whole.digest).replace("-", "_"): listing})
        manifests = {**held.manifests, **{each.digest: each for each in (report, signature, OLD)}}
        held = Holding(
            held.path,
            held.tags,
            manifests,
            {whole.digest: (OLD.digest,), listing.digest: (report.digest,)},
            {whole.digest: (report.digest, listing.digest), report.digest: (signature.digest,)},
        )
        (removal,) = candidates_to_remove(held, 0)
        order = list(removal.deletes)
        assert sorted(order) == sorted(manifests)
        assert order[-1] == whole.digest
        before = [(signature, report), (report, listing), (OLD, whole), (listing, whole)]
        assert all(order.index(a.digest) < order.index(b.digest) for a, b in before)

    def test_parts_that_others_have_as_well_stay(self) -> None:
        first, second = index(OLD, MIDDLE), index(OLD, NEW)
        held = holding(candidate_1=first, v1_0_0=second)
        manifests = {**held.manifests, **{each.digest: each for each in (OLD, MIDDLE, NEW)}}
        listed = {first.digest: (OLD.digest, MIDDLE.digest), second.digest: (OLD.digest, NEW.digest)}
        (removal,) = candidates_to_remove(Holding(held.path, held.tags, manifests, listed), 0)
        assert removal.deletes == (MIDDLE.digest, first.digest)

    def test_a_circle_of_lists_ends(self) -> None:
        held = holding(candidate_1=OLD, candidate_2=NEW)
        about = {OLD.digest: (NEW.digest,), NEW.digest: (OLD.digest,)}
        removals = candidates_to_remove(Holding(held.path, held.tags, held.manifests, {}, about), 0)
        assert sorted({digest for each in removals for digest in each.deletes}) == sorted(held.manifests)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_that_a_tag_protects_is_ever_deleted(seed: int) -> None:
    """Whatever names what: the digests of protected tags and all below them are in no removal."""
    chance = random.Random(seed)
    nodes = [image(str(number)) for number in range(12)]
    all_of = [each.digest for each in nodes]
    listed = {
        a: tuple(chance.sample(all_of[:at], min(at, 2)))
        for at, a in enumerate(all_of)
        if chance.random() < 0.4
    }
    about = {
        a: tuple(chance.sample(all_of[:at], min(at, 2)))
        for at, a in enumerate(all_of)
        if chance.random() < 0.4
    }
    kinds = ("candidate-{}", "1.0.{}", "production-000{}", "candidate-x{}")
    tags = {chance.choice(kinds).format(number): chance.choice(all_of) for number in range(9)}
    held = Holding("ml/a", tags, {each.digest: each for each in nodes}, listed, about)
    signed = chance.sample(all_of, 1)
    named = {digest for tag, digest in tags.items() if not tag.startswith("candidate-")} | set(signed)
    reached, waiting = set(named), list(named)
    while waiting:
        each = waiting.pop()
        for part in (*listed.get(each, ()), *about.get(each, ())):
            if part not in reached:
                reached.add(part)
                waiting.append(part)
    assert protected(held, signed) == reached
    for keep in range(4):
        removals = candidates_to_remove(held, keep, signed)
        assert not {digest for each in removals for digest in each.deletes} & reached


class TestMemory:
    GROUP, OTHER = f"group_{'a' * 64}", f"group_{'b' * 64}"

    def memory(self) -> Holding:
        return holding(
            "ml/weights",
            **{
                self.GROUP: image("one"),
                self.OTHER: image("two"),
                f"weights_{'c' * 64}": image("one", "two", lock=LOCK),
                f"weights_zstd_{'d' * 64}": image("three"),
                "mine": image("four"),
            },
        )

    def gone(self, used: set[str], wanted: Wanted) -> list[str]:
        return sorted(tag for each in memory_to_remove(self.memory(), used, wanted) for tag in each.tags)

    def test_what_no_image_has_goes_and_foreign_tags_stay(self) -> None:
        assert self.gone(set(), Wanted()) == [
            f"group-{'a' * 64}", f"group-{'b' * 64}", f"weights-{'c' * 64}", f"weights-zstd-{'d' * 64}",
        ]  # fmt: skip

    def test_what_an_image_has_stays(self) -> None:
        used = {digest_of(b"one"), digest_of(b"three")}
        assert self.gone(used, Wanted()) == [f"group-{'b' * 64}", f"weights-{'c' * 64}"]

    def test_what_the_lock_names_stays(self) -> None:
        assert self.gone(set(), Wanted(locks=frozenset({LOCK}))) == [f"weights-zstd-{'d' * 64}"]
        layers = frozenset({f"group-{'b' * 64}"})
        assert f"group-{'b' * 64}" not in self.gone(set(), Wanted(layers=layers))

    def test_runtimes(self) -> None:
        key = "e" * 32
        held = holding(
            "ml/runtimes",
            **{
                f"tiny_{key}": image("base", "app"),
                f"candidate_{'f' * 12}": image("base", "old"),
                "mine": OLD,
            },
        )

        def gone(used: set[str], wanted: Wanted) -> list[str]:
            return sorted(tag for each in runtimes_to_remove(held, used, wanted) for tag in each.tags)

        base, app = digest_of(b"base"), digest_of(b"app")
        assert gone({base}, Wanted()) == [f"candidate-{'f' * 12}", f"tiny-{key}"]
        assert gone({base, app}, Wanted()) == [f"candidate-{'f' * 12}"]
        assert gone(set(), Wanted(runtimes=frozenset({f"tiny-{key}"}))) == [f"candidate-{'f' * 12}"]


def test_bytes_are_freed_where_nothing_that_remains_has_them() -> None:
    weights = holding("ml/weights", **{f"group_{'a' * 64}": image("w"), f"group_{'b' * 64}": image("w2")})
    held = holding(candidate_1=image("w", "mine"), candidate_2=image("w2", "base"), v1_0_0=image("base"))
    removals = [*candidates_to_remove(held, 0), *memory_to_remove(weights, {digest_of(b"w2")}, Wanted())]
    assert {each.path for each in removals} == {"ml/a", "ml/weights"}
    gone = [image("w", "mine"), image("w2", "base"), image("w")]
    manifests = sum(len(each.body) for each in gone)
    configs = 3 * 10
    layers = 200  # w and mine; w2 is remembered, base is released
    assert freed([held, weights], removals) == manifests + configs + layers


@pytest.mark.parametrize(
    ("kind", "foreign"),
    [
        ("application/vnd.modelbake.report.v1+json", False),
        ("application/vnd.cyclonedx+json", False),
        ("application/vnd.in-toto+json", False),
        ("application/vnd.dev.sigstore.bundle.v0.3+json", True),
        ("application/vnd.cncf.notary.signature", True),
        ("", True),
    ],
)
def test_what_somebody_else_attaches_is_foreign(kind: str, foreign: bool) -> None:
    assert is_foreign(kind) == foreign

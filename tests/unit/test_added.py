"""Models of several sources: as they are configured, locked, planned, rendered and stacked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelbake.config import Config, ModelSpec, load_config
from modelbake.errors import ConfigError, LockError
from modelbake.lock import Lock, comparable, decode_lock, encode_lock, intent_changes, upstream_drift
from modelbake.locked import LockedFile, LockedModel, LockedSource
from modelbake.plan import (
    ADDED_LABEL,
    MAX_GROUPS,
    MOST_ADDRESSES,
    OWN_GROUP_BYTES,
    BuildPlan,
    is_packed,
    make_plan,
    weight_groups,
)
from modelbake.render import render
from modelbake.runtime import load_runtime
from modelbake.stream.assembly import Order, stacked
from tests.servers.environment import ROOT

COMMIT, SHA = "0123456789" * 4, "ab" * 32
BASE = ("model.safetensors", OWN_GROUP_BYTES), ("config.json", 10)
ADAPTER = (("adapter_model.safetensors", 1000),)


def spec(source: str = "hf://acme/base", *added: dict[str, Any], **keys: Any) -> ModelSpec:
    wanted = {"name": "chat", "version": "1.0.0", "runtime": "transformers", **keys}
    wanted["add"] = added or ({"source": "s3://models/legal", "into": "adapter"},)
    return ModelSpec(source=source, **wanted)


def files(facts: Any, version: str = "") -> list[LockedFile]:
    return [LockedFile(path, size, SHA, version) for path, size in facts]


def locked(model: ModelSpec, base: Any = BASE, *, version: str = "v1") -> LockedModel:
    first, *others = model.sources
    here = version if first.kind != "hf" else ""
    parts = [LockedSource.at(first, COMMIT, files(base, here))]
    parts += [
        LockedSource.at(each, COMMIT, files(ADAPTER, version if each.kind != "hf" else "")) for each in others
    ]
    return LockedModel.join(parts)


def planned(model: ModelSpec) -> BuildPlan:
    config = Config(path=Path("models.yaml"), registry="registry.example.com/ml", models={"chat": model})
    return make_plan(config, model, locked(model), load_runtime(ROOT / "images", "transformers"))


class TestLock:
    def test_what_is_written_is_read(self) -> None:
        model = locked(spec())
        (entry,) = json.loads(encode_lock(Lock({"chat": model})))["models"].values()
        assert entry["files"] == [
            {"path": "config.json", "size": 10, "sha256": SHA},
            {"path": "model.safetensors", "size": OWN_GROUP_BYTES, "sha256": SHA},
        ]
        assert entry["added"] == [
            {
                "source": "s3://models/legal",
                "endpoint": "",
                "into": "adapter",
                "commit": COMMIT,
                "include": ["*"],
                "exclude": [],
                "files": [
                    {
                        "path": "adapter/adapter_model.safetensors",
                        "size": 1000,
                        "sha256": SHA,
                        "version": "v1",
                    }
                ],
            }
        ]
        assert decode_lock(encode_lock(Lock({"chat": model}))).models["chat"] == model
        assert [each.source for each in model.sources] == ["hf://acme/base", "s3://models/legal"]
        assert model.sources[1].path_there(model.sources[1].files[0]) == "adapter_model.safetensors"

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("added", [], "added: is empty"),
            ("added", {}, "added: expected a list"),
            ("into", "../x", "added[0].into: expected a folder below /models"),
            ("into", "other", "is not below 'other'"),
            ("source", "hf://acme/legal", "added[0]: lacks hub, revision and has unknown endpoint"),
            ("endpoint", "minio", "added[0].endpoint: expected the URL"),
            ("version", "a b", "added[0].files[0].version: expected what a store calls a version"),
            ("version", None, "added[0].files[0]: lacks version"),
        ],
    )
    def test_what_is_never_written_is_refused(self, key: str, value: Any, message: str) -> None:
        raw = json.loads(encode_lock(Lock({"chat": locked(spec())})))
        entry = raw["models"]["chat"]
        place = entry if key == "added" else entry["added"][0]
        place = place["files"][0] if key == "version" else place
        if value is None:
            del place[key]
        else:
            place[key] = value
        with pytest.raises(LockError) as refused:
            decode_lock(json.dumps(raw).encode())
        assert message in str(refused.value)

    def test_two_sources_with_one_path_are_refused(self) -> None:
        raw = json.loads(encode_lock(Lock({"chat": locked(spec())})))
        entry = raw["models"]["chat"]
        entry["files"].insert(0, {"path": "adapter", "size": 1, "sha256": SHA})
        with pytest.raises(LockError, match="cannot both exist"):
            decode_lock(json.dumps(raw).encode())

    def test_drift(self) -> None:
        model, have = spec(), locked(spec())
        assert intent_changes(model, have) == []
        assert comparable(model, Lock({"chat": have}))
        other = spec("hf://acme/base", {"source": "s3://models/legal-2", "into": "adapter"})
        assert intent_changes(other, have) == ["add[0].source was s3://models/legal, is s3://models/legal-2"]
        assert not comparable(other, Lock({"chat": have}))
        single = ModelSpec(name="chat", version="1.0.0", runtime="transformers", source="hf://acme/base")
        assert intent_changes(single, have) == ["add[0] was s3://models/legal, is none"]
        lock = Lock({"chat": have})
        (drift,) = upstream_drift(lock, {"chat": [COMMIT, "f" * 40]})
        assert drift.detail == f"s3://models/legal was {COMMIT}, is {'f' * 40}"
        assert upstream_drift(lock, {"chat": [COMMIT, COMMIT]}) == []


class TestConfig:
    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            (
                'source: "s3://bkt/x", revision: main',
                'revision: "s3://bkt/x" has none; only hf:// sources do',
            ),
            ('source: "s3://bkt/x", hub: "https://h.example"', "write 'endpoint'"),
            ('source: "hf://a/b", endpoint: "https://h.example"', "write 'hub'"),
            ('source: "oci://r.io/a:1", revision: main', "write the tag or digest into 'source'"),
            ('source: "https://h.example/x/"', "files: required key missing"),
            ('source: "s3://bkt/x", files: {a: ' + SHA + "}", "lists its files itself; write 'include'"),
            ('source: "https://h.example/", files: {"*.bin": ' + SHA + "}", "name each by itself"),
            ('source: "http://h.example/", files: {a: ' + SHA + "}", "write https://"),
            (
                'source: "hf://a/b", add: [{source: "s3://bkt/x", into: a}, {source: "s3://bkt", into: a/b}]',
                "another source comes into this folder already",
            ),
            ('source: "hf://a/b", add: [{source: "s3://bkt/x"}]', "into: required key missing"),
            ('source: "hf://a/b", add: [{source: "s3://bkt/x", into: /etc}]', "below /models"),
            (
                'source: "hf://a/b", add: [{source: "s3://bkt/x", into: a, revision: v1}]',
                "only hf:// sources",
            ),
        ],
    )
    def test_what_does_not_fit_its_kind_is_refused(self, tmp_path: Path, keys: str, message: str) -> None:
        file = tmp_path / "models.yaml"
        entry = f'{{version: "1.0.0", runtime: tiny, {keys}}}'
        file.write_text(f"registry: r.io\nmodels:\n  m: {entry}\n")
        with pytest.raises(ConfigError) as refused:
            load_config(file)
        assert message in str(refused.value)

    def test_defaults_are_for_those_that_they_fit(self, tmp_path: Path) -> None:
        file = tmp_path / "models.yaml"
        file.write_text(
            "registry: r.io\ndefaults: {hub: 'https://hub.example', revision: v2, runtime: r}\nmodels:\n"
            "  a: {version: '1.0.0', source: 's3://bkt/x', add: [{source: 'hf://a/b', into: t}]}\n"
            "  b: {version: '1.0.0', source: 'http://127.0.0.1:1/', files: {a: " + SHA + "}}\n"
        )
        first, added = load_config(file).models["a"].sources
        assert (first.server, first.revision) == ("", "")
        assert (added.server, added.revision, added.into) == ("https://hub.example", "main", "t")


class TestPlan:
    def test_what_is_added_lies_on_top_and_shares_no_layer(self) -> None:
        plan = planned(spec())
        assert [(group.source, [file.path for file in group.files]) for group in plan.groups] == [
            (0, ["model.safetensors"]),
            (0, ["config.json"]),
            (1, ["adapter/adapter_model.safetensors"]),
        ]
        assert json.loads(plan.labels[ADDED_LABEL]) == [f"s3://models/legal@{COMMIT}"]
        assert json.loads(plan.manifest())["added"] == [
            {"source": "s3://models/legal", "commit": COMMIT, "into": "adapter"}
        ]

    def test_there_are_never_too_many_layers(self) -> None:
        many = [{"source": f"s3://models/{n}", "into": f"a{n}"} for n in range(12)]
        shards = [(f"{n:03}", OWN_GROUP_BYTES) for n in range(200)]
        groups = weight_groups(locked(spec("hf://acme/base", *many), shards))
        assert len(groups) <= MAX_GROUPS and {group.source for group in groups} == set(range(13))

    @pytest.mark.parametrize(
        ("source", "version", "carried"),
        [
            ("hf://acme/base", "", False),
            ("s3://bkt/x", "v1", False),
            ("file:///srv/x", "sha256:ab", True),
            ("oci://r.io/x:1", "sha256:ab", False),
            ("oci://r.io/x:1", "sha256:ab!tar+512", True),
            ("oci://r.io/x:1", "sha256:ab!zstd", True),
        ],
    )
    def test_what_no_builder_can_fetch_travels_along(self, source: str, version: str, carried: bool) -> None:
        groups = weight_groups(locked(spec(source), version=version))
        assert all(group.carried is carried for group in groups if group.source == 0)
        assert is_packed(version) == ("!" in version)

    def test_many_small_files_travel_along(self) -> None:
        small = [(f"{n:04}", OWN_GROUP_BYTES // 4) for n in range(MOST_ADDRESSES + 100)]
        groups = [group for group in weight_groups(locked(spec("s3://bkt/x"), small)) if group.source == 0]
        addressed = sum(len(group.files) for group in groups if not group.carried)
        assert 0 < addressed <= MOST_ADDRESSES
        assert sum(len(group.files) for group in groups) == len(small)
        of_a_hub = weight_groups(locked(spec("hf://acme/base"), small))
        assert not any(group.carried for group in of_a_hub if group.source == 0), "control"

    def test_where_the_bytes_come_from_is_no_part_of_what_is_built(self) -> None:
        where = {"templates": ROOT / "templates", "programs": ROOT / "images"}
        made = {source: planned(spec(source)) for source in ("s3://bkt/x", "gs://bkt/x", "file:///srv/x")}
        labels = {source: dict(plan.labels) for source, plan in made.items()}
        assert labels["s3://bkt/x"] != labels["gs://bkt/x"], "control: the labels do say it"
        neutral = [
            {
                path: content
                for path, content in render(plan, **where).files.items()
                if path.startswith("weights/")
            }
            for plan in made.values()
        ]
        assert neutral[0] == neutral[1] == neutral[2]
        carried = render(made["file:///srv/x"], **where).carried
        assert {path.split("/files/")[1] for path in carried} == {"model.safetensors", "config.json"}
        assert render(made["s3://bkt/x"], **where).carried == {}


def test_stacking() -> None:
    orders: tuple[Order, ...] = ("weights-first", "base-first")
    told = {order: stacked(order, ["w"], ["r1", "r2"], ["a"]) for order in orders}
    assert told == {"weights-first": ["w", "r1", "r2", "a"], "base-first": ["r1", "r2", "w", "a"]}

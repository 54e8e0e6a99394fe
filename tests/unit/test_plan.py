from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbake.lock import LockedFile
from modelbake.plan import BUNDLE_BYTES, OWN_GROUP_BYTES, group_files
from tests.unit.planning import DIGEST, planned


def _file(path: str, size: int) -> LockedFile:
    return LockedFile(path, size, hashlib.sha256(path.encode()).hexdigest())


SIZES = st.one_of(st.integers(0, 1000), st.integers(OWN_GROUP_BYTES - 2, OWN_GROUP_BYTES + 2))


@given(st.lists(SIZES, min_size=1, max_size=40), st.randoms())
def test_groups_hold_every_file_once_whatever_the_order(sizes: list[int], random: object) -> None:
    files = [_file(f"f{number:03}", size) for number, size in enumerate(sizes)]
    groups = group_files(files)
    assert sorted(f.path for g in groups for f in g.files) == [f.path for f in files]
    random.shuffle(files)  # type: ignore[attr-defined]
    assert group_files(files) == groups
    for group in groups:
        assert len(group.files) == 1 or all(file.size < OWN_GROUP_BYTES for file in group.files)
        assert len(group.files) == 1 or group.size <= BUNDLE_BYTES


def test_a_changed_shard_changes_its_own_group_alone() -> None:
    shards = [_file(f"model-{n}.safetensors", OWN_GROUP_BYTES) for n in range(4)]
    before = group_files([_file("config.json", 600), *shards])
    shards[2] = LockedFile(shards[2].path, shards[2].size, "ff" * 32)
    after = group_files([_file("config.json", 600), *shards])
    changed = {group.digest for group in before} ^ {group.digest for group in after}
    assert len(before) == len(after) == 5
    assert len(changed) == 2, "one digest left, one came"


def test_many_shards_are_merged_below_the_limit_of_layers() -> None:
    shards = [_file(f"{n:04}", OWN_GROUP_BYTES + n) for n in range(300)]
    groups = group_files(shards, max_groups=80)
    assert len(groups) == 80
    assert sum(len(group.files) for group in groups) == 300
    assert max(g.size for g in groups) < 3 * min(g.size for g in groups), "the lightest are merged"


def test_the_group_manifest_says_what_and_never_where() -> None:
    plan = planned()
    for group in plan.groups:
        manifest = json.loads(group.manifest)
        assert set(manifest) == {"schema", "files"}
        assert plan.locked.commit not in group.manifest.decode()
    where = json.loads(plan.documents["sources"])
    assert where == {
        "schema": 1,
        "kind": "hf",
        "endpoint": "https://huggingface.co",
        "repo": "acme/minilm",
        "revision": plan.locked.commit,
    }


def test_the_runtime_stage_names_no_model() -> None:
    plan = planned(env={"OMP_NUM_THREADS": "4"})
    assert not {"MODELBAKE_MODEL", "MODELBAKE_VERSION", "OMP_NUM_THREADS"} & set(plan.runtime_env)
    assert plan.model_env == {
        "MODELBAKE_MODEL": "minilm",
        "MODELBAKE_VERIFY": "full",
        "MODELBAKE_VERSION": "1.0.0",
        "OMP_NUM_THREADS": "4",
    }


@pytest.mark.parametrize("mode", ["full", "quick", "off"])
def test_how_much_a_start_verifies_is_baked(mode: str) -> None:
    plan = planned(verify=mode)
    assert json.loads(plan.manifest())["verify"] == plan.model_env["MODELBAKE_VERIFY"] == mode


def test_the_device_chooses_the_requirements() -> None:
    assert planned(device="cpu").requirements == "requirements.cpu.txt"
    assert (
        planned(device="any").requirements == planned(device="cuda").requirements == "requirements.cuda.txt"
    )


def test_a_models_base_wins_over_the_runtimes_and_is_labelled() -> None:
    base = f"registry.internal/python@{DIGEST}"
    assert planned().base == planned().runtime.base != base
    labels = planned(base=base).labels
    assert labels["org.opencontainers.image.base.name"] == base
    assert labels["org.opencontainers.image.base.digest"] == DIGEST
    assert labels["io.modelbake.lock"] == planned().locked.digest


@pytest.mark.parametrize("name", ["minilm", "a.b-c_d"])
def test_the_local_tag_names_no_registry(name: str) -> None:
    from modelbake.dockerconfig import split_reference

    assert split_reference(planned(name=name).local_tag).registry == "docker.io"

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbake.config import Config, ModelSpec
from modelbake.errors import LockDrift, LockError, LockMissing
from modelbake.lock import (
    Conversion,
    Lock,
    LockedFile,
    LockedModel,
    LockedSource,
    comparable,
    config_drift,
    decode_lock,
    encode_lock,
    read_lock,
    require_locked,
    update_lock,
    upstream_drift,
    write_lock,
)
from modelbake.weightpath import conflicting_paths, path_problem, shown

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA = "ab" * 32


def make_spec(name: str = "minilm", **changes: Any) -> ModelSpec:
    wanted = {"version": "1.0.0", "source": f"hf://org/{name}", "runtime": "embeddings", **changes}
    return ModelSpec(name=name, **wanted)


def make_locked(spec: ModelSpec | None = None, *files: LockedFile) -> LockedModel:
    return LockedModel.of(
        spec or make_spec(),
        COMMIT,
        files or (LockedFile("model.safetensors", 10, SHA), LockedFile("config.json", 2, SHA)),
    )


def make_lock(*models: LockedModel) -> Lock:
    return Lock({model.name: model for model in models or (make_locked(),)})


def make_config(*specs: ModelSpec) -> Config:
    return Config(
        path=Path("models.yaml"),
        registry="registry.example.com/ml",
        models={spec.name: spec for spec in specs},
    )


def document() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(encode_lock(make_lock()))
    return parsed


class TestFile:
    def test_the_form_is_the_documented_one(self) -> None:
        assert document() == {
            "schema": 1,
            "models": {
                "minilm": {
                    "source": "hf://org/minilm",
                    "hub": "https://huggingface.co",
                    "revision": "main",
                    "commit": COMMIT,
                    "include": ["*"],
                    "exclude": [],
                    "files": [
                        {"path": "config.json", "size": 2, "sha256": SHA},
                        {"path": "model.safetensors", "size": 10, "sha256": SHA},
                    ],
                    "digest": make_locked().digest,
                }
            },
        }

    def test_what_is_written_is_read_and_the_bytes_are_stable(self, tmp_path: Path) -> None:
        path = tmp_path / "models.lock"
        lock = make_lock(make_locked(make_spec("b")), make_locked(make_spec("a")))
        assert write_lock(path, lock)
        first = path.read_bytes()
        assert read_lock(path) == lock
        assert encode_lock(Lock(dict(sorted(lock.models.items())))) == first == encode_lock(read_lock(path))
        assert first.endswith(b"}\n")

    def test_unchanged_content_is_not_written_again(self, tmp_path: Path) -> None:
        path = tmp_path / "models.lock"
        write_lock(path, make_lock())
        before = path.stat()
        assert not write_lock(path, make_lock())
        after = path.stat()
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)

    def test_nothing_but_the_lock_is_left_and_its_mode_and_link_are_kept(self, tmp_path: Path) -> None:
        real, path = tmp_path / "real.lock", tmp_path / "models.lock"
        path.symlink_to(real)
        write_lock(path, make_lock())
        assert real.stat().st_mode & 0o777 == 0o644
        real.chmod(0o664)
        write_lock(path, make_lock(make_locked(make_spec("other"))))
        assert path.is_symlink() and real.stat().st_mode & 0o777 == 0o664
        assert sorted(item.name for item in tmp_path.iterdir()) == ["models.lock", "real.lock"]

    def test_a_lock_that_nobody_would_read_is_not_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, content = tmp_path / "models.lock", encode_lock(make_lock())
        monkeypatch.setattr("modelbake.lockfile.MAX_FILE_BYTES", len(content) - 1)
        with pytest.raises(LockError, match="would be larger"):
            write_lock(path, make_lock())
        assert not path.exists()
        monkeypatch.setattr("modelbake.lockfile.MAX_FILE_BYTES", len(content))
        assert write_lock(path, make_lock()) and read_lock(path) == make_lock()

    def test_a_failed_write_leaves_the_old_content(self, tmp_path: Path) -> None:
        path = tmp_path / "models.lock"
        write_lock(path, make_lock())
        before = path.read_bytes()
        bad = replace(make_locked(), commit="main")
        with pytest.raises(LockError, match=r"models\.minilm\.commit: expected 40"):
            write_lock(path, make_lock(bad))
        assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1

    def test_a_folder_that_does_not_exist_is_an_error_of_ours(self, tmp_path: Path) -> None:
        with pytest.raises(LockError, match="cannot be written"):
            write_lock(tmp_path / "no" / "models.lock", make_lock())

    def test_no_file_is_an_empty_lock(self, tmp_path: Path) -> None:
        assert read_lock(tmp_path / "models.lock") == Lock()

    def test_what_is_not_a_regular_file_is_refused_without_waiting(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(LockError, match="not a regular file"):
            read_lock(tmp_path / "pipe")
        with pytest.raises(LockError, match="Is a directory"):
            read_lock(tmp_path)

    def test_a_huge_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "models.lock"
        with path.open("wb") as file:
            file.truncate(64 * 1024 * 1024 + 1)
        with pytest.raises(LockError, match="is larger than"):
            read_lock(path)


def converted() -> LockedModel:
    files = LockedFile("config.json", 2, SHA), LockedFile("pytorch_model.bin", 10, "cd" * 32)
    made = Conversion(f"sha256:{SHA}", ("pytorch_model.bin",), (LockedFile("model.safetensors", 10, SHA),))
    return replace(make_locked(None, *files), converted=made)


class TestReader:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "line 1, column 1: Expecting value"),
            (b'{\n  "schema": 1,\n  oops', "line 3, column 3"),
            (b"\xef\xbb\xbf{}", "BOM"),
            (b'{\n "\xff": 1}', "line 2: is not UTF-8"),
            (b'{\n<<<<<<< HEAD\n "schema": 1', "line 2: holds a merge conflict"),
            (b"[" * 100_000, "nested too deeply"),
            (b'{"schema": ' + b"9" * 10_000 + b"}", "out of range"),
            (b'{"schema": NaN, "models": {}}', "NaN, which is not JSON"),
            (b'{"schema": 1, "schema": 1, "models": {}}', "'schema' stands twice"),
            (b"[]", "expected an object, got a list"),
            (b"{}", "lacks models, schema"),
            (b'{"schema": 1, "models": {}, "more": 1}', "unknown more"),
            (b'{"schema": 2, "models": {}}', "schema: expected 1, got 2"),
            (b'{"schema": true, "models": {}}', "schema: expected 1, got true"),
            (b'{"schema": 1, "models": []}', "models: expected an object"),
            (b'{"schema": 1, "models": {"../x": {}}}', "'../x' is not a model's name"),
            (b'{"schema": 1, "models": {"a": {}, "a": {}}}', "'a' stands twice"),
        ],
    )
    def test_a_file_that_is_none_is_refused(self, content: bytes, message: str) -> None:
        with pytest.raises(LockError) as raised:
            decode_lock(content, subject="x/models.lock")
        assert message in raised.value.message
        assert raised.value.subject == "x/models.lock"
        assert "`build.py lock`" in raised.value.hint

    def test_a_conversion_is_written_and_read(self) -> None:
        lock = Lock({"minilm": converted()})
        content = encode_lock(lock)
        assert decode_lock(content) == lock
        assert json.loads(content)["models"]["minilm"]["converted"] == {
            "converter": f"sha256:{SHA}",
            "replaces": ["pytorch_model.bin"],
            "files": [{"path": "model.safetensors", "size": 10, "sha256": SHA}],
        }
        assert b"converted" not in encode_lock(make_lock()), "other models' entries stay as they were"

    @pytest.mark.promise("lock")
    @pytest.mark.parametrize(
        ("keys", "value", "message"),
        [
            ([], None, "models.minilm.converted: expected an object, got null"),
            (["more"], 1, "models.minilm.converted: has unknown more"),
            (["converter"], "new", "models.minilm.converted.converter: expected sha256:"),
            (["converter"], 1, "models.minilm.converted.converter: expected sha256:"),
            (["converter"], "sha256:" + "00" * 32, "models.minilm.digest: is not that of the files"),
            (["replaces"], "pytorch_model.bin", "models.minilm.converted.replaces: expected a list"),
            (["replaces"], [], "expected at least one path"),
            (["replaces"], ["other.bin"], "replaces[0]: expected the path of one of the files"),
            (["replaces"], [1], "replaces[0]: expected the path"),
            (["replaces"], ["pytorch_model.bin"] * 2, "none twice"),
            (["replaces"], ["pytorch_model.bin", "config.json"], "is not sorted"),
            (["replaces"], ["config.json", "pytorch_model.bin"], "models.minilm.digest"),
            (["files"], [], "models.minilm.converted.files: is empty"),
            (["files", 0, "path"], "../x", "models.minilm.converted.files[0].path: '../x' has a part"),
            (["files", 0, "path"], "CONFIG.json", "converted.files: 'config.json' and 'CONFIG.json' cannot"),
            (["files", 0, "path"], "x.safetensors", "models.minilm.digest"),
            (["files", 0, "size"], -1, "models.minilm.converted.files[0].size"),
            (["files", 0, "size"], 11, "models.minilm.digest"),
            (["files", 0, "sha256"], "ef" * 32, "models.minilm.digest"),
        ],
    )
    def test_a_wrong_conversion_is_named(self, keys: list[Any], value: Any, message: str) -> None:
        raw = json.loads(encode_lock(Lock({"minilm": converted()})))
        place: Any = raw["models"]["minilm"]
        path = ["converted", *keys]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(LockError) as raised:
            decode_lock(json.dumps(raw).encode())
        assert message in raised.value.message

    @pytest.mark.promise("lock")
    def test_a_conversion_cannot_be_taken_out(self) -> None:
        raw = json.loads(encode_lock(Lock({"minilm": converted()})))
        del raw["models"]["minilm"]["converted"]
        with pytest.raises(LockError, match=r"models\.minilm\.digest"):
            decode_lock(json.dumps(raw).encode())

    @pytest.mark.parametrize(
        ("keys", "value", "message"),
        [
            (["commit"], "main", 'models.minilm.commit: expected 40 lower-case hex digits, got "main"'),
            (["commit"], COMMIT.upper(), "models.minilm.commit"),
            (["commit"], COMMIT + "\n", "models.minilm.commit"),
            (["source"], "ftp://bucket", "models.minilm.source: expected a source"),
            (["source"], "hf://org/../x", "models.minilm.source"),
            (["hub"], "ftp://x", "models.minilm.hub"),
            (["revision"], "a\nb", "models.minilm.revision"),
            (["revision"], None, "got null"),
            (["include"], "*", "models.minilm.include: expected a list"),
            (["include"], ["b", "a"], "'a' stands after 'b'"),
            (["include"], ["a", "a"], "holds a pattern twice"),
            (["exclude"], [1], "models.minilm.exclude[0]"),
            (["files"], [], "models.minilm.files: is empty"),
            (["files"], {}, "models.minilm.files: expected a list"),
            (["files", 0], 1, "models.minilm.files[0]: expected an object"),
            (["files", 0, "size"], -1, "models.minilm.files[0].size"),
            (["files", 0, "size"], True, "models.minilm.files[0].size"),
            (["files", 0, "size"], 1.5, "models.minilm.files[0].size"),
            (["files", 0, "size"], 2**63, "models.minilm.files[0].size"),
            (["files", 1, "sha256"], "AB" * 32, "models.minilm.files[1].sha256"),
            (["files", 1, "sha256"], "ab", "models.minilm.files[1].sha256"),
            (["files", 0, "path"], "../x", "models.minilm.files[0].path: '../x' has a part"),
            (["files", 0, "path"], "zzz", "is not sorted"),
            (["files", 0, "path"], "MODEL.safetensors", "cannot both exist"),
            (["files", 0, "path"], "\ud800", "control or invisible"),
            (["files", 0, "mode"], "0777", "models.minilm.files[0]: has unknown mode"),
            (["version"], "1", "models.minilm: has unknown version"),
            (["digest"], None, "models.minilm.digest: is not that of the files"),
            (["digest"], f"sha256:{SHA}", "models.minilm.digest: is not that of the files"),
            (["files", 0, "size"], 3, "models.minilm.digest"),
            (["files", 0, "sha256"], "cd" * 32, "models.minilm.digest"),
            (["files", 0, "path"], "config.jsn", "models.minilm.digest"),
        ],
    )
    def test_a_wrong_value_is_named_with_its_remedy(self, keys: list[Any], value: Any, message: str) -> None:
        raw = document()
        place = raw["models"]["minilm"]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        with pytest.raises(LockError) as raised:
            decode_lock(json.dumps(raw).encode())
        assert message in raised.value.message
        assert "`build.py lock minilm`" in raised.value.hint
        assert "\n" not in raised.value.message

    def test_a_missing_key_is_named(self) -> None:
        raw = document()
        del raw["models"]["minilm"]["files"][0]["size"]
        with pytest.raises(LockError, match=r"models\.minilm\.files\[0\]: lacks size"):
            decode_lock(json.dumps(raw).encode())

    @pytest.mark.promise("lock")
    def test_a_merge_that_lost_a_file_is_noticed(self) -> None:
        raw = document()
        del raw["models"]["minilm"]["files"][1]
        with pytest.raises(LockError, match=r"minilm\.digest: .*lost, added or changed") as raised:
            decode_lock(json.dumps(raw).encode())
        assert "`build.py lock minilm`" in raised.value.hint
        assert decode_lock(json.dumps(raw).encode(), replacing={"minilm"}) == Lock(), "the remedy works"

    def test_a_lock_without_digests_is_refused(self) -> None:
        raw = document()
        del raw["models"]["minilm"]["digest"]
        with pytest.raises(LockError, match=r"models\.minilm: lacks digest"):
            decode_lock(json.dumps(raw).encode())

    def test_a_credential_is_not_repeated(self) -> None:
        raw = document()
        raw["models"]["minilm"]["hub"] = "https://user:hunter22@hub.example.com"
        with pytest.raises(LockError) as raised:
            decode_lock(json.dumps(raw).encode())
        assert "hunter22" not in str(raised.value)

    def test_the_remedy_works_for_a_wrong_entry(self) -> None:
        raw = json.loads(encode_lock(make_lock(make_locked(), make_locked(make_spec("other")))))
        raw["models"]["minilm"]["commit"] = "main"
        lock = decode_lock(json.dumps(raw).encode(), replacing={"minilm"})
        assert list(lock.models) == ["other"]

    @given(
        st.recursive(
            st.none() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        )
    )
    def test_no_json_at_all_makes_another_error(self, value: Any) -> None:
        for raw in (value, {"schema": 1, "models": value}, {"schema": 1, "models": {"a": value}}):
            try:
                decode_lock(json.dumps(raw).encode())
            except LockError:
                continue
            assert raw == {"schema": 1, "models": {}}

    @given(st.binary())
    def test_no_bytes_at_all_make_another_error(self, content: bytes) -> None:
        with pytest.raises(LockError):
            decode_lock(content)

    def test_a_thousand_models_are_checked_offline_in_a_moment(self, tmp_path: Path) -> None:
        specs = [make_spec(f"model-{number:04}") for number in range(1000)]
        files = [LockedFile(f"model-{shard:05}-of-00030.safetensors", 1, SHA) for shard in range(30)]
        lock = make_lock(*(make_locked(spec, *files) for spec in specs))
        config = make_config(*specs)
        path = tmp_path / "models.lock"
        write_lock(path, lock)
        began = time.process_time()
        assert config_drift(config, read_lock(path)) == []
        assert time.process_time() - began < 2


class TestPath:
    @pytest.mark.parametrize(
        "path",
        [
            "config.json",
            "1_Pooling/config.json",
            "a/b/c/d/e/f/g.bin",
            "/".join("a" * 64),
            ".cache/x",
            "-x",
            "a b",
            "ä.txt",
            "..a",
            "a.git",
        ],
    )
    def test_sound_paths_pass(self, path: str) -> None:
        assert path_problem(path) is None

    @pytest.mark.parametrize(
        "path",
        [
            "", "/etc/passwd", "a//b", "a/", "./a", "a/./b", "..", "a/../b", "a/..", "a\\b", "..\\a", "a\0b",
            "a\nb", "a\x7f", "a\u202eb", "a\u2028b", "\ud800", ".git/config", "a/.GIT/b", "a" * 256,
            "é" * 128, "/".join(["abcdefghi"] * 103), "/".join("a" * 65),
        ],
    )  # fmt: skip
    def test_hostile_paths_do_not(self, path: str) -> None:
        assert path_problem(path)

    @given(st.text())
    def test_a_path_that_passes_stays_where_it_is_put(self, path: str) -> None:
        if path_problem(path) is None:
            normal = os.path.normpath(os.path.join("/models", path))  # noqa: PTH118
            assert normal == f"/models/{path}"
            assert path.encode() and path == shown(path, 1024)

    @pytest.mark.parametrize(
        "paths",
        [
            ("a", "a"),
            ("A.json", "a.json"),
            ("\u00e9", "e\u0301"),
            ("stra\u00dfe", "STRASSE"),
            ("a", "a/b"),
            ("A/b/c", "a/b"),
        ],
    )
    def test_conflicts_are_found(self, paths: tuple[str, str]) -> None:
        assert set(conflicting_paths(paths) or ()) == set(paths)
        assert conflicting_paths(reversed(paths))

    def test_others_do_not_conflict(self) -> None:
        assert conflicting_paths(["a", "ab", "b/a", "b/c", "c"]) is None


class TestDrift:
    def test_none(self) -> None:
        assert config_drift(make_config(make_spec()), make_lock()) == []

    def test_every_kind_is_listed_by_name(self) -> None:
        config = make_config(make_spec("new"), make_spec("changed", revision="v2", exclude=["*.bin"]))
        lock = make_lock(make_locked(make_spec("old")), make_locked(make_spec("changed")))
        assert [str(drift) for drift in config_drift(config, lock)] == [
            "changed: changed: revision was main, is v2; exclude was [], is [*.bin]",
            "new: missing: is in models.yaml, but not locked",
            "old: orphan: is locked, but models.yaml has no such model",
        ]

    def test_the_order_of_patterns_is_no_drift(self) -> None:
        spec = make_spec(include=["b", "a"])
        lock = make_lock(make_locked(make_spec(include=["a", "b"])))
        assert config_drift(make_config(spec), lock) == []
        assert require_locked(spec, lock) == lock.models["minilm"]

    def test_version_runtime_and_labels_are_not_the_locks_matter(self) -> None:
        spec = make_spec(version="2.0.0", runtime="other", device="cpu", labels={"org.example.team": "x"})
        assert config_drift(make_config(spec), make_lock()) == []

    def test_moved(self) -> None:
        lock = make_lock()
        assert upstream_drift(lock, {"minilm": [COMMIT], "other": ["x"]}) == []
        (drift,) = upstream_drift(lock, {"minilm": ["f" * 40]})
        assert (drift.model, drift.kind) == ("minilm", "moved")
        assert drift.detail == f"main was {COMMIT}, is {'f' * 40}"

    def test_edited(self) -> None:
        lock = make_lock(make_locked(make_spec("a")), make_locked(make_spec("b")))
        assert upstream_drift(lock, {}, {"a": [], "other": ["x"]}) == []
        drifts = upstream_drift(lock, {"a": ["f" * 40]}, {"a": ["x is gone", "y is new"], "b": ["z"]})
        assert [str(drift) for drift in drifts] == [
            f"a: edited: at the locked commit {COMMIT}: x is gone; y is new",
            f"a: moved: main was {COMMIT}, is {'f' * 40}",
            f"b: edited: at the locked commit {COMMIT}: z",
        ]
        (many,) = upstream_drift(lock, {}, {"a": [f"file{number}" for number in range(23)]})
        assert many.detail.endswith("file19; and 3 more")

    def test_what_upstream_can_be_asked_about(self) -> None:
        lock = make_lock()
        assert comparable(make_spec(), lock)
        assert comparable(make_spec(include=["*.json"], version="2.0.0"), lock)
        for changes in ({"source": "hf://a/b"}, {"hub": "http://x"}, {"revision": "v2"}, {"name": "new"}):
            assert not comparable(make_spec(**changes), lock)

    def test_a_build_needs_a_lock_of_this_models_yaml(self) -> None:
        with pytest.raises(LockMissing) as missing:
            require_locked(make_spec("minilm2"), make_lock())
        assert "was it renamed" in missing.value.message and "`build.py lock minilm2`" in missing.value.hint
        with pytest.raises(LockDrift) as drifted:
            require_locked(make_spec(source="hf://org/other"), make_lock())
        assert "source was hf://org/minilm, is hf://org/other" in drifted.value.message
        assert "`build.py lock minilm`" in drifted.value.hint


class TestUpdate:
    def test_locking_one_leaves_the_others_bytes_alone(self) -> None:
        lock = make_lock(
            make_locked(make_spec("a")), make_locked(make_spec("b")), make_locked(make_spec("c"))
        )
        updated = update_lock(lock, [replace(make_locked(make_spec("b")), commit="f" * 40)])
        before, after = encode_lock(lock).decode(), encode_lock(updated).decode()
        assert after == before[: before.index('"b"')] + before[before.index('"b"') :].replace(
            COMMIT, "f" * 40, 1
        )

    def test_orphans_go_only_when_all_are_locked(self) -> None:
        lock = make_lock(make_locked(make_spec("old")))
        resolved = [make_locked(make_spec("new"))]
        assert list(update_lock(lock, resolved).models) == ["new", "old"]
        assert list(update_lock(lock, resolved, configured={"new"}).models) == ["new"]
        assert list(lock.models) == ["old"]

    def test_the_digest_is_of_paths_sizes_and_contents_only(self) -> None:
        locked = make_locked()
        elsewhere = replace(
            locked, name="x", source="hf://a/b", commit="f" * 40, revision="v1", include=("*.json",)
        )
        assert elsewhere.digest == locked.digest and locked.size == 12
        # Recomputed as an auditor would: lines "<sha256> <size> <path>" through sha256sum.
        assert locked.digest == "sha256:83b267cad55aa5097b9b8ff8d0d0ca9069234035a0eab0c00feffe98bdfab024"
        for changed in (
            replace(locked.files[0], path="x"),
            replace(locked.files[0], size=3),
            replace(locked.files[0], sha256="cd" * 32),
        ):
            assert replace(locked, files=(changed, locked.files[1])).digest != locked.digest


def test_the_sha256_that_models_yaml_gives_are_part_of_what_is_locked() -> None:
    other = "cd" * 32

    def asked(**files: str) -> ModelSpec:
        return make_spec("web", source="https://files.example.com/web/", files=files, exclude=["left-out"])

    spec = asked(a=SHA, b=SHA, **{"left-out": other})
    locked = make_locked(spec, LockedFile("a", 1, SHA, '"1"'), LockedFile("b", 1, SHA, '"2"'))
    lock = make_lock(locked)
    assert require_locked(spec, lock) == locked and config_drift(make_config(spec), lock) == []
    for wanted, said in (
        (asked(a=SHA, b=other), f"files b was {SHA}, is {other}"),
        (asked(a=SHA), f"files b was {SHA}, is not there"),
        (asked(a=SHA, b=SHA, c=other), f"files c was not there, is {other}"),
    ):
        with pytest.raises(LockDrift, match=said):
            require_locked(wanted, lock)
        assert [said in str(drift) for drift in config_drift(make_config(wanted), lock)] == [True]
    added = make_spec("web", add=({"source": spec.source, "files": {"a": SHA}, "into": "x"},))
    parts = [LockedSource.at(added.sources[0], COMMIT, [LockedFile("config.json", 2, SHA)])]
    parts += [LockedSource.at(added.sources[1], COMMIT, [LockedFile("a", 1, SHA, '"1"')])]
    assert require_locked(added, make_lock(LockedModel.join(parts)))
    parts[1] = LockedSource.at(added.sources[1], COMMIT, [LockedFile("a", 1, other, '"1"')])
    with pytest.raises(LockDrift, match=rf"add\[0\]\.files a was {other}, is {SHA}"):
        require_locked(added, make_lock(LockedModel.join(parts)))

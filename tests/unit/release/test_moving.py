"""Promotions and rollbacks of one model: what they ask for, and what they say."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from modelbake.audit.findings import Findings
from modelbake.audit.judging import Expected
from modelbake.comparison import Image, Layer
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.errors import (
    ChannelMoved,
    NotReleased,
    PolicyRefused,
    ReleaseError,
    SignatureError,
    SigningFailed,
    TagConflict,
    UsageError,
)
from modelbake.manifest import OCI_INDEX, OCI_MANIFEST, Manifest
from modelbake.output import Output
from modelbake.registry import Registry
from modelbake.release.audits import keep_audit
from modelbake.release.changes import changes
from modelbake.release.entries import ChannelEntry, SoakEntry
from modelbake.release.evidence import Verify, seen
from modelbake.release.moving import Mover, nearest, require_channel, require_digest
from modelbake.release.origin import commit_of, who
from modelbake.reportstore import keep_report
from modelbake.stream.repository import RegistryRepository
from tests.servers.upload_registry import PASSWORD, USER, UploadRegistry
from tests.unit.historical import GPU, HISTORY, measured, version

PATH = "ml/minilm"
FREE = ChannelEntry()
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def server() -> Iterator[UploadRegistry]:
    with UploadRegistry(referrers=True) as running:
        yield running


@pytest.fixture
def repository(server: UploadRegistry) -> Iterator[RegistryRepository]:
    credentials = RegistryCredentials(USER, Secret(PASSWORD))
    with Registry(server.host, credentials, timeout=5, sleep=lambda seconds: None) as registry:
        repository = RegistryRepository(registry, PATH)
        for name in ("1.0.0", "1.1.0", "2.0.0"):
            put(repository, name)
        yield repository


def put(repository: RegistryRepository, name: str, content: str = "", **more: str) -> Manifest:
    labels = {"io.modelbake.lock": f"sha256:{name[0] * 64}", "io.modelbake.runtime": "embeddings"}
    said = {"model": "minilm", "version": name} | more
    labels |= {f"io.modelbake.{key}": value for key, value in said.items()}
    config = {"os": "linux", "architecture": "amd64", "config": {"Labels": labels}, "x": name + content}
    blobs = [
        repository.put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        repository.put(f"layer of {name}".encode(), "application/vnd.oci.image.layer.v1.tar"),
    ]
    entries = [{"mediaType": each.media_type, "digest": each.digest, "size": each.size} for each in blobs]
    body = {"mediaType": OCI_MANIFEST, "config": entries[0], "layers": entries[1:]}
    manifest = Manifest.of(OCI_MANIFEST, json.dumps(body).encode())
    repository.put_manifest(name, manifest)
    return manifest


class Told(Output):
    """What was said, as text."""

    def __init__(self) -> None:
        super().__init__(stdout=io.StringIO(), stderr=(log := io.StringIO()))
        self.log = log

    def __str__(self) -> str:
        return self.log.getvalue()


def mover(
    repository: RegistryRepository,
    channel: str = "production",
    *,
    verify: Verify | None = None,
    now: datetime = NOON,
    output: Output | None = None,
) -> Mover:
    return Mover(repository, "minilm", channel, output or Told(), "me@host", "a" * 40, verify, lambda: now)


class TestPromote:
    def test_it_is_recorded_and_said(self, repository: RegistryRepository) -> None:
        output = Told()
        first = mover(repository, output=output).promote("1.0.0", FREE)
        assert "1.0.0 is the first version here" in str(output)
        digest = mover(repository, output=output).promote("2.0.0", FREE)
        state = seen(repository, "production", output)
        assert state.current and (state.digest, state.current.version) == (digest, "2.0.0")
        assert (state.current.previous, state.current.number, state.current.who) == (first, 2, "me@host")
        assert state.current.commit == "a" * 40 and "weights: lock 1111" in state.current.changes
        assert "production is 2.0.0 now (production-0002" in str(output)
        assert "layers: 0 of 1 are the same" in str(output)

    def test_what_is_there_already_is_not_written_again(
        self, server: UploadRegistry, repository: RegistryRepository
    ) -> None:
        digest = mover(repository).promote("1.0.0", FREE)
        puts, output = server.count("put-manifest"), Told()
        assert mover(repository, output=output).promote("1.0.0", FREE) == digest
        assert server.count("put-manifest") == puts and "already" in str(output)

    @pytest.mark.parametrize("name", ["1.0.1", "9.9.9", "production", "latest"])
    def test_an_unknown_version(
        self, server: UploadRegistry, repository: RegistryRepository, name: str
    ) -> None:
        puts = server.count("put-manifest")
        with pytest.raises(NotReleased) as caught:
            mover(repository).promote(name, FREE)
        assert "2.0.0" in caught.value.hint and server.count("put-manifest") == puts

    def test_a_version_whose_tag_was_moved(self, repository: RegistryRepository) -> None:
        mover(repository).promote("1.0.0", FREE)
        mover(repository).promote("1.1.0", FREE)
        put(repository, "1.0.0", "other bytes")
        with pytest.raises(TagConflict, match=r"production-0001\), and its tag names"):
            mover(repository).promote("1.0.0", FREE)
        assert mover(repository).rollback(), "the image of then is still what a rollback goes to"

    def test_a_part_that_is_gone(self, server: UploadRegistry, repository: RegistryRepository) -> None:
        manifest = repository.manifest("1.1.0")
        assert manifest is not None
        mover(repository).promote("1.0.0", FREE)
        del server.repository(PATH).blobs[manifest.layers[0].digest]
        repository._here.clear()
        with pytest.raises(ReleaseError, match=manifest.layers[0].digest):
            mover(repository).promote("1.1.0", FREE)
        assert seen(repository, "production", Told()).highest == 1, "nothing was written"

    def test_an_index_of_several_platforms(self, repository: RegistryRepository) -> None:
        inner = put(repository, "3.0.0")
        entry = {"mediaType": OCI_MANIFEST, "digest": inner.digest, "size": len(inner.body)}
        entry["platform"] = {"os": "linux", "architecture": "amd64"}
        index = Manifest.of(OCI_INDEX, json.dumps({"manifests": [entry]}).encode())
        repository.put_manifest("3.0.0", index)
        assert mover(repository).promote("3.0.0", FREE) == index.digest
        kept = repository.manifest("production-0001")
        assert kept and [each.digest for each in kept.manifests] == [inner.digest, index.digest]

    @pytest.mark.promise("channel", "signature")
    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({"version": "1.0.0"}, "minilm 1.0.0"),
            ({"model": "other"}, "other 3.0.0"),
            ({"model": "", "version": ""}, "nothing"),
        ],
    )
    @pytest.mark.parametrize("listed", [False, True])
    def test_an_image_that_says_it_is_something_else(
        self, repository: RegistryRepository, more: dict[str, str], said: str, listed: bool
    ) -> None:
        """It may be signed as what it is: an older version, another model, an image of others."""
        image = put(repository, "3.0.0", **more)
        if listed:
            entry = {"mediaType": OCI_MANIFEST, "digest": image.digest, "size": len(image.body)}
            image = Manifest.of(OCI_INDEX, json.dumps({"manifests": [entry]}).encode())
            repository.put_manifest("3.0.0", image)
        with pytest.raises(ReleaseError, match=f"labels say {said}"):
            mover(repository, verify=lambda *_: None).promote("3.0.0", ChannelEntry(require=("signature",)))
        assert seen(repository, "production", Told()).highest == 0, "nothing was written"

    def test_a_record_that_is_none_is_passed_over(self, repository: RegistryRepository) -> None:
        mover(repository).promote("1.0.0", FREE)
        other = repository.manifest("1.0.0")
        assert other is not None
        repository.put_manifest("production-0002", other)
        output = Told()
        mover(repository, output=output).promote("1.1.0", FREE)
        assert "production-0002: is no record" in str(output)
        state = seen(repository, "production", Told())
        assert state.current and state.current.number == 3

    def test_moved_by_hand(self, repository: RegistryRepository) -> None:
        theirs = repository.manifest("2.0.0")
        assert theirs is not None
        repository.put_manifest("production", theirs)
        with pytest.raises(ChannelMoved, match="no move of it is recorded"):
            mover(repository).promote("1.0.0", FREE)
        mover(repository).promote("2.0.0", FREE, theirs.digest)
        state = seen(repository, "production", Told())
        assert state.current and state.current.over and state.current.version == "2.0.0"


def test_a_version_tag_that_was_moved_after_another_channel_had_it(repository: RegistryRepository) -> None:
    mover(repository, "staging").promote("1.0.0", FREE)
    other = repository.manifest("1.1.0")
    assert other is not None
    repository.put_manifest("1.0.0", other)
    production = replace(mover(repository), others=["staging"])
    with pytest.raises(TagConflict, match="staging-0001"):
        production.promote("1.0.0", FREE)
    assert seen(repository, "production", Told()).highest == 0


class TestPolicy:
    def test_all_of_it(self, repository: RegistryRepository) -> None:
        entry = ChannelEntry(
            require=("signature", "gpu_report", "audit"), soak=SoakEntry(channel="staging", hours=24)
        )
        manifest = repository.manifest("1.0.0")
        assert manifest is not None
        wrong: list[str] = ["nobody has signed it"]
        audit_signed: list[bool] = []

        def verify(repository: RegistryRepository, asked: Manifest) -> None:
            if wrong and asked == manifest:
                raise SignatureError(wrong[0])
            if asked != manifest and not audit_signed:
                raise SignatureError("nobody has signed that")

        with pytest.raises(SigningFailed, match="nobody has said whose"):
            mover(repository).promote("1.0.0", entry)
        with pytest.raises(PolicyRefused) as caught:
            mover(repository, verify=verify).promote("1.0.0", entry)
        for words in ("nobody has signed it", "gpu_report", "no clean audit", "24 h in staging"):
            assert words in caught.value.message
        assert seen(repository, "production", Told()).highest == 0

        wrong.clear()
        report = measured("1.0.0", image_id=manifest.config.digest, device=GPU)
        keep_report(repository, manifest, report, Told())
        attach_audit(repository, manifest)
        mover(repository, "staging").promote("1.0.0", FREE)
        with pytest.raises(PolicyRefused, match="audit is kept beside it, and is not signed itself"):
            mover(repository, verify=verify).promote("1.0.0", entry)
        audit_signed.append(True)
        with pytest.raises(PolicyRefused, match=r"has been there for 0\.0 h") as caught:
            mover(repository, verify=verify).promote("1.0.0", entry)
        assert len(caught.value.message.splitlines()) == 2, "the rest is fulfilled"
        tomorrow = NOON.replace(month=2, day=1)
        mover(repository, verify=verify, now=tomorrow).promote("1.0.0", entry)

    def test_a_rollback_is_not_asked_and_what_is_doubtful_is_said(
        self, repository: RegistryRepository
    ) -> None:
        def unsigned(repository: RegistryRepository, asked: Manifest) -> None:
            raise SignatureError("nobody has signed it")

        for name in ("1.0.0", "1.1.0", "2.0.0"):
            mover(repository).promote(name, FREE)
        state = seen(repository, "production", Told())
        assert mover(repository, output=(output := Told())).rollback() == state.moves[1].digest
        assert "which production" not in str(output), "control"
        put(repository, "1.0.0", "other bytes")
        assert mover(repository, verify=unsigned, output=output).rollback() == state.moves[0].digest
        assert "production-0001 calls 1.0.0: signature: nobody has signed it" in str(output)
        assert "calls 1.0.0: the version tag names another image" in str(output)


def attach_audit(repository: RegistryRepository, manifest: Manifest) -> None:
    """Keep a clean audit; tests/unit/release/test_audits.py is about what counts as one."""
    keep_audit(repository, manifest, Expected({}), Findings("tiny", manifest.digest, 1, 1, 1, ()))


class TestRollback:
    def test_back_and_back_again(self, repository: RegistryRepository) -> None:
        digests = [mover(repository).promote(name, FREE) for name in ("1.0.0", "1.1.0", "2.0.0")]
        assert mover(repository).rollback() == digests[1]
        assert mover(repository).rollback() == digests[0]
        with pytest.raises(ReleaseError, match="no earlier version"):
            mover(repository).rollback()
        assert mover(repository).rollback("2.0.0") == digests[2]
        assert mover(repository).rollback("2.0.0") == digests[2], "it is there already"
        state = seen(repository, "production", Told())
        assert [move.kind for move in state.moves] == ["promote"] * 3 + ["rollback"] * 3

    def test_what_is_not_in_the_registry_any_more(
        self, server: UploadRegistry, repository: RegistryRepository
    ) -> None:
        for name in ("1.0.0", "1.1.0"):
            mover(repository).promote(name, FREE)
        manifest = repository.manifest("1.0.0")
        assert manifest is not None
        held = server.repository(PATH)
        gone = held.blobs.pop(manifest.config.digest)
        repository._here.clear()
        with pytest.raises(ReleaseError, match="lacks what it is made of"):
            mover(repository).rollback()
        held.blobs[manifest.config.digest] = gone
        kept = held.manifests.pop(manifest.digest)
        with pytest.raises(ReleaseError, match="has no manifest"):
            mover(repository).rollback()
        held.manifests[manifest.digest] = kept
        assert mover(repository).rollback() == manifest.digest, "control"

    def test_a_list_of_reports_that_cannot_be_had_keeps_nobody_from_it(
        self, server: UploadRegistry, repository: RegistryRepository
    ) -> None:
        for name in ("1.0.0", "1.1.0"):
            mover(repository).promote(name, FREE)
        server.trouble("referrers", times=99, status=500)
        output = Told()
        assert mover(repository, output=output).rollback()
        assert "what changes could not be found out" in str(output)


class TestChanges:
    def test_weights_runtime_base_size_and_figures(self) -> None:
        labels = {
            "io.modelbake.lock": f"sha256:{'1' * 64}",
            "io.modelbake.commit": "a" * 40,
            "io.modelbake.runtime": "embeddings",
            "org.opencontainers.image.base.digest": f"sha256:{'3' * 64}",
        }
        other = {
            **labels,
            "io.modelbake.lock": f"sha256:{'2' * 64}",
            "io.modelbake.commit": "b" * 40,
            "io.modelbake.runtime": "vllm",
        }
        first, second = Image(labels, (Layer("a", 9, ""),)), Image(other, (Layer("a", 9, ""),))
        now = version("2.0.0", measured("2.0.0", latency=0.02, toolkit_version="9.0.0"), size=6_000_000)
        lines = changes(HISTORY[3], now, first, second)
        assert lines[0] == "1.0.0 -> 2.0.0"
        assert lines[1] == f"weights: lock {'1' * 12} -> {'2' * 12}, commit {'a' * 12} -> {'b' * 12}"
        assert "runtime: embeddings -> vllm" in lines and "layers: 1 of 1 are the same" in lines
        assert "toolkit: 0.1.0 -> 9.0.0" in lines
        assert any(line.startswith("latency p95: 10 ms -> 20 ms (+100.0%, worse") for line in lines)
        assert any(line.startswith("size: ") for line in lines)
        added = '["s3://models/legal@0123"]'
        more = replace(second, labels={**other, "io.modelbake.commit": "a" * 40, "io.modelbake.added": added})
        weights = changes(HISTORY[3], now, first, more)[1]
        assert weights == f"weights: lock {'1' * 12} -> {'2' * 12}, added - -> {added}"
        same = changes(HISTORY[3], now, first, replace(first))
        assert f"weights: the same ({'1' * 12})" in same

    def test_without_images_and_reports(self) -> None:
        assert changes(None, version("1.0.0"), None, None) == ["1.0.0 is the first version here"]
        assert changes(version("1.0.0"), version("1.1.0"), None, None) == ["1.0.0 -> 1.1.0"]


class TestArguments:
    def test_a_channel_that_models_yaml_does_not_name(self) -> None:
        require_channel("staging", ["staging", "production"], "--to")
        with pytest.raises(UsageError, match="did you mean 'production'") as caught:
            require_channel("producton", ["staging", "production"], "--to")
        assert caught.value.subject == "--to" and "staging, production" in caught.value.hint

    @pytest.mark.parametrize("over", ["sha256:abc", "abc", "", "NONE", f"sha256:{'A' * 64}"])
    def test_what_is_no_digest(self, over: str) -> None:
        for right in (None, "none", f"sha256:{'a' * 64}"):
            require_digest(right)
        with pytest.raises(UsageError):
            require_digest(over)

    def test_the_nearest_versions(self) -> None:
        released = ["1.0.0", "1.1.0", "1.10.0", "2.0.0", "3.0.0", "4.0.0", "5.0.0"]
        assert nearest("1.1.1", released)[0] == "1.1.0" and len(nearest("1.1.1", released)) == 5
        assert nearest("x", []) == []


class TestOrigin:
    @pytest.fixture(autouse=True)
    def no_ci(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("GITHUB_ACTOR", "GITLAB_USER_LOGIN", "GITHUB_SHA", "CI_COMMIT_SHA"):
            monkeypatch.delenv(name, raising=False)

    def test_who(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "@" in who()
        monkeypatch.setenv("GITLAB_USER_LOGIN", "lab")
        assert who() == "lab"
        monkeypatch.setenv("GITHUB_ACTOR", "octo")
        assert who() == "octo"

    def test_from_which_commit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        assert commit_of(tmp_path) is None
        monkeypatch.setenv("CI_COMMIT_SHA", "c" * 40)
        assert commit_of(tmp_path) == "c" * 40
        monkeypatch.setenv("CI_COMMIT_SHA", "main")
        assert commit_of(tmp_path) is None
        assert commit_of(tmp_path / "nothing") is None
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        for words in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "x"]):
            subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
        assert len(commit_of(tmp_path) or "") == 40
        monkeypatch.setenv("PATH", "")
        assert commit_of(tmp_path) is None, "no git here"

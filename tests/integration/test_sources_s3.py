"""Weights in S3 and in SageMaker's model registry, against a server that checks signatures and rights."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from modelbake.config import SourceSpec
from modelbake.errors import (
    NoMatchingFiles,
    RevisionNotFound,
    SourceAuthError,
    SourceError,
    SourceGatedError,
    SourceNotFound,
    SourceUnavailable,
    UsageError,
    WrongBytes,
)
from modelbake.locked import LockedFile, LockedModel, LockedSource
from modelbake.sources import reader_for
from modelbake.sources.kinds import open_store
from modelbake.sources.opener import Address
from modelbake.sources.s3 import S3Store
from modelbake.sources.sagemaker import PENDING
from modelbake.sources.storesource import StoreSource
from tests.promises import cases
from tests.servers.s3 import READ, AwsKeys, S3Server

pytestmark = pytest.mark.engine

FILES = {
    "config.json": b'{"kind": "tiny"}\n',
    "empty.txt": b"",
    "model.safetensors": b"weights " * 1000,
    "tokenizer/a name+ü%20.txt": b"a\nb\n",
    "tokenizer/ends in 100%": b"c",
}


class Place:
    """A bucket with files below a prefix, and the surroundings of whoever reads them."""

    def __init__(self, server: S3Server, monkeypatch: pytest.MonkeyPatch, versioned: bool = True) -> None:
        self.server, self._monkeypatch = server, monkeypatch
        self.bucket = server.bucket(versioned)
        self.folder = "models/llama 3"
        for path, content in FILES.items():
            self.put(path, content)
        self.become(server.reader)

    def put(self, path: str, content: bytes) -> str:
        return self.server.put(self.bucket, f"{self.folder}/{path}", content)

    def become(self, keys: AwsKeys | None) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            self._monkeypatch.delenv(name)
        for name, value in self.server.environment_for(keys).items():
            self._monkeypatch.setenv(name, value)
        self._monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", self.server.endpoint)
        self._monkeypatch.setenv("AWS_ENDPOINT_URL_S3", self.server.endpoint)

    def spec(self, **more: Any) -> SourceSpec:
        facts = {
            "name": "llama",
            "source": f"s3://{self.bucket}/{self.folder}",
            "server": self.server.endpoint,
        }
        return SourceSpec(**{**facts, **more})

    def package(self, data_url: str = "", approval: str = "Approved") -> SourceSpec:
        address = data_url or f"s3://{self.bucket}/packed/model.tar.gz"
        arn = self.server.model_package(f"g-{self.bucket}", address, approval)
        return SourceSpec(name="llama", source=f"sagemaker:{arn}")

    def pack(self, files: dict[str, bytes], link: str = "") -> str:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
            for path, content in files.items():
                info = tarfile.TarInfo(f"./{path}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            if link:
                info = tarfile.TarInfo(link)
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(info)
        return self.server.put(self.bucket, "packed/model.tar.gz", out.getvalue())


@pytest.fixture
def place(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(s3_server, monkeypatch)


def lock(spec: SourceSpec, before: LockedSource | None = None) -> tuple[LockedSource, list[str]]:
    """Return what is locked, and which files were read for it."""
    read: list[str] = []
    source = StoreSource(open_store, lambda **facts: read.append(str(facts["file"])))
    return source.resolve(spec, before).locked, sorted(read)


def content(locked: LockedSource, start: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a lock, as a lane reads them."""
    reader = reader_for(LockedModel.join([locked]), None, threading.Event())
    for file in locked.files:
        yield file.path, b"".join(reader.read(file, start))


def fails(kind: type[SourceError], ask: Any) -> str:
    with pytest.raises(kind) as caught:
        ask()
    assert type(caught.value) is kind, repr(caught.value)
    return str(caught.value)


def sha256_of(locked: LockedSource) -> dict[str, str]:
    return {file.path: file.sha256 for file in locked.files}


TRUTH = {path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()}


def test_versions_are_read_even_when_they_are_no_longer_the_latest(place: Place) -> None:
    place.put("deleted", b"x")
    place.server.delete(place.bucket, f"{place.folder}/deleted")
    place.put("folder/", b"")  # as the console makes one
    locked, read = lock(place.spec())
    assert sha256_of(locked) == TRUTH
    assert read == sorted(FILES)
    again, read = lock(place.spec(), locked)
    assert again == locked
    assert read == ["config.json"], "versions that are locked are not read again"
    version = place.put("model.safetensors", b"other")
    assert dict(content(locked)) == FILES
    assert dict(content(locked, 3)) == {path: data[3:] for path, data in FILES.items()}
    moved, read = lock(place.spec(), locked)
    assert moved.commit != locked.commit
    assert read == ["config.json", "model.safetensors"]
    assert version in {file.version for file in moved.files}


def test_without_versions_what_was_replaced_is_an_error(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(s3_server, monkeypatch, versioned=False)
    locked, _ = lock(place.spec())
    assert dict(content(locked)) == FILES
    assert all(file.version.startswith('"') for file in locked.files)
    place.put("model.safetensors", b"other..." * 1000)
    said = fails(RevisionNotFound, lambda: dict(content(locked)))
    assert "model.safetensors" in said
    assert "build.py lock NAME" in said


def test_who_may_not_list_versions_demands_etags(place: Place) -> None:
    place.become(place.server.unversed)
    locked, _ = lock(place.spec())
    assert sha256_of(locked) == TRUTH
    assert all(file.version.startswith('"') for file in locked.files)
    assert dict(content(locked)) == FILES
    place.put("config.json", b"{}")
    fails(RevisionNotFound, lambda: dict(content(locked)))


def test_a_version_that_was_deleted(place: Place) -> None:
    locked, _ = lock(place.spec())
    version = next(file.version for file in locked.files if file.path == "model.safetensors")
    place.server.delete(place.bucket, f"{place.folder}/model.safetensors")
    assert dict(content(locked)) == FILES, "a deletion marker leaves the version"
    place.server.delete(place.bucket, f"{place.folder}/model.safetensors", version)
    assert "model.safetensors" in fails(RevisionNotFound, lambda: dict(content(locked)))


@pytest.mark.parametrize(
    ("who", "said"),
    [
        ("stranger", "s3:ListBucketVersions"),
        ("blind", "s3:ListBucketVersions"),
        ("expired", "expired"),
        ("wrong_secret", "wrong"),
        ("unknown", "wrong"),
    ],
)
def test_wrong_credentials(place: Place, who: str, said: str) -> None:
    keys: AwsKeys = getattr(place.server, who)
    place.become(keys)
    message = fails(SourceAuthError, lambda: lock(place.spec()))
    assert said in message
    assert keys.secret not in message
    assert not keys.token or keys.token not in message


def test_no_credentials_are_said_within_seconds(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    place.become(None)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a metadata service that never answers
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
        started = time.monotonic()
        message = fails(SourceAuthError, lambda: lock(place.spec()))
        assert time.monotonic() - started < 15
    assert "~/.aws" in message
    assert "instance metadata" in message
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "nobody" in fails(SourceAuthError, lambda: lock(place.spec()))


def test_a_session_that_ends_between_lock_and_reading(place: Place) -> None:
    session = place.server.session(READ, seconds=3600)
    place.become(session)
    locked, _ = lock(place.spec())
    assert dict(content(locked)) == FILES
    place.server.expire(session)
    message = fails(SourceAuthError, lambda: dict(content(locked)))
    assert "expired" in message
    assert session.token not in message
    assert session.secret not in message
    place.server.allow(place.server.stranger, [])
    place.become(place.server.stranger)
    assert "s3:GetObjectVersion" in fails(SourceAuthError, lambda: dict(content(locked)))


def test_what_is_missing(place: Place) -> None:
    missing = place.spec(source="s3://no-such-bucket-anywhere/llama")
    assert "no such bucket" in fails(SourceNotFound, lambda: lock(missing))
    fails(NoMatchingFiles, lambda: lock(place.spec(source=f"s3://{place.bucket}/nothing")))
    one = place.spec(source=f"s3://{place.bucket}/{place.folder}/config.json")
    assert "include" in fails(SourceNotFound, lambda: lock(one))
    nobody = place.spec(server="http://127.0.0.1:9")
    fails(SourceUnavailable, lambda: lock(nobody))


def test_checksums_of_whole_objects_are_compared(place: Place) -> None:
    big = os.urandom(5 << 20)
    place.server.put(place.bucket, "sums/sha256", b"sum", sha256=True)
    place.server.put(place.bucket, "sums/md5", b"sum")
    place.server.put_parts(place.bucket, "sums/parts", [big, b"end"])
    store = open_store(place.spec(source=f"s3://{place.bucket}/sums"))
    found = {
        file.path: file.checksum() if callable(file.checksum) else file.checksum for file in store.listing()
    }
    store.close()
    assert found == {
        "sha256": ("sha256", hashlib.sha256(b"sum").hexdigest()),
        "md5": ("md5", hashlib.md5(b"sum", usedforsecurity=False).hexdigest()),
        "parts": None,
    }
    locked, _ = lock(place.spec(source=f"s3://{place.bucket}/sums"))
    assert sha256_of(locked)["parts"] == hashlib.sha256(big + b"end").hexdigest()


def test_very_many_objects_are_listed_in_pages(place: Place) -> None:
    count = cases(2_500, 100_000)
    place.server.list_many(place.bucket, "many/", count)
    for who in (place.server.reader, place.server.unversed):
        place.become(who)
        store = open_store(place.spec(source=f"s3://{place.bucket}/many"))
        assert len({file.path for file in store.listing()}) == count
        store.close()


def test_addresses_read_one_version_and_do_nothing_else(place: Place) -> None:
    locked, _ = lock(place.spec())
    store = open_store(place.spec())
    file = next(file for file in locked.files if file.path == "model.safetensors")
    address = store.address(file)
    assert address is not None
    with urllib.request.urlopen(address.url, timeout=30) as answer:  # noqa: S310
        assert answer.read() == FILES["model.safetensors"]
    for url in (address.url.replace(file.version, "null"), address.url.replace("model.", "other.")):
        with pytest.raises(urllib.error.HTTPError, match="403") as caught:
            urllib.request.urlopen(url, timeout=30)  # noqa: S310
        caught.value.close()
    changed = urllib.request.Request(address.url, b"new", method="PUT")  # noqa: S310
    with pytest.raises(urllib.error.HTTPError, match="403") as caught:
        urllib.request.urlopen(changed, timeout=30)  # noqa: S310
    caught.value.close()


def test_an_address_that_has_expired_is_signed_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    locked, _ = lock(place.spec())
    file = next(file for file in locked.files if file.path == "model.safetensors")
    store = open_store(place.spec())
    assert isinstance(store, S3Store)
    sign, signed = store.address, []

    def stale(file: LockedFile) -> Address:
        signed.append(file)
        fresh = sign(file)
        old = fresh.url.replace("X-Amz-Expires=10800", "X-Amz-Expires=10801")  # the server says 403, too
        return replace(fresh, url=old if len(signed) <= expired else fresh.url)

    monkeypatch.setattr(store, "address", stale)
    expired = 1
    assert b"".join(store.reader(threading.Event()).read(file)) == FILES["model.safetensors"]
    assert len(signed) == 2
    signed, expired = [], 99
    message = fails(SourceUnavailable, lambda: b"".join(store.reader(threading.Event()).read(file)))
    assert "answers 403" in message
    assert len(signed) == 2


def test_uploads_come_back(place: Place) -> None:
    place.become(place.server.owner)
    large = os.urandom(17 << 20)  # in two parts
    store = open_store(place.spec(source=f"s3://{place.bucket}/new"))
    assert isinstance(store, S3Store)
    for path, data in {"a b/ü.bin": large, "empty": b""}.items():
        store.upload(path, io.BytesIO(data), len(data))
    locked, _ = lock(place.spec(source=f"s3://{place.bucket}/new"))
    assert dict(content(locked)) == {"a b/ü.bin": large, "empty": b""}
    for path, other in {"a b/ü.bin": large[::-1], "empty": b"not"}.items():
        message = fails(SourceError, lambda p=path, d=other: store.upload(p, io.BytesIO(d), len(d)))
        assert "was not replaced" in message
    assert dict(content(locked)) == {"a b/ü.bin": large, "empty": b""}
    place.become(place.server.reader)
    refused = open_store(place.spec(source=f"s3://{place.bucket}/new"))
    assert isinstance(refused, S3Store)
    for data in (b"small", large):
        message = fails(SourceAuthError, lambda data=data: refused.upload("no", io.BytesIO(data), len(data)))
        assert "s3:PutObject" in message


# --- SageMaker ------------------------------------------------------------------------------------------


def test_members_of_an_approved_archive(place: Place) -> None:
    version = place.pack(FILES)
    spec = place.package()
    locked, _ = lock(spec)
    assert sha256_of(locked) == TRUTH
    assert {file.version for file in locked.files} == {f"{version}!gzip"}
    store = open_store(spec)
    assert store.address(locked.files[0]) is None
    again, read = lock(spec, locked)
    assert (again, read) == (locked, ["config.json"])
    place.pack({"model.safetensors": b"other"})
    assert dict(content(locked)) == FILES, "the version that was locked"
    assert dict(content(locked, 3)) == {path: data[3:] for path, data in FILES.items()}
    assert lock(spec, locked)[0].commit != locked.commit
    place.server.delete(place.bucket, "packed/model.tar.gz", version)
    assert "model.tar.gz" in fails(RevisionNotFound, lambda: dict(content(locked)))


def test_only_approved_packages(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.pack(FILES)
    spec = place.package(approval="PendingManualApproval")
    assert PENDING in fails(SourceGatedError, lambda: lock(spec))
    monkeypatch.setenv(PENDING, "yes")
    with pytest.raises(UsageError, match=PENDING):
        lock(spec)
    monkeypatch.setenv(PENDING, "1")
    locked, _ = lock(spec)
    assert sha256_of(locked) == TRUTH
    arn = spec.source.removeprefix("sagemaker:")
    place.server.approve(arn, "Rejected")
    assert PENDING not in fails(SourceGatedError, lambda: lock(spec))
    fails(SourceGatedError, lambda: dict(content(locked)))
    monkeypatch.delenv(PENDING)
    place.server.approve(arn)
    assert dict(content(locked)) == FILES


def test_packages_that_cannot_be_read(place: Place) -> None:
    unversioned = "sagemaker:arn:aws:sagemaker:eu-central-1:123456789012:model-package/pets"
    message = fails(SourceError, lambda: lock(SourceSpec(name="llama", source=unversioned)))
    assert "list-model-packages" in message
    missing = SourceSpec(name="llama", source=f"{unversioned}-none/7")
    fails(SourceNotFound, lambda: lock(missing))
    gone = place.package(f"s3://{place.bucket}/packed/nothing.tar.gz")
    fails(SourceNotFound, lambda: lock(gone))
    place.server.put(place.bucket, "packed/loose", b"GGUF" * 1000)
    assert "gzip" in fails(SourceError, lambda: lock(place.package(f"s3://{place.bucket}/packed/loose")))
    place.pack(FILES, link="model.bin")
    assert "model.bin" in fails(SourceError, lambda: lock(place.package()))
    place.become(place.server.blind)
    assert "sagemaker:DescribeModelPackage" in fails(SourceAuthError, lambda: lock(gone))


def test_the_file_of_a_lock_is_not_believed(place: Place) -> None:
    place.pack(FILES)
    locked, _ = lock(place.package())
    file = next(file for file in locked.files if file.path == "model.safetensors")
    reader = reader_for(LockedModel.join([locked]), None, threading.Event())
    with pytest.raises(WrongBytes):
        b"".join(reader.read(LockedFile(file.path, file.size + 1, file.sha256, file.version)))

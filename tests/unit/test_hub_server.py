"""The hub server against the real huggingface_hub, and every fault against a plain client that shows it."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from huggingface_hub import HfApi, close_session, hf_hub_download, snapshot_download
from huggingface_hub import constants as hf_constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.servers.hub import Fault, Hub, Repo
from tests.servers.hub_certificate import make_certificate
from tests.servers.hub_faults import Kind
from tests.servers.hub_log import Tokens
from tests.servers.minilm import tiny_llama

TOKEN = "hf_AllowedToReadOrgModel"
OUTSIDER = "hf_KnownButWithoutAccess"
NAME = "org/model"
WEIGHTS = "model.safetensors"
DATA = hashlib.shake_128(b"weights").digest(300_000)
CONTENT: dict[str, bytes | Path] = {
    "config.json": b'{"hidden_size": 8}\n',
    "1_Pooling/config.json": b"{}\n",
    "onnx/deep/er/model.txt": b"text\n",
    WEIGHTS: DATA,
}
NO_COMMIT = "0" * 40


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask(url: str, method: str = "GET", token: str | None = TOKEN, **headers: str) -> Reply:
    """One request, no redirect followed; `range` becomes `Range`, `if_range` becomes `If-Range`."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        connection.request(method, f"{parts.path}?{parts.query}", headers=sent)
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        connection.close()


def weights_url(hub: Hub) -> str:
    """The signed URL of the weights at the second server."""
    reply = ask(f"{hub.url}/{NAME}/resolve/main/{WEIGHTS}", "HEAD")
    assert reply.status == 302
    return reply.headers["Location"]


@pytest.fixture(autouse=True)
def _sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hf_constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield
    close_session()


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo.create(tmp_path / "hub", NAME, CONTENT)


@pytest.fixture
def hub(repo: Repo) -> Iterator[Hub]:
    with Hub(repo.root, {TOKEN: [NAME], OUTSIDER: []}) as hub:
        yield hub


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=TOKEN)


# --- repositories ------------------------------------------------------------------------------------------


def test_hashes_are_gits_own(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git here to compare with")
    content: dict[str, bytes | Path] = {
        "a.txt": b"a",
        "a/b.txt": b"b",
        "a-c/d/e.txt": b"",
        "ab.txt": b"x" * 999,
    }
    first = Repo.create(tmp_path / "hub", NAME, content).head
    clone = tmp_path / "git"
    for path, data in content.items():
        (clone / path).parent.mkdir(parents=True, exist_ok=True) if path != "a.txt" else clone.mkdir()
        assert isinstance(data, bytes)
        (clone / path).write_bytes(data)
    people = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (
            ("NAME", "tester"),
            ("EMAIL", "tester@example.com"),
            ("DATE", "@1700000000 +0000"),
        )
    }

    def git(*arguments: str) -> str:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "GIT_CONFIG_NOSYSTEM": "1",
            **people,
        }
        command = ["git", "-C", str(clone), *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "initial commit")
    assert git("rev-parse", "HEAD") == first.id
    assert git("rev-parse", "HEAD^{tree}") == first.folders()[""]
    assert git("rev-parse", "HEAD:a-c") == first.folders()["a-c"]
    assert git("rev-parse", "HEAD:ab.txt") == next(file.oid for file in first.files if file.path == "ab.txt")


def test_commits_are_snapshots_and_branches_move(repo: Repo) -> None:
    first = repo.head
    repo.set_tag("v1", first.id)
    second = repo.commit({"config.json": b"{}", "onnx/deep/er/model.txt": None})
    assert repo.resolve("main") == second != first
    assert repo.resolve("v1") == repo.resolve(first.id) == first
    assert {file.path for file in second.files} == {"config.json", "1_Pooling/config.json", WEIGHTS}
    assert repo.commit({"config.json": b"{}"}) == second, "nothing changed: no commit"
    assert repo.commit({"x.txt": b""}, branch="dev").parent == second.id
    assert repo.head == second


def test_squash_deletes_the_old_commits(repo: Repo) -> None:
    first = repo.head
    repo.set_tag("v1", first.id)
    second = repo.commit({"config.json": b"{}"})
    squashed = repo.squash()
    assert squashed.files == second.files and squashed.parent is None
    assert repo.resolve(first.id) is repo.resolve(second.id) is repo.resolve("v1") is None


def test_same_content_is_the_same_commit_and_files_are_linked_not_copied(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(b"x" * 1000)
    one = Repo.create(tmp_path / "one", NAME, folder)
    two = Repo.create(tmp_path / "two", NAME, folder)
    assert one.head == two.head
    (file,) = one.head.files
    assert one.object_path(file).stat().st_ino == (folder / WEIGHTS).stat().st_ino


@pytest.mark.parametrize("name", ["model", "org/..", "../model", "a/b/c", "org/", "org/mo del", "-/x"])
def test_repository_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="repository name"):
        Repo(tmp_path, name)


# --- the API, as huggingface_hub sees it -----------------------------------------------------------------


def test_model_info_names_commit_and_hashes(api: HfApi, repo: Repo) -> None:
    info = api.model_info(NAME, files_metadata=True)
    assert info.sha == repo.head.id and info.private and info.gated is False
    assert info.siblings is not None
    files = {sibling.rfilename: sibling for sibling in info.siblings}
    assert files.keys() == CONTENT.keys()
    weights = files[WEIGHTS]
    assert weights.lfs is not None
    assert (weights.lfs.sha256, weights.lfs.size) == (hashlib.sha256(DATA).hexdigest(), len(DATA))
    assert files["config.json"].lfs is None
    blob = b"blob 19\0" + b'{"hidden_size": 8}\n'
    assert files["config.json"].blob_id == hashlib.sha1(blob).hexdigest()


def test_model_info_of_revisions(api: HfApi, repo: Repo) -> None:
    first = repo.head.id
    repo.set_tag("v1/rc", first)
    second = repo.commit({"new.txt": b"new"}).id
    assert api.model_info(NAME).sha == second
    for revision in ("v1/rc", first, "refs/tags/v1/rc"):
        assert api.repo_info(NAME, revision=revision).sha == first
    plain = api.model_info(NAME).siblings
    assert plain is not None and plain[0].size is None


def test_model_info_expand(api: HfApi, repo: Repo) -> None:
    info = api.model_info(NAME, expand=["sha", "gated"])
    assert (info.sha, info.gated, info.siblings) == (repo.head.id, False, None)
    with pytest.raises(HfHubHTTPError, match="Invalid expand"):
        api.model_info(NAME, expand=["nonsense"])  # type: ignore[list-item]


def test_tree(api: HfApi) -> None:
    everything = {entry.path for entry in api.list_repo_tree(NAME, recursive=True)}
    assert everything == {*CONTENT, "1_Pooling", "onnx", "onnx/deep", "onnx/deep/er"}
    assert {entry.path for entry in api.list_repo_tree(NAME)} == {"1_Pooling", "config.json", WEIGHTS, "onnx"}
    assert [entry.path for entry in api.list_repo_tree(NAME, "onnx/deep")] == ["onnx/deep/er"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(NAME, "no/such"))


def test_tree_comes_in_pages(repo: Repo) -> None:
    with Hub(repo.root, {TOKEN: None}, page_size=3) as hub:
        api = HfApi(endpoint=hub.url, token=TOKEN)
        paths = [entry.path for entry in api.list_repo_tree(NAME, recursive=True)]
        assert len(paths) == len(set(paths)) == 8
        pages = hub.requests_for("*/tree/*")
        assert len(pages) == 3
        assert all(page.authorization_valid for page in pages)


def test_tree_expand_names_the_last_commit_of_a_file(api: HfApi, repo: Repo) -> None:
    first = repo.head.id
    second = repo.commit({"config.json": b"{}"}).id
    last = {
        file.path: file.last_commit.oid for file in api.list_repo_tree(NAME, expand=True) if file.last_commit
    }
    assert last == {"config.json": second, WEIGHTS: first}


def test_paths_info_refs_and_commits(api: HfApi, repo: Repo) -> None:
    repo.set_tag("v1", repo.head.id)
    repo.commit({"config.json": b"{}"}, title="second")
    assert {entry.path for entry in api.get_paths_info(NAME, ["config.json", "onnx", "none"])} == {
        "config.json",
        "onnx",
    }
    refs = api.list_repo_refs(NAME)
    assert [tag.name for tag in refs.tags] == ["v1"] and refs.branches[0].target_commit == repo.head.id
    assert [commit.title for commit in api.list_repo_commits(NAME)] == ["second", "initial commit"]


def test_whoami_and_auth_check(hub: Hub, api: HfApi) -> None:
    assert api.whoami()["name"] == "tester"
    api.auth_check(NAME)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_wrong")
    with pytest.raises(RepositoryNotFoundError):
        api.auth_check(NAME, token=OUTSIDER)


# --- refusals --------------------------------------------------------------------------------------------


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> tuple[int, str | None]:
    return error.value.response.status_code, error.value.response.headers.get("X-Error-Code")


@pytest.mark.parametrize("name", [NAME, "org/missing"])
def test_a_hidden_repository_looks_like_a_missing_one(api: HfApi, name: str) -> None:
    with pytest.raises(RepositoryNotFoundError) as outsider:
        api.model_info(name, token=OUTSIDER)
    assert status_of(outsider) == (404, "RepoNotFound")
    # To nobody the real hub says 401 without a code; huggingface_hub makes RepositoryNotFoundError of that
    # only where the URL begins with https (see the test with TLS).
    with pytest.raises(HfHubHTTPError, match="Invalid username or password") as anonymous:
        api.model_info(name, token=False)
    assert status_of(anonymous) == (401, None)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header") as wrong:
        api.model_info(name, token="hf_wrong")
    assert status_of(wrong) == (401, None)
    assert not isinstance(wrong.value, RepositoryNotFoundError)


def test_files_of_a_hidden_repository_are_refused(hub: Hub, tmp_path: Path) -> None:
    for token, expected in ((OUTSIDER, 404), (False, 401), ("hf_wrong", 401)):
        with pytest.raises(HfHubHTTPError) as error:
            hf_hub_download(NAME, "config.json", endpoint=hub.url, token=token, cache_dir=tmp_path)
        assert error.value.response.status_code == expected


def test_gated_shows_its_metadata_and_refuses_its_files(
    hub: Hub, api: HfApi, repo: Repo, tmp_path: Path
) -> None:
    repo.set_private(False)
    repo.set_gated("manual")
    assert api.model_info(NAME, token=False, files_metadata=True).gated == "manual"
    assert len(list(api.list_repo_tree(NAME, token=OUTSIDER))) == 4
    for token, expected in ((OUTSIDER, 403), (False, 401), ("hf_wrong", 401)):
        with pytest.raises(GatedRepoError) as error:
            hf_hub_download(NAME, WEIGHTS, endpoint=hub.url, token=token, cache_dir=tmp_path)
        assert status_of(error) == (expected, "GatedRepo")
    with pytest.raises(GatedRepoError, match="not in the authorized list"):
        api.auth_check(NAME, token=OUTSIDER)
    assert Path(hf_hub_download(NAME, WEIGHTS, endpoint=hub.url, token=TOKEN, cache_dir=tmp_path)).exists()


def test_public_is_for_everyone_but_wrong_tokens(api: HfApi, repo: Repo) -> None:
    repo.set_private(False)
    assert api.model_info(NAME, token=False).sha == api.model_info(NAME, token=OUTSIDER).sha == repo.head.id
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        api.model_info(NAME, token="hf_wrong")


@pytest.mark.parametrize("revision", ["no-such", NO_COMMIT, "x\r\nSet-Cookie: y", "é"])
def test_missing_revision(hub: Hub, api: HfApi, revision: str, tmp_path: Path) -> None:
    for call in (
        lambda: api.model_info(NAME, revision=revision),
        lambda: list(api.list_repo_tree(NAME, revision=revision)),
        lambda: hf_hub_download(
            NAME, WEIGHTS, revision=revision, endpoint=hub.url, token=TOKEN, cache_dir=tmp_path
        ),
    ):
        with pytest.raises(RevisionNotFoundError) as error:
            call()
        assert status_of(error) == (404, "RevisionNotFound")
        assert "set-cookie" not in error.value.response.headers


def test_a_squashed_commit_is_a_missing_revision(api: HfApi, repo: Repo) -> None:
    old = repo.head.id
    assert api.model_info(NAME, revision=old).sha == old
    repo.commit({"config.json": b"{}"})
    repo.squash()
    with pytest.raises(RevisionNotFoundError):
        api.model_info(NAME, revision=old)


@pytest.mark.parametrize("path", ["no.txt", "onnx", "%2e%2e/config.json"])
def test_missing_file(hub: Hub, path: str, tmp_path: Path) -> None:
    with pytest.raises(EntryNotFoundError) as error:
        hf_hub_download(NAME, path, endpoint=hub.url, token=TOKEN, cache_dir=tmp_path)
    assert error.value.response.headers["X-Error-Code"] == "EntryNotFound"  # type: ignore[attr-defined]


def test_tls(tmp_path: Path, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    made = make_certificate(tmp_path / "tls")
    with Hub(repo.root, {TOKEN: None}, cert=made.cert, key=made.key) as hub:
        assert hub.url.startswith("https://") and hub.cdn_url.startswith("https://")
        with pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
            HfApi(endpoint=hub.url, token=TOKEN).model_info(NAME)
        close_session()
        monkeypatch.setenv("SSL_CERT_FILE", str(made.authority))
        path = hf_hub_download(NAME, WEIGHTS, endpoint=hub.url, token=TOKEN, cache_dir=tmp_path / "cache")
        assert Path(path).read_bytes() == DATA
        with pytest.raises(RepositoryNotFoundError, match="Invalid username or password"):
            HfApi(endpoint=hub.url, token=False).model_info(NAME)


# --- files -----------------------------------------------------------------------------------------------


def test_snapshot_download_and_the_token_stays_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    folder = Path(snapshot_download(NAME, endpoint=hub.url, token=TOKEN, cache_dir=tmp_path))
    assert {path: (folder / path).read_bytes() for path in CONTENT} == CONTENT
    (sent,) = hub.requests_for(WEIGHTS, host="cdn")
    assert (sent.method, sent.status, sent.bytes_sent) == ("GET", 200, len(DATA))
    assert not sent.had_authorization and "authorization" not in sent.headers
    assert hub.token_leaks() == []
    assert all(request.authorization_valid for request in hub.requests(host="hub"))
    assert hub.bytes_sent(WEIGHTS) == len(DATA)
    hub.reset_log()
    assert hub.bytes_sent() == 0 and hub.requests() == []


def test_the_second_server_can_be_another_address(repo: Repo, tmp_path: Path) -> None:
    with Hub(repo.root, {TOKEN: None}, cdn_host="127.0.0.2") as hub:
        assert urlsplit(weights_url(hub)).hostname == "127.0.0.2"
        path = hf_hub_download(NAME, WEIGHTS, endpoint=hub.url, token=TOKEN, cache_dir=tmp_path)
        assert Path(path).read_bytes() == DATA
    with Hub(repo.root, {TOKEN: None}, name="hub.test", cdn_name="cdn.test") as hub:
        assert urlsplit(hub.url).hostname == "hub.test" and urlsplit(hub.cdn_url).hostname == "cdn.test"
    with Hub(repo.root, {TOKEN: None}, host="0.0.0.0", name="localhost") as hub:  # noqa: S104
        assert urlsplit(hub.cdn_url).hostname == "localhost"


@pytest.mark.control("hub-token")
def test_a_client_that_follows_with_its_token_is_caught(hub: Hub) -> None:
    # urllib sends every header to wherever it is redirected.
    request = urllib.request.Request(f"{hub.url}/{NAME}/resolve/main/{WEIGHTS}")  # noqa: S310
    request.add_header("Authorization", f"Bearer {TOKEN}")
    with pytest.raises(urllib.error.HTTPError) as error, urllib.request.urlopen(request):  # noqa: S310
        pass
    with error.value:
        assert error.value.code == 400 and b"Only one auth mechanism" in error.value.read()
    (leak,) = hub.token_leaks()
    assert leak.host == "cdn" and leak.status == 400 and leak.authorization_valid


@pytest.mark.control("hub-token")
def test_a_token_in_a_url_or_a_cookie_is_caught(hub: Hub) -> None:
    ask(f"{hub.url}/api/models/{NAME}?token={TOKEN}")
    ask(weights_url(hub), token=None, Cookie=f"session={TOKEN}")
    assert [leak.host for leak in hub.token_leaks()] == ["hub", "cdn"]


def test_the_log_never_holds_a_token(hub: Hub) -> None:
    ask(f"{hub.url}/api/models/{NAME}?token={TOKEN}", token="hf_wrong", X_Other=TOKEN)
    log = ask(f"{hub.url}/__log__", token=None).body.decode()
    assert TOKEN not in log and "hf_wrong" not in log
    (record,) = json.loads(log)
    assert record["had_authorization"] and not record["authorization_valid"] and record["token_elsewhere"]
    assert record["headers"]["authorization"] == record["headers"]["x-other"] == "***"
    assert TOKEN not in repr(Tokens({TOKEN: None}))


def test_headers_of_resolve(hub: Hub, repo: Repo) -> None:
    large = ask(f"{hub.url}/{NAME}/resolve/main/{WEIGHTS}", "HEAD")
    assert large.headers["X-Repo-Commit"] == repo.head.id and large.headers["X-Linked-Size"] == str(len(DATA))
    assert large.headers["X-Linked-Etag"] == f'"{hashlib.sha256(DATA).hexdigest()}"'
    assert ask(large.headers["Location"], "HEAD", None).headers["ETag"] != large.headers["X-Linked-Etag"]
    small = ask(f"{hub.url}/{NAME}/resolve/main/1_Pooling/config.json", "HEAD")
    assert small.status == 307 and small.headers["Location"].startswith("/api/resolve-cache/")
    reply = ask(hub.url + small.headers["Location"])
    assert (reply.status, reply.body, reply.headers["X-Repo-Commit"]) == (200, b"{}\n", repo.head.id)
    assert reply.headers["ETag"] == small.headers["X-Linked-Etag"]
    assert ask(hub.url + small.headers["Location"], token=None).status == 401


def test_signed_urls_expire_and_cannot_be_changed(hub: Hub) -> None:
    url = weights_url(hub)
    assert ask(url, token=None).body == DATA
    assert ask(url.replace("/lfs/", "/lfs/x/"), token=None).status == 403
    assert ask(url.replace("Expires=1", "Expires=2"), token=None).status == 403
    hub.url_seconds = -1
    late = ask(weights_url(hub), token=None)
    assert late.status == 403 and b"expired" in late.body


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=299990-", 299_990, 300_000),
        ("bytes=299990-999999", 299_990, 300_000),
        ("bytes=-7", 299_993, 300_000),
        ("bytes=-999999", 0, 300_000),
    ],
)
def test_ranges(hub: Hub, asked: str, start: int, stop: int) -> None:
    reply = ask(weights_url(hub), token=None, range=asked)
    assert (reply.status, reply.body) == (206, DATA[start:stop])
    assert reply.headers["Content-Range"] == f"bytes {start}-{stop - 1}/300000"
    assert reply.headers["Content-Length"] == str(stop - start)
    assert hub.requests(host="cdn")[-1].range == asked


@pytest.mark.parametrize("asked", ["bytes=300000-", "bytes=-0"])
def test_ranges_that_cannot_be_had(hub: Hub, asked: str) -> None:
    reply = ask(weights_url(hub), token=None, range=asked)
    assert (reply.status, reply.headers["Content-Range"]) == (416, "bytes */300000")


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=0-1,3-4", "lines=0-1", "bytes=-"])
def test_ranges_that_are_none_are_ignored(hub: Hub, asked: str) -> None:
    assert ask(weights_url(hub), token=None, range=asked).status == 200


def test_if_range(hub: Hub) -> None:
    url = weights_url(hub)
    etag = ask(url, "HEAD", None).headers["ETag"]
    assert ask(url, token=None, range="bytes=0-9", if_range=etag).status == 206
    other = ask(url, token=None, range="bytes=0-9", if_range='"another version"')
    assert (other.status, len(other.body)) == (200, len(DATA))


def test_a_server_without_ranges(repo: Repo) -> None:
    with Hub(repo.root, {TOKEN: None}, ranges=False) as hub:
        reply = ask(weights_url(hub), token=None, range="bytes=0-9")
        assert (reply.status, reply.body) == (200, DATA)
        assert "Accept-Ranges" not in reply.headers and "Content-Range" not in reply.headers


@pytest.mark.parametrize("with_token", [False, True], ids=["signed-url", "resolve-url"])
def test_hf_transfer_needs_the_signed_url(hub: Hub, tmp_path: Path, with_token: bool) -> None:
    """hf_transfer sends its headers to the redirect's target too: it must be given the signed URL, alone."""
    pytest.importorskip("hf_transfer")
    url = f"{hub.url}/{NAME}/resolve/main/{WEIGHTS}" if with_token else weights_url(hub)
    headers = {"authorization": f"Bearer {TOKEN}"} if with_token else {}
    # In a process of its own: it holds the interpreter's lock, so that no thread here could answer it.
    program = "import hf_transfer, json, sys; hf_transfer.download(**json.load(sys.stdin))"
    given = {
        "url": url,
        "filename": str(tmp_path / "out"),
        "max_files": 4,
        "chunk_size": 65536,
        "headers": headers,
    }
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(given), text=True, capture_output=True, timeout=60
    )
    if with_token:
        assert done.returncode != 0 and hub.token_leaks()
    else:
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out").read_bytes() == DATA
        assert len(hub.requests_for(WEIGHTS, host="cdn")) >= 5 and not hub.token_leaks()


# --- faults ----------------------------------------------------------------------------------------------


def test_corrupt_flips_one_bit_wherever_it_is_read(hub: Hub) -> None:
    url = weights_url(hub)
    hub.faults.add(Fault("corrupt", WEIGHTS, offset=1000))
    whole = ask(url, token=None).body
    assert len(whole) == len(DATA)
    assert [(i, a ^ b) for i, (a, b) in enumerate(zip(whole, DATA, strict=True)) if a != b] == [(1000, 1)]
    assert ask(url, token=None, range="bytes=900-1100").body != DATA[900:1101]
    assert ask(url, token=None, range="bytes=0-999").body == DATA[:1000]
    assert [request.faults for request in hub.requests(host="cdn")] == [("corrupt",), ("corrupt",), ()]
    hub.faults.clear()
    hub.faults.add(Fault("corrupt", WEIGHTS, offset=-1))
    assert ask(url, token=None).body[-1] == DATA[-1] ^ 1


@pytest.mark.control("wrong-bytes")
def test_huggingface_hub_does_not_notice_a_flipped_bit(hub: Hub, tmp_path: Path) -> None:
    hub.faults.add(Fault("corrupt", WEIGHTS))
    path = hf_hub_download(NAME, WEIGHTS, endpoint=hub.url, token=TOKEN, cache_dir=tmp_path)
    assert Path(path).read_bytes() != DATA


def test_short_and_extra_agree_with_their_content_length(hub: Hub) -> None:
    url = weights_url(hub)
    hub.faults.add(Fault("short", size=5, count=1), Fault("extra", size=7))
    both = ask(url, token=None)
    assert len(both.body) == int(both.headers["Content-Length"]) == len(DATA) + 2
    assert both.body.startswith(DATA[:-5] + b"\xee")
    extra = ask(url, token=None, range="bytes=0-9")
    assert (extra.status, extra.body) == (206, DATA[:10] + b"\xee" * 7)


def test_truncate_promises_more_than_it_sends(hub: Hub) -> None:
    hub.faults.add(Fault("truncate", size=100))
    with pytest.raises(http.client.IncompleteRead) as error:
        ask(weights_url(hub), token=None)
    assert error.value.partial == DATA[:-100] and error.value.expected == 100
    assert hub.bytes_sent(WEIGHTS, host="cdn") == len(DATA) - 100


def test_drop_resets_the_connection(hub: Hub) -> None:
    hub.faults.add(Fault("drop", offset=1000))
    with pytest.raises(ConnectionResetError):
        ask(weights_url(hub), token=None)
    assert hub.bytes_sent(WEIGHTS, host="cdn") == 1000


def test_files_are_sent_no_faster_than_is_said(hub: Hub) -> None:
    url, began = weights_url(hub), time.monotonic()
    hub.limit(200_000)
    assert ask(url, token=None).body == DATA
    least = (len(DATA) - 65_536) / 200_000 - 0.5  # all but the last piece, and what it may catch up with
    assert time.monotonic() - began >= least > 0
    assert hub.bytes_sent(WEIGHTS, host="cdn") == len(DATA) <= hub.passed


def test_content_range_lies(hub: Hub) -> None:
    url = weights_url(hub)
    hub.faults.add(Fault("content_range", size=3, count=1))
    assert "content_range" not in hub.requests()[-1].faults
    assert ask(url, token=None).status == 200, "only a 206 can lie so, and only that counts"
    lie = ask(url, token=None, range="bytes=10-19")
    assert (lie.body, lie.headers["Content-Range"]) == (DATA[10:20], "bytes 13-22/300000")
    assert ask(url, token=None, range="bytes=10-19").headers["Content-Range"] == "bytes 10-19/300000"


def test_html(hub: Hub, api: HfApi) -> None:
    url = weights_url(hub)
    hub.faults.add(Fault("html", WEIGHTS, host="cdn"))
    page = ask(url, token=None)
    assert page.status == 200 and page.body.startswith(b"<!DOCTYPE html>")
    assert api.model_info(NAME).sha, "the fault is for a file at the second server"


def test_status_with_count_and_retry_after(hub: Hub, api: HfApi) -> None:
    hub.faults.add(
        Fault("status", "*/tree/*", status=503, retry_after=0, count=1),
        Fault("status", "*/tree/*", status=429, count=1),
    )
    url = f"{hub.url}/api/models/{NAME}/tree/main"
    first, second, third = (ask(url) for _ in range(3))
    assert [first.status, second.status, third.status] == [503, 429, 200]
    assert (first.headers["Retry-After"], second.headers["Retry-After"]) == ("0", None)
    assert [request.faults for request in hub.requests()] == [("status",), ("status",), ()]
    hub.faults.add(Fault("status", "org/model/config.json", method="HEAD", status=500))
    url = f"{hub.url}/{NAME}/resolve/main/config.json"
    assert (ask(url, "HEAD").status, ask(url).status) == (500, 307)


def test_delay(hub: Hub) -> None:
    hub.faults.add(Fault("delay", seconds=0.3, count=1))
    started = time.monotonic()
    assert ask(f"{hub.url}/api/models/{NAME}").status == 200
    assert time.monotonic() - started >= 0.3
    assert hub.requests()[0].seconds >= 0.3


def test_loop(hub: Hub, api: HfApi) -> None:
    hub.faults.add(Fault("loop", "*/revision/*"))
    with pytest.raises(httpx2.TooManyRedirects):
        api.model_info(NAME, revision="main")
    assert (
        ask(f"{hub.url}/api/models/{NAME}/revision/main?x=1")
        .headers["Location"]
        .endswith("/revision/main?x=1")
    )


def test_down_closes_new_and_kept_connections(hub: Hub, api: HfApi) -> None:
    assert api.model_info(NAME).sha  # the client keeps this connection
    hub.faults.add(Fault("down", host="hub"))
    with pytest.raises(httpx2.TransportError):
        api.model_info(NAME)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(f"{hub.url}/api/models/{NAME}")
    assert ask(hub.cdn_url, token=None).status == 403, "the second server is up"
    hub.faults.clear()
    assert api.model_info(NAME).sha


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"kind": "nonsense"}, "unknown kind 'nonsense'"),
        ({"kind": "html", "file": "x"}, "no 'file'"),
        ({"kind": "html", "host": "moon"}, "unknown host"),
        ({"kind": "corrupt", "offset": "3"}, "offset must be a whole number"),
        ([3], "has no attribute"),
    ],
)
def test_bad_faults_are_refused(hub: Hub, raw: object, message: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        control(hub.url, "POST", "/__faults__", raw)
    with error.value:
        assert error.value.code == 400 and message in json.loads(error.value.read())["error"]
    assert hub.faults.as_json() == []


# --- the server as a program -----------------------------------------------------------------------------


def control(url: str, method: str, path: str, value: object = None) -> object:
    data = None if value is None else json.dumps(value).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, data, method=method)) as reply:  # noqa: S310
        return json.loads(reply.read())


def test_as_a_program_driven_by_another_process(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / WEIGHTS).write_bytes(DATA)
    token_file = tmp_path / "tokens"
    token_file.write_text(f"{TOKEN} org/model\n{OUTSIDER} org/other\n")
    command = [sys.executable, "-W", "error", "-m", "tests.servers.hub", "--root", str(tmp_path / "hub")]
    command += ["--token-file", str(token_file), "--repo", f"org/model={model}", "--cdn-host", "127.0.0.2"]
    top = Path(__file__).parents[2]
    with subprocess.Popen(
        command, cwd=top, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            fault: dict[str, Kind | int] = {"kind": "status", "status": 503, "count": 1}
            control(ready["control"], "POST", "/__faults__", fault)
            control(ready["control"], "POST", "/__faults__", [{"kind": "down", "host": "cdn"}])
            assert ask(f"{ready['url']}/api/models/org/model").status == 503
            assert HfApi(endpoint=ready["url"], token=TOKEN).model_info("org/model").private
            with pytest.raises(RepositoryNotFoundError):
                HfApi(endpoint=ready["url"], token=OUTSIDER).model_info("org/model")
            log = control(ready["control"], "GET", "/__log__")
            assert isinstance(log, list) and [entry["status"] for entry in log] == [503, 200, 404]
            assert control(ready["control"], "GET", "/__faults__") != []
            control(ready["control"], "DELETE", "/__faults__")
            control(ready["control"], "DELETE", "/__log__")
            path = hf_hub_download(
                "org/model", WEIGHTS, endpoint=ready["url"], token=TOKEN, cache_dir=tmp_path
            )
            assert Path(path).read_bytes() == DATA
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(10) == 0
            assert server.stderr is not None
            assert server.stderr.read() == ""
    assert TOKEN not in " ".join(command)


def test_a_defect_of_the_server_is_not_hidden(repo: Repo) -> None:
    hub = Hub(repo.root, {TOKEN: None})
    next(repo.root.glob("repos/*/*/repo.json")).write_text("{")
    assert ask(f"{hub.url}/api/models/{NAME}").status == 500
    with pytest.raises(AssertionError, match="JSONDecodeError"):
        hub.close()


def test_close_ends_kept_connections_and_frees_the_port(repo: Repo) -> None:
    hub = Hub(repo.root, {TOKEN: None})
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=5)
    connection.request("GET", "/api/whoami-v2")
    connection.getresponse().read()
    port = urlsplit(hub.url).port
    started = time.monotonic()
    hub.close()
    assert time.monotonic() - started < 4
    connection.close()
    with Hub(repo.root, {TOKEN: None}, port=port or 0) as again:
        assert urlsplit(again.url).port == port


def test_tiny_llama_is_a_model_with_a_chat_template(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    one, two = tiny_llama(tmp_path / "one"), tiny_llama(tmp_path / "two")
    for file in sorted(one.iterdir()):
        assert file.read_bytes() == (two / file.name).read_bytes(), file.name
    tokenizer = transformers.AutoTokenizer.from_pretrained(one)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<|user|>hi<|end|>"
    assert len(list(tiny_llama(tmp_path / "many", max_shard_size="100KB").glob("*.safetensors"))) > 1

"""fetch.py with addresses that were signed for a build, and with files that came with the build context."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.unit.images.test_fetch import PARALLEL, WEIGHTS, Bench

KEY = "SIGNATURE0123456789abcdef"
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "a/empty": b""}


class Store:
    """A server that has objects for those who know a signature in the URL, or a header."""

    def __init__(self) -> None:
        self.faults: dict[str, int] = {}
        self.asked: list[tuple[str, str | None]] = []
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                store.asked.append((path, self.headers["Range"]))
                allowed = query == f"sig={KEY}" or self.headers["Authorization"] == f"Bearer {KEY}"
                content = FILES.get(path.lstrip("/"), b"")
                status = store.faults.get(path, 200 if allowed else 403)
                if status != 200:
                    content = b"<Error>no</Error>"
                said = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
                total = len(content)
                if said and status == 200 and total:
                    start, end = int(said[1]), int(said[2] or total - 1) + 1
                    content, status = content[start:end], 206
                self.send_response(status)
                if status == 206:
                    self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{total}")
                self.send_header("ETag", '"one"')
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def addresses(self, **changes: Any) -> dict[str, dict[str, Any]]:
        signed: dict[str, dict[str, Any]] = {
            path: {"url": f"{self.url}/{path}?sig={KEY}", "headers": {}} for path in FILES
        }
        return {**signed, **changes}


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    made = Bench(tmp_path, store.url)
    made.token(None)
    made.want(FILES)
    return made


def tell(bench: Bench, files: Any, **changes: Any) -> None:
    document = {"schema": 1, "kind": "addresses", "name": "s3://models/x@abc", "files": files, **changes}
    (bench.secrets / "sources").write_text(json.dumps(document))


def made_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


class TestAddresses:
    @pytest.mark.parametrize("options", [(), PARALLEL])
    @pytest.mark.parametrize("signed", [True, False])
    def test_files_are_fetched_and_proved(
        self, bench: Bench, store: Store, options: tuple[str, ...], signed: bool
    ) -> None:
        header = {
            path: {"url": f"{store.url}/{path}", "headers": {"Authorization": f"Bearer {KEY}"}}
            for path in FILES
        }
        tell(bench, store.addresses() if signed else header)
        done = bench.run(*options)
        assert done.code == 0, done.text
        assert made_of(bench.destination) == FILES
        assert KEY not in done.text
        told = done.fetched()["model.safetensors"]
        assert told["source"] == "s3://models/x@abc"
        assert told["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
        # What needs a header is not handed to hf_transfer, which could carry it elsewhere.
        assert told["method"] == (("hf_transfer" if signed else "ranges") if options else "stream")

    def test_wrong_bytes_are_not_taken(self, bench: Bench, store: Store) -> None:
        bench.want({**FILES, "model.safetensors": WEIGHTS[:-1] + b"\0"})
        tell(bench, store.addresses())
        done = bench.run()
        assert done.code == 24 and "wrong bytes" in done.error["message"], done.text
        assert not made_of(bench.destination)

    @pytest.mark.parametrize(
        ("status", "code", "words"),
        [
            (403, 20, "has expired"),
            (400, 20, "has expired"),
            (404, 22, "no longer has the locked version"),
            (412, 22, "deleted or replaced"),
            (301, 23, "answered 301"),
        ],
    )
    def test_a_refusal_says_what_it_means(
        self, bench: Bench, store: Store, status: int, code: int, words: str
    ) -> None:
        store.faults["/config.json"] = status
        tell(bench, store.addresses())
        done = bench.run()
        assert done.code == code and words in done.error["message"], done.text
        assert "s3://models/x@abc" in done.error["message"] and KEY not in done.text

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"files": {}}, "at least one file"),
            ({"files": {"config.json": {"url": "file:///etc/passwd", "headers": {}}}}, "no http(s) address"),
            ({"files": {"config.json": {"url": "http://u:p@h/x", "headers": {}}}}, "no http(s) address"),
            ({"files": {"config.json": {"url": "http://h/x\n", "headers": {}}}}, "no http(s) address"),
            ({"files": {"config.json": {"url": "http://h/x", "headers": {"A": "b\nc"}}}}, "are none"),
            ({"files": {"config.json": {"url": "http://h/x"}}}, "are none"),
            ({"name": "a\nb"}, "name must be"),
        ],
    )
    def test_bad_addresses_are_told_without_them(
        self, bench: Bench, store: Store, changes: dict[str, Any], words: str
    ) -> None:
        tell(bench, **{"files": store.addresses(), **changes})
        done = bench.run()
        assert done.code == 27 and words in done.error["message"], done.text
        assert store.asked == []

    def test_one_server_is_asked(self, bench: Bench, store: Store) -> None:
        other = {"url": "http://127.0.0.1:9/x", "headers": {}}
        tell(bench, store.addresses(**{"config.json": other}))
        assert "more than one server" in bench.run().error["message"]

    def test_a_file_without_an_address(self, bench: Bench, store: Store) -> None:
        known = store.addresses()
        del known["config.json"]
        tell(bench, known)
        done = bench.run()
        assert done.code == 27 and "no address of this file" in done.error["message"]


class TestCarried:
    def carried(self, bench: Bench, files: dict[str, bytes]) -> tuple[str, ...]:
        folder = bench.manifest.parent / "carried"
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return ("--carried", str(folder))

    def test_files_are_taken_in_and_proved(self, bench: Bench, store: Store) -> None:
        (bench.secrets / "sources").unlink()  # nothing says where from, and nobody is asked
        done = bench.run(*self.carried(bench, FILES))
        assert done.code == 0, done.text
        assert made_of(bench.destination) == FILES
        assert {path.stat().st_mode & 0o777 for path in bench.destination.rglob("*") if path.is_file()} == {
            0o444
        }
        assert done.fetched()["config.json"]["method"] == "carried" and store.asked == []

    def test_wrong_missing_and_linked_files_are_refused(self, bench: Bench) -> None:
        options = self.carried(bench, {**FILES, "model.safetensors": WEIGHTS[:-1] + b"\0"})
        done = bench.run(*options)
        assert done.code == 24 and done.error["file"] == "model.safetensors"
        (bench.manifest.parent / "carried/model.safetensors").unlink()
        done = bench.run(*options)
        assert done.code == 22 and "did not come with the build context" in done.error["message"]
        (bench.manifest.parent / "carried/model.safetensors").symlink_to(bench.manifest)
        assert bench.run(*options).code != 0
        assert not made_of(bench.destination)

"""How files come into a repository: the calls of huggingface_hub's `create_repo` and `create_commit`.

    POST /api/repos/create                             a new repository, private or not
    POST /api/models/{repo}/preupload/{revision}       which files go through LFS
    POST /{repo}.git/info/lfs/objects/batch            where to put them, unless the storage has them
    PUT  (second server, signed URL)                   the bytes of one
    POST /api/models/{repo}/commit/{revision}          NDJSON: a header, small files, names of LFS files

Whoever may read a repository may write to it here; to be refused, ask for a fault. The real hub has parts for
large files and a check after them (`verify`), which this one asks for never, and a protocol of its own, Xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.servers.hub_api import Api, refuse
from tests.servers.hub_messages import Answer, Call, json_answer
from tests.servers.hub_repos import LFS_SUFFIXES, LFS_THRESHOLD, NAME, Repo


class Uploads:
    """Answers what changes something. `sign`: makes the URL for a repository's file, by its sha256."""

    def __init__(self, root: Path, api: Api, sign: Callable[[str, str], str]) -> None:
        self._root = root
        self._api = api
        self._sign = sign

    def answer(self, call: Call, base: str) -> Answer | None:
        """Answer a call, or return None where it is none of these; `base` is the URL of the hub."""
        match call.parts:
            case ["api", "repos", "create"] if call.method == "POST":
                return self._create(call, json.loads(call.body), base)
            case ["api", "models", org, name, "preupload", _] if call.method == "POST":
                self._api.open(call, f"{org}/{name}", content=True)
                return json_answer({"files": [_mode(file) for file in json.loads(call.body)["files"]]})
            case [org, git, "info", "lfs", "objects", "batch"] if call.method == "POST":
                return self._batch(call, f"{org}/{git.removesuffix('.git')}")
            case ["api", "models", org, name, "commit", revision] if call.method == "POST":
                return self._commit(call, f"{org}/{name}", revision, base)
        return None

    def store(self, call: Call, sha256: str) -> Answer:
        """Take the bytes of a file, if they are those that were announced."""
        if hashlib.sha256(call.body).hexdigest() != sha256:
            return Answer(400, {}, b"<Error><Code>BadDigest</Code></Error>")
        path = self._object(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(call.body)
        return Answer(200, {"ETag": f'"{hashlib.sha256(sha256.encode()).hexdigest()[:32]}"'})

    def _create(self, call: Call, asked: dict[str, Any], base: str) -> Answer:
        name = f"{asked['organization']}/{asked['name']}"
        if self._api.tokens.find(call.headers.get("authorization")) is None:
            raise refuse(401, "Invalid username or password.")
        if not NAME.fullmatch(name) or Repo(self._root, name).exists:
            raise refuse(409, "You already created this model repo")
        # As the hub does unless it is told otherwise: visible to everybody.
        private = asked.get("visibility") == "private" or asked.get("private") is True
        Repo.create(self._root, name, {".gitattributes": b"*.bin filter=lfs\n"}, private=private)
        return json_answer({"url": f"{base}/{name}", "name": name})

    def _batch(self, call: Call, name: str) -> Answer:
        self._api.open(call, name, content=True)
        objects = []
        for each in json.loads(call.body)["objects"]:
            told: dict[str, Any] = {"oid": each["oid"], "size": each["size"]}
            if not self._object(each["oid"]).exists():
                told["actions"] = {"upload": {"href": self._sign(name, each["oid"])}}
            objects.append(told)
        return json_answer({"transfer": "basic", "objects": objects})

    def _commit(self, call: Call, name: str, revision: str, base: str) -> Answer:
        repo = self._api.open(call, name, content=True)
        head = self._api.revision(repo, revision)
        lines = [json.loads(line) for line in call.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", head.id) != head.id:
            raise refuse(412, "A commit has happened since. Please refresh and try again.")
        changes: dict[str, bytes | Path | None] = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                stored = self._object(value["oid"])
                if not stored.exists():
                    raise refuse(400, f"LFS object {value['oid']} not found")
                changes[value["path"]] = stored
            else:
                raise refuse(400, f"unknown key {line['key']}")
        commit = repo.commit(changes, branch=revision, title=header["summary"])
        url = f"{base}/{name}/commit/{commit.id}"
        return json_answer({"commitUrl": url, "commitOid": commit.id, "success": True})

    def _object(self, sha256: str) -> Path:
        return self._root / "objects" / sha256[:2] / sha256


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    large = file["size"] >= LFS_THRESHOLD or Path(file["path"]).suffix in LFS_SUFFIXES
    return {
        "path": file["path"],
        "uploadMode": "lfs" if large else "regular",
        "shouldIgnore": False,
        "oid": None,
    }

"""The answers of the Hugging Face HTTP API, as the real hub words them, from repositories on disk.

Statuses, error codes and messages are those that huggingface_hub tells apart (`utils/_http.py`, in
`hf_raise_for_status`) and that the public hub was seen to send:

    who asks                  a repository that is missing or hidden         files of a gated, public one
    nobody (no token)         401, no code: "Invalid username or password."  401 GatedRepo
    a token the hub rejects   401, no code: "Invalid credentials in ..."     401 GatedRepo
    a token without access    404 RepoNotFound                               403 GatedRepo

    no such revision 404 RevisionNotFound       no such file 404 EntryNotFound
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlencode

from tests.servers.hub_log import Tokens
from tests.servers.hub_messages import Answer, Call, json_answer
from tests.servers.hub_repos import NAME, Commit, Repo, StoredFile

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="Authentication required", charset="UTF-8"'}


class RefusedError(Exception):
    """An answer that ends the handling of a call at once."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def refuse(
    status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
) -> RefusedError:
    """Make a refusal with the hub's error headers."""
    # The message may quote the request, and it goes into a header.
    message = "".join(letter if letter.isprintable() and letter.isascii() else "?" for letter in message)
    coded = {} if code is None else {"X-Error-Code": code}
    every = {**coded, "X-Error-Message": message, **(headers or {})}
    return RefusedError(json_answer({"error": message}, status, every))


class Api:
    """Answers calls to the API: `/api/...`."""

    def __init__(self, root: Path, tokens: Tokens, *, page_size: int) -> None:
        self.root = root
        self.tokens = tokens
        self.page_size = page_size

    def answer(self, call: Call, base: str) -> Answer:
        """Answer a call; `base` is the URL of the hub, for links.

        Raises:
            RefusedError: with the answer that says why not.
        """
        parts = call.parts
        if parts[:2] == ["api", "whoami-v2"]:
            return self._whoami(call)
        reading = call.method in {"GET", "HEAD"}
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            name, verb, rest = "/".join(parts[2:4]), parts[4] if len(parts) > 4 else "", parts[5:]
            if call.method == "POST" and verb == "paths-info" and rest:
                repo = self.open(call, name)
                return self._paths_info(call, repo, self.revision(repo, rest[0]))
            if reading and verb in {"", "revision"}:
                repo = self.open(call, name)
                return self._info(call, repo, self.revision(repo, rest[0] if rest else "main"))
            if reading and verb == "tree" and rest:
                repo = self.open(call, name)
                return self._tree(call, repo, self.revision(repo, rest[0]), "/".join(rest[1:]), base)
            if reading and verb == "refs":
                return self._refs(self.open(call, name))
            if reading and verb == "commits" and rest:
                repo = self.open(call, name, content=True)
                return self._commits(repo, self.revision(repo, rest[0]))
            if reading and verb == "auth-check":
                self.open(call, name, content=True)
                return json_answer({})
        raise refuse(404, "Sorry, we can't find the page you are looking for.")

    def open(self, call: Call, name: str, *, content: bool = False) -> Repo:
        """Return the repository if the caller may see it, and read its files if `content`.

        Raises:
            RefusedError: in the words of the module's table.
        """
        repo = Repo(self.root, name) if NAME.fullmatch(name) else None
        authorization = call.headers.get("authorization")
        token = self.tokens.find(authorization)
        gated = (
            f"Access to model {name} is restricted. You must have access to it and be authenticated to access"
            " it. Please log in."
        )
        found = repo is not None and repo.exists
        if authorization is not None and token is None:
            if repo is not None and found and repo.gated and not repo.private and content:
                raise refuse(401, gated, "GatedRepo", _CHALLENGE)
            raise refuse(401, "Invalid credentials in Authorization header", headers=_CHALLENGE)
        granted = self.tokens.may_read(token, name)
        if repo is None or not found or (repo.private and not granted):
            if token is None:
                raise refuse(401, "Invalid username or password.", headers=_CHALLENGE)
            raise refuse(404, "Repository not found", "RepoNotFound")
        if repo.gated and content and not granted:
            if token is None:
                raise refuse(401, gated, "GatedRepo", _CHALLENGE)
            raise refuse(
                403,
                f"Access to model {name} is restricted and you are not in the authorized list. Visit"
                f" https://huggingface.co/{name} to ask for access.",
                "GatedRepo",
            )
        return repo

    def revision(self, repo: Repo, revision: str) -> Commit:
        """Return the commit that a revision names, or refuse."""
        commit = repo.resolve(revision)
        if commit is None:
            raise refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def file(self, commit: Commit, path: str) -> StoredFile:
        """Return a file of a commit, or refuse."""
        file = commit.file(path)
        if file is None:
            raise refuse(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.id})
        return file

    def _whoami(self, call: Call) -> Answer:
        authorization = call.headers.get("authorization")
        if self.tokens.find(authorization) is None:
            message = (
                "Invalid username or password."
                if authorization is None
                else "Invalid credentials in Authorization header"
            )
            raise refuse(401, message, headers=_CHALLENGE)
        access = {"displayName": "modelbake", "role": "read"}
        return json_answer(
            {
                "type": "user",
                "id": "0" * 24,
                "name": "tester",
                "fullname": "Tester",
                "isPro": False,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": access},
            }
        )

    def _info(self, call: Call, repo: Repo, commit: Commit) -> Answer:
        blobs = call.query.get("blobs", ["false"])[0].lower() in {"true", "1"}
        created = list(repo.history(commit))[-1].date
        everything: dict[str, object] = {
            "author": repo.name.split("/")[0],
            "cardData": {},
            "config": {},
            "createdAt": created,
            "disabled": False,
            "downloads": 0,
            "downloadsAllTime": 0,
            "gated": repo.gated or False,
            "lastModified": commit.date,
            "library_name": "transformers",
            "likes": 0,
            "pipeline_tag": "feature-extraction",
            "private": repo.private,
            "sha": commit.id,
            "siblings": [_sibling(file, blobs) for file in commit.files],
            "spaces": [],
            "tags": [],
            "trendingScore": 0,
            "usedStorage": sum(file.size for file in commit.files),
        }
        wanted = call.query.get("expand", []) + call.query.get("expand[]", [])
        if unknown := sorted(set(wanted) - set(everything)):
            raise refuse(400, f"Invalid expand options: {', '.join(unknown)}")
        identity = {"_id": "0" * 24, "id": repo.name}
        if wanted:
            return json_answer({**identity, **{name: everything[name] for name in wanted}})
        return json_answer({**identity, "modelId": repo.name, **everything})

    def _tree(self, call: Call, repo: Repo, commit: Commit, folder: str, base: str) -> Answer:
        query = call.query
        recursive, expand = (
            query.get(name, ["False"])[0].lower() in {"true", "1"} for name in ("recursive", "expand")
        )
        prefix = f"{folder}/" if folder else ""
        if folder and folder not in commit.folders():
            raise refuse(404, f"{folder} does not exist on this revision", "EntryNotFound")
        entries = [
            entry
            for entry in self._entries(repo, commit, expand)
            if str(entry["path"]).startswith(prefix)
            and (recursive or "/" not in str(entry["path"])[len(prefix) :])
        ]
        limit = int(query.get("limit", [str(self.page_size)])[0])
        if cursor := query.get("cursor", [""])[0]:
            after = base64.urlsafe_b64decode(cursor).decode()
            entries = [entry for entry in entries if str(entry["path"]) > after]
        page, headers = entries[:limit], {"X-Repo-Commit": commit.id}
        if len(entries) > limit:
            following = {
                "recursive": str(recursive),
                "expand": str(expand),
                "limit": str(limit),
                "cursor": base64.urlsafe_b64encode(str(page[-1]["path"]).encode()).decode(),
            }
            headers["Link"] = f'<{base}{call.path}?{urlencode(following)}>; rel="next"'
        return json_answer(page, headers=headers)

    def _paths_info(self, call: Call, repo: Repo, commit: Commit) -> Answer:
        if call.headers.get("content-type", "").startswith("application/json"):
            raw = json.loads(call.body)
            paths, expand = raw["paths"], bool(raw.get("expand"))
        else:
            form = parse_qs(call.body.decode())
            paths, expand = form.get("paths", []), form.get("expand", ["False"])[0].lower() == "true"
        wanted = {path.rstrip("/") for path in paths}
        return json_answer(
            [entry for entry in self._entries(repo, commit, expand) if entry["path"] in wanted]
        )

    def _refs(self, repo: Repo) -> Answer:
        def listed(kind: str, refs: Mapping[str, str]) -> Sequence[Mapping[str, str]]:
            return [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}
                for name, commit in refs.items()
            ]

        return json_answer(
            {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []}
        )

    def _commits(self, repo: Repo, commit: Commit) -> Answer:
        return json_answer(
            [
                {
                    "id": one.id,
                    "title": one.title,
                    "message": "",
                    "date": one.date,
                    "authors": [{"user": "tester", "avatar": ""}],
                }
                for one in repo.history(commit)
            ]
        )

    def _entries(self, repo: Repo, commit: Commit, expand: bool) -> list[dict[str, object]]:
        """Return every file and folder of a commit in the form of the tree API, sorted by path."""
        entries: list[dict[str, object]] = [
            {"type": "directory", "oid": oid, "size": 0, "path": path}
            for path, oid in commit.folders().items()
            if path
        ]
        for file in commit.files:
            entry: dict[str, object] = {"type": "file", "oid": file.oid, "size": file.size, "path": file.path}
            if file.lfs:
                entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
            if expand:
                last = _last_change(repo, commit, file)
                entry["lastCommit"] = {"id": last.id, "title": last.title, "date": last.date}
            entries.append(entry)
        return sorted(entries, key=lambda entry: str(entry["path"]))


def file_headers(commit: Commit, file: StoredFile) -> dict[str, str]:
    """Return what every answer about a file says of it."""
    return {
        "X-Repo-Commit": commit.id,
        "X-Linked-Etag": f'"{file.etag}"',
        "X-Linked-Size": str(file.size),
        "ETag": f'"{file.etag}"',
    }


def _sibling(file: StoredFile, blobs: bool) -> dict[str, object]:
    if not blobs:
        return {"rfilename": file.path}
    sibling: dict[str, object] = {"rfilename": file.path, "size": file.size, "blobId": file.oid}
    if file.lfs:
        sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return sibling


def _last_change(repo: Repo, commit: Commit, file: StoredFile) -> Commit:
    """Return the newest commit that changed a file."""
    last = commit
    for one in repo.history(commit):
        if one.file(file.path) != file:
            break
        last = one
    return last

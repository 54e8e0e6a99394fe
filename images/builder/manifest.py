"""What to fetch (the manifest) and where from (the sources), checked before anything else happens.

Both are written by modelbake from a lock that was checked already. They are checked again, because this
program writes files as root wherever a manifest tells it to.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from events import Code, FetchError

PARTIAL_PREFIX = ".modelbake-partial-"  # names of files that are being written
_MAX_JSON = 64 << 20  # bytes; a manifest of 100,000 files has 20 MB
_MAX_PATH = 1024  # bytes of UTF-8
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
_REPO = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Entry:
    """A file of the manifest: its relative path, its size in bytes, its sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class HubSource:
    """A repository at one commit on a hub that speaks the Hugging Face HTTP API.

    `into`: the folder of the manifest that its files are in, "" for none.
    """

    endpoint: str
    repo: str
    commit: str
    into: str = ""

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.commit}"


@dataclass(frozen=True)
class StoreSource:
    """Files of a store at addresses that were signed for this build. URLs and headers are credentials.

    `endpoint`: scheme, host and port of all of them. `files`: URL and headers by path of the manifest.
    """

    endpoint: str
    name: str
    files: Mapping[str, tuple[str, Mapping[str, str]]] = field(repr=False)

    def __str__(self) -> str:
        return self.name


def read_manifest(path: Path) -> tuple[Entry, ...]:
    """Return the files of a manifest, sorted by path.

    Raises:
        FetchError: BAD_REQUEST, naming the entry and what is wrong with it.
    """
    raw = _read_object(path, "the manifest")
    files = raw.get("files")
    if not isinstance(files, list) or not files:
        raise _bad(f"{path}: `files` must be a list with at least one file")
    entries = [_entry(path, index, item) for index, item in enumerate(files)]
    _check_names(path, [entry.path for entry in entries])
    return tuple(sorted(entries, key=lambda entry: entry.path))


def read_sources(path: Path) -> HubSource | StoreSource:
    """Return where the files are.

    Raises:
        FetchError: BAD_REQUEST, naming the key and what is wrong with it.
    """
    raw = _read_object(path, "the secret `sources`")
    if raw.get("kind") == "addresses":
        return _store(path, raw)
    if raw.get("kind") != "hf":
        raise _bad(f"{path}: kind {raw.get('kind')!r} is not known; known: 'hf', 'addresses'")
    endpoint, repo, commit = (raw.get(key) for key in ("endpoint", "repo", "revision"))
    if not isinstance(endpoint, str) or not _is_endpoint(endpoint):
        raise _bad(f"{path}: endpoint must be http(s)://host[:port][/path] and nothing more")
    if not isinstance(repo, str) or not _REPO.fullmatch(repo) or ".." in repo:
        raise _bad(f"{path}: repo must be `name` or `org/name`, not {repo!r}")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise _bad(f"{path}: revision must be a commit of 40 hex digits, not {commit!r}")
    into = raw.get("into", "")
    if not isinstance(into, str) or (into and unsafe(into)):
        raise _bad(f"{path}: into must be a relative folder, not {into!r}")
    return HubSource(endpoint.rstrip("/"), repo, commit, into)


def _store(path: Path, raw: dict[str, object]) -> StoreSource:
    """Return a store; what is wrong with it is told without an address, which is a credential."""
    name, listed = raw.get("name"), raw.get("files")
    if not isinstance(name, str) or not name.isprintable():
        raise _bad(f"{path}: name must be printable text")
    if not isinstance(listed, dict) or not listed:
        raise _bad(f"{path}: files must be an object with at least one file")
    files: dict[str, tuple[str, Mapping[str, str]]] = {}
    endpoints = set()
    for file, each in listed.items():
        url = each.get("url") if isinstance(each, dict) else None
        headers = each.get("headers") if isinstance(each, dict) else None
        if not isinstance(url, str) or not _is_address(url):
            raise _bad(f"{path}: {file!r} has no http(s) address")
        if not isinstance(headers, dict) or not all(
            isinstance(value, str) and value.isprintable() and _HEADER.fullmatch(key)
            for key, value in headers.items()
        ):
            raise _bad(f"{path}: {file!r} has headers that are none")
        files[file] = url, headers
        endpoints.add("{0.scheme}://{0.netloc}".format(urlsplit(url)))
    if len(endpoints) > 1:
        raise _bad(f"{path}: the addresses are of more than one server")
    return StoreSource(endpoints.pop(), name, files)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        plain = _is_endpoint(f"{parts.scheme}://{parts.netloc}")
    except ValueError:
        return False
    return plain and url.isascii() and url.isprintable() and not set(url) & set(' \\"<>')


def _bad(message: str) -> FetchError:
    return FetchError(Code.BAD_REQUEST, message)


def _read_object(path: Path, what: str) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_JSON + 1)
    except OSError as error:
        raise _bad(f"cannot read {what} {path}: {error.strerror}") from error
    if len(data) > _MAX_JSON:
        raise _bad(f"{what} {path} has more than {_MAX_JSON} bytes")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _bad(f"{what} {path} is not JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("schema") != 1 or raw["schema"] is True:
        raise _bad(f'{what} {path} must be a JSON object with "schema": 1')
    return raw


def _entry(manifest: Path, index: int, raw: object) -> Entry:
    where = f"{manifest}: files[{index}]"
    if not isinstance(raw, dict) or set(raw) != {"path", "size", "sha256"}:
        raise _bad(f"{where} must have exactly the keys path, size and sha256")
    path, size, sha256 = raw["path"], raw["size"], raw["sha256"]
    if not isinstance(path, str) or (reason := unsafe(path)):
        raise _bad(
            f"{where}: {path!r} is not a safe path: {reason if isinstance(path, str) else 'no string'}"
        )
    if type(size) is not int or not 0 <= size < 1 << 53:
        raise _bad(f"{where} ({path}): size must be a whole number of bytes, not {size!r}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise _bad(f"{where} ({path}): sha256 must be 64 lower-case hex digits, not {sha256!r}")
    return Entry(path, size, sha256)


def unsafe(path: str) -> str:
    """Return why a path may not be written below a folder, or "" if it may."""
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "not Unicode text"
    parts = path.split("/")
    reasons = {
        f"longer than {_MAX_PATH} bytes": len(encoded) > _MAX_PATH,
        "a part is longer than 255 bytes": any(len(part.encode()) > 255 for part in parts),
        "absolute": path.startswith("/"),
        "has an empty part": "" in parts,
        "has a part `.` or `..`": "." in parts or ".." in parts,
        "has a part `.git`": any(part.lower() == ".git" for part in parts),
        "has a part that begins with `.wh.`": any(part.startswith(".wh.") for part in parts),
        "has a backslash": "\\" in path,
        "has a control character": any(unicodedata.category(char) == "Cc" for char in path),
        f"starts with {PARTIAL_PREFIX}": path.startswith(PARTIAL_PREFIX),
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def _check_names(manifest: Path, paths: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for path in paths:
        folded = unicodedata.normalize("NFC", path).casefold()
        if folded in seen:
            raise _bad(f"{manifest}: {path!r} and {seen[folded]!r} are the same name")
        seen[folded] = path
    for path in paths:
        parts = unicodedata.normalize("NFC", path).casefold().split("/")
        for length in range(1, len(parts)):
            if (parent := seen.get("/".join(parts[:length]))) is not None:
                raise _bad(f"{manifest}: {parent!r} is a file and also the folder of {path!r}")


def _is_endpoint(text: str) -> bool:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and not set(text) & set(" \\?#@")
    return plain and url.scheme in {"http", "https"} and bool(url.hostname) and port != 0

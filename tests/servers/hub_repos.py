"""Model repositories on disk, with the hashes that git and Git LFS give their files.

    ROOT/objects/<2 hex>/<sha256>              file contents, hard links to the originals where possible
    ROOT/repos/<org>/<name>/repo.json          visibility and refs: the only thing that ever changes
    ROOT/repos/<org>/<name>/commits/<id>.json  one immutable snapshot each

The hashes are git's own, so that a client which recomputes them gets the same: a small file has its blob
sha1, a Git LFS file has its sha256 and, as git object, its pointer file; folders and commits are hashed as
tree and commit objects. Commit dates come from a counter: the same contents always give the same commit.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

LFS_THRESHOLD = 10 * 1024 * 1024
# What the .gitattributes of a fresh model repository sends to LFS, whatever the size.
LFS_SUFFIXES = frozenset(
    {".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".ftz", ".gguf", ".gz", ".h5", ".joblib", ".mlmodel", ".model"}
    | {
        ".msgpack",
        ".npy",
        ".npz",
        ".onnx",
        ".ot",
        ".parquet",
        ".pb",
        ".pickle",
        ".pkl",
        ".pt",
        ".pth",
        ".rar",
    }
    | {".safetensors", ".tar", ".tflite", ".tgz", ".wasm", ".xz", ".zip", ".zst"}
)
COMMIT_ID = re.compile(r"[0-9a-f]{40}")
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?/[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_EPOCH = 1_700_000_000
_CHUNK = 1024 * 1024

Gate = Literal["auto", "manual"] | None
Content = Path | Mapping[str, bytes | Path]
Changes = Mapping[str, bytes | Path | None]


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit: `oid` is the git blob sha1, of the pointer file when `lfs`."""

    path: str
    size: int
    sha256: str
    oid: str
    lfs: bool

    @property
    def etag(self) -> str:
        """What the hub gives as (linked) ETag: sha256 for LFS files, the blob's sha1 for others."""
        return self.sha256 if self.lfs else self.oid

    @property
    def pointer_size(self) -> int:
        """Bytes of the Git LFS pointer file."""
        return len(lfs_pointer(self.sha256, self.size))


@dataclass(frozen=True)
class Commit:
    """An immutable snapshot; `files` is sorted by path, `date` is RFC 3339."""

    id: str
    parent: str | None
    title: str
    date: str
    files: tuple[StoredFile, ...]

    def file(self, path: str) -> StoredFile | None:
        """Return the file at `path`, or None."""
        return next((file for file in self.files if file.path == path), None)

    def folders(self) -> dict[str, str]:
        """Return every folder's path with its git tree sha1 (the root is '')."""
        trees: dict[str, str] = {}
        _hash_tree("", self.files, trees)
        return trees


def git_hash(kind: str, data: bytes) -> str:
    """Return the sha1 that git gives an object of this kind."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the pointer file that git stores in place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _hash_tree(prefix: str, files: Sequence[StoredFile], trees: dict[str, str]) -> str:
    """Return the sha1 of the tree object of `prefix`, noting it and every folder below it in `trees`."""
    entries: list[tuple[str, bytes]] = []
    below: dict[str, list[StoredFile]] = {}
    for file in files:
        head, slash, _ = file.path[len(prefix) :].partition("/")
        if slash:
            below.setdefault(head, []).append(file)
        else:
            entries.append((head, f"100644 {head}\0".encode() + bytes.fromhex(file.oid)))
    for name, inside in below.items():
        sha1 = _hash_tree(f"{prefix}{name}/", inside, trees)
        # git sorts a folder as if its name ended in a slash.
        entries.append((f"{name}/", f"40000 {name}\0".encode() + bytes.fromhex(sha1)))
    trees[prefix.removesuffix("/")] = git_hash("tree", b"".join(data for _, data in sorted(entries)))
    return trees[prefix.removesuffix("/")]


def _digest(path: Path) -> tuple[int, str, str]:
    """Return a file's size, sha256 and git blob sha1, in one pass."""
    size = path.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            blob.update(chunk)
    return size, sha256.hexdigest(), blob.hexdigest()


def _write_json(path: Path, value: object) -> None:
    """Write atomically: the server may be reading, in another process."""
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True))
    temporary.replace(path)


@functools.lru_cache(maxsize=256)
def _read_commit(path: Path) -> Commit:
    raw = json.loads(path.read_text())
    return Commit(**{**raw, "files": tuple(StoredFile(**file) for file in raw["files"])})


@dataclass(frozen=True)
class _State:
    """The contents of repo.json; `commits` counts every commit ever made."""

    private: bool
    gated: Gate
    branches: dict[str, str]
    tags: dict[str, str]
    commits: int


class Repo:
    """A model repository below `root`. Cheap to make: all state is on disk and read anew each time."""

    def __init__(self, root: Path, name: str) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"not a repository name (org/name): {name!r}")
        self.root = root
        self.name = name
        self._folder = root / "repos" / name

    @classmethod
    def create(
        cls, root: Path, name: str, content: Content, *, private: bool = True, gated: Gate = None
    ) -> Repo:
        """Make a repository whose branch `main` has one commit of `content` (a folder, or path -> bytes)."""
        repo = cls(root, name)
        (repo._folder / "commits").mkdir(parents=True)
        _write_json(repo._folder / "repo.json", asdict(_State(private, gated, {}, {}, 0)))
        repo.commit(content, title="initial commit")
        return repo

    @property
    def exists(self) -> bool:
        """Whether the repository has been created."""
        return (self._folder / "repo.json").is_file()

    @property
    def private(self) -> bool:
        """Whether only tokens that were given the repository see it."""
        return self._state().private

    @property
    def gated(self) -> Gate:
        """Whether, and how, people have to be let in before they can read files."""
        return self._state().gated

    @property
    def branches(self) -> dict[str, str]:
        """Branch name -> commit id."""
        return self._state().branches

    @property
    def tags(self) -> dict[str, str]:
        """Tag name -> commit id."""
        return self._state().tags

    @property
    def head(self) -> Commit:
        """The commit of branch `main`."""
        return self._load(self.branches["main"])

    def set_private(self, private: bool) -> None:
        """Hide the repository from everyone who was not given it, or show it to all."""
        self._update(private=private)

    def set_gated(self, gated: Gate) -> None:
        """Demand (or no longer demand) that people are let in before they can read files."""
        self._update(gated=gated)

    def set_branch(self, name: str, commit: str) -> None:
        """Point a branch at a commit, as a force push does."""
        self._update(branches={**self.branches, name: self._load(commit).id})

    def set_tag(self, name: str, commit: str) -> None:
        """Point a tag at a commit."""
        self._update(tags={**self.tags, name: self._load(commit).id})

    def commit(self, changes: Content | Changes, *, branch: str = "main", title: str = "update") -> Commit:
        """Add a commit and move `branch` to it.

        A mapping changes single files (None deletes one); a folder replaces everything. Files given as
        `Path`, and those of folders, are hard-linked: never change such a file in place afterwards. As with
        git, nothing happens where nothing changed.
        """
        parent = self.branches.get(branch) or self.branches.get("main")
        files = {file.path: file for file in self._load(parent).files} if parent else {}
        if isinstance(changes, Path):
            names = sorted(path for path in changes.rglob("*") if path.is_file())
            files = {}
            changes = {path.relative_to(changes).as_posix(): path for path in names}
        for path, data in changes.items():
            if data is None:
                del files[path]
            else:
                files[path] = self._store(path, data)
        sorted_files = tuple(files[path] for path in sorted(files))
        if parent and branch in self.branches and self._load(parent).files == sorted_files:
            return self._load(parent)
        return self._write_commit(sorted_files, parent, branch, title)

    def squash(self, branch: str = "main") -> Commit:
        """Replace the history of `branch` by one commit of the same files; the old commits are gone."""
        history = list(self.history(self._load(self.branches[branch])))
        squashed = self._write_commit(history[0].files, None, branch, "squash")
        for old in history:
            self.forget(old.id)
        return squashed

    def forget(self, commit: str) -> None:
        """Delete a commit and the tags that point at it, as the hub does some time after a force push."""
        self._update(tags={name: target for name, target in self.tags.items() if target != commit})
        (self._folder / "commits" / f"{commit}.json").unlink()

    def resolve(self, revision: str) -> Commit | None:
        """Return the commit that a branch, a tag, a full ref or a 40-hex id names, or None."""
        short = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        commit = self.branches.get(short) or self.tags.get(short) or revision
        if not COMMIT_ID.fullmatch(commit) or not (self._folder / "commits" / f"{commit}.json").is_file():
            return None
        return self._load(commit)

    def history(self, commit: Commit) -> Iterator[Commit]:
        """Yield the commit and its ancestors, newest first."""
        yield commit
        while commit.parent and (self._folder / "commits" / f"{commit.parent}.json").is_file():
            commit = self._load(commit.parent)
            yield commit

    def object_path(self, file: StoredFile) -> Path:
        """Return where the contents of `file` lie."""
        return self.root / "objects" / file.sha256[:2] / file.sha256

    def _store(self, path: str, data: bytes | Path) -> StoredFile:
        """Put contents into the object store and return what is known about them."""
        if isinstance(data, Path):
            size, sha256, blob = _digest(data)
        else:
            size, sha256, blob = len(data), hashlib.sha256(data).hexdigest(), git_hash("blob", data)
        lfs = size >= LFS_THRESHOLD or Path(path).suffix in LFS_SUFFIXES
        oid = git_hash("blob", lfs_pointer(sha256, size)) if lfs else blob
        stored = StoredFile(path=path, size=size, sha256=sha256, oid=oid, lfs=lfs)
        target = self.object_path(stored)
        if target.exists():
            return stored
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, bytes):
            target.write_bytes(data)
            return stored
        try:
            target.hardlink_to(data.resolve())
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(data, target)
        return stored

    def _write_commit(
        self, files: tuple[StoredFile, ...], parent: str | None, branch: str, title: str
    ) -> Commit:
        state = self._state()
        seconds = _EPOCH + 60 * state.commits
        lines = [f"tree {_hash_tree('', files, {})}", *([f"parent {parent}"] if parent else [])]
        lines += [f"{role} tester <tester@example.com> {seconds} +0000" for role in ("author", "committer")]
        commit = Commit(
            id=git_hash("commit", "\n".join([*lines, "", title, ""]).encode()),
            parent=parent,
            title=title,
            date=datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            files=files,
        )
        _write_json(self._folder / "commits" / f"{commit.id}.json", asdict(commit))
        self._update(branches={**state.branches, branch: commit.id}, commits=state.commits + 1)
        return commit

    def _state(self) -> _State:
        return _State(**json.loads((self._folder / "repo.json").read_text()))

    def _update(self, **changes: object) -> None:
        _write_json(self._folder / "repo.json", {**asdict(self._state()), **changes})

    def _load(self, commit: str) -> Commit:
        return _read_commit(self._folder / "commits" / f"{commit}.json")

"""How loose weights become a model: uploaded, read back, compared, and only then written down.

    folder --hash--> target --read back--> compare --> models.lock, models.yaml

Until the last step models.yaml and models.lock are as they were.
"""

from __future__ import annotations

import argparse
import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake import writing
from modelbake.adoption import config_with, content_with, require_new
from modelbake.config import config_of
from modelbake.errors import ConfigError, LockError, ModelbakeError, SourceError, WrongBytes
from modelbake.loose import LooseFile, duplicates, hash_files
from modelbake.sources.target import Target, open_target
from modelbake.weightpath import shown
from modelbake.yamlfile import parse_yaml
from modelbake.yamlinsert import entry_text

if TYPE_CHECKING:
    from modelbake.adoption import Adoption
    from modelbake.credentials import Secret
    from modelbake.locked import LockedModel
    from modelbake.output import Output
    from modelbake.workspace import Workspace

_TELLING = 1 << 28  # bytes: an upload tells how far it is after each of these


def rehearse(adoption: Adoption, token: Secret | None, output: Output, *, create: bool) -> None:
    """Print the entry, and for each file what would be done; ask the target, and change nothing."""
    digests = _hashed(adoption, output)
    target = open_target(adoption.source, token, create=create)
    try:
        missing = _missing(adoption, target, digests)
    finally:
        target.close()
    output.result(entry_text(adoption.spec.name, adoption.entry).rstrip("\n"))
    for file in adoption.files:
        output.result(
            f"{shown(file.path, 1024)} {digests[file.path]} {'upload' if file in missing else 'there'}"
        )
    for path in adoption.left_out:
        output.result(f"{shown(path, 1024)} - left out")


def adopt(
    adoption: Adoption,
    args: argparse.Namespace,
    token: Secret | None,
    workspace: Workspace,
    output: Output,
) -> None:
    """Upload, read back, write down. Raises before models.yaml or models.lock is touched.

    `args`: those of `secret_arguments` and `create`.
    """
    from modelbake.lock import read_lock
    from modelbake.verbs.lock import converted

    digests = _hashed(adoption, output)
    uploaded: list[str] = []
    before = [_bytes_of(each) for each in (workspace.file, workspace.lock_path)]
    try:
        target = open_target(adoption.source, token, create=args.create)
        try:
            _upload(adoption, target, digests, uploaded, output)
        finally:
            target.close()
        locked = _read_back(adoption, digests, token, output)
        name = adoption.spec.name
        with_it = workspace.with_config(config_with(workspace.file, adoption.registry, name, adoption.entry))
        # What is locked of these very pickles by this very converter is not converted again.
        known = read_lock(workspace.lock_path, replacing={name})
        [locked] = converted(args, [adoption.spec], [locked], known, with_it, output)
        _write(adoption, locked, workspace)
    except (ModelbakeError, KeyboardInterrupt):
        after = [_bytes_of(each) for each in (workspace.file, workspace.lock_path)]
        _unfinished(adoption, uploaded, output, untouched=before == after)
        raise
    for file in adoption.files:
        output.result(f"{shown(file.path, 1024)} {digests[file.path]} verified")


def _hashed(adoption: Adoption, output: Output) -> dict[str, str]:
    def say(file: LooseFile, sha256: str) -> None:
        output.event(
            "hashed",
            f"{shown(file.path)} ({file.size:,} bytes) sha256:{sha256[:12]}",
            file=file.path,
            bytes=file.size,
            sha256=sha256,
        )

    digests = hash_files(adoption.files, say)
    for text in set(duplicates(adoption.files, digests)) - set(adoption.remarks):
        output.event("remark", text, level="warning", model=adoption.spec.name)
    return digests


def _missing(adoption: Adoption, target: Target, digests: Mapping[str, str]) -> list[LooseFile]:
    """Return what has to be uploaded. Raises SourceError where anything else than these files is there."""
    there = target.there()
    ours = {file.path: file for file in adoption.files}
    other = [path for path in sorted(there) if path in ours and there[path].size != ours[path].size]
    other += [
        path
        for path in sorted(there)
        if path in ours and path not in other and there[path].sha256() != digests[path]
    ]
    if other:
        raise SourceError(
            f"has another content under {', '.join(map(shown, other[:5]))}; nothing is overwritten",
            subject=target.subject,
            hint="choose an address that holds nothing yet, such as one with the version at its end",
        )
    if strangers := sorted(there.keys() - ours.keys()):
        raise SourceError(
            f"holds what is not in the folder: {', '.join(map(shown, strangers[:5]))}",
            subject=target.subject,
            hint="the model would be made of these too: choose another address, or --exclude them",
        )
    return [file for file in adoption.files if file.path not in there]


def _upload(
    adoption: Adoption, target: Target, digests: Mapping[str, str], uploaded: list[str], output: Output
) -> None:
    missing = _missing(adoption, target, digests)
    if there := len(adoption.files) - len(missing):
        output.event(
            "there_already", f"{there} of {len(adoption.files)} files are at {target.subject} already"
        )
    for number, file in enumerate(missing, 1):
        name = f"{shown(file.path)} ({number} of {len(missing)}, {file.size:,} bytes)"
        output.event("uploading", f"uploading {name}", file=file.path, bytes=file.size)
        started = time.monotonic()
        with file.open(_progress(file, target.passes, output)) as content:
            target.upload(file.path, content, file.size, digests[file.path])
        file.require_unchanged()
        seconds = time.monotonic() - started
        rate = f", {file.size / seconds / 1e6:.0f} MB/s" if file.size > 1_000_000 and seconds else ""
        output.event("uploaded", f"uploaded {name}{rate}", file=file.path, seconds=round(seconds, 3))
        uploaded.append(file.path)
    target.finish()


class _progress:  # noqa: N801 - a function with a memory
    """Tell of an upload each time that a good deal of it is done."""

    def __init__(self, file: LooseFile, passes: int, output: Output) -> None:
        self._file, self._whole, self._output = file, max(1, file.size * passes), output
        self._read = 0

    def __call__(self, count: int) -> None:
        before, self._read = self._read, self._read + count
        if before // _TELLING != self._read // _TELLING and self._read < self._whole:
            part = self._read / self._whole
            self._output.event(
                "progress", f"{shown(self._file.path)}: {part:.0%}", file=self._file.path, part=round(part, 3)
            )


def _read_back(
    adoption: Adoption, digests: Mapping[str, str], token: Secret | None, output: Output
) -> LockedModel:
    """Lock the model as the source has it, with every byte read from there. Raises WrongBytes.

    What is locked of an earlier run is not believed: `resolve_all` is given an empty lock.
    """
    from modelbake.lock import Lock
    from modelbake.sources import reader_for, resolve_all

    locked = resolve_all([adoption.spec], Lock(), token, audit=output.audit)[0].locked
    found = {file.path: file.sha256 for file in locked.files}
    if adoption.source.kind == "hf":
        # A hub lists a sha256 of what it has in LFS: that is its word, and not these bytes.
        stop = threading.Event()
        reader = reader_for(locked, token, stop)
        try:
            for file in locked.files:
                digest = hashlib.sha256()
                for piece in reader.read(file):
                    digest.update(piece)
                if digest.hexdigest() != file.sha256:
                    raise _differs(adoption, file.path, digest.hexdigest(), file.sha256)
        finally:
            stop.set()
    for path in sorted(found.keys() | digests.keys()):
        if found.get(path) != digests.get(path):
            raise _differs(adoption, path, found.get(path, "nothing"), digests.get(path, "nothing"))
    for each in adoption.files:
        each.require_unchanged()
    return locked


def _differs(adoption: Adoption, path: str, there: str, here: str) -> WrongBytes:
    return WrongBytes(
        f"{shown(path)} is read back as {there}, and is {here} here",
        subject=f"{adoption.spec.name}: {adoption.source.source}",
        hint="keep the folder: it is the only good copy. Remove that file there, and run this again",
    )


def _write(adoption: Adoption, locked: LockedModel, workspace: Workspace) -> None:
    """Write models.lock and models.yaml: both, or neither. Raises LockError, ConfigError, DiskFull."""
    from modelbake.lock import exclusively, read_lock, update_lock, write_lock

    file, name, lock_path = workspace.file, adoption.spec.name, workspace.lock_path
    with exclusively(lock_path):
        # Read again: another run may have written its own models meanwhile.
        require_new(file, name, adoption.entry)
        content = content_with(file, adoption.registry, name, adoption.entry)
        config_of(parse_yaml(content, file))
        before = _bytes_of(lock_path)
        write_lock(lock_path, update_lock(read_lock(lock_path, replacing={name}), [locked]))
        if _bytes_of(file) == content:
            return
        try:
            writing.replace_file(file.resolve(), content)
        except BaseException as error:
            _restore(lock_path, before)
            if isinstance(error, OSError):
                raise ConfigError(f"cannot be written ({error.strerror})", subject=str(file)) from error
            raise


def _restore(path: Path, content: bytes | None) -> None:
    try:
        if content is None:
            path.unlink(missing_ok=True)
        else:
            writing.replace_file(path.resolve(), content)
    except OSError as error:
        raise LockError(f"cannot be put back ({error.strerror})", subject=str(path)) from error


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _unfinished(adoption: Adoption, uploaded: Sequence[str], output: Output, *, untouched: bool) -> None:
    names = ", ".join(map(shown, uploaded[:20])) or "nothing"
    more = f" and {len(uploaded) - 20} more" if len(uploaded) > 20 else ""
    files = "models.yaml and models.lock"
    state = f"{files} are as they were" if untouched else f"{files} have changed meanwhile: look at them"
    output.event(
        "not_adopted",
        f"not finished: keep {adoption.folder}. Uploaded by this run: {names}{more}. {state}; the same"
        " command goes on from here",
        level="warning",
        uploaded=list(uploaded),
    )

"""Convert pickled weights to safetensors, running nothing of what the pickles hold.

    python convert.py INSTRUCTIONS PICKLES OUTPUT

INSTRUCTIONS  {"schema": 1, "weights": {"pytorch_model.bin": "model.safetensors"},
               "indexes": {"pytorch_model.bin.index.json": "model.safetensors.index.json"}}
PICKLES       a folder; in each folder of it lie some of the files that the instructions name
OUTPUT        a folder: afterwards it has models/ with the converted files, and converted.json, which lists
              them as {"schema": 1, "files": [{"path", "size", "sha256"}]}

A pickle is read by torch with weights_only=True: it can name tensors and plain values, and whatever else it
asks for ends the program. The same pickles give the same bytes, by these rules:

  - A pickle holds a dictionary of tensors, or one under a name such as `state_dict` beside plain values,
    which are left out. What has tensors besides is ambiguous, and refused.
  - safetensors has no shared memory: tensors that overlap become copies. So no name is lost, and tied weights
    are in the file twice.
  - A tensor that is not contiguous becomes a contiguous one; names, shapes, dtypes and values stay.
  - An index names the new files, and its total_size is counted anew.

Output: see events.py. Exit codes: 0, or

     1  something unexpected                       27  the instructions are wrong
    26  the disk is full                           28  a file cannot be converted
                                                   130  interrupted

It needs torch, safetensors and numpy, and of the project the modules beside it. What it makes is locked with
a digest of this file, of state_dict.py and of requirements.converter.txt: there stands what decides about the
bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from events import Code, Events, FetchError
from manifest import unsafe
from state_dict import plain, read_tensors, refused, size_of, some
from tree import is_full

LISTED = "converted.json"

_MAX_JSON = 64 << 20  # bytes


@dataclass(frozen=True)
class Instructions:
    """Which file becomes which, by path: pickles, and the indexes of those that are in several parts."""

    weights: Mapping[str, str]
    indexes: Mapping[str, str]


@dataclass(frozen=True)
class Converted:
    """What a pickle held: the bytes of each tensor by its name."""

    tensors: Mapping[str, int]


def main(arguments: Sequence[str]) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(prog="convert.py", description="Convert pickles to safetensors.")
    parser.add_argument("instructions", type=Path, metavar="INSTRUCTIONS")
    parser.add_argument("pickles", type=Path, metavar="PICKLES")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    events = Events()
    try:
        convert(read_instructions(options.instructions), options.pickles, options.output, events)
        return 0
    except FetchError as known:
        error = known
    except KeyboardInterrupt:
        error = FetchError(Code.INTERRUPTED, "interrupted")
    except OSError as failure:
        code = Code.DISK_FULL if is_full(failure) else Code.UNEXPECTED
        error = FetchError(code, f"{failure.filename or 'a file'}: {failure.strerror or failure}")
    except Exception as failure:
        error = FetchError(Code.UNEXPECTED, f"unexpected {type(failure).__name__}: {plain(str(failure))}")
    events.error(error)
    return int(error.code)


def read_instructions(path: Path) -> Instructions:
    """Return what is to be converted. Raises FetchError: BAD_REQUEST, naming what is wrong."""
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FetchError(Code.BAD_REQUEST, f"cannot read {path}: {error}") from error
    if not isinstance(raw, dict) or set(raw) != {"schema", "weights", "indexes"} or raw["schema"] != 1:
        raise FetchError(Code.BAD_REQUEST, f'{path} must be {{"schema": 1, "weights", "indexes"}}')
    targets: list[str] = []
    for key in ("weights", "indexes"):
        named = raw[key]
        if not isinstance(named, dict) or not all(isinstance(each, str) for each in named.values()):
            raise FetchError(Code.BAD_REQUEST, f"{path}: {key} must map paths to paths")
        for each in (*named, *named.values()):
            if reason := unsafe(each):
                raise FetchError(Code.BAD_REQUEST, f"{path}: {each!r} is not a safe path: {reason}")
        targets += named.values()
    if len(set(targets)) != len(targets) or not raw["weights"]:
        raise FetchError(Code.BAD_REQUEST, f"{path} must name files to convert, each to a file of its own")
    return Instructions(raw["weights"], raw["indexes"])


def convert(instructions: Instructions, pickles: Path, output: Path, events: Events) -> None:
    """Convert all files and list them. Raises FetchError: NOT_CONVERTIBLE, naming the file and why."""
    models = output / "models"
    models.mkdir(parents=True)
    done: dict[str, Converted] = {}
    files: list[dict[str, object]] = []

    def list_file(source: str, path: str, tensors: int) -> None:
        size, sha256 = _facts(models / path)
        files.append({"path": path, "size": size, "sha256": sha256})
        message = f"{source} -> {path}: {tensors} tensors, {size:,} bytes"
        events.converted(file=path, source=source, bytes=size, sha256=sha256, message=message)

    for source, path in sorted(instructions.weights.items()):
        (models / path).parent.mkdir(parents=True, exist_ok=True)
        done[source] = _convert_pickle(source, _find(source, pickles), models / path, events)
        list_file(source, path, len(done[source].tensors))
    for source, path in sorted(instructions.indexes.items()):
        (models / path).parent.mkdir(parents=True, exist_ok=True)
        index = _convert_index(source, _find(source, pickles), instructions.weights, done)
        (models / path).write_bytes(index)
        list_file(source, path, len(json.loads(index)["weight_map"]))
    files.sort(key=lambda file: str(file["path"]))
    document = {"schema": 1, "files": files}
    (output / LISTED).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _find(source: str, pickles: Path) -> Path:
    found = [path for folder in sorted(pickles.iterdir()) if (path := folder / source).is_file()]
    if len(found) != 1:
        raise FetchError(Code.BAD_REQUEST, f"{source} is {len(found)} times below {pickles}", file=source)
    return found[0]


def _convert_pickle(source: str, path: Path, target: Path, events: Events) -> Converted:
    from safetensors.torch import save_file

    tensors, left_out = read_tensors(source, path)
    if left_out:
        events.note(f"left out, being no tensors: {some(left_out)}", file=source)
    try:
        save_file(dict(sorted(tensors.items())), target, metadata={"format": "pt"})
    except OSError:
        raise
    except Exception as error:
        raise refused(source, f"safetensors cannot hold it: {plain(str(error))}") from error
    return Converted({name: size_of(tensor) for name, tensor in tensors.items()})


def _convert_index(
    source: str, path: Path, weights: Mapping[str, str], done: Mapping[str, Converted]
) -> bytes:
    """Return the index of the converted parts; it has to name each tensor of theirs, and none besides."""
    content = path.read_bytes() if path.stat().st_size <= _MAX_JSON else b""
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise refused(source, f"it is not JSON, or has more than {_MAX_JSON} bytes") from error
    named = raw.get("weight_map") if isinstance(raw, dict) else None
    metadata = raw.get("metadata", {}) if isinstance(raw, dict) else None
    if not isinstance(named, dict) or not named or not isinstance(metadata, dict):
        raise refused(source, "it has no `weight_map`, so it is no index of weights")
    folder = source.rpartition("/")[0]
    mapped: dict[str, str] = {}
    total, parts = 0, set()
    for name, file in named.items():
        part = f"{folder}/{file}" if folder else str(file)
        if part not in done:
            raise refused(source, f"it names {plain(str(file))}, which is not among what is converted")
        if name not in done[part].tensors:
            raise refused(
                source, f"it says that {plain(name)!r} is in {plain(part)}, which has no such tensor"
            )
        mapped[name] = weights[part].rpartition("/")[2]
        total += done[part].tensors[name]
        parts.add(part)
    for part in sorted(parts):
        if missing := sorted(done[part].tensors.keys() - named.keys()):
            raise refused(source, f"it does not name {some(missing)} of {plain(part)}")
    document = {"metadata": {**metadata, "total_size": total}, "weight_map": mapped}
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _facts(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _terminate(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

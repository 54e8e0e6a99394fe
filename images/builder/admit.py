"""Take files that were made here into the weights, if they are the locked ones, byte for byte.

    python admit.py MANIFEST SOURCE DEST [--samples FOLDER]

MANIFEST  {"schema": 1, "files": [{"path", "size", "sha256"}]}: what is locked
SOURCE    the folder that has these files, and may have others
DEST      the folder; afterwards it holds exactly the manifest's files, as `fetch.py` leaves them
FOLDER    for a sample of each large file, see samples.py; there is none where no file is large

The bytes are hashed on their way, so that those which are compared are those which are kept. Output: see
events.py. Exit codes: 0, or

     1  something unexpected                       27  the manifest is wrong
    26  the disk is full                           29  other bytes than the locked ones
                                                   130  interrupted

It needs the standard library, and of the project the modules beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from events import Code, Events, FetchError
from manifest import Entry, read_manifest
from samples import write_samples
from tree import Destination, is_full

_CHUNK = 4 << 20  # bytes


def main(arguments: Sequence[str]) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(prog="admit.py", description="Take in locked files.")
    parser.add_argument("manifest", type=Path, metavar="MANIFEST")
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("destination", type=Path, metavar="DEST")
    parser.add_argument("--samples", type=Path, metavar="FOLDER", help="default: no samples are taken")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        admit(read_manifest(options.manifest), options.source, options.destination, options.samples)
        return 0
    except FetchError as known:
        error = known
    except KeyboardInterrupt:
        error = FetchError(Code.INTERRUPTED, "interrupted")
    except OSError as failure:
        code = Code.DISK_FULL if is_full(failure) else Code.UNEXPECTED
        error = FetchError(code, f"{failure.filename or 'a file'}: {failure.strerror or failure}")
    except Exception as failure:
        error = FetchError(Code.UNEXPECTED, f"unexpected {type(failure).__name__}: {failure}")
    Events().error(error)
    return int(error.code)


def admit(entries: Sequence[Entry], source: Path, folder: Path, samples: Path | None = None) -> None:
    """Copy the files of `entries` and compare them; write samples of the large ones where that is asked for.

    Raises:
        FetchError: OTHER_CONVERSION, naming the file that is missing or has other bytes.
        OSError: a file cannot be read or written.
    """
    with Destination(folder) as destination:
        try:
            for entry in entries:
                _take(entry, source / entry.path, destination)
            destination.seal(entries)
            if samples is not None:
                write_samples(samples, destination.samples(entries))
        except BaseException:
            destination.abandon()
            raise


def _take(entry: Entry, path: Path, destination: Destination) -> None:
    if not path.is_file():
        message = f"{entry.path} is locked, and the conversion does not give it"
        raise FetchError(Code.OTHER_CONVERSION, message, file=entry.path)
    sha256, size = hashlib.sha256(), 0
    partial = destination.begin()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            size += len(chunk)
            _write(partial.fd, chunk)
    if (found := sha256.hexdigest()) != entry.sha256 or size != entry.size:
        destination.discard(partial)
        raise FetchError(
            Code.OTHER_CONVERSION,
            f"{entry.path}: the conversion gives {size} bytes with sha256 {found},"
            f" locked are {entry.size} bytes with sha256 {entry.sha256}",
            file=entry.path,
            expected=entry.sha256,
            actual=found,
        )
    destination.place(partial, entry)


def _write(fd: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _terminate(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Fetch the files of a manifest from a hub, prove every byte, and leave a folder that holds exactly them.

    python fetch.py MANIFEST DEST [--samples FOLDER] [--carried FOLDER]

MANIFEST  {"schema": 1, "files": [{"path", "size", "sha256"}]}: what to fetch
DEST      the folder; afterwards files are 0444, folders 0555, everything root's and from 1970
--samples  for a sample of each large file, see samples.py; there is none where no file is large
--carried  where the files are already, as they came with the build context: nothing is fetched

Where to fetch from and with what right stands in files of the secrets folder (/run/secrets), where a
BuildKit secret mount is; nothing is taken from arguments or the environment:

    sources    {"schema": 1, "kind": "hf", "endpoint", "repo", "revision": "<commit>", "into"?}, or
               {"schema": 1, "kind": "addresses", "name", "files": {PATH: {"url", "headers"}}}
    hf_token   the hub's token; absent for public repositories
    ca_bundle  PEM certificates of a network's own authorities, trusted besides the system's; may be absent

Output: see events.py. Exit codes: 0, or

     1  something unexpected                       24  wrong bytes: size, sha256, or a file too many
    20  the token was refused (401, 403)           25  a token is needed, and none was given
    21  the repository is gated                    26  the disk is full
    22  no such repository, commit or file (404)   27  the manifest or the sources are wrong
    23  the hub cannot be reached, or keeps failing    130  interrupted

It needs huggingface_hub and hf_transfer, and nothing of the project but the modules beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from carried import take_in
from events import Code, Events, FetchError
from manifest import Entry, HubSource, StoreSource, read_manifest, read_sources
from samples import write_samples
from tree import Destination, is_full

if TYPE_CHECKING:
    from transfer import Transfer

_MAX_SECRET = 16 << 20  # bytes; CA bundles have some 300 kB
_TICK = 0.25  # seconds between two looks at the workers
_PARTING = 2.0  # seconds for the workers to end after a failure


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    manifest: Path
    destination: Path
    samples: Path | None
    carried: Path | None
    secrets: Path
    jobs: int
    connect: float
    read: float
    attempts: int
    patience: float
    grace: float
    ranges_from: int


def main(arguments: Sequence[str]) -> int:
    """Run the program; return its exit code."""
    request = _parse(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    events = Events()
    try:
        token = _read_token(request.secrets / "hf_token")
        events = Events([token] if token else [])
        with tempfile.TemporaryDirectory(prefix="modelbake-") as scratch:
            _isolate_huggingface_hub(Path(scratch))
            _fetch(request, token, Path(scratch), events)
    except FetchError as error:
        events.error(error)
        return int(error.code)
    except KeyboardInterrupt:
        events.error(FetchError(Code.INTERRUPTED, "interrupted"))
        return int(Code.INTERRUPTED)
    except OSError as error:
        events.error(_os_error(error))
        return int(_os_error(error).code)
    except Exception as error:
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else "?"
        events.error(FetchError(Code.UNEXPECTED, f"unexpected {type(error).__name__} at {place}: {error}"))
        return int(Code.UNEXPECTED)
    return 0


def _parse(arguments: Sequence[str]) -> Request:
    parser = argparse.ArgumentParser(
        prog="fetch.py", description="Fetch the files of a manifest from a hub and verify them."
    )
    parser.add_argument("manifest", type=Path, metavar="MANIFEST")
    parser.add_argument("destination", type=Path, metavar="DEST")
    parser.add_argument("--samples", type=Path, metavar="FOLDER", help="default: no samples are taken")
    parser.add_argument("--carried", type=Path, metavar="FOLDER", help="default: the files are fetched")
    parser.add_argument("--secrets", type=Path, default=Path("/run/secrets"), help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=4, help="files at once; default: %(default)s")
    parser.add_argument(
        "--connect-timeout", type=float, default=10, dest="connect", help="seconds; default: %(default)s"
    )
    parser.add_argument(
        "--read-timeout", type=float, default=60, dest="read", help="seconds; default: %(default)s"
    )
    parser.add_argument(
        "--attempts", type=int, default=6, help="for a file, in a row without progress; default: %(default)s"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=300,
        help="seconds of waiting between attempts, for a file; default: %(default)s",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=900,
        help="seconds for a file, and for the run, beside those that 50 KiB/s take; default: %(default)s",
    )
    parser.add_argument(
        "--ranges-from",
        type=int,
        default=16 << 20,
        help="bytes from which a file comes in parallel; default: %(default)s",
    )
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    return Request(**vars(options))


def _terminate(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _read_token(path: Path) -> str | None:
    """Return the token, or None if none was given. It never appears in a message."""
    try:
        token = _read_secret(path).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    if not token:
        return None
    if not token.isascii() or not token.isprintable() or " " in token:
        raise FetchError(Code.TOKEN_REFUSED, "the secret hf_token is no token: one line of printable ASCII")
    return token


def _read_secret(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_SECRET)


def _isolate_huggingface_hub(scratch: Path) -> None:
    """Set what huggingface_hub reads at import: no token of the environment, no telemetry, no caches."""
    for name in list(os.environ):
        if name.upper().startswith(("HF_", "HUGGING_FACE_", "HUGGINGFACE_")):
            del os.environ[name]
    os.environ |= {
        "HF_HOME": str(scratch),
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_VERBOSITY": "error",
    }


def _fetch(request: Request, token: str | None, scratch: Path, events: Events) -> None:
    entries = read_manifest(request.manifest)
    if request.carried is not None:
        with _tidying(Destination(request.destination), entries) as destination:
            take_in(request.carried, entries, destination, events)
            _finish(request, destination, entries)
        return
    source = read_sources(request.secrets / "sources")
    ca = request.secrets / "ca_bundle"
    authorities = _combine_authorities(ca, scratch / "ca.pem") if ca.exists() else None
    if token is not None and isinstance(source, HubSource) and source.endpoint.startswith("http://"):
        events.note(f"the token goes to {source.endpoint} without encryption")
    with _tidying(Destination(request.destination), entries) as destination:
        present = destination.present(entries)
        for path in sorted(present):
            events.note("already there, with the right sha256", file=path)
        wanted = [entry for entry in entries if entry.path not in present]
        _require_room(destination, wanted)
        _fetch_all(request, source, token, authorities, wanted, destination, events)
        _finish(request, destination, entries)


@contextlib.contextmanager
def _tidying(opened: Destination, entries: Sequence[Entry]) -> Iterator[Destination]:
    """Leave nothing behind of what does not come to its end; say how much a full disk would have needed."""
    with opened as destination:
        try:
            yield destination
        except BaseException as error:
            destination.abandon()
            if isinstance(error, OSError) and is_full(error):
                raise _full(destination, entries) from error
            raise


def _finish(request: Request, destination: Destination, entries: Sequence[Entry]) -> None:
    destination.seal(entries)
    if request.samples is not None:
        write_samples(request.samples, destination.samples(entries))


def _fetch_all(
    request: Request,
    source: HubSource | StoreSource,
    token: str | None,
    authorities: Path | None,
    entries: Sequence[Entry],
    destination: Destination,
    events: Events,
) -> None:
    """Fetch files, several at a time; the first error ends it."""
    # Imported only now, when the environment is as huggingface_hub shall find it.
    from hub import Hub
    from persistence import Limits, longest_run, too_slow
    from store import Store
    from transfer import Transfer

    if isinstance(source, StoreSource):
        hub: Hub = Store(source, ca=authorities, connect=request.connect, read=request.read)
    else:
        hub = Hub(source, token, ca=authorities, connect=request.connect, read=request.read)
    limits = Limits(request.attempts, request.patience, request.grace, request.read, request.ranges_from)
    stop = threading.Event()
    end_of_all = time.monotonic() + longest_run([entry.size for entry in entries], limits)
    waiting: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
    for entry in sorted(entries, key=lambda entry: (-entry.size, entry.path)):  # the longest way first
        waiting.put(Transfer(entry, hub, destination, events, limits, ca=authorities, stop=stop))
    active: dict[str, Transfer] = {}
    failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def work() -> None:
        while not stop.is_set():
            try:
                transfer = waiting.get_nowait()
            except queue.Empty:
                return
            active[transfer.entry.path] = transfer
            try:
                transfer.run()
            except BaseException as error:
                failures.put(error)
                return
            del active[transfer.entry.path]

    # Daemons: a thread that hangs in a read must not keep the program from ending.
    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(request.jobs, len(entries)))]
    try:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            with contextlib.suppress(queue.Empty):
                raise failures.get(timeout=_TICK)
            for transfer in list(active.values()):
                transfer.require_time()
            if time.monotonic() > end_of_all:
                raise too_slow()
            events.progress({path: (one.done, one.entry.size) for path, one in list(active.items())})
        with contextlib.suppress(queue.Empty):
            raise failures.get_nowait()
    finally:
        stop.set()
        # What they still write would be in the way of tidying up; one that hangs in a read writes nothing.
        end = time.monotonic() + _PARTING
        for worker in workers:
            worker.join(max(0.0, end - time.monotonic()))
    hub.close()


def _combine_authorities(ca: Path, combined: Path) -> Path:
    """Write the system's certificate authorities and the given ones to one file, and return it."""
    paths = ssl.get_default_verify_paths()
    system = Path(paths.cafile).read_bytes() if paths.cafile else b""
    given = _read_secret(ca)
    if b"-----BEGIN CERTIFICATE-----" not in given:
        raise FetchError(Code.BAD_REQUEST, "the secret ca_bundle holds no PEM certificate")
    combined.write_bytes(system + b"\n" + given)
    return combined


def _require_room(destination: Destination, entries: Sequence[Entry]) -> None:
    free = destination.free()
    if free is not None and sum(entry.size for entry in entries) > free:
        raise _full(destination, entries)


def _full(destination: Destination, entries: Sequence[Entry]) -> FetchError:
    free = destination.free()
    there = "" if free is None else f", {free} are free"
    return FetchError(
        Code.DISK_FULL,
        f"no room at {destination.path}: {sum(entry.size for entry in entries)} bytes are needed{there}",
    )


def _os_error(error: OSError) -> FetchError:
    code = Code.DISK_FULL if is_full(error) else Code.UNEXPECTED
    return FetchError(code, f"{error.filename or 'a file'}: {error.strerror or type(error).__name__}")


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(exit_code)

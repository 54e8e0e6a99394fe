"""The command line of the hub server: `python -m tests.servers.hub`; `hub` says how to use it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.servers import hub as hub_module
from tests.servers.hub import Hub, Repo


def _read_tokens(file: Path) -> dict[str, list[str] | None]:
    """Read a token file: `TOKEN` or `TOKEN org/name ...` a line."""
    lines = [line.split() for line in file.read_text().splitlines() if line.strip()]
    return {token: names or None for token, *names in lines}


def _fill(root: Path, given: Sequence[str], gated: Sequence[str]) -> None:
    """Make, or bring up to date, the repositories of `--repo org/name=FOLDER`."""
    for item in given:
        name, _, folder = item.partition("=")
        repo = Repo(root, name)
        if repo.exists:
            repo.commit(Path(folder))
        else:
            Repo.create(root, name, Path(folder))
    for name in gated:
        Repo(root, name).set_gated("manual")
        Repo(root, name).set_private(False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.servers.hub", description=(hub_module.__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the repositories")
    parser.add_argument(
        "--token-file", type=Path, required=True, help="a token a line, with its repositories"
    )
    parser.add_argument(
        "--repo", action="append", default=[], metavar="ORG/NAME=FOLDER", help="serve a folder"
    )
    parser.add_argument(
        "--gated", action="append", default=[], metavar="ORG/NAME", help="make it public, gated"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--name", help="host name in the hub's URL")
    parser.add_argument("--cdn-host", help="address that the second server listens on")
    parser.add_argument("--cdn-port", type=int, default=0)
    parser.add_argument("--cdn-name", help="host name in the second server's URLs")
    parser.add_argument("--cert", type=Path, help="PEM certificate chain: speak TLS")
    parser.add_argument("--key", type=Path, help="PEM private key")
    parser.add_argument("--page-size", type=int, default=1000, help="entries of a page of the tree API")
    parser.add_argument("--no-ranges", action="store_true", help="answer Range requests with everything")
    parser.add_argument("--url-seconds", type=float, default=3600, help="how long a signed URL is good for")
    parser.add_argument("--rate", type=float, metavar="BYTES", help="of files, a second, in all")
    options = parser.parse_args(arguments)
    _fill(options.root, options.repo, options.gated)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Hub(
        options.root,
        _read_tokens(options.token_file),
        host=options.host,
        port=options.port,
        name=options.name,
        cdn_host=options.cdn_host,
        cdn_port=options.cdn_port,
        cdn_name=options.cdn_name,
        cert=options.cert,
        key=options.key,
        page_size=options.page_size,
        ranges=not options.no_ranges,
        url_seconds=options.url_seconds,
    ) as hub:
        hub.limit(options.rate)
        ready = {"url": hub.url, "cdn": hub.cdn_url, "control": hub.start_control(), "pid": os.getpid()}
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        stop.wait()
    return 0

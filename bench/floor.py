"""The least that any publish can take: the same bytes, PUT from memory, digests known beforehand."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.measure import Failed


@dataclass(frozen=True)
class Blob:
    """A file in memory, and the sha256 that names it."""

    content: bytes
    sha256: str


def load(files: Sequence[tuple[Path, str]]) -> list[Blob]:
    """Read files (with their sha256) into memory."""
    return [Blob(path.read_bytes(), sha256) for path, sha256 in files]


def put_all(host: str, login: str, repository: str, blobs: Sequence[Blob]) -> float:
    """PUT every blob over a connection of its own, all at the same time; return the seconds it took."""
    problems: list[str] = []

    def put(blob: Blob) -> None:
        try:
            _put(host, login, repository, blob)
        except (OSError, http.client.HTTPException, Failed) as error:
            problems.append(str(error))

    threads = [threading.Thread(target=put, args=(blob,)) for blob in blobs]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    if problems:
        raise Failed(f"the registry did not take the bytes: {problems[0]}")
    return seconds


def _put(host: str, login: str, repository: str, blob: Blob) -> None:
    connection = http.client.HTTPConnection(host, timeout=600)
    headers = {"Authorization": f"Basic {login}"}
    try:
        connection.request("POST", f"/v2/{repository}/blobs/uploads/", b"", headers)
        reply = connection.getresponse()
        reply.read()
        place = urlsplit(reply.headers["Location"])
        connection.putrequest("PUT", f"{place.path}?{place.query}&digest=sha256:{blob.sha256}")
        for name, value in {**headers, "Content-Length": str(len(blob.content))}.items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.sock.sendall(blob.content)  # not `send`, which would cut it into small pieces
        reply = connection.getresponse()
        answer = reply.read()
        if reply.status != 201:
            raise Failed(f"HTTP {reply.status} {answer[:200]!r}")
    finally:
        connection.close()

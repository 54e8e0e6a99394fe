"""The connection below an HTTP response that the engine has upgraded: from then on it is a plain stream."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any

import requests


def hijack(response: requests.Response) -> tuple[Any, bytes]:
    """Take the connection below a response: (a socket-like object, non-blocking; bytes already read from it).

    The object is a socket, an SSL socket or a paramiko channel: it has recv, sendall, settimeout, fileno.
    The HTTP reader may have buffered bytes that follow the response's header; they are drained from it.
    """
    reader: Any = response.raw._fp.fp  # type: ignore[union-attr]
    sock = reader.channel if hasattr(reader, "channel") else reader.raw._sock
    sock.settimeout(0)
    early = bytearray()
    # One byte at a time: the reader returns it from its buffer, and blocks or fails only once that is empty.
    with suppress(BlockingIOError, TimeoutError, ssl.SSLWantReadError):
        while byte := reader.read(1):
            early += byte
    return sock, bytes(early)

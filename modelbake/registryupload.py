"""Uploads to a registry: one blob whose digest is known only at its end, or a copy of one that is known.

    POST blobs/uploads/ --> a session's address --PATCH the bytes--> PUT ?digest=...  (only now a blob exists)

A session that breaks is asked how far it came and goes on from there, where the registry can say so; else the
blob is begun anew. 429 and 5xx are waited out, 401 and 403 are not: those end it. Whatever goes wrong, the
session is cancelled, and no digest is committed.

Source: https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-blobs
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import httpx2

from modelbake.errors import (
    DiskFull,
    ModelbakeError,
    ReadBackMismatch,
    RegistryError,
    RegistryUnavailable,
)
from modelbake.manifest import Descriptor
from modelbake.registryhttp import ConnectionLost, registry_full
from modelbake.registryreply import Reply, retry_after, said, says_full

if TYPE_CHECKING:
    from modelbake.registry import Registry
    from modelbake.stream.flow import LayerFlow

_ATTEMPTS = 5  # in a row, without a byte more at the registry
_LONGEST_WAIT = 60.0  # seconds; a larger Retry-After is not waited out
_PROBE_BYTES = 1 << 20
_COMMIT_RATE = 20e6  # bytes a second at which a slow registry reads a blob again to check its digest
_ABSENT = "does the repository exist? Some registries want it created first"
_PASSING = frozenset({408, 429, 500, 502, 503, 504})


class _Lost(Exception):
    """What was sent may not have arrived; `after`: seconds to wait, as the registry says."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class Upload:
    """One upload session. `received`: the bytes that the registry has, as far as is known."""

    def __init__(self, registry: Registry, path: str, location: str) -> None:
        self._registry = registry
        self._path = path
        self._location = location
        self.received = 0

    @property
    def _scope(self) -> str:
        return f"repository:{self._path}:pull,push"

    def send(self, pieces: Iterator[bytes], size: int | None) -> None:
        """Send all that is left: `size` bytes, None where that is not known beforehand.

        Raises:
            _Lost: the connection broke, or the registry is busy: ask `find_out`.
            RegistryError: it refuses.
            DiskFull: it has no room for them.
        """
        if self.received and size == 0:
            return  # all of it has arrived, and registries refuse an empty range
        headers = {"Content-Type": "application/octet-stream"}
        if size is not None:
            headers["Content-Length"] = str(size)
            if self.received:
                headers["Content-Range"] = f"{self.received}-{self.received + size - 1}"
        try:
            reply = self._registry.transmit(
                "PATCH", self._location, scope=self._scope, headers=headers, content=pieces
            )
        except ConnectionLost as error:
            raise _Lost(str(error)) from error
        if says_full(reply):
            raise registry_full(self._subject, reply)
        if reply.status in _PASSING:
            raise _Lost(said(reply), retry_after(reply))
        if self.received and reply.status in (404, 416):
            raise _Lost(said(reply))  # it has given the session up since it told how far that is
        if reply.status not in (201, 202, 204):
            raise self._refused(reply, "would not take the bytes")
        self._location = reply.headers.get("Location", self._location)

    def find_out(self) -> bool:
        """Ask how much has arrived. False where the registry cannot tell: the session is lost."""
        try:
            reply = self._registry.ask("GET", self._location, scope=self._scope)
        except RegistryUnavailable:
            return False
        match = re.fullmatch(r"(?:bytes=)?0-(\d{1,19})", reply.headers.get("Range", ""))
        if reply.status not in (202, 204) or match is None:
            return False
        if match[1] == "0":
            return False  # none, or one byte: who knows; nothing is lost by beginning anew
        self.received = int(match[1]) + 1
        self._location = reply.headers.get("Location", self._location)
        return True

    def commit(self, digest: str, size: int) -> None:
        """Make what was sent the blob `digest`.

        Raises:
            _Lost: it is not known whether that happened.
            ReadBackMismatch: the registry has received other bytes.
        """
        try:
            url = httpx2.URL(self._location).copy_merge_params({"digest": digest})
        except httpx2.InvalidURL as error:
            raise RegistryError("named an address that is no URL", subject=self._subject) from error
        try:
            reply = self._registry.ask(
                "PUT",
                str(url),
                scope=self._scope,
                content=b"",
                attempts=1,  # where the answer is lost, a second one would be that there is no such session
                patience=60 + size / _COMMIT_RATE,
            )
        except RegistryUnavailable as error:
            raise _Lost(error.message, error.after) from error
        if reply.status == 400 and b"DIGEST_INVALID" in reply.body:
            raise ReadBackMismatch(
                f"the registry has received other bytes than were sent as {digest}", subject=self._subject
            )
        if reply.status not in (201, 204):
            raise self._refused(reply, "would not commit the blob")

    def cancel(self) -> None:
        """Give the session up; does not raise. What was sent is discarded."""
        with suppress(ModelbakeError):
            self._registry.ask("DELETE", self._location, scope=self._scope, attempts=1)

    @property
    def _subject(self) -> str:
        return f"{self._registry.host}/{self._path}"

    def _refused(self, reply: Reply, problem: str) -> RegistryError:
        hint = ""
        if reply.status == 413:
            hint = "the registry, or a proxy before it, limits the size of a layer or of a request"
        if reply.status == 404:
            hint = _ABSENT
        return RegistryError(f"the registry {problem} ({said(reply)})", subject=self._subject, hint=hint)


def open_upload(registry: Registry, path: str, *, mount: str = "", source: str = "") -> Upload | None:
    """Begin an upload session; with `mount`, ask for a blob of another repository first.

    Returns None when the blob could be mounted. Raises RegistryError.
    """
    scope = f"repository:{path}:pull,push"
    query = ""
    if mount:
        query = f"?mount={mount}&from={source}"
        scope += f" repository:{source}:pull"
    reply = registry.ask("POST", f"/v2/{path}/blobs/uploads/{query}", scope=scope, content=b"")
    if mount and reply.status == 201:
        return None
    location = reply.headers.get("Location", "")
    if reply.status != 202 or not location:
        raise RegistryError(
            f"the registry would not begin an upload ({said(reply)})",
            subject=f"{registry.host}/{path}",
            hint=_ABSENT if reply.status == 404 else "",
        )
    return Upload(registry, path, location)


def upload_flow(registry: Registry, path: str, flow: LayerFlow) -> None:
    """Upload a layer as it flows, for as long as it takes; see the module."""
    with _telling_size(flow.layer.size):
        _upload_flow(registry, path, flow)


def _upload_flow(registry: Registry, path: str, flow: LayerFlow) -> None:
    failures, furthest = 0, 0  # the most that the registry has ever said to have
    while True:
        upload = open_upload(registry, path)
        assert upload is not None
        try:
            while True:
                try:
                    upload.send(flow.read(upload.received), _left(flow.size, upload.received))
                    upload.commit(flow.digest, flow.sent)
                    _require(registry, path, flow)
                    return
                except _Lost as lost:
                    failures += 1
                    flow.require_wanted()
                    _wait(registry, path, lost, failures)
                    flow.require_wanted()
                    if _is_there(registry, path, flow):
                        return
                    if not flow.can_continue or not upload.find_out():
                        break  # begun anew
                    if upload.received > flow.sent:
                        raise ReadBackMismatch(
                            f"the registry says that it has {upload.received:,} bytes of {flow.sent:,} sent",
                            subject=f"{registry.host}/{path}",
                        ) from lost
                    if upload.received > furthest:
                        failures, furthest = 0, upload.received
        except BaseException:
            upload.cancel()
            raise
        upload.cancel()


def transfer_blob(
    registry: Registry, path: str, blob: Descriptor, pieces: Callable[[], Iterator[bytes]]
) -> None:
    """Upload a blob whose digest and size are known; `pieces` gives its bytes anew for each attempt."""
    with _telling_size(blob.size):
        _transfer_blob(registry, path, blob, pieces)


def _transfer_blob(
    registry: Registry, path: str, blob: Descriptor, pieces: Callable[[], Iterator[bytes]]
) -> None:
    failures = 0
    while True:
        upload = open_upload(registry, path)
        assert upload is not None
        try:
            upload.send(pieces(), blob.size)
            upload.commit(blob.digest, blob.size)
            return
        except BaseException as error:
            try:
                if not isinstance(error, _Lost):
                    raise
                failures += 1
                _wait(registry, path, error, failures)
                if registry.blob_size(path, blob.digest) == blob.size:
                    return
            finally:
                upload.cancel()


@contextmanager
def _telling_size(size: int, what: str = "this blob") -> Iterator[None]:
    """Add to a DiskFull how many bytes were to go there."""
    try:
        yield
    except DiskFull as error:
        error.message = f"{error.message}; {what} needs {size:,} bytes there"
        raise


def require_space(registry: Registry, path: str, size: int) -> None:
    """Raise DiskFull where the registry says that it is full, asked by an upload that is given up.

    `size`: the bytes, unpacked, of the image that could not be pushed.
    """
    with _telling_size(size, "the image, unpacked,"), suppress(RegistryError, _Lost):
        upload = open_upload(registry, path)
        assert upload is not None
        try:
            upload.send(iter((bytes(_PROBE_BYTES),)), _PROBE_BYTES)
        finally:
            upload.cancel()


def _left(size: int | None, received: int) -> int | None:
    return None if size is None else size - received


def _is_there(registry: Registry, path: str, flow: LayerFlow) -> bool:
    """Tell whether a commit whose answer was lost has happened nevertheless."""
    whole = flow.size is None or flow.sent == flow.size
    return whole and flow.sent > 0 and registry.blob_size(path, flow.digest) == flow.sent


def _require(registry: Registry, path: str, flow: LayerFlow) -> None:
    if (size := registry.blob_size(path, flow.digest)) != flow.sent:
        raise ReadBackMismatch(
            f"the registry took {flow.digest} with {flow.sent:,} bytes, and now says {size}",
            subject=f"{registry.host}/{path}",
        )


def _wait(registry: Registry, path: str, lost: _Lost, failures: int) -> None:
    delay = max(registry.first_wait * 2 ** (failures - 1), lost.after)
    if lost.after > _LONGEST_WAIT:
        raise RegistryUnavailable(
            f"asks to wait {lost.after:.0f} s ({lost}), which is not waited out",
            subject=f"{registry.host}/{path}",
            hint="run it again later: layers that are finished are not sent again",
        ) from lost
    if failures >= _ATTEMPTS or delay > _LONGEST_WAIT:
        raise RegistryUnavailable(
            f"the upload was lost again and again: {lost} ({failures} attempts without a byte more)",
            subject=f"{registry.host}/{path}",
            hint="run it again: layers that are finished are not sent again",
        ) from lost
    registry.sleep(delay)

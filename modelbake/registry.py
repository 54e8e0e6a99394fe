"""A small client of the registry API: manifests, tags, and whether a blob is there.

It trusts nothing it can compute: a manifest's digest comes from its bytes.

Source: https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from modelbake.errors import (
    DeleteRefused,
    ReadBackMismatch,
    RegistryAuthError,
    RegistryError,
    RegistryUnavailable,
)
from modelbake.manifest import MEDIA_TYPES, Manifest
from modelbake.registryhttp import RegistryConnection
from modelbake.registryreply import Reply, document_of, next_page, said

TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_PUT_TURNS = 3
_MOST_PAGES = 1000
_NO_DELETE = (400, 405, 409, 412, 501)  # 405 by the specification; immutable tags are refused with others
_NO_SUCH_ROUTE = (400, 404, 405)  # 404 by the specification; older registries answer the others as well


class Registry(RegistryConnection):
    """One registry, spoken to over a `RegistryConnection`: a context manager with the same arguments."""

    def ping(self) -> None:
        """Return if the registry answers and takes the credentials; raise a RegistryError otherwise."""
        reply = self.ask("GET", "/v2/", scope="")
        if reply.status != 200:
            raise self._refused(reply, "does not speak the registry API")

    def manifest(self, repository: str, reference: str) -> Manifest | None:
        """Return the manifest under a tag or digest, None where there is none.

        Raises ReadBackMismatch where its bytes have another digest than asked for, or than the registry says.
        """
        subject = f"{self.host}/{repository}{'@' if ':' in reference else ':'}{reference}"
        reply = self.ask(
            "GET",
            f"/v2/{repository}/manifests/{reference}",
            scope=f"repository:{repository}:pull",
            headers={"Accept": ", ".join(MEDIA_TYPES)},
        )
        if reply.status == 404:
            return None
        if reply.status != 200:
            raise self._refused(reply, "would not give the manifest", subject)
        media_type = reply.headers.get("Content-Type", "").partition(";")[0].strip()
        manifest = Manifest.of(media_type, reply.body)
        for who, digest in (
            ("it was asked for", reference if ":" in reference else None),
            ("the registry says", reply.headers.get("Docker-Content-Digest")),
        ):
            if digest is not None and digest != manifest.digest:
                raise ReadBackMismatch(
                    f"the manifest's bytes are {manifest.digest}, but {who} {digest}",
                    subject=subject,
                    hint="something between here and the registry, or the registry itself, changes content",
                )
        return manifest

    def put_manifest(self, repository: str, tag: str, manifest: Manifest) -> str:
        """Store the manifest's very bytes under a tag; return their digest."""
        self._put(repository, tag, manifest)
        return manifest.digest

    def delete_manifest(self, repository: str, digest: str) -> None:
        """Delete a manifest, and with it all tags that name it; one that is not there is deleted already.

        Raises DeleteRefused where the registry does not do that, or not for these credentials; the blobs stay
        until it collects its garbage.
        """
        subject = f"{self.host}/{repository}@{digest}"
        try:
            reply = self.ask(
                "DELETE",
                f"/v2/{repository}/manifests/{digest}",
                scope=f"repository:{repository}:pull,delete",
            )
        except RegistryAuthError as error:
            raise DeleteRefused(
                f"these credentials may not delete here: {error.message}",
                subject=subject,
                hint="give the account that prunes the right to delete; releases need none",
            ) from error
        if reply.status in _NO_DELETE:
            raise DeleteRefused(
                f"the registry does not delete ({said(reply)})",
                subject=subject,
                hint="allow it there (CNCF distribution: `storage: delete: enabled: true`; others: the"
                " repository's rules on immutable tags), or let the registry's own retention expire"
                " candidate-* tags",
            )
        if reply.status not in (200, 202, 204, 404):
            raise self._refused(reply, "would not delete the manifest", subject)
        if self.manifest(repository, digest) is not None:
            raise DeleteRefused("the registry says that it is deleted, and still has it", subject=subject)

    def put_referrer(self, repository: str, manifest: Manifest) -> bool:
        """Store a manifest that names a `subject`; tell whether the registry lists it by itself from now on.

        Source: "Pushing Manifests with Subject" of the specification.
        """
        return "OCI-Subject" in self._put(repository, manifest.digest, manifest).headers

    def _put(self, repository: str, reference: str, manifest: Manifest) -> Reply:
        subject = f"{self.host}/{repository}{'@' if ':' in reference else ':'}{reference}"
        for turn in range(_PUT_TURNS):
            reply = self.ask(
                "PUT",
                f"/v2/{repository}/manifests/{reference}",
                scope=f"repository:{repository}:pull,push",
                headers={"Content-Type": manifest.media_type},
                content=manifest.body,
            )
            # CNCF distribution says so where another run puts the same at this moment: it reads files of its
            # own that are written just now.
            if reply.status != 400 or b"DIGEST_INVALID" not in reply.body or turn == _PUT_TURNS - 1:
                break
            self.sleep(self.first_wait * 2**turn)
        if reply.status != 201:
            raise self._refused(reply, "would not take the manifest", subject)
        stored = reply.headers.get("Docker-Content-Digest", manifest.digest)
        if stored != manifest.digest:
            raise ReadBackMismatch(
                f"sent {manifest.digest}, but the registry stored {stored}", subject=subject
            )
        return reply

    def referrers(self, repository: str, digest: str, artifact_type: str = "") -> list[Any] | None:
        """Return what the registry lists as referring to a digest; None where it keeps no such lists.

        `artifact_type`: what is asked for; "" for everything.

        The descriptors are as the registry gives them, of other types as well: filtering is optional for it.
        """
        subject = f"{self.host}/{repository}@{digest}"
        found: list[Any] = []
        asked = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
        path: str | None = f"/v2/{repository}/referrers/{digest}{asked}"
        for page in range(_MOST_PAGES):
            if path is None:
                return found
            reply = self.ask("GET", path, scope=f"repository:{repository}:pull")
            if page == 0 and reply.status in _NO_SUCH_ROUTE:
                return None
            listed = document_of(reply.body).get("manifests")
            if reply.status != 200 or not isinstance(listed, list):
                raise self._refused(reply, "would not list what refers to the image", subject)
            found += listed
            path = next_page(reply)
        raise RegistryError(f"lists referrers on more than {_MOST_PAGES} pages", subject=subject)

    def blob_size(self, repository: str, digest: str) -> int | None:
        """Return the size of a blob in bytes as the registry says it, None where it has none."""
        subject = f"{self.host}/{repository}@{digest}"
        path = f"/v2/{repository}/blobs/{digest}"
        reply = self.ask("HEAD", path, scope=f"repository:{repository}:pull")
        if reply.status == 404:
            return None
        length = reply.headers.get("Content-Length", "")
        if reply.status != 200 or not re.fullmatch(r"[0-9]{1,18}", length):
            raise self._refused(reply, "would not say whether it has the blob, and its size", subject)
        return int(length)

    def read_blob(self, repository: str, digest: str) -> Iterator[bytes]:
        """Yield a blob's bytes as they come; whoever reads them compares the digest."""
        return self.download(f"/v2/{repository}/blobs/{digest}", scope=f"repository:{repository}:pull")

    def small_blob(self, repository: str, digest: str) -> Iterator[bytes]:
        """Yield a blob of a few MiB at once, asked for again while the registry is busy or breaks off."""
        reply = self.ask("GET", f"/v2/{repository}/blobs/{digest}", scope=f"repository:{repository}:pull")
        if reply.status != 200:
            raise self._refused(reply, "would not give the blob", f"{self.host}/{repository}@{digest}")
        yield reply.body

    def blob_part(self, repository: str, digest: str, start: int, size: int) -> bytes | None:
        """Return some bytes of a blob, None where the registry gives no parts of blobs or has none such."""
        try:
            reply = self.ask(
                "GET",
                f"/v2/{repository}/blobs/{digest}",
                scope=f"repository:{repository}:pull",
                headers={"Range": f"bytes={start}-{start + size - 1}"},
            )
        except (RegistryAuthError, RegistryUnavailable):
            raise
        except RegistryError:  # it begins to send all of the blob
            return None
        return reply.body if reply.status == 206 and len(reply.body) == size else None

    def tags(self, repository: str) -> list[str]:
        """Return the repository's tags, sorted; none where there is no such repository."""
        subject = f"{self.host}/{repository}"
        found: set[str] = set()
        path: str | None = f"/v2/{repository}/tags/list"
        for _ in range(_MOST_PAGES):
            if path is None:
                return sorted(found)
            reply = self.ask("GET", path, scope=f"repository:{repository}:pull")
            if reply.status == 404:
                return []
            listed = document_of(reply.body).get("tags", [])
            listed = [] if listed is None else listed  # what a registry answers when the last tag is gone
            if reply.status != 200 or not isinstance(listed, list):
                raise self._refused(reply, "would not list the tags", subject)
            named = [tag for tag in listed if isinstance(tag, str)]
            for tag in named:
                if not TAG.fullmatch(tag):  # it becomes part of an address, maybe of another registry's
                    raise RegistryError(f"lists {tag[:200]!r}, which is no tag", subject=subject)
            found.update(named)
            path = next_page(reply)
        raise RegistryError(f"lists tags on more than {_MOST_PAGES} pages", subject=subject)

    def _refused(self, reply: Reply, problem: str, subject: str = "") -> RegistryError:
        return RegistryError(f"the registry {problem} ({said(reply)})", subject=subject or self.host)

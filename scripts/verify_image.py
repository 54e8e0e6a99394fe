#!/usr/bin/env python3
"""Verifies that an image is signed, on hosts that have nothing but Python: one file, no packages, Python 3.9.

    verify_image.py --key cosign.pub registry.example.com/ml/minilm:1.4.2
    docker run "$(verify_image.py --key cosign.pub registry.example.com/ml/minilm:1.4.2)"

It asks the registry for the manifest, computes its digest, and looks for a signature by that key (ECDSA on
P-256, as ``cosign generate-key-pair`` makes keys) over a document that names this digest, under the tag where
cosign keeps signatures. Then it prints the image's reference by digest: use that, for a tag may move.

Exit codes: 0 signed; 1 not signed by this key; 2 wrong arguments, key or configuration; 3 no answer of the
registry that can be used.

Credentials are those of ``auths`` in the Docker configuration, as ``docker login`` writes them; credential
helpers are not asked. Plain HTTP is spoken to this machine alone. Transparency logs, certificates and the
bundles that cosign 3 writes by default are left to ``cosign verify`` and ``build.py verify``.

The arithmetic takes different times for different numbers. It has no secret to keep: all of it is public.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import http.client
import ipaddress
import json
import os
import re
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

# NIST P-256: https://www.secg.org/sec2-v2.pdf, 2.4.2
P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
A = P - 3
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
# What stands before the two coordinates in a public key of that curve: RFC 5480.
SPKI = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")

MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
KIND = "cosign container image signature"
LARGEST = 4 << 20  # bytes of any reply
MOST = 100  # signatures that are looked at
SECONDS = 60
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
NAME = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?")
WORD = re.compile(r"[\x21-\x7e]+")  # what a header may hold of a token
HUB, HUB_API, HUB_KEY = "docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"

Point = tuple[int, int]  # x and y; None at infinity


class Problem(Exception):
    """What is wrong, in words, and the exit code for it."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Unsigned(Problem):
    """The image is not signed by the key."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 1)


# --- ECDSA: https://www.secg.org/sec1-v2.pdf, 4.1.4 --------------------------------------------------


def on_curve(point: Point) -> bool:
    """Tell whether two coordinates are a point of the curve."""
    x, y = point
    return 0 <= x < P and 0 <= y < P and (y * y - x * x * x - A * x - B) % P == 0


def add(one: Point | None, other: Point | None) -> Point | None:
    """Return the sum of two points."""
    if one is None:
        return other
    if other is None:
        return one
    (x1, y1), (x2, y2) = one, other
    if x1 == x2:
        if (y1 + y2) % P == 0:
            return None
        slope = (3 * x1 * x1 + A) * pow(2 * y1, -1, P)
    else:
        slope = (y2 - y1) * pow(x2 - x1, -1, P)
    x = (slope * slope - x1 - x2) % P
    return x, (slope * (x1 - x) - y1) % P


def multiply(factor: int, point: Point) -> Point | None:
    """Return a multiple of a point."""
    total: Point | None = None
    power: Point | None = point
    while factor:
        if factor & 1:
            total = add(total, power)
        power = add(power, power)
        factor >>= 1
    return total


def parse_signature(der: bytes) -> tuple[int, int] | None:
    """Return r and s of a DER signature; None unless it is written in the one way that DER allows."""
    if len(der) < 8 or len(der) > 72 or der[0] != 0x30 or der[1] != len(der) - 2:
        return None
    numbers, rest = [], der[2:]
    for _ in range(2):
        if len(rest) < 3 or rest[0] != 0x02 or not 1 <= rest[1] <= min(33, len(rest) - 2):
            return None
        body, rest = rest[2 : 2 + rest[1]], rest[2 + rest[1] :]
        if body[0] & 0x80 or (body[0] == 0 and len(body) > 1 and not body[1] & 0x80):
            return None  # negative, or with a zero that is not needed
        numbers.append(int.from_bytes(body, "big"))
    return None if rest else (numbers[0], numbers[1])


def is_signed(key: Point, content: bytes, der: bytes) -> bool:
    """Tell whether a DER signature over the SHA-256 of a content is by the owner of a public key."""
    parsed = parse_signature(der)
    if parsed is None:
        return False
    r, s = parsed
    if not (0 < r < N and 0 < s < N):
        return False
    digest = int.from_bytes(hashlib.sha256(content).digest(), "big")
    inverse = pow(s, -1, N)
    point = add(multiply(digest * inverse % N, G), multiply(r * inverse % N, key))
    return point is not None and point[0] % N == r


def parse_key(pem: str) -> Point:
    """Return the public key of a PEM text. Raises Problem where it is none of P-256."""
    found = re.search(r"-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----", pem)
    try:
        der = base64.b64decode("".join(found[1].split()), validate=True) if found else b""
    except (binascii.Error, ValueError):
        der = b""
    point = (int.from_bytes(der[27:59], "big"), int.from_bytes(der[59:], "big"))
    if len(der) != 91 or not der.startswith(SPKI) or not on_curve(point):
        raise Problem("the key is no public key of P-256 in PEM form, as cosign.pub is", 2)
    return point


# --- the registry: https://github.com/opencontainers/distribution-spec -------------------------------


class Reference(NamedTuple):
    """An image's name in its parts; `reference` is a tag or a digest."""

    host: str
    path: str
    reference: str

    @property
    def name(self) -> str:
        """`host/path`."""
        return f"{self.host}/{self.path}"


def parse_reference(text: str) -> Reference:
    """Split an image's name by Docker's rules. Raises Problem."""
    rest, at, digest = text.partition("@")
    head, slash, tail = rest.rpartition("/")
    last, colon, tag = tail.partition(":")
    name = f"{head}{slash}{last}"
    first, slash, remainder = name.partition("/")
    if slash and (set(first) & set(".:") or first == "localhost"):
        host, path = first, remainder
    else:
        host, path = HUB, name if slash else f"library/{name}"
    wrong = (
        not HOST.fullmatch(host)
        or not NAME.fullmatch(path)
        or bool(colon and not TAG.fullmatch(tag))
        or bool(at and not DIGEST.fullmatch(digest))
    )
    if wrong:
        raise Problem(f"{text!r} is not an image's name: HOST/NAME:TAG or HOST/NAME@sha256:...", 2)
    return Reference(host, path, digest or tag or "latest")


def is_loopback(host: str) -> bool:
    """Tell whether `host[:port]` is this machine."""
    try:
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        if name == "localhost":
            return True
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def login_of(host: str) -> str | None:
    """Return `user:password` in base64 for a registry, as the Docker configuration has it. Raises Problem."""
    folder = os.environ.get("DOCKER_CONFIG") or str(Path.home() / ".docker")
    path = Path(folder) / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        auths = document.get("auths") or {}
        for key in (HUB_KEY,) if host == HUB else (host, f"https://{host}", f"https://{host}/v2/"):
            entry = auths.get(key)
            if isinstance(entry, dict) and isinstance(entry.get("auth"), str) and entry["auth"]:
                if not WORD.fullmatch(entry["auth"]):
                    raise ValueError
                return str(entry["auth"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, RecursionError):
        raise Problem(f"{path} cannot be read", 2) from None  # the parser's own words could quote it
    return None


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects without the credentials, and never from HTTPS to HTTP."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """Follow a redirect; where that cannot be done the answer is closed as well."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except BaseException:
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request that follows a redirect."""
        if req.type == "https" and not newurl.startswith("https://"):
            raise Problem(f"{req.host} redirects to an address without TLS", 3)
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and following.host != req.host:
            following.remove_header("Authorization")
        return following


class Registry:
    """Reads from one repository."""

    def __init__(self, reference: Reference, ca_file: str | None) -> None:
        api = HUB_API if reference.host == HUB else reference.host
        self.base = f"{'http' if is_loopback(api) else 'https'}://{api}/v2/{reference.path}"
        self.reference = reference
        self.login = login_of(reference.host)
        self.authorization: str | None = None
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise Problem(f"{ca_file} cannot be read as certificates ({error})", 2) from error
        handlers: list[Any] = [Redirects(), urllib.request.HTTPSHandler(context=context)]
        if is_loopback(api):
            handlers.append(urllib.request.ProxyHandler({}))
        self.opener = urllib.request.build_opener(*handlers)

    def manifest(self, reference: str) -> tuple[bytes, str] | None:
        """Return the bytes of a manifest and the digest that they have, None where there is none."""
        body = self._get(f"{self.base}/manifests/{reference}", {"Accept": ", ".join(MANIFESTS)})
        if body is None:
            return None
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if reference.startswith("sha256:") and reference != digest:
            raise Problem(f"the registry gives {digest} for {reference}", 3)
        return body, digest

    def blob(self, digest: str) -> bytes:
        """Return a small blob's bytes, which have this digest."""
        body = self._get(f"{self.base}/blobs/{digest}", {})
        if body is None or f"sha256:{hashlib.sha256(body).hexdigest()}" != digest:
            raise Problem(f"the registry does not have the bytes of {digest}", 3)
        return body

    def _get(self, url: str, headers: dict[str, str]) -> bytes | None:
        for turn in range(2):
            known = {"Authorization": self.authorization} if self.authorization else {}
            status, body, challenge = self._ask(url, {**headers, **known})
            if status == 200:
                return body
            if status == 404:
                return None
            if status != 401 or turn:
                break
            self.authorization = self._log_in(challenge)
        raise Problem(f"{self.reference.host} answers {status} to {url}", 3)

    def _ask(self, url: str, headers: dict[str, str]) -> tuple[int, bytes, str]:
        try:
            request = urllib.request.Request(url, headers=headers)  # noqa: S310 - HTTP and HTTPS alone
            with self.opener.open(request, timeout=SECONDS) as reply:
                body = reply.read(LARGEST + 1)
                if len(body) > LARGEST:
                    raise Problem(f"{url} has more than {LARGEST:,} bytes", 3)
                return reply.status, body, ""
        except urllib.error.HTTPError as error:
            with error:
                return error.code, b"", ", ".join(error.headers.get_all("WWW-Authenticate") or ())
        except (OSError, http.client.HTTPException) as error:
            raise Problem(f"{self.reference.host} cannot be read from ({error})", 3) from error
        except (ValueError, OverflowError):  # of an address
            raise Problem(f"{self.reference.host} cannot be asked: an address is malformed", 3) from None

    def _log_in(self, challenge: str) -> str:
        basic = f"Basic {self.login}" if self.login else None
        if not challenge.lower().startswith("bearer "):
            if basic is None:
                raise Problem(
                    f"{self.reference.host} asks for a password: docker login {self.reference.host}", 3
                )
            return basic
        facts = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        realm = facts.get("realm", "")
        host = realm.partition("://")[2].partition("/")[0]
        if not realm.startswith("https://") and not (realm.startswith("http://") and is_loopback(host)):
            raise Problem(f"{self.reference.host} names a token service without TLS", 3)
        asked = {"service": facts.get("service", ""), "scope": f"repository:{self.reference.path}:pull"}
        url = f"{realm}{'&' if '?' in realm else '?'}{urllib.parse.urlencode(asked)}"
        status, body, _ = self._ask(url, {"Authorization": basic} if basic else {})
        document = as_object(body)
        token = document.get("token") or document.get("access_token")
        if status != 200 or not isinstance(token, str) or not WORD.fullmatch(token):
            raise Problem(f"{host} gives no token for {self.reference.name} (HTTP {status})", 3)
        return f"Bearer {token}"


# --- what is signed ----------------------------------------------------------------------------------


def as_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that bytes are, an empty one for anything else."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def claimed(payload: bytes) -> str | None:
    """Return the digest of the image that a signed document is about, None where it is another document."""
    critical = as_object(payload).get("critical")
    if not isinstance(critical, dict) or critical.get("type") != KIND:
        return None
    image = critical.get("image")
    digest = image.get("docker-manifest-digest") if isinstance(image, dict) else None
    return digest if isinstance(digest, str) else None


def verify(registry: Registry, digest: str, key: Point) -> None:
    """Return if one of the signatures of a digest is by a key. Raises Unsigned, Problem."""
    found = registry.manifest(digest.replace(":", "-") + ".sig")
    if found is None:
        raise Unsigned(f"{digest} is not signed")
    layers = as_object(found[0]).get("layers")
    looked = 0
    for layer in layers[:MOST] if isinstance(layers, list) else ():
        if not isinstance(layer, dict) or layer.get("mediaType") != SIMPLE_SIGNING:
            continue
        notes, blob = layer.get("annotations"), layer.get("digest")
        text = notes.get(SIGNATURE) if isinstance(notes, dict) else None
        if not isinstance(text, str) or not isinstance(blob, str) or not DIGEST.fullmatch(blob):
            continue
        try:
            signature = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            continue
        payload = registry.blob(blob)
        looked += 1
        if claimed(payload) == digest and is_signed(key, payload, signature):
            return
    raise Unsigned(f"none of the {looked} signatures of {digest} is by this key and about this image")


def main(arguments: list[str]) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(
        description="Verify that an image is signed by a key, and print its reference by digest."
    )
    parser.add_argument("image", metavar="REF", help="HOST/NAME:TAG or HOST/NAME@sha256:...")
    parser.add_argument("--key", required=True, metavar="FILE", help="cosign.pub")
    parser.add_argument("--ca-file", metavar="FILE", help="PEM: the only authorities that are trusted")
    args = parser.parse_args(arguments)
    try:
        try:
            pem = Path(args.key).read_text(encoding="ascii", errors="replace")
        except OSError as error:
            raise Problem(f"{args.key} cannot be read ({error.strerror})", 2) from error
        key = parse_key(pem)
        reference = parse_reference(args.image)
        registry = Registry(reference, args.ca_file)
        found = registry.manifest(reference.reference)
        if found is None:
            raise Problem("there is no such image", 3)
        verify(registry, found[1], key)
    except Problem as problem:
        print(f"{args.image}: {problem}", file=sys.stderr)
        return problem.code
    print(f"{reference.name}@{found[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Keys and signatures, by the library that the toolkit uses and by the arithmetic of `verify_image.py`."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from modelbake.errors import SignatureError
from modelbake.release.publickey import parse_key, read_key
from tests.conftest import Tally
from tests.servers.environment import ROOT
from tests.servers.signed_images import MemoryKey
from tests.unit.release.malformed import ORDER, malformed, pair
from tests.unit.release.verifier import verify_image

CONTENT = b"what is signed"
Verify = Callable[[bytes, bytes, bytes], bool]


def by_library(pem: bytes, content: bytes, signature: bytes) -> bool:
    key = parse_key(pem, "test")
    assert key is not None
    return key.signed(content, signature)


def by_arithmetic(pem: bytes, content: bytes, signature: bytes) -> bool:
    signed: bool = verify_image.is_signed(verify_image.parse_key(pem.decode()), content, signature)
    return signed


@pytest.fixture(params=[by_library, by_arithmetic], ids=["library", "arithmetic"])
def verify(request: pytest.FixtureRequest) -> Verify:
    found: Verify = request.param
    return found


def test_a_signature_is_of_its_key_and_content(verify: Verify) -> None:
    key, other = MemoryKey.generate(), MemoryKey.generate()
    signature = key.sign(CONTENT)
    assert verify(key.public, CONTENT, signature)
    assert not verify(other.public, CONTENT, signature)
    assert not verify(key.public, CONTENT + b".", signature)


def test_both_take_the_same_good_signatures() -> None:
    for _ in range(12):
        key = MemoryKey.generate()
        signature = key.sign(CONTENT)
        assert by_library(key.public, CONTENT, signature)
        assert by_arithmetic(key.public, CONTENT, signature)


@pytest.mark.promise("signature")
def test_no_malformed_signature_is_taken(verify: Verify, tally: Tally) -> None:
    key = MemoryKey.generate()
    good = key.sign(CONTENT)
    assert verify(key.public, CONTENT, good)  # control
    tried = dict(malformed(good))
    assert len(tried) > 40
    tally.count(len(tried))
    assert [name for name, each in tried.items() if verify(key.public, CONTENT, each)] == []


@pytest.mark.control("signature")
def test_a_careless_verifier_takes_some_of_them() -> None:
    """Without a look at the range of r and s, and at what stands behind them."""
    key = MemoryKey.generate()
    good = key.sign(CONTENT)
    point = verify_image.parse_key(key.public.decode())
    digest = int.from_bytes(hashlib.sha256(CONTENT).digest(), "big")

    def careless(der: bytes) -> bool:
        try:
            r, s = decode_dss_signature(der.rstrip(b"\0"))
            inverse = pow(s, -1, ORDER)
        except ValueError:
            return False
        one = verify_image.multiply(digest * inverse % ORDER, verify_image.G)
        other = verify_image.multiply(r * inverse % ORDER, point)
        found = verify_image.add(one, other)
        return found is not None and found[0] % ORDER == r % ORDER

    assert careless(good)
    taken = {name for name, each in malformed(good) if careless(each)}
    assert taken >= {"r and the order", "s and the order", "bytes behind it"}


def test_the_other_s_is_taken_by_both(verify: Verify) -> None:
    """ECDSA has two signatures for each; it is no forgery, and nothing here is keyed by a signature."""
    key = MemoryKey.generate()
    r, s = decode_dss_signature(key.sign(CONTENT))
    assert verify(key.public, CONTENT, pair(r, ORDER - s))


def pem_of(key: Any) -> bytes:
    encoded: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def test_keys_of_other_kinds_are_left_to_cosign() -> None:
    others = (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048))
    for other in others:
        assert parse_key(pem_of(other), "test") is None
        with pytest.raises(verify_image.Problem, match="P-256"):
            verify_image.parse_key(pem_of(other).decode())


def test_what_is_no_public_key_is_said(tmp_path: Path) -> None:
    key = MemoryKey.generate()
    private = key.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path / "key.pub"
    for content, said in (
        (private, "private key"),
        (b"", "no public key"),
        (b"\xff\0" * 50, "no public key"),
    ):
        path.write_bytes(content)
        with pytest.raises(SignatureError, match=said) as raised:
            read_key(path)
        assert raised.value.hint
        with pytest.raises(verify_image.Problem):
            verify_image.parse_key(content.decode(errors="replace"))
    with pytest.raises(SignatureError, match="cannot be read"):
        read_key(tmp_path / "absent.pub")


def test_a_point_that_is_not_on_the_curve_is_no_key() -> None:
    import base64

    pem = MemoryKey.generate().public
    der = bytearray(base64.b64decode(b"".join(pem.splitlines()[1:-1])))
    der[-1] ^= 1
    broken = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(der) + b"\n-----END PUBLIC KEY-----\n"
    with pytest.raises(SignatureError):
        parse_key(broken, "test")
    with pytest.raises(verify_image.Problem, match="P-256"):
        verify_image.parse_key(broken.decode())


def test_the_program_is_one_file_of_the_standard_library_and_of_python_39() -> None:
    source = (ROOT / "scripts/verify_image.py").read_text()
    tree = ast.parse(source, feature_version=(3, 9))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [each.name for each in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= {*sys.stdlib_module_names}
    assert "match " not in source.replace("fullmatch ", "")

"""Secrets of every form, made up: they open nothing, and no scanner finds them here, in pieces."""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable

LETTERS = string.ascii_letters + string.digits
UPPER = string.ascii_uppercase + "234567"


def word(letters: str, count: int, seed: int = 1) -> str:
    return "".join(random.Random(seed).choices(letters, k=count))


def jwt() -> str:
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": "1234567890", "name": "nobody"})
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join((*coded, word(LETTERS, 43)))


def key(kind: str, line_break: str = "\n", header: str = "") -> str:
    lines = [
        f"-----BEGIN {kind}-----",
        *([header, ""] if header else []),
        *(word(LETTERS, 64, n) for n in (1, 2)),
    ]
    return line_break.join((*lines, f"-----END {kind}-----"))


PRIVATE = "PRIVATE " + "KEY"
SECRETS: dict[str, tuple[str, Callable[[], str]]] = {
    "hugging face": ("secret-huggingface", lambda: "hf" + "_" + word(string.ascii_letters, 34)),
    "hugging face, organisation": ("secret-huggingface", lambda: "api_" + "org_" + word(LETTERS, 34)),
    "aws id": ("secret-aws", lambda: "AK" + "IA" + word(UPPER, 16)),
    "aws temporary id": ("secret-aws", lambda: "AS" + "IA" + word(UPPER, 16)),
    "aws key": ("secret-aws", lambda: "aws_secret_access" + "_key = " + word(LETTERS + "/+", 40)),
    "aws key, json": ("secret-aws", lambda: '"SecretAccess' + 'Key": "' + word(LETTERS + "/+", 40) + '"'),
    "google api key": ("secret-gcp", lambda: "AI" + "za" + word(LETTERS, 35)),
    "google access token": ("secret-gcp", lambda: "ya" + "29." + word(LETTERS, 60)),
    "google service account": (
        "secret-gcp",
        lambda: json.dumps({"type": "service_account", "private_" + "key_id": word("0123456789abcdef", 40)}),
    ),
    "google client secret": ("secret-gcp", lambda: "GOC" + "SPX-" + word(LETTERS, 28)),
    "azure storage": ("secret-azure", lambda: "Account" + "Key=" + word(LETTERS + "+/", 86) + "=="),
    "azure bus": ("secret-azure", lambda: "SharedAccess" + "Key=" + word(LETTERS + "+/", 43) + "="),
    "azure signature": ("secret-azure", lambda: "?sv=2024-01-01&si" + "g=" + word(LETTERS, 43) + "%3D"),
    "azure client secret": ("secret-azure", lambda: "abc8" + "Q~" + word(LETTERS, 34)),
    "github": ("secret-github", lambda: "gh" + "p_" + word(LETTERS, 36)),
    "github server": ("secret-github", lambda: "gh" + "s_" + word(LETTERS, 36)),
    "github fine-grained": (
        "secret-github",
        lambda: "github" + "_pat_" + word(LETTERS, 22) + "_" + word(LETTERS, 59),
    ),
    "gitlab": ("secret-service", lambda: "gl" + "pat-" + word(LETTERS, 20)),
    "npm": ("secret-service", lambda: "npm" + "_" + word(LETTERS, 36)),
    "pypi": ("secret-service", lambda: "pypi" + "-AgEIcHlwaS5vcmc" + word(LETTERS, 80)),
    "slack": ("secret-service", lambda: "xo" + "xb-123456789012-123456789012-" + word(LETTERS, 24)),
    "stripe": ("secret-service", lambda: "sk" + "_live_" + word(LETTERS, 24)),
    "openai": ("secret-service", lambda: "sk-" + word(LETTERS, 20) + "T3Blbk" + "FJ" + word(LETTERS, 20)),
    "anthropic": ("secret-service", lambda: "sk-" + "ant-api03-" + word(LETTERS, 90)),
    "sendgrid": ("secret-service", lambda: "SG" + "." + word(LETTERS, 22) + "." + word(LETTERS, 43)),
    "docker hub": ("secret-service", lambda: "dckr" + "_pat_" + word(LETTERS, 27)),
    "bearer": ("secret-bearer", lambda: "Authorization: " + "Bearer " + word(LETTERS, 40)),
    "basic": ("secret-bearer", lambda: '"Authorization": "Bas' + "ic " + word(LETTERS, 40) + '=="'),
    "json web token": ("secret-bearer", jwt),
    "index url": (
        "secret-url",
        lambda: "https://user" + ":" + word(LETTERS, 24) + "@pypi.example.com/simple",
    ),
    "rsa key": ("secret-private-key", lambda: key("RSA " + PRIVATE)),
    "pkcs8 key": ("secret-private-key", lambda: key(PRIVATE)),
    "openssh key": ("secret-private-key", lambda: key("OPENSSH " + PRIVATE)),
    "encrypted key": ("secret-private-key", lambda: key("EC " + PRIVATE, header="Proc-Type: 4,ENCRYPTED")),
    "pgp key": ("secret-private-key", lambda: key("PGP " + PRIVATE + " BLOCK", header="Version: GnuPG v2")),
    "key in json": ("secret-private-key", lambda: json.dumps({"k": key(PRIVATE)})),
    "key, windows": ("secret-private-key", lambda: key("DSA " + PRIVATE, "\r\n")),
    "putty key": (
        "secret-private-key",
        lambda: "PuTTY-User-Key-" + "File-3: ssh-ed25519\nEncryption: none\n",
    ),
    "age key": ("secret-private-key", lambda: "AGE-SECRET-" + "KEY-1" + word(UPPER, 58)),
}

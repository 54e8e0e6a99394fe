"""What pip's output says went wrong, in one sentence and one exit code.

pip has no machine-readable errors: its words are matched, those of several versions. Whatever is passed on
has its URLs cut to their host, because an index's URL may hold a password.
"""

from __future__ import annotations

import re
from enum import IntEnum

_URL = re.compile(r"(?P<scheme>[a-z+]+://)(?:[^\s/@'\"<>]*@)?(?P<host>[^\s/?#'\"<>:,)]*)[^\s'\"<>,)]*", re.I)
SHOWN_LINES = 6  # of pip's errors, in a message nobody foresaw
# How versions of pip say that an index does not answer.
_NOT_REACHED = r"connection (?:broken by|error:)|Max retries exceeded|HTTP error 5\d\d|too many 5\d\d error"
_UNTRUSTED = r"certificate[_ ]verify[_ ]failed|confirming the ssl certificate"


class Code(IntEnum):
    """The exit codes."""

    UNEXPECTED = 1
    HASH = 30
    NOT_FOUND = 31
    UNREACHABLE = 32
    CERTIFICATE = 33
    DISK_FULL = 34
    USAGE = 35
    PYTHON = 36
    CREDENTIALS = 37
    INTERRUPTED = 130


class InstallError(Exception):
    """An error that ends the program; `package` is the one it is about."""

    def __init__(self, code: Code, message: str, *, package: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.package = package


def redact(text: str) -> str:
    """Return the text with each URL cut down to its host: user, password and path may be secret."""
    return _URL.sub(r"\g<scheme>\g<host>/...", text)


def diagnose(output: str) -> InstallError:
    """Return what pip's output says went wrong, in one sentence."""
    if "No space left on device" in output or "Disk quota exceeded" in output:
        return InstallError(Code.DISK_FULL, "the disk is full")
    if match := re.search(r"DO NOT MATCH THE HASHES.*?\n\s+(\S+).*?:\n(.*)", output, re.S):
        hashes = " ".join(re.findall(r"(?:Expected|or|Got)\s+(?:sha\d+ )?[0-9a-f]{32,}", match[2]))
        return InstallError(
            Code.HASH,
            f"{match[1]}: the index's bytes do not have the pinned hash: {' '.join(hashes.split())}",
            package=match[1],
        )
    if (
        "Hashes are required in --require-hashes mode" in output
        or "all requirements must have their" in output
    ):
        named = re.search(r"(?:missing from some requirements|pinned with ==).*?\n\s+(\S+)", output, re.S)
        package = named[1] if named else None
        return InstallError(
            Code.HASH, f"{package or 'a requirement'} is not pinned to a version and a hash", package=package
        )
    # pip reports an index that it could not ask as one that has no such package: look for the cause first.
    if untrusted := [line for line in output.splitlines() if re.search(_UNTRUSTED, line, re.I)]:
        return InstallError(
            Code.CERTIFICATE,
            f"{_host(untrusted[-1])}: the TLS certificate is not trusted; if the network has its own "
            "certificate authority, give its certificate as the secret ca_bundle",
        )
    if re.search(r"\b40[137] (?:Client )?Error|HTTP error 40[137]|Credentials not correct|User for ", output):
        return InstallError(
            Code.CREDENTIALS,
            f"{_host(output)}: the index refused the credentials, or needs some: give the secret index_url "
            "or pip_config",
        )
    wanted = re.search(r"No matching distribution found for (\S+)", output)
    if re.search(_NOT_REACHED, output):
        return InstallError(
            Code.UNREACHABLE,
            f"{_host(output)}: the package index cannot be reached",
            package=wanted[1] if wanted else None,
        )
    if wanted:
        versions = re.search(r"\(from versions: ([^)]*)\)", output)
        known = versions[1] if versions else "none"
        latest = ", ".join(known.split(", ")[-5:])
        return InstallError(
            Code.NOT_FOUND,
            f"{wanted[1]}: the index has no such version with a wheel for this Python and machine "
            f"(latest it has: {latest})",
            package=wanted[1],
        )
    if invalid := re.search(r"Invalid requirement: .*", output):
        return InstallError(Code.USAGE, redact(invalid[0]))
    errors = [line for line in output.splitlines() if line.startswith("ERROR")] or output.splitlines()
    return InstallError(Code.UNEXPECTED, redact("pip failed: " + " ".join(errors[-SHOWN_LINES:])))


def _host(output: str) -> str:
    """Return the host that a failure was about, if pip named it."""
    match = re.search(r"(?:host='|https?://(?:[^\s/@]*@)?)([A-Za-z0-9.-]+)", output)
    return match[1] if match else "the package index"

"""The cosign program: found, and run such that it learns no more than it needs.

It gets an environment of its own, the credentials of one registry in a private Docker configuration that is
gone afterwards, and a key's password on its standard input: in no argument, no environment and on no disk.
What it needs for a key in a cloud, or for an identity of a CI job, it gets only where such a one is meant.

What a version of it can do is read from its own help: distributions build it without a version number.

    cosign 2   Debian 13 has 2.5.0
    cosign 3   writes another format by default; it is asked for the one that both read

Sources: https://github.com/sigstore/cosign/tree/main/doc, https://github.com/sigstore/cosign/blob/main/CHANGELOG.md
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from modelbake.certsd import certificates_of
from modelbake.dockerconfig import RegistryAuth, auths_entry
from modelbake.errors import SignatureError, UsageError
from modelbake.process import environment
from modelbake.registryauth import in_clear, is_loopback
from modelbake.trust import VARIABLE as CA_BUNDLE
from modelbake.writing import memory_folder, private_folder

if TYPE_CHECKING:
    from modelbake.credentials import Redactor, Secret

PROGRAM = "MODELBAKE_COSIGN"
UNLOCKS, UNLOCKS_BY_FILE = "COSIGN_PASSWORD", "MODELBAKE_SIGNING_PASSWORD_FILE"  # the private key
_SECONDS = 300.0
_KEPT = re.compile(
    r"PATH|HOME|USER|LOGNAME|TMPDIR|LANG|LC_\w+|SSL_CERT_DIR|(?:HTTPS?|ALL|NO)_PROXY|(?:https?|all|no)_proxy"
)
# What keys in clouds, and identities of CI jobs, are asked for with.
_CLOUD = re.compile(
    r"(?:AWS|AZURE|GOOGLE|CLOUDSDK|VAULT|TRANSIT_SECRET_ENGINE|KUBE|KUBERNETES|SIGSTORE|TUF|ACTIONS_ID_TOKEN)\w*"
    r"|GITHUB_ACTIONS|BUILDKITE\w*|COSIGN_(?!PASSWORD)\w+"
)
# Where systems keep their authorities in one file: those that Go's crypto/x509 looks at.
_SYSTEM_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_INSTALL = f"install cosign (Debian 13: `apt-get install cosign`), or name it in {PROGRAM}"


@dataclass(frozen=True)
class Cosign:
    """The program. `redact`: masks secrets in what it says."""

    path: str
    redact: Redactor

    def options(self, command: str, wanted: Mapping[str, str]) -> list[str]:
        """Return those of `wanted`, by name, that a command of this version has."""
        known = _options_of(self.path, command)
        return [f"--{name}={value}" for name, value in wanted.items() if name in known]

    def run(
        self,
        arguments: Sequence[str],
        *,
        host: str | None = None,
        password: Secret | None = None,
        cloud: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end; whoever calls looks at `returncode` and `stderr`, in which no secret is left.

        Args:
            arguments: command and arguments; no secret may be in them.
            host: the registry that it speaks to, with the credentials for it.
            password: of the private key.
            cloud: the key is in a cloud, or the identity is a CI job's.

        Raises:
            SignatureError: it cannot be started, or does not end.
            UsageError: what is set for the registry cannot be used.
        """
        with private_folder("modelbake-cosign-", memory_folder()) as folder:
            env = _environment(folder, cloud=cloud)
            command = [self.path, *arguments]
            if host is not None:
                command += _access(folder, host)
            try:
                done = subprocess.run(
                    command,
                    env=env,
                    input=b"" if password is None else password.reveal_bytes(),
                    capture_output=True,
                    timeout=_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise SignatureError(
                    f"cosign did not end within {_SECONDS:.0f} s", subject=self.path
                ) from None
            except OSError as error:
                raise SignatureError(
                    f"cosign cannot be started ({error.strerror})", subject=self.path, hint=_INSTALL
                ) from error
        out, err = (self.redact(each.decode(errors="replace")) for each in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(command, done.returncode, out, err)


def find_cosign(redact: Redactor) -> Cosign:
    """Return the program that `MODELBAKE_COSIGN` names, else that of the PATH. Raises SignatureError."""
    named = environment().get(PROGRAM)
    found = shutil.which(named or "cosign")
    if found is None:
        problem = f"{named} is no program" if named else "the cosign program is not installed"
        raise SignatureError(problem, subject=PROGRAM if named else "cosign", hint=_INSTALL)
    return Cosign(found, redact)


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return on one line what cosign says is wrong."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    words = " ".join((errors or lines or [f"it ended with {done.returncode}"])[0].split())
    return words[:500]


@cache
def _options_of(path: str, command: str) -> frozenset[str]:
    try:
        done = subprocess.run(
            [path, command, "--help"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
            env={name: value for name, value in environment().items() if _KEPT.fullmatch(name)},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SignatureError(
            f"cosign cannot be run ({type(error).__name__})", subject=path, hint=_INSTALL
        ) from error
    known = frozenset(re.findall(r"^\s+(?:-\w, )?--([a-z0-9-]+)", done.stdout + done.stderr, re.MULTILINE))
    if not known:
        raise SignatureError(f"`cosign {command}` is not known to it", subject=path, hint=_INSTALL)
    return known


def _environment(folder: Path, *, cloud: bool) -> dict[str, str]:
    env = {
        name: value
        for name, value in environment().items()
        if _KEPT.fullmatch(name) or (cloud and _CLOUD.fullmatch(name))
    }
    bundle = environment().get(CA_BUNDLE)
    own = environment().get("SSL_CERT_FILE")
    if bundle:
        joined = folder / "authorities.pem"
        joined.write_bytes(_joined([own or _system_authorities(), bundle]))
        env["SSL_CERT_FILE"] = str(joined)
    elif own:
        env["SSL_CERT_FILE"] = own
    return {**env, "DOCKER_CONFIG": str(folder)}


def _access(folder: Path, host: str) -> list[str]:
    """Write the registry's credentials into the private folder; return options for how it is spoken to."""
    found = RegistryAuth().for_registry(host)
    auths = dict([auths_entry(host, found)]) if found is not None else {}
    (folder / "config.json").write_text(json.dumps({"auths": auths}))
    options = []
    if in_clear(host):
        options.append("--allow-http-registry=true")
        if not is_loopback(host):  # HTTPS is tried first there, with whatever certificate it has
            options.append("--allow-insecure-registry=true")
    certificates = certificates_of(host)
    if certificates is not None:
        authorities = sorted(certificates.glob("*.crt"))
        if authorities:
            bundle = environment().get(CA_BUNDLE)
            system = environment().get("SSL_CERT_FILE") or _system_authorities()
            joined = folder / "registry.pem"
            joined.write_bytes(_joined([system, bundle, *map(str, authorities)]))
            options.append(f"--registry-cacert={joined}")
        for certificate in sorted(certificates.glob("*.cert"))[:1]:
            options.append(f"--registry-client-cert={certificate}")
            options.append(f"--registry-client-key={certificate.with_suffix('.key')}")
    return options


def _system_authorities() -> str | None:
    usual = (ssl.get_default_verify_paths().cafile, *_SYSTEM_AUTHORITIES)
    return next((path for path in usual if path and Path(path).is_file()), None)


def _joined(paths: Sequence[str | None]) -> bytes:
    try:
        return b"\n".join(Path(path).read_bytes() for path in paths if path)
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})", subject=str(error.filename)) from error


def key_password() -> Secret | None:
    """Return the password of the private key, None where none is given. Raises UsageError."""
    from modelbake.credentials import Secret

    env = environment()
    if UNLOCKS in env:
        return Secret(env[UNLOCKS])
    named = env.get(UNLOCKS_BY_FILE)
    if not named:
        return None
    try:
        return Secret(Path(named).read_bytes().rstrip(b"\r\n"))
    except OSError as error:
        raise UsageError(
            f"the password cannot be read ({error.strerror})", subject=f"{UNLOCKS_BY_FILE}={named}"
        ) from error


@contextmanager
def content_file(content: bytes) -> Iterator[Path]:
    """Yield a file with a content that cosign is to sign; it and its folder are gone afterwards."""
    with private_folder("modelbake-cosign-", memory_folder()) as folder:
        path = folder / "content"
        path.write_bytes(content)
        yield path

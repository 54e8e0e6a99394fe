"""Make a virtual environment with exactly the packages of a hash-pinned requirements file.

    python install.py VENV REQUIREMENTS [--slim FILE] [--part] [--beside VENV ...] [--output FOLDER]

--slim removes what serving never needs, as FILE says (see `slim`). With --part the packages are some of an
image's, one layer of it: what they depend on is another layer's, and is not looked for. --beside, for the
last layer, names the other layers' environments: all dependencies have to be met by these together.
--output moves VENV, once it is made, into a folder, below its own path, where all of it has the same times:
what a layer is copied from.

pip works from outside: this Python's own, or one in a temporary environment. So VENV holds neither pip nor
setuptools, unless they are required. Only wheels, only with the hashes of REQUIREMENTS. A file without
requirements gives a bare VENV.

Byte code is compiled, as a container with a read-only root could never keep what it compiles, and would
do it at every start. It is of the kind "unchecked-hash": the usual one holds its source's time stamp, and all
time stamps are set to SOURCE_DATE_EPOCH, or 0. So the same requirements give the same layer.

Files of the secrets folder (/run/secrets), where a BuildKit secret mount is; each may be absent:

    pip_config  a pip configuration file
    index_url   the URL of the package index, possibly with a password
    ca_bundle   PEM certificates of a network's own authorities, trusted besides the system's

stdout: {"event": "progress", "message"}, with --slim also {"event": "slimmed", "pattern", "files", "bytes",
"message"} for each rule that removed something. stderr, on failure, as the last line: {"event": "error",
"code", "package"?, "message"}. No URL is shown beyond its host. Exit codes: 0, or

     1  something unexpected                       34  the disk is full
    30  a package's bytes have another hash,       35  the requirements or arguments are wrong
        or there is no hash for it                 36  this Python cannot make virtual environments
    31  no such package, version or fitting wheel  37  the index refused the credentials, or needs some
    32  the index cannot be reached                130  interrupted
    33  the index's TLS certificate is not trusted

It needs Python 3.11 with venv, with pip or ensurepip, and its standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from pip_errors import SHOWN_LINES, Code, InstallError, diagnose, redact
from venvs import clamp_times, compile_packages, find_pip, make_venv, require_all

_INHERITED = {"PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH"}
_PROXIES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
_CPU_BUILD = re.compile(r"^\S+==\S+\+cpu\b", re.MULTILINE)
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_KEPT_LINES = 400  # of pip's output, for its diagnosis


def main(arguments: Sequence[str]) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="install.py", description="Make a virtual environment from hash-pinned requirements."
    )
    parser.add_argument("venv", type=Path, metavar="VENV")
    parser.add_argument("requirements", type=Path, metavar="REQUIREMENTS")
    parser.add_argument("--slim", type=Path, metavar="FILE", help="what to remove of the packages")
    parser.add_argument("--part", action="store_true", help="do not install what the packages depend on")
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], metavar="VENV", help="the other layers' environments"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where VENV is moved, with its path")
    parser.add_argument("--secrets", type=Path, default=Path("/run/secrets"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    os.umask(0o022)
    error: InstallError
    try:
        _require_fresh(options.venv)
        try:
            install(
                options.venv.absolute(),
                options.requirements,
                options.secrets,
                instructions=options.slim,
                part=options.part or bool(options.beside),
                beside=options.beside,
            )
            if options.output:
                _move(options.venv.absolute(), options.output)
        except BaseException:
            shutil.rmtree(options.venv, ignore_errors=True)
            raise
        return 0
    except InstallError as known:
        error = known
    except KeyboardInterrupt:
        error = InstallError(Code.INTERRUPTED, "interrupted")
    except OSError as failure:
        full = failure.errno in {errno.ENOSPC, errno.EDQUOT}
        error = InstallError(
            Code.DISK_FULL if full else Code.UNEXPECTED, f"{failure.filename}: {failure.strerror}"
        )
    except Exception as failure:
        error = InstallError(Code.UNEXPECTED, redact(f"unexpected {type(failure).__name__}: {failure}"))
    about = {} if error.package is None else {"package": error.package}
    _say(sys.stderr, event="error", code=int(error.code), **about, message=error.message)
    return int(error.code)


def install(
    venv: Path,
    requirements: Path,
    secrets: Path,
    *,
    instructions: Path | None = None,
    part: bool = False,
    beside: Sequence[Path] = (),
) -> None:
    """Make `venv` with the packages of `requirements`; see the module for what the others mean.

    Raises:
        InstallError: it cannot be done.
        OSError: a file cannot be written.
    """
    try:
        text = requirements.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InstallError(Code.USAGE, f"cannot read {requirements}: {error}") from error
    make_venv(venv, pip=False)
    if any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()):
        with tempfile.TemporaryDirectory(prefix="modelbake-") as scratch:
            python = find_pip(Path(scratch) / "pip")
            environment = _pip_environment(Path(scratch), python, secrets, text)
            options = ["--no-deps"] if part else []
            _run_pip(python, venv, requirements, environment, Path(scratch) / "pip.log", options)
            if beside:
                require_all([venv, *beside], python, Path(scratch) / "all")
    if instructions is not None:
        _slim(venv, instructions)
    compile_packages(venv)
    clamp_times(venv, _epoch())


def _move(venv: Path, folder: Path) -> None:
    target = folder / venv.relative_to(venv.anchor)
    target.parent.mkdir(parents=True, exist_ok=True)
    venv.rename(target)
    clamp_times(folder, _epoch())


def _epoch() -> int:
    return int(os.environ.get("SOURCE_DATE_EPOCH") or 0)


def _terminate(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _say(stream: TextIO, **event: object) -> None:
    print(json.dumps(event), file=stream, flush=True)


def _require_fresh(venv: Path) -> None:
    if sys.version_info < (3, 11):  # noqa: UP036  # the base image may have any
        found = ".".join(map(str, sys.version_info[:2]))
        raise InstallError(Code.PYTHON, f"Python 3.11 or newer is needed, this is {found}")
    if venv.is_symlink() or (venv.exists() and (not venv.is_dir() or any(venv.iterdir()))):
        raise InstallError(Code.USAGE, f"{venv} exists already")


def _pip_environment(scratch: Path, python: Path, secrets: Path, requirements: str) -> dict[str, str]:
    """Return all that pip gets to see of the environment, and the secrets."""
    environment = {
        name: value for name, value in os.environ.items() if name in _INHERITED or name.lower() in _PROXIES
    }
    config = secrets / "pip_config"
    environment |= {
        "HOME": str(scratch),
        "PIP_CONFIG_FILE": str(config) if config.exists() else os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if (index := secrets / "index_url").exists():
        environment["PIP_INDEX_URL"] = index.read_text(encoding="utf-8").strip()
    own_index = config.exists() or index.exists()
    if not own_index and _CPU_BUILD.search(requirements):
        # PyTorch's CPU builds are on PyTorch's own index alone. Who names an index decides for himself.
        environment["PIP_EXTRA_INDEX_URL"] = _CPU_INDEX
        # pip asks every index for every package: one that a network hides must not cost minutes for each.
        environment["PIP_RETRIES"] = "1"
    if (ca := secrets / "ca_bundle").exists():
        combined = scratch / "ca.pem"
        system = ssl.get_default_verify_paths().cafile
        # pip's own list is where the public index's authorities are, if the system has none.
        known = [Path(system)] if system else list(python.parent.parent.glob("lib/python*/**/cacert.pem"))
        combined.write_bytes(b"\n".join(path.read_bytes() for path in [*known, ca]))
        environment |= {"PIP_CERT": str(combined), "SSL_CERT_FILE": str(combined)}
    return environment


def _run_pip(
    python: Path,
    venv: Path,
    requirements: Path,
    environment: dict[str, str],
    log: Path,
    options: Sequence[str],
) -> None:
    command = [str(python), "-m", "pip", "--python", str(venv / "bin/python"), "install", "--log", str(log)]
    command += options
    command += ["--require-hashes", "--only-binary", ":all:", "--no-cache-dir", "--no-compile"]
    command += ["--no-warn-script-location", "--progress-bar", "off", "--requirement", str(requirements)]
    output: list[str] = []
    silent: set[str] = set()  # hosts that have been complained of
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
        errors="replace",
    ) as pip:
        try:
            assert pip.stdout is not None
            for line in pip.stdout:
                output = [*output[-_KEPT_LINES:], line.rstrip()]
                if match := re.match(r"\s*Downloading \S*?([^\s/]+\.whl)\S*( \([\d.]+ \w+\))?", line):
                    _say(sys.stdout, event="progress", message=f"downloading {match[1]}{match[2] or ''}")
                elif match := re.match(r"WARNING: Retrying .*?host='([^']+)'", line):
                    if match[1] not in silent:
                        silent.add(match[1])
                        _say(
                            sys.stdout, event="progress", message=f"{match[1]} does not answer; trying again"
                        )
                elif line.startswith("Installing collected packages:"):
                    _say(sys.stdout, event="progress", message=f"installing {line.count(',') + 1} packages")
        except BaseException:
            pip.kill()
            raise
    if pip.returncode:
        # Why an index page could not be read, pip tells only its log.
        with contextlib.suppress(OSError), log.open(encoding="utf-8", errors="replace") as lines:
            output += [line.rstrip() for line in lines if "Could not fetch URL" in line][-SHOWN_LINES:]
        raise diagnose("\n".join(output))


def _slim(venv: Path, instructions: Path) -> None:
    # Imported here, because only who slims has these beside this program.
    from slim import read_instructions, slim
    from stub import StubError

    try:
        wanted = read_instructions(instructions)
        for site in sorted(venv.glob("lib/python*/site-packages")):
            for done in slim(site, wanted):
                if done.files:
                    message = f"{done.pattern}: {done.bytes / 1e6:,.1f} MB less ({done.reason})"
                    _say(
                        sys.stdout,
                        event="slimmed",
                        pattern=done.pattern,
                        files=done.files,
                        bytes=done.bytes,
                        message=message,
                    )
    except (StubError, ValueError) as error:
        raise InstallError(Code.USAGE, str(error)) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

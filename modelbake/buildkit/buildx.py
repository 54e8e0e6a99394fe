"""The same build through the `buildx` program: on a builder of its own, or where the engine has no sessions.

The secrets stay in memory: each is an anonymous file (memfd) that buildx inherits, so that a secret is in
no argument, no environment and on no disk. The Docker configuration that buildx sees is a private, temporary
one which holds the credentials of the registries that the Dockerfile names, and no others. A builder that
somebody named is looked up where `docker buildx create` wrote it down.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from modelbake.buildkit.failure import Unsuitable, build_error
from modelbake.buildkit.progress import BuildEvent, Trace
from modelbake.buildkit.status import StatusUpdate, status_from_json
from modelbake.buildkit.wire import WireError
from modelbake.credentials import Redactor, Secret
from modelbake.errors import EngineError, EngineNotFound, ModelbakeError, UsageError
from modelbake.writing import memory_folder, private_folder

if TYPE_CHECKING:
    from modelbake.buildkit.request import BuildRequest
    from modelbake.engine import Engine

_OLDEST = (0, 13)  # the first with --progress=rawjson
_PLUGIN_FOLDERS = (
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
)
_CANCEL_SECONDS = 10
# What buildx, and the ssh that it starts for an engine elsewhere, need of the environment. All else could be
# a secret, or change what is built, or where.
_KEPT = re.compile(
    r"PATH|HOME|USER|LOGNAME|TMPDIR|LANG|LC_\w+|TERM|XDG_\w+|SSH_AUTH_SOCK|SSL_CERT_(?:FILE|DIR)"
    r"|(?:HTTPS?|ALL|NO)_PROXY|(?:https?|all|no)_proxy"
)
_IMAGE = re.compile(
    rb"^[ \t]*FROM[ \t]+(?:--\S+[ \t]+)*(\S+)|--from=(\S+)|\bfrom=([^\s,]+)|^#[ \t]*syntax[ \t]*=[ \t]*(\S+)",
    re.IGNORECASE | re.MULTILINE,
)
_LONGEST_DOCKERFILE = 1 << 20
_LONGEST_DOCUMENT = 16 << 20


# Of the drivers `remote` and `docker-container`: what they do before BuildKit is asked for anything.
_BEFORE_A_BUILD = ("[internal] waiting for connection", "[internal] booting buildkit")
_CONTEXT = "to switch to context"
_NO_BUILDER = re.compile(r"no builder \"[^\"]*\" found")
_UNREACHABLE = re.compile(
    r"connection refused|no such host|i/o timeout|deadline exceeded|connection error|code = Unavailable"
    r"|x509|tls:|Cannot connect to the Docker daemon|no route to host|timed? ?out",
    re.IGNORECASE,
)


class BuildxBuilder:
    """Builds through `buildx`: on the same engine, or on the builder `name`; the image is loaded into it."""

    def __init__(self, engine: Engine, name: str | None = None) -> None:
        self._engine = engine
        # To buildx `default` is the engine that docker's programs speak to. That is ours already.
        self._name = None if name == "default" else name

    def build(self, request: BuildRequest, trace: Trace, on_event: Callable[[BuildEvent], None]) -> str:
        """See Builder."""
        program = find_buildx()
        with ExitStack() as stack:
            private = stack.enter_context(private_folder("modelbake-buildx-", memory_folder()))
            environment = self._environment(private, request)
            metadata = private / "metadata.json"
            arguments = [program, "build", "--progress=rawjson", "--load"]
            arguments += ["--provenance=false", "--sbom=false", f"--metadata-file={metadata}"]
            arguments += [f"--builder={self._name}"] if self._name else []
            arguments += [f"--tag={tag}" for tag in request.tags]
            arguments += [f"--label={name}={value}" for name, value in sorted(request.labels.items())]
            arguments += [f"--target={request.target}"] if request.target else []
            arguments += [f"--network={request.network}"] if request.network else []
            arguments += ["--no-cache"] if request.no_cache else []
            descriptors = []
            for name, secret in request.secrets.items():
                path, descriptor = stack.enter_context(_secret_file(private, secret))
                arguments.append(f"--secret=id={name},src={path}")
                descriptors += [descriptor] if descriptor is not None else []
            process = _Buildx([*arguments, "-"], environment, request.context, descriptors)
            code, said = process.follow(trace, on_event)
            for event in trace.finish():
                on_event(event)
            if code != 0:
                text = Redactor(request.secrets.values())(said or f"buildx ended with {code}")
                raise self._builder_error(text, trace) or build_error(text, trace)
            return self._image_id(metadata)

    def _builder_error(self, text: str, trace: Trace) -> ModelbakeError | None:
        """Return what buildx says of a named builder, None where no builder is to blame."""
        if not self._name:
            return None
        step = trace.failed[0] if trace.failed else ""
        if _NO_BUILDER.search(text):
            return UsageError(
                "buildx knows no such builder",
                subject=f"--builder {self._name}",
                hint="`docker buildx ls` lists them, `docker buildx create --name NAME` makes one",
            )
        if _CONTEXT in text:
            return UsageError(
                "is a docker context, and not a builder",
                subject=f"--builder {self._name}",
                hint=f"DOCKER_CONTEXT={self._name} without --builder builds on its engine",
            )
        if step.startswith(_BEFORE_A_BUILD) or (not step and _UNREACHABLE.search(text)):
            return EngineNotFound(
                f"the builder does not answer: {text}",
                subject=f"--builder {self._name}",
                hint=f"`docker buildx inspect --bootstrap {self._name}` tries it",
            )
        return None

    def _image_id(self, metadata: Path) -> str:
        """Return the id of the image that buildx describes: its config's digest, or its manifest's.

        Raises:
            EngineError: buildx says nothing, or of an image that the engine does not have.
        """
        try:
            described = json.loads(metadata.read_bytes())
            digests = [described.get(f"containerimage.{kind}") for kind in ("config.digest", "digest")]
        except (OSError, ValueError, AttributeError) as error:
            raise EngineError("buildx did not say which image it built") from error
        for digest in digests:
            if isinstance(digest, str) and (image := self._engine.image(digest)) is not None:
                return image.id
        if self._name:
            raise EngineError(
                "the builder keeps its image in another engine than this one",
                subject=f"--builder {self._name}",
                hint=f"set DOCKER_HOST to that engine, or name a builder of another driver than `docker`"
                f" (`docker buildx inspect {self._name}`)",
            )
        raise EngineError("buildx built an image that is not in the engine")

    def _environment(self, private: Path, request: BuildRequest) -> dict[str, str]:
        """Return what buildx sees: no secret of ours, one engine, and a Docker configuration of its own."""
        environment = _kept_environment()
        config = private / "docker"
        config.mkdir(mode=0o700)
        (config / "config.json").write_text(json.dumps({"auths": dict(_credentials(request))}))
        context = self._engine.write_context(config)
        own = {"DOCKER_CONFIG": str(config), "DOCKER_CONTEXT": context}
        if self._name:
            users = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
            _link_contexts(users, config)
            builders = os.environ.get("BUILDX_CONFIG") or str(users / "buildx")
            return environment | own | {"BUILDX_CONFIG": builders}
        return (
            environment
            | own
            | {
                "BUILDX_CONFIG": str(config / "buildx"),
                "BUILDX_BUILDER": context,  # of the same name: the engine itself, not a builder beside it
            }
        )


class _Buildx:
    """A running buildx: the context goes in by stdin, progress comes out of stderr."""

    def __init__(
        self,
        arguments: list[str],
        environment: dict[str, str],
        context: bytes | IO[bytes],
        descriptors: list[int],
    ) -> None:
        self._arguments, self._environment = arguments, environment
        self._context, self._descriptors = context, descriptors
        self._failure: ModelbakeError | None = None

    def follow(self, trace: Trace, on_event: Callable[[BuildEvent], None]) -> tuple[int, str]:
        """Run to the end; return the exit status and what was said beside progress."""
        process = subprocess.Popen(
            self._arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self._environment,
            pass_fds=self._descriptors,
            start_new_session=True,  # Ctrl-C reaches us alone; we then end it in order
        )
        feeder = threading.Thread(target=self._feed, args=(process.stdin,), name="modelbake-context")
        progress = _Progress()
        with process:
            feeder.start()
            try:
                assert process.stderr is not None
                for line in process.stderr:
                    if update := progress.read(line):
                        for event in trace.update(update):
                            on_event(event)
                code = process.wait()
            except BaseException:
                _end(process)
                raise
            finally:
                feeder.join()
        if self._failure is not None:
            raise self._failure
        errors = [line.removeprefix("ERROR: ") for line in progress.said if line.startswith("ERROR: ")]
        return code, "\n".join(errors or progress.said)

    def _feed(self, stdin: IO[bytes]) -> None:
        # Buildx that fails early closes its end; its own words on stderr are the error then.
        with suppress(OSError), stdin:
            if isinstance(self._context, bytes):
                stdin.write(self._context)
            else:
                try:
                    shutil.copyfileobj(self._context, stdin, 1 << 20)
                except ModelbakeError as error:  # of a weight file that travels with the context
                    self._failure = error


def _link_contexts(users: Path, config: Path) -> None:
    """Let a builder find the docker contexts that its nodes were made of, beside the one of our engine."""
    for path in sorted((users / "contexts").rglob("*")):
        if path.is_file():  # folders that are links are no contexts to docker
            target = config / path.relative_to(users)
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                target.symlink_to(path.absolute())


def _kept_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)}


def find_buildx() -> str:
    """Return the path of a buildx that is new enough, from the PATH or Docker's plugin folders.

    Raises:
        Unsuitable: there is none.
    """
    folders = [*os.environ.get("PATH", "").split(os.pathsep)]
    config = os.environ.get("DOCKER_CONFIG") or str(Path.home() / ".docker")
    folders += [str(Path(config) / "cli-plugins"), *_PLUGIN_FOLDERS]
    found = shutil.which("docker-buildx", path=os.pathsep.join(folders))
    if found is None:
        raise Unsuitable("the buildx plugin is not installed")
    try:
        said = subprocess.run(
            [found, "version"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
            env=_kept_environment(),
        ).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as error:
        raise Unsuitable(f"{found} does not run ({type(error).__name__})") from error
    version = re.search(r"\bv?(\d+)\.(\d+)\.\d+", said)
    if version is None or (int(version[1]), int(version[2])) < _OLDEST:
        raise Unsuitable(f"{found} is older than 0.13: {said.strip()}")
    return found


class _Progress:
    """Reads what buildx writes: JSON documents, one a line or (before 0.14) indented, and plain lines."""

    def __init__(self) -> None:
        self.said: list[str] = []  # the plain lines
        self._open = b""

    def read(self, line: bytes) -> StatusUpdate | None:
        """Take one line; return the document that it ends."""
        self._open += line
        try:
            update = status_from_json(json.loads(self._open))
        except (ValueError, WireError):
            if self._open.startswith(b"{") and line.rstrip() != b"}" and len(self._open) < _LONGEST_DOCUMENT:
                return None
            self.said += self._open.decode(errors="replace").rstrip().splitlines()
            update = None
        self._open = b""
        return update


def _end(process: subprocess.Popen[bytes]) -> None:
    """Cancel the build: buildx tells the engine when it is interrupted. Then make sure it is gone."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    patience = threading.Timer(_CANCEL_SECONDS, process.kill)
    patience.start()
    try:
        # Its stderr is read on, or it might wait for us while we wait for it.
        for _ in process.stderr or ():
            pass
        process.wait()
    finally:
        process.kill()
        patience.cancel()
        patience.join()


@contextmanager
def _secret_file(private: Path, secret: Secret) -> Iterator[tuple[str, int | None]]:
    """Yield a path from which a child reads the secret, and the descriptor it has to inherit for that."""
    value = secret.reveal_bytes()
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("modelbake")
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(value)
            yield f"/proc/self/fd/{descriptor}", descriptor
        finally:
            os.close(descriptor)
    else:
        descriptor, name = tempfile.mkstemp(dir=private)  # 0600
        with os.fdopen(descriptor, "wb") as file:
            file.write(value)
        yield name, None


def _credentials(request: BuildRequest) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield `auths` entries for the registries that the context's Dockerfile names."""
    from modelbake.dockerconfig import auths_entry, split_reference

    registries = set()
    for groups in _IMAGE.findall(_dockerfile(request.context)):
        with suppress(UsageError, UnicodeDecodeError):  # a variable, say; then buildx says what is wrong
            registries.add(split_reference(b"".join(groups).decode()).registry)
    for registry in sorted(registries):
        found = request.registries.for_registry(registry) if request.registries is not None else None
        if found is not None:
            yield auths_entry(registry, found)


def _dockerfile(context: bytes | IO[bytes]) -> bytes:
    """Return the Dockerfile of a context; a file is rewound to where it stood."""
    stream = io.BytesIO(context) if isinstance(context, bytes) else context
    start = stream.tell()
    try:
        with tarfile.open(fileobj=stream) as tar:
            for member in tar:
                if member.name.removeprefix("./") == "Dockerfile" and (file := tar.extractfile(member)):
                    return file.read(_LONGEST_DOCKERFILE)
    except tarfile.TarError as error:
        raise EngineError("the build context is not a tar archive") from error
    finally:
        stream.seek(start)
    return b""

"""A user's surroundings: a folder with models.yaml, a hub that asks for a token, a registry that asks for a
password, an engine; and `build.py` run as the user runs it, in a process of its own."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2

from modelbake.process import SECRET_VARIABLES
from tests.servers.canary import found_in_bytes, found_in_files
from tests.servers.environment import ROOT
from tests.servers.hub import Hub, Repo
from tests.servers.minilm import cache_folder

TINY = {
    "config.json": b'{"kind": "tiny"}\n',
    "model-00001-of-00002.safetensors": b"\1" * (65 << 20),
    "model-00002-of-00002.safetensors": b"\2" * (66 << 20),
    "tokenizer/vocab.txt": b"a\nb\n",
}


@dataclass(frozen=True)
class Services:
    """What one session of tests shares: addresses and the base image, pinned by digest."""

    docker_host: str
    registry: str
    registry_user: str
    registry_password_file: Path
    base: str
    bridge: str
    build_environment: Mapping[str, str]
    wheels_cpu: bool

    def with_registry(self, exports: Mapping[str, str]) -> Services:
        """Return these services with another registry, of which `scripts/registry` says so."""
        return replace(
            self,
            registry=exports["MODELBAKE_REGISTRY"],
            registry_user=exports["MODELBAKE_REGISTRY_USER"],
            registry_password_file=Path(exports["MODELBAKE_REGISTRY_PASSWORD_FILE"]),
        )

    @property
    def password(self) -> str:
        return self.registry_password_file.read_text().strip()

    def registry_get(self, path: str) -> httpx2.Response:
        """Ask the registry directly, with the password."""
        auth = (self.registry_user, self.password)
        url = f"http://{self.registry}/v2/{path}"  # authorities take long to load
        return httpx2.get(url, auth=auth, headers={"Accept": ACCEPT}, verify=False)

    def tags(self, repository: str) -> list[str]:
        reply = self.registry_get(f"{repository}/tags/list")
        return [] if reply.status_code == 404 else sorted(reply.json()["tags"] or [])

    def manifest(self, repository: str, reference: str) -> dict[str, Any]:
        """Return a manifest's document, with its `digest` besides."""
        reply = self.registry_get(f"{repository}/manifests/{reference}").raise_for_status()
        return {**reply.json(), "digest": f"sha256:{hashlib.sha256(reply.content).hexdigest()}"}

    def has_blob(self, digest: str) -> bool:
        """Tell whether any repository of the registry holds a blob."""
        return (self.storage / f"docker/registry/v2/blobs/sha256/{digest[7:9]}/{digest[7:]}").exists()

    @property
    def storage(self) -> Path:
        """The folder in which the registry that `scripts/registry` has started keeps everything."""
        return self.registry_password_file.parent / "storage"

    def repository_folder(self, repository: str) -> Path:
        """What the registry keeps of one repository: links to manifests and blobs, unfinished uploads."""
        return self.storage / "docker/registry/v2/repositories" / repository


ACCEPT = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json,"
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
)


@dataclass(frozen=True)
class BehindProxy(Services):
    """The services, with a proxy as the registry's address; what is true is asked past it, at `direct`."""

    direct: str = ""

    @classmethod
    def of(cls, services: Services, address: str) -> BehindProxy:
        return cls(**{**services.__dict__, "registry": address}, direct=services.registry)

    def registry_get(self, path: str) -> httpx2.Response:
        auth = (self.registry_user, self.password)
        url = f"http://{self.direct}/v2/{path}"
        return httpx2.get(url, auth=auth, headers={"Accept": ACCEPT}, verify=False)


@dataclass(frozen=True)
class Ran:
    """What one run of `build.py` said."""

    code: int
    out: str
    err: str

    def ok(self) -> Ran:
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self


WORLDS: list[World] = []  # of this session: after each test, what was said in any of them is searched
_LARGEST_SEARCHED = (
    4 << 20
)  # bytes of a file; larger ones are weights and layers, which have tests of their own


@dataclass
class World:
    """One test's folder and hub. `environment` is that of the user's shell."""

    services: Services
    folder: Path
    hub: Hub
    token: str
    namespace: str = field(default_factory=lambda: f"t{secrets.token_hex(4)}")
    environment: dict[str, str] = field(default_factory=dict)
    images: Path = ROOT / "tests" / "runtimes"
    secrets: set[str] = field(default_factory=set)  # what must be nowhere in what is said and written
    _others: tuple[Services, ...] = ()
    _said: list[str] = field(default_factory=list)  # since the last search for secrets

    def __post_init__(self) -> None:
        WORLDS.append(self)
        self.secrets |= {self.token, self.services.password}
        token_file = self.folder / "hub.token"
        token_file.write_text(self.token)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "DOCKER_HOST": self.services.docker_host,
            "MODELBAKE_REGISTRY": self.services.registry,
            "MODELBAKE_REGISTRY_USER": self.services.registry_user,
            "MODELBAKE_REGISTRY_PASSWORD_FILE": str(self.services.registry_password_file),
            "HF_TOKEN_PATH": str(token_file),
            "PYTHONPATH": str(ROOT / "tests/servers/child_spy"),
            "CHILD_SPY": str(self._children),
            **self.services.build_environment,
        }

    def remove_images(self) -> None:
        """Take this world's images from the engine; its build cache stays, for the next test and run."""
        # By reference: other images may have the same content, and are not this world's.
        pulled = self.docker(
            "image", "ls", "--digests", "--format", "{{.Repository}}@{{.Digest}}",
            "--filter", f"reference={self.services.registry}/{self.namespace}/*",
        ).out.split()  # fmt: skip
        if pulled:
            self.docker("image", "rm", *dict.fromkeys(pulled))
        models = self.folder / "models.yaml"
        for name in json.loads(models.read_text())["models"] if models.exists() else ():
            listed = self.docker("image", "ls", "--quiet", f"modelbake/{name}").out.split()
            if listed:
                self.docker("image", "rm", "--force", *dict.fromkeys(listed))

    def repo(self, name: str, content: Mapping[str, bytes] | Path = TINY, **facts: Any) -> Repo:
        """Create a private repository at the hub."""
        return Repo.create(self.hub.root, name, content, **facts)

    def models(self, **models: Mapping[str, Any]) -> None:
        """Write models.yaml; JSON is YAML. What a model does not say is that of a tiny model."""
        tiny = {
            "version": "1.0.0",
            "source": "hf://acme/tiny",
            "runtime": "tiny",
            "device": "any",
            "smoke": {
                "requests": 3,
                "checks": [{"post": "/sum", "body": {"numbers": [1, 2]}, "expect": {"sum": 3}}],
            },
        }
        document = {
            "registry": f"{self.services.registry}/{self.namespace}",
            "defaults": {"hub": self.hub.url, "base": self.services.base},
            "models": {name: {**tiny, **keys} for name, keys in models.items()},
        }
        (self.folder / "models.yaml").write_text(json.dumps(document, indent=2))

    def build_py(self, *arguments: str, **environment: str | None) -> Ran:
        """Run `build.py` in the folder; variables given as None are taken away."""
        env = {
            name: value for name, value in {**self.environment, **environment}.items() if value is not None
        }
        command = [sys.executable, str(ROOT / "build.py"), *arguments, "--images", str(self.images)]
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        self.secrets |= {value for name, value in env.items() if name in SECRET_VARIABLES and value}
        self._said += [done.stdout, done.stderr]
        assert "Traceback" not in done.stderr, done.stderr
        # Hints repeat this option, which only tests need; tests/unit/test_wording.py is about that.
        repeated = f"build.py --images {shlex.quote(str(self.images))} "
        out, err = (text.replace(repeated, "build.py ") for text in (done.stdout, done.stderr))
        return Ran(done.returncode, out, err)

    def shell(self, commands: str, **environment: str) -> Ran:
        """Run commands in a shell in the folder, until one fails; `build.py` is this toolkit's."""
        programs = self.folder / "bin"
        programs.mkdir(exist_ok=True)
        words = shlex.join([sys.executable, str(ROOT / "build.py")])
        program = programs / "build.py"
        program.write_text(f'#!/bin/sh\nexec {words} "$@" --images {shlex.quote(str(self.images))}\n')
        program.chmod(0o755)
        env = {**self.environment, "PATH": f"{programs}:{self.environment['PATH']}", **environment}
        command = ["sh", "-euc", commands]
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        self._said += [done.stdout, done.stderr]
        assert "Traceback" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    @property
    def _children(self) -> Path:
        return self.folder / "children.jsonl"

    def leaks(self) -> list[str]:
        """Return where a secret is, of all that was said and written since this was last asked for.

        Said: stdout and stderr of every `build.py`, the command line and the environment of every program
        that it started. Written: all in the folder but what the user has put there.
        """
        if not self._said:
            return []
        said = "\n".join(self._said)
        self._said.clear()
        users = [self.folder / name for name in ("hub.token", "password", ".docker", "docker-config")]
        hits = []
        for secret in sorted(self.secrets):
            if found_in_bytes(secret.encode(), said.encode()):
                hits.append(f"{secret[:6]}... is in what build.py printed")
            files = found_in_files(
                secret.encode(), self.folder, largest=_LARGEST_SEARCHED, without={*users, self.hub.root}
            )
            hits += [f"{secret[:6]}... is in {path.relative_to(self.folder)}" for path in files]
        return hits

    def children(self) -> list[dict[str, Any]]:
        """Return the `command` and the `environment` of each program that `build.py` has started so far."""
        if not self._children.exists():
            return []
        return [json.loads(line) for line in self._children.read_text().splitlines()]

    def login(self, *others: Services) -> None:
        """Write ~/.docker/config.json as `docker login` does, for this world's registry and other ones."""
        self._others = others
        (self.folder / ".docker").mkdir(exist_ok=True)
        (self.folder / ".docker/config.json").write_text(self._logins(self.services, *others))

    @staticmethod
    def _logins(*known: Services) -> str:
        auths = {}
        for services in known:
            pair = base64.b64encode(f"{services.registry_user}:{services.password}".encode()).decode()
            auths[services.registry] = {"auth": pair}
        return json.dumps({"auths": auths})

    def run(self, *verbs: str) -> Ran:
        """Run verbs one after the other, each for all models; every one must succeed. Returns the last."""
        for verb in verbs:
            ran = self.build_py(verb, *([] if verb in ("check", "lock") else ["--all"])).ok()
        return ran

    def docker(self, *arguments: str, host: str | None = None) -> Ran:
        """Run the docker program, as a user who has one would, logged in to the registry."""
        tools = _unpacked_tools()
        config = self.folder / "docker-config"
        if not config.exists():
            (config / "cli-plugins").mkdir(parents=True)
            (config / "cli-plugins/docker-buildx").symlink_to(
                tools / "usr/libexec/docker/cli-plugins/docker-buildx"
            )
            (config / "config.json").write_text(self._logins(self.services, *self._others))
        env = {
            **self.environment,
            "DOCKER_CONFIG": str(config),
            "DOCKER_HOST": host or self.services.docker_host,
        }
        command = [str(tools / "usr/bin/docker"), *arguments]
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        return Ran(done.returncode, done.stdout, done.stderr)

    def tags(self, name: str = "tiny") -> list[str]:
        return self.services.tags(f"{self.namespace}/{name}")

    def version_tags(self, name: str = "tiny") -> list[str]:
        """Return the tags that are neither candidates nor lists of what refers to an image."""
        return [tag for tag in self.tags(name) if not tag.startswith(("candidate-", "sha256-"))]


def _unpacked_tools() -> Path:
    """Return where `scripts/engine` unpacked the docker program and buildx."""
    unpacked = sorted((cache_folder().parent / "debian").glob("*/root/usr/bin/docker"))
    assert unpacked, "scripts/engine up --name second unpacks the docker program"
    return unpacked[-1].parent.parent.parent

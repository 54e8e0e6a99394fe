"""What `publish` makes, in the hands of others: engines old and new, skopeo, oras, containerd; behind TLS.

`crane validate` is not here: no Debian package has crane.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import secrets
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.integration.conftest import second_engine
from tests.integration.world import Services, World
from tests.servers.debian_programs import Programs
from tests.servers.environment import run_script, shell_exports
from tests.servers.hub import Hub

pytestmark = pytest.mark.engine

CONTENT = {
    "config.json": b'{"kind": "tiny"}\n',
    "model.safetensors": b"\4" * 400_000,
    "tokenizer/deep/vocab.txt": b"a\nb\n",
    "empty": b"",
}
ORDERS = ("weights-first", "base-first")
# Debian 12's own engine is 20.10; the usual one of `scripts/engine` is 26.1.
ENGINES = {
    "26": ["--name", "second"],
    "containerd store": ["--name", "pubctrd", "--containerd-snapshotter"],
    "20.10": ["--name", "pubold", "--release", "bookworm"],
}


@dataclass
class Shown:
    """A model in the registry, in both orders of layers, and as an OCI layout."""

    world: World
    references: dict[str, str]

    @property
    def reference(self) -> str:
        return self.references["weights-first"]

    @property
    def digest(self) -> str:
        return self.reference.rpartition("@")[2]

    @property
    def logins(self) -> str:
        return str(self.world.folder / ".docker/config.json")

    @property
    def layout(self) -> Path:
        return self.world.folder / "layout"

    @property
    def weights(self) -> str:
        """The weights image, by its tag."""
        (tag,) = (tag for tag in self._weight_tags() if tag.startswith("weights-"))
        return f"{self.world.services.registry}/{self.world.namespace}/weights:{tag}"

    def _weight_tags(self) -> list[str]:
        return self.world.services.tags(f"{self.world.namespace}/weights")


@pytest.fixture(scope="module")
def shown(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    token, folder = f"hf_{secrets.token_hex(17)}", tmp_path_factory.mktemp("shown")
    with Hub(folder / "hub", {token: None}, host=services.bridge) as hub:
        world = World(services, folder, hub, token)
        world.login()
        world.repo("acme/tiny", CONTENT)
        references = {}
        for order in ORDERS:
            world.models(tiny={"layer_order": order})
            if order == ORDERS[0]:
                world.run("lock")
                world.build_py("publish", "tiny", "--output", "oci:layout").ok()
            ran = world.build_py("publish", "tiny", "--candidate").ok()
            references[order] = ran.out.strip()
        yield Shown(world, references)
        world.remove_images()


@pytest.fixture(scope="module")
def skopeo() -> Programs:
    packages = ("skopeo", "libgpgme11", "libassuan0", "libgpg-error0", "libdevmapper1.02.1")
    return Programs.unpack("bookworm", *packages)


@pytest.fixture(scope="module")
def oras() -> Programs:
    return Programs.unpack("trixie", "oras")


@pytest.fixture(scope="module", params=ENGINES)
def other_engine(request: pytest.FixtureRequest) -> Iterator[str]:
    options = ENGINES[request.param]
    yield shell_exports("engine", "up", *options)["DOCKER_HOST"]
    if options[1] != "second":
        run_script("engine", "down", "--name", options[1], "--purge")


def require_served(said: str) -> None:
    """The program ran, after the image's own check of all its weights."""
    assert said.splitlines()[-1] == "served"
    assert any(json.loads(line)["event"] == "verified" for line in said.splitlines()[:-1])


RUN = ("run", "--rm", "--read-only", "--network", "none", "--cap-drop", "ALL")
SERVE = ("/opt/venv/bin/python", "-c", "print('served')")


# --- engines -----------------------------------------------------------------------------------------------


def test_an_engine_pulls_and_runs_it(shown: Shown, other_engine: str, request: pytest.FixtureRequest) -> None:
    orders = ORDERS if "[26]" in request.node.name else ORDERS[:1]
    for order in orders:
        reference = shown.references[order]
        shown.world.docker("pull", "--quiet", reference, host=other_engine).ok()
        require_served(shown.world.docker(*RUN, reference, *SERVE, host=other_engine).ok().out)
        history = shown.world.docker("history", "--no-trunc", reference, host=other_engine).ok().out
        assert "modelbake weights /models/model.safetensors and 3 more" in history, order
        shown.world.docker("image", "rm", reference, host=other_engine).ok()


def test_an_engine_loads_the_layout(shown: Shown, other_engine: str, tmp_path: Path) -> None:
    """As a tar of the whole folder. The classic store goes by manifest.json, the other one by index.json."""
    archive = tmp_path / "layout.tar"
    with tarfile.open(archive, "w") as writer:
        writer.add(shown.layout, ".")
    said = shown.world.docker("load", "--input", str(archive), host=other_engine).ok().out
    found = re.search(r"Loaded image(?: ID)?: (\S+)", said)
    assert found, said
    require_served(shown.world.docker(*RUN, found[1], *SERVE, host=other_engine).ok().out)
    shown.world.docker("image", "rm", "--force", found[1], host=other_engine)


# --- tools -------------------------------------------------------------------------------------------------


def require_same_layout(folder: Path, digest: str) -> None:
    """Every blob of a layout that a tool has written has the digest of its name, the image's among them."""
    for blob in (folder / "blobs/sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    assert (folder / "blobs/sha256" / digest.removeprefix("sha256:")).exists()


def test_skopeo(shown: Shown, skopeo: Programs, tmp_path: Path) -> None:
    common = ["--authfile", shown.logins]
    for order, reference in shown.references.items():
        inspected = json.loads(
            skopeo.run("skopeo", "inspect", *common, "--tls-verify=false", f"docker://{reference}")
        )
        assert inspected["Digest"] == reference.rpartition("@")[2]
        assert (inspected["Os"], inspected["Architecture"]) == ("linux", "amd64")
        assert inspected["Labels"]["io.modelbake.model"] == "tiny"
        target = tmp_path / order
        skopeo.run(
            "skopeo", "--insecure-policy", "copy", "--preserve-digests", *common, "--src-tls-verify=false",
            f"docker://{reference}", f"oci:{target}:1.0.0",
        )  # fmt: skip
        require_same_layout(target, inspected["Digest"])


def test_skopeo_reads_the_layout_and_pushes_it(shown: Shown, skopeo: Programs) -> None:
    source = f"oci:{shown.layout}:1.0.0"
    assert json.loads(skopeo.run("skopeo", "inspect", source))["Digest"] == shown.digest
    target = f"{shown.world.services.registry}/{shown.world.namespace}/by-skopeo:1"
    skopeo.run(
        "skopeo", "--insecure-policy", "copy", "--authfile", shown.logins, "--dest-tls-verify=false",
        source, f"docker://{target}",
    )  # fmt: skip
    there = shown.world.services.manifest(f"{shown.world.namespace}/by-skopeo", "1")
    assert there["digest"] == shown.digest


def test_oras(shown: Shown, oras: Programs, tmp_path: Path) -> None:
    fetch = ["manifest", "fetch", "--plain-http", "--registry-config", shown.logins]
    for order, reference in shown.references.items():
        described = json.loads(oras.run("oras", *fetch, "--descriptor", reference))
        assert described["digest"] == reference.rpartition("@")[2]
        target = tmp_path / order
        copy = ["cp", "--from-plain-http", "--from-registry-config", shown.logins, "--to-oci-layout"]
        oras.run("oras", *copy, reference, f"{target}:1.0.0")
        require_same_layout(target, described["digest"])


def test_oras_reads_the_layout(shown: Shown, oras: Programs) -> None:
    described = oras.run("oras", "manifest", "fetch", "--oci-layout", "--descriptor", f"{shown.layout}:1.0.0")
    assert json.loads(described)["digest"] == shown.digest


def test_containerd_pulls_it(shown: Shown, tmp_path: Path) -> None:
    """As Kubernetes nodes do, and mounts what it has unpacked: the engine's containerd, another namespace."""
    programs = Programs.unpack("trixie", "containerd")
    socket = Path(second_engine().removeprefix("unix://")).parent / "exec/containerd/containerd.sock"
    services = shown.world.services
    pair = base64.b64encode(f"{services.registry_user}:{services.password}".encode()).decode()
    hosts = tmp_path / "hosts" / services.registry
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(
        f'[host."http://{services.registry}"]\n  capabilities = ["pull", "resolve"]\n'
        f'  [host."http://{services.registry}".header]\n    Authorization = "Basic {pair}"\n'
    )

    def ctr(*arguments: str, check: bool = True) -> str:
        return programs.run("ctr", "-a", str(socket), "-n", "modelbake-test", *arguments, check=check)

    reference, mounted = shown.reference, tmp_path / "mounted"
    mounted.mkdir()
    try:
        ctr("images", "pull", "--hosts-dir", str(tmp_path / "hosts"), reference)
        assert reference in ctr("images", "ls", "-q")
        checked = ctr("images", "check", f"name=={reference}")
        assert "complete" in checked and "incomplete" not in checked
        ctr("images", "mount", reference, str(mounted))
        files = {
            str(path.relative_to(mounted / "models")): path.read_bytes()
            for path in (mounted / "models").rglob("*")
            if path.is_file()
        }
        assert files == CONTENT
    finally:
        ctr("images", "unmount", "--rm", str(mounted), check=False)
        ctr("images", "rm", "--sync", reference, check=False)


# --- the weights image -------------------------------------------------------------------------------------


def require_weights_tree(members: dict[str, tarfile.TarInfo]) -> None:
    """`/models` as a KServe modelcar or a Kubernetes image volume shows it, and nothing of anybody."""
    folders = {"models", "models/tokenizer", "models/tokenizer/deep"}
    assert members.keys() == folders | {f"models/{path}" for path in CONTENT}
    for name, member in members.items():
        assert member.isdir() if name in folders else member.isreg(), name
        if name != "models":  # that is as the docker lane makes it: a test of test_publish.py compares them
            assert oct(member.mode) == ("0o555" if name in folders else "0o444"), name
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", ""), name
        assert member.mtime == 0, name


def test_the_weights_image_is_weights_alone(shown: Shown) -> None:
    services, path = shown.world.services, f"{shown.world.namespace}/weights"
    manifest = services.manifest(path, shown.weights.rpartition(":")[2])
    members: dict[str, tarfile.TarInfo] = {}
    contents: dict[str, bytes] = {}
    for layer in manifest["layers"]:
        blob = services.registry_get(f"{path}/blobs/{layer['digest']}").content
        with tarfile.open(fileobj=io.BytesIO(blob)) as archive:
            for member in archive:
                members[member.name] = member
                if file := archive.extractfile(member):
                    contents[member.name.removeprefix("models/")] = file.read()
    require_weights_tree(members)
    assert contents == CONTENT
    config = services.registry_get(f"{path}/blobs/{manifest['config']['digest']}").json()
    assert (config["os"], config["architecture"]) == ("linux", "amd64")
    listed = {file["path"]: file for file in config["io.modelbake.weights"]["files"]}
    assert listed.keys() == CONTENT.keys()
    for name, content in CONTENT.items():
        assert listed[name]["sha256"] == hashlib.sha256(content).hexdigest()
        assert listed[name]["size"] == len(content)
        assert listed[name]["layer"] in {layer["digest"] for layer in manifest["layers"]}


def test_an_engine_holds_the_weights_image(shown: Shown, other_engine: str, tmp_path: Path) -> None:
    def docker(*arguments: str) -> str:
        return shown.world.docker(*arguments, host=other_engine).ok().out.strip()

    docker("pull", "--quiet", shown.weights)
    container = docker("create", shown.weights, "/nothing")
    try:
        docker("cp", "--archive", f"{container}:/models", str(tmp_path))
        found = {
            str(path.relative_to(tmp_path / "models")): path.read_bytes()
            for path in (tmp_path / "models").rglob("*")
            if path.is_file()
        }
        assert found == CONTENT
        modes = {
            oct(path.stat().st_mode & 0o777) for path in (tmp_path / "models").rglob("*") if path.is_file()
        }
        assert modes == {"0o444"}
    finally:
        docker("rm", container)
        docker("image", "rm", shown.weights)


# --- a registry behind TLS, of a private authority ----------------------------------------------------------


@pytest.fixture(scope="module")
def tls() -> Iterator[dict[str, str]]:
    name = "pubtls"
    yield shell_exports("registry", "up", "--name", name, "--tls")
    run_script("registry", "down", "--name", name, "--purge")


def test_behind_tls_of_a_private_authority(
    shown: Shown, tls: dict[str, str], skopeo: Programs, oras: Programs, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle.pem"
    builds = shown.world.environment.get("MODELBAKE_CA_BUNDLE")
    authorities = [Path(tls["MODELBAKE_REGISTRY_CA"]), *([Path(builds)] if builds else [])]
    bundle.write_text("\n".join(path.read_text() for path in authorities))
    world = replace(shown.world, services=shown.world.services.with_registry(tls), folder=tmp_path)
    world.login(shown.world.services)
    world.environment["MODELBAKE_CA_BUNDLE"] = str(bundle)
    world.models(tiny={})
    world.run("lock")
    ran = world.build_py("publish", "tiny", "--candidate", MODELBAKE_CA_BUNDLE=builds)
    assert ran.code == 61, ran.err
    assert "MODELBAKE_CA_BUNDLE" in ran.err

    reference = world.run("publish").out.strip()  # an engine has pulled it, and run it
    digest = reference.rpartition("@")[2]
    tag = f"{world.services.registry}/{world.namespace}/tiny:1.0.0"
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    (certificates / "ca.crt").write_bytes(Path(tls["MODELBAKE_REGISTRY_CA"]).read_bytes())
    logins = str(tmp_path / ".docker/config.json")
    inspect = ["inspect", "--authfile", logins, "--cert-dir", str(certificates), f"docker://{tag}"]
    assert json.loads(skopeo.run("skopeo", *inspect))["Digest"] == digest
    fetch = ["manifest", "fetch", "--ca-file", tls["MODELBAKE_REGISTRY_CA"], "--registry-config", logins]
    assert json.loads(oras.run("oras", *fetch, "--descriptor", tag))["digest"] == digest
    assert world.build_py("publish", "tiny").ok().out.strip() == reference
    written = world.build_py("publish", "tiny", "--output", "oci:layout").ok().out.strip()
    assert written.endswith(digest)
    world.remove_images()

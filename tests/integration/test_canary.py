"""The token is nowhere: not in the image, its history, the engine's data, the build's trace, any output.

Each place is searched by the same functions, and a build that leaks on purpose shows that they find a leak.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import secrets
import tarfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbake.buildkit.progress import BuildEvent
from modelbake.buildkit.solve import build
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryAuth
from modelbake.engine import Engine, connect
from modelbake.errors import UsageError
from tests.integration.conftest import tar
from tests.integration.world import World
from tests.servers.canary import found_in_bytes, found_in_files
from tests.servers.engine_proxy import EngineProxy

pytestmark = pytest.mark.engine


def found_in_image(needle: bytes, engine: Engine, image: str) -> list[str]:
    """Return the entries of `docker save` that hold the secret, layers unpacked."""
    saved = b"".join(engine.api.get_image(image))
    hits = []
    with tarfile.open(fileobj=io.BytesIO(saved)) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is None:
                continue
            data = file.read()
            if data[:2] == b"\x1f\x8b":
                data = zlib.decompress(data, wbits=31)
            if found_in_bytes(needle, data):
                hits.append(member.name)
    return hits


def decoded_trace(recorded: bytes) -> bytes:
    """Return what BuildKit traced, decoded, out of the engine's chunked answers."""
    whole = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", recorded)
    return b"\n".join(base64.b64decode(part) for part in re.findall(rb'"aux":"([A-Za-z0-9+/=]+)"', whole))


@pytest.fixture
def proxy(world: World) -> Iterator[EngineProxy]:
    with EngineProxy(world.services.docker_host) as running:
        yield running


def _data_root(engine: Engine) -> Path | None:
    """The engine's data, where it is on this machine and may be read."""
    root = Path(engine.info.root_dir)
    return root if engine.disk_free() is not None and os.access(root, os.R_OK | os.X_OK) else None


@pytest.mark.promise("token-leak")
def test_the_token_is_found_nowhere(world: World, proxy: EngineProxy, engine: Engine) -> None:
    needle, began = world.token.encode(), time.time() - 1
    world.repo("acme/tiny", {"config.json": b"{}", "model.safetensors": os.urandom(12 << 20)})
    world.models(tiny={})
    world.environment["DOCKER_HOST"] = f"tcp://127.0.0.1:{proxy.port}"
    said = ""
    # In text the secrets come from files, in JSON from the environment, which children could inherit.
    given = {
        "text": {},
        "json": {
            "HF_TOKEN": world.token,
            "MODELBAKE_REGISTRY_PASSWORD": world.services.password,
            "MODELBAKE_REGISTRY_PASSWORD_FILE": None,
        },
    }
    for log_format, environment in given.items():
        verbs = ["check", "lock", "render tiny --output context", "build tiny", "smoke tiny", "push tiny"]
        if log_format == "json":
            verbs += ["plan tiny --json", "size tiny --json", "history tiny --json --html history.html"]
            verbs += ["compare tiny 1.0.0 1.0.0 --json"]
        for verb in (*verbs, "doctor"):
            ran = world.build_py(*verb.split(), "--log-format", log_format, **environment).ok()
            said += ran.out + ran.err
    assert not found_in_bytes(needle, said.encode())
    assert not found_in_bytes(world.services.password.encode(), said.encode())

    trace = decoded_trace(bytes(proxy.recorded))
    assert b"/builder/fetch.py" in trace, "control: the trace has been decoded"
    assert not found_in_bytes(needle, trace)
    assert not found_in_bytes(needle, bytes(proxy.recorded))

    assert found_in_image(needle, engine, "modelbake/tiny:1.0.0") == []
    assert found_in_image(b"/modelbake/start.py", engine, "modelbake/tiny:1.0.0"), (
        "control: configurations are read"
    )
    history = json.dumps(engine.api.history("modelbake/tiny:1.0.0"))  # type: ignore[no-untyped-call]
    assert not found_in_bytes(needle, history.encode())

    # Whatever the run wrote beside models.yaml: lock, context, report, page. The token file is the control.
    assert [path.name for path in found_in_files(needle, world.folder)] == ["hub.token"]
    if root := _data_root(engine):
        assert found_in_files(needle, root, began) == []
    assert not world.hub.token_leaks()


@pytest.mark.control("token-leak")
def test_the_search_of_every_run_finds_what_is_printed_and_written(world: World) -> None:
    world.models(tiny={})
    password = world.services.password
    assert world.build_py("history", password).code == UsageError.exit_code, "an argument that is no secret"
    assert world.leaks() == [f"{password[:6]}... is in what build.py printed"]
    for path, content in (("reports/x.json", world.token), ("page.html", f"{world.token}:")):
        (world.folder / path).parent.mkdir(exist_ok=True)
        (world.folder / path).write_bytes(
            base64.b64encode(b"a" + content.encode()) if "x" in path else content.encode()
        )
        world.build_py("check").ok()
        assert world.leaks() == [f"{world.token[:6]}... is in {path}"]
        (world.folder / path).unlink()
    world.build_py("check").ok()
    assert world.leaks() == []


@pytest.mark.control("token-leak")
def test_the_search_of_every_run_sees_the_programs_it_starts(world: World) -> None:
    """A command whose words are the token shows itself to `ps`: that is the user's doing, and is found."""
    world.repo("acme/tiny", {"config.json": b"{}", "model.safetensors": b"weights"})
    world.models(tiny={})
    command = f"env -u A{world.token} echo {world.token}"
    world.build_py("lock", HF_TOKEN_PATH=None, MODELBAKE_TOKEN_COMMAND=command).ok()
    assert [leak.rpartition(" ")[2] for leak in world.leaks()] == ["children.jsonl"]
    (child,) = world.children()
    assert "echo" in child["command"] and child["environment"]["HOME"] == str(world.folder)


@pytest.mark.promise("token-leak")
def test_a_token_from_a_command_is_as_secret_as_any(world: World) -> None:
    world.repo("acme/tiny", {"config.json": b"{}", "model.safetensors": b"weights"})
    world.models(tiny={})
    (world.folder / "vault").write_text(
        f"#!/bin/sh\necho signed in >&2\ncat {world.environment['HF_TOKEN_PATH']}\n"
    )
    (world.folder / "vault").chmod(0o755)
    world.build_py("lock", HF_TOKEN_PATH=None, MODELBAKE_TOKEN_COMMAND="./vault").ok()
    refused = world.build_py("lock", HF_TOKEN_PATH=None, MODELBAKE_TOKEN_COMMAND="sh -c './vault; exit 3'")
    assert refused.code == UsageError.exit_code and "ended with exit code 3: signed in" in refused.err
    assert len(world.children()) == 2 and world.leaks() == []


@pytest.mark.control("token-leak")
def test_the_search_finds_a_token_that_leaks(world: World, proxy: EngineProxy, tiny: str) -> None:
    """The same search over a build that copies its secret into a layer, a label and its output."""
    needle, began = f"hf_{secrets.token_hex(17)}", time.time() - 1
    dockerfile = f"""\
FROM {tiny}
RUN --mount=type=secret,id=hf_token cat /run/secrets/hf_token && cp /run/secrets/hf_token /leaked
LABEL org.example.leak="{needle}"
"""
    events: list[BuildEvent] = []
    with connect(f"tcp://127.0.0.1:{proxy.port}") as engine:
        built = build(
            engine,
            tar({"Dockerfile": dockerfile}),
            secrets={"hf_token": Secret(needle)},
            registries=RegistryAuth(),
            target=None,
            tags=[],
            labels={},
            on_event=events.append,
        )
        try:
            hits = found_in_image(needle.encode(), engine, built.id)
            assert any("layer" in hit or "sha256" in hit for hit in hits), hits
            assert len(hits) >= 2, "a layer and the configuration"
            assert found_in_bytes(needle.encode(), decoded_trace(bytes(proxy.recorded)))
            assert needle not in repr(events), "what we print of a leaking build is masked even so"
            assert "***" in repr(events)
            with connect(world.services.docker_host) as direct:
                if root := _data_root(direct):
                    assert found_in_files(needle.encode(), root, began)
        finally:
            engine.api.remove_image(built.id, force=True)


@pytest.mark.control("token-leak")
@pytest.mark.parametrize("shift", range(6))
def test_the_search_sees_through_base64(shift: int) -> None:
    needle = b"hf_0123456789abcdef"
    assert found_in_bytes(needle, base64.b64encode(b"x" * shift + needle + b"y" * 7))
    assert not found_in_bytes(needle, base64.b64encode(b"x" * shift + needle[:-6] + b"y" * 9))

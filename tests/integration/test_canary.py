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
import stat
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from modelbake.buildkit.progress import BuildEvent
from modelbake.buildkit.solve import build
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryAuth
from modelbake.engine import Engine, connect
from tests.integration.conftest import tar
from tests.integration.world import World
from tests.servers.engine_proxy import EngineProxy

pytestmark = pytest.mark.engine
_CHUNK = 1 << 20


def found_in_bytes(needle: bytes, data: bytes) -> bool:
    """Tell whether a secret is in some bytes: as it is, or as base64 at any alignment."""
    return any(form in data for form in _forms(needle))


def _forms(needle: bytes) -> list[bytes]:
    # Of base64, the characters that depend on the secret alone, at each of the three alignments.
    inner = [base64.b64encode(b"\0" * shift + needle)[(shift * 4 + 2) // 3 : -4] for shift in range(3)]
    return [needle, *inner]


def found_in_files(needle: bytes, root: Path, since: float = 0) -> list[Path]:
    """Return the files below a folder that hold the secret, of those that were touched `since` a time.

    A secret made a moment ago is in no older file, and an engine that has been used holds many of them. What
    counts is the inode's own time, which nobody sets.
    """
    hits = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            with suppress(OSError):  # a file that the engine removed meanwhile holds nothing
                state = path.lstat()
                if stat.S_ISREG(state.st_mode) and state.st_ctime >= since and _file_holds(needle, path):
                    hits.append(path)
    return hits


def _file_holds(needle: bytes, path: Path) -> bool:
    forms, tail = _forms(needle), b""
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            if any(form in tail + data for form in forms):
                return True
            tail = data[-200:]
    return False


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


def test_the_token_is_found_nowhere(world: World, proxy: EngineProxy, engine: Engine) -> None:
    needle, began = world.token.encode(), time.time() - 1
    world.repo("acme/tiny", {"config.json": b"{}", "model.safetensors": os.urandom(12 << 20)})
    world.models(tiny={})
    world.environment["DOCKER_HOST"] = f"tcp://127.0.0.1:{proxy.port}"
    said = ""
    for verb in ("check", "lock", "render", "build", "smoke", "push", "doctor"):
        more = {"render": ["tiny", "--output", "context"], "check": [], "doctor": []}.get(verb, ["tiny"])
        for log_format in ("text", "json"):
            ran = world.build_py(verb, *more, "--log-format", log_format).ok()
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

    # Whatever the run wrote beside models.yaml: lock, context, report. The token file itself is the control.
    assert [path.name for path in found_in_files(needle, world.folder)] == ["hub.token"]
    if root := _data_root(engine):
        assert found_in_files(needle, root, began) == []
    assert not world.hub.token_leaks()


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


@pytest.mark.parametrize("shift", range(6))
def test_the_search_sees_through_base64(shift: int) -> None:
    needle = b"hf_0123456789abcdef"
    assert found_in_bytes(needle, base64.b64encode(b"x" * shift + needle + b"y" * 7))
    assert not found_in_bytes(needle, base64.b64encode(b"x" * shift + needle[:-6] + b"y" * 9))

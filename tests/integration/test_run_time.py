"""Images as they should be run: no root, no writable root, no capability, no way out; the weights stay."""

from __future__ import annotations

import http.client
import json
import secrets
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.test_runtimes import SMALL
from tests.integration.world import Ran, Services, World
from tests.servers.environment import ROOT
from tests.servers.hub import Hub
from tests.servers.tiny_gguf import tiny_gguf

pytestmark = pytest.mark.engine
NAMES = ("datarun", "tinyrun", "ggufrun")  # no other test has these: the engine is shared
STRICT = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
# Runs inside: says what this process may do, and tries to change what the image holds.
FACTS = """
import json, os, socket, sys
from pathlib import Path

def attempt(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        return type(error).__name__ if not error.errno else os.strerror(error.errno)
    return "done"

status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
facts = {name: status[name].split()[0] for name in ("Uid", "Gid", "CapEff", "CapPrm", "NoNewPrivs")}
facts["Groups"] = status["Groups"].split()
facts["interfaces"] = sorted(os.listdir("/sys/class/net"))
facts["root_read_only"] = bool(os.statvfs("/").f_flag & os.ST_RDONLY)
facts["way_out"] = attempt(lambda: socket.create_connection(("192.0.2.1", 80), 2))
tried = {}
weights = Path(os.environ["MODELBAKE_WEIGHTS"])
for path in sorted(each for each in weights.rglob("*") if each.is_file()):
    tried[f"open {path}"] = attempt(path.open, "r+b")
    tried[f"chmod {path}"] = attempt(path.chmod, 0o666)
    tried[f"rename {path}"] = attempt(path.rename, f"{path}.moved")
    tried[f"unlink {path}"] = attempt(path.unlink)
    tried[f"link {path}"] = attempt(os.symlink, "/etc/hostname", f"{path}.link")
for folder in (weights, "/modelbake", "/opt/venv", "/app", "/etc", "/usr/bin"):
    if os.path.isdir(folder):
        tried[f"new in {folder}"] = attempt(Path(folder, "new").write_text, "x")
facts["tried"] = tried
facts["tmp"] = attempt(Path("/tmp/new").write_text, "x")
print("FACTS" + json.dumps(facts))
"""


@pytest.fixture(scope="module")
def built(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Images of three runtimes: weights alone, llama.cpp, and the tests' own."""
    token, folder = f"hf_{secrets.token_hex(17)}", tmp_path_factory.mktemp("runtime")
    with Hub(folder / "hub", {token: None}, host=services.bridge) as hub:
        world = World(services, folder, hub, token)
        world.repo("acme/small", {**SMALL, "tokenizer/vocab.txt": b"a\nb\n"})
        world.repo("acme/gguf", {"tiny-Q4.gguf": tiny_gguf()})
        world.models(tinyrun={"source": "hf://acme/small"})
        world.run("lock", "build")
        world.images = ROOT / "images"
        ask = {"post": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "a"}]}}
        smoke = {"requests": 1, "checks": [{**ask, "expect": {"length(choices)": 1}}]}
        gguf = {"source": "hf://acme/gguf", "runtime": "llamacpp", "device": "cpu", "smoke": smoke}
        world.models(datarun={"source": "hf://acme/small", "runtime": "weights", "smoke": {}}, ggufrun=gguf)
        world.run("lock", "build")
        yield world
        for name in NAMES:
            world.docker("image", "rm", "--force", f"modelbake/{name}:1.0.0")


def facts_of(ran: Ran) -> dict[str, Any]:
    line = next(line for line in ran.ok().out.splitlines() if line.startswith("FACTS"))
    return dict(json.loads(line.removeprefix("FACTS")))


@pytest.fixture
def network(built: World) -> Iterator[str]:
    """A network of the engine that leads nowhere but to this machine."""
    name = f"modelbake-test-{uuid.uuid4().hex[:8]}"
    built.docker("network", "create", "--internal", name).ok()
    yield name
    built.docker("network", "rm", name)


@pytest.mark.promise("run-time")
@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("tinyrun", "/sum", {"numbers": [1, 2]}),
        (
            "ggufrun",
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
        ),
    ],
)
def test_a_server_needs_its_port_and_nothing_else(
    built: World, network: str, name: str, path: str, body: dict[str, Any]
) -> None:
    container = f"modelbake-test-{uuid.uuid4().hex[:8]}"
    image = f"modelbake/{name}:1.0.0"
    run = ["run", "--detach", "--name", container, "--network", network, *STRICT, image]
    try:
        built.docker(*run).ok()
        where = f"{{{{(index .NetworkSettings.Networks {json.dumps(network)}).IPAddress}}}}"
        address = built.docker("inspect", "--format", where, container).ok().out.strip()
        answer = answered(address, path, body, lambda: built.docker("logs", container).err)
        assert answer, "it serves"
        python = ["exec", container, "/opt/venv/bin/python", "-c", FACTS]
        facts = facts_of(built.docker(*python))
    finally:
        built.docker("rm", "--force", container)
    locked_down(facts)
    assert facts["interfaces"] == ["eth0", "lo"]
    assert facts["way_out"] in ("Network is unreachable", "TimeoutError", "No route to host")


def answered(address: str, path: str, body: dict[str, Any], log: Any) -> Any:
    """Ask the server at its port until it is ready; return what it answers to one request."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(address, 8000, timeout=60)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                connection.close()
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                reply = connection.getresponse()
                assert reply.status == 200, reply.read()
                return json.loads(reply.read())
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    raise AssertionError(log())


def locked_down(facts: dict[str, Any]) -> None:
    assert (facts["Uid"], facts["Gid"], facts["NoNewPrivs"]) == ("65532", "65532", "1")
    assert set(facts["Groups"]) <= {"65532"}
    assert {int(facts["CapEff"], 16), int(facts["CapPrm"], 16)} == {0}
    assert facts["root_read_only"] is True and facts["tmp"] == "done"
    assert len(facts["tried"]) >= 8
    assert "done" not in facts["tried"].values(), facts["tried"]


@pytest.mark.promise("run-time")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strict", [True, False], ids=["read-only", "writable-root"])
def test_the_weights_cannot_be_written(built: World, name: str, strict: bool) -> None:
    """Even where the root file system can be written, the user of the image can change nothing of it."""
    how = (*STRICT, "--network", "none") if strict else ()
    command = [f"modelbake/{name}:1.0.0", "/opt/venv/bin/python", "-c", FACTS]
    facts = facts_of(built.docker("run", "--rm", *how, *command))
    assert "done" not in facts["tried"].values(), facts["tried"]
    assert facts["Uid"] == "65532"
    if strict:
        locked_down(facts)
        assert facts["interfaces"] == ["lo"], "no network at all, and it verifies and runs"


@pytest.mark.control("run-time")
def test_what_may_be_written_is_written(built: World) -> None:
    """The same attempts as root, with capabilities and a network: each of them succeeds."""
    command = ["modelbake/datarun:1.0.0", "/opt/venv/bin/python", "-c", FACTS]
    facts = facts_of(built.docker("run", "--rm", "--user", "0", *command))
    assert facts["Uid"] == "0" and int(facts["CapEff"], 16) and facts["root_read_only"] is False
    assert "eth0" in facts["interfaces"]
    opened = [
        done for what, done in facts["tried"].items() if what.startswith(("open", "chmod", "rename", "new"))
    ]
    assert opened and set(opened) == {"done"}


# How a derived image changes /models, the file that the log has to name, and the event.
CHANGES = {
    "changed": (
        "printf X | dd of=model.safetensors conv=notrunc status=none",
        "model.safetensors",
        "mismatch",
    ),
    "grown": ("printf X >> config.json", "config.json", "mismatch"),
    "removed": ("rm tokenizer/vocab.txt", "tokenizer/vocab.txt", "missing"),
    "added": ("printf x > tokenizer/extra.bin", "tokenizer/extra.bin", "extra"),
    "symlinked": (
        "cp model.safetensors /srv/same && ln -sf /srv/same model.safetensors",
        "model.safetensors",
        "mismatch",
    ),
    "symlinked folder": ("mv tokenizer /srv/ && ln -s /srv/tokenizer tokenizer", "tokenizer", "mismatch"),
}


def derived(built: World, name: str, change: str, *command: str) -> Ran:
    """Build an image on top of one of ours, run it, remove it."""
    tag = f"modelbake-test/{uuid.uuid4().hex[:12]}"
    folder = built.folder / "derived"
    folder.mkdir(exist_ok=True)
    user = f"FROM modelbake/{name}:1.0.0\nUSER 0\nWORKDIR /models\n"
    (folder / "Dockerfile").write_text(f"{user}RUN {change}\nUSER 65532:65532\n")
    built.docker("build", "--quiet", "--tag", tag, str(folder)).ok()
    try:
        return built.docker("run", "--rm", *STRICT, "--network", "none", tag, *command)
    finally:
        built.docker("image", "rm", tag)


@pytest.mark.promise("start")
@pytest.mark.parametrize("kind", CHANGES)
def test_changed_weights_are_refused_and_named(built: World, kind: str) -> None:
    change, file, event = CHANGES[kind]
    ran = derived(built, "tinyrun", change, "/opt/venv/bin/python", "-c", "print('served')")
    assert ran.code == 65 and "served" not in ran.out
    said = [json.loads(line) for line in ran.out.splitlines()]
    assert (event, file) in {(each["event"], each.get("file")) for each in said}
    assert all(each["level"] == "error" and each["model"] == "tinyrun" for each in said)


@pytest.mark.control("start")
def test_a_derived_image_with_the_same_weights_is_served(built: World) -> None:
    ran = derived(built, "tinyrun", "true", "/opt/venv/bin/python", "-c", "print('served')")
    assert ran.code == 0 and ran.out.splitlines()[-1] == "served"


@pytest.mark.promise("start")
def test_a_changed_gguf_is_refused(built: World) -> None:
    """The real server is not started: not its log, but that of the verification is all there is."""
    ran = derived(built, "ggufrun", "printf X | dd of=$(ls *.gguf) seek=9 bs=1 conv=notrunc status=none")
    assert ran.code == 65
    assert {json.loads(line)["event"] for line in ran.out.splitlines()} == {"mismatch"}

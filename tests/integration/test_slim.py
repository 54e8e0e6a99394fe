"""Layers of packages on a real engine: what a change of one leaves as it was. Sizes of real images."""

from __future__ import annotations

import functools
import hashlib
import json
import secrets
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from modelbake.buildkit.progress import Log
from modelbake.buildkit.solve import build
from modelbake.credentials import Secret
from modelbake.engine import Engine
from modelbake.errors import ImageNotFound
from modelbake.render import render_runtime
from modelbake.runtime import load_runtime
from modelbake.sizing import measure
from tests.integration.conftest import tar
from tests.integration.world import Services, World
from tests.servers.environment import ROOT
from tests.unit.images.test_install import make_wheel
from tests.unit.planning import planned

pytestmark = pytest.mark.engine


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclass
class Layered:
    """A runtime with two layers of packages: `heavy`, and `light`, which needs it. Both are small here."""

    engine: Engine
    runtime: Path
    wheels: Path
    secret: Secret
    base: str
    made: list[str]

    def pin(self, **versions: str) -> None:
        """Make wheels of these versions, and pin them."""
        lines = []
        for name, version in versions.items():
            wheel = self.wheels / f"{name}-{version}-py3-none-any.whl"
            if not wheel.exists():  # made again it has another time inside, and another digest
                wheel.write_bytes(make_wheel(name, version, "heavy<2" if name == "light" else ""))
            lines.append(
                f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
            )
        (self.runtime / "requirements.txt").write_text("".join(lines))

    def build(self, *, no_cache: bool = False) -> tuple[str, str, str]:
        """Build the runtime's image; return its heavy layer, its light one, and what its steps said."""
        plan = planned(base=self.base)
        plan = replace(
            plan,
            runtime=load_runtime(self.runtime.parent, self.runtime.name),
            requirements="requirements.txt",
        )
        context = render_runtime(plan, templates=ROOT / "templates", programs=ROOT / "images")
        said: list[str] = []
        built = build(
            self.engine,
            context.tar(),
            secrets={"pip_config": self.secret},
            target="runtime",
            no_cache=no_cache,
            on_event=lambda event: said.append(event.line) if isinstance(event, Log) else None,
        )
        self.made.append(built.id)
        inspected: dict[str, Any] = self.engine.api.inspect_image(built.id)  # type: ignore[no-untyped-call]
        _base, heavy, light, *_ = inspected["RootFS"]["Layers"]  # `scripts/base-image` makes one layer
        return heavy, light, "\n".join(said)


@pytest.fixture(scope="module")
def layered(
    engine: Engine, services: Services, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Layered]:
    folder = tmp_path_factory.mktemp("layered")
    (folder / "wheels").mkdir()
    handler = functools.partial(_Quiet, directory=str(folder / "wheels"))
    with ThreadingHTTPServer((services.bridge, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pip = (
            f"[global]\nno-index = true\nfind-links = http://{services.bridge}:{server.server_port}/\n"
            f"trusted-host = {services.bridge}\n"
        )
        made = Layered(engine, folder / "images/layered", folder / "wheels", Secret(pip), services.base, [])
        shutil.copytree(ROOT / "tests/runtimes/tiny", made.runtime)
        settings: dict[str, Any] = {
            "builds": {"cuda": "requirements.txt"},
            "layers": [["heavy"]],
            # What is unique to this run was not built by an earlier one.
            "slim": {"remove": {"heavy/template.py": f"no Python, in run {secrets.token_hex(4)}"}},
        }
        made.pin(heavy="1.0", light="1.0")
        with (made.runtime / "runtime.yaml").open("a") as file:
            file.writelines(f"{key}: {json.dumps(value)}\n" for key, value in settings.items())
        yield made
        server.shutdown()
        for image in dict.fromkeys(made.made):
            engine.api.remove_image(image, force=True)


def ran(engine: Engine, image: str, program: str) -> str:
    """Run a Python program in an image's environment; return what it printed."""
    made = engine.api.create_container(image, entrypoint=["/opt/venv/bin/python", "-c", program])["Id"]
    try:
        engine.api.start(made)
        assert engine.api.wait(made)["StatusCode"] == 0, engine.api.logs(made)
        return str(engine.api.logs(made).decode())
    finally:
        engine.api.remove_container(made, force=True)


def test_a_light_package_leaves_the_heavy_layer_as_it_is(layered: Layered) -> None:
    layered.pin(heavy="1.0", light="1.0")
    heavy, light, said = layered.build()
    assert '"heavy/template.py: 0.0 MB less (no Python, in run' in said
    layered.pin(heavy="1.0", light="1.1")
    same_heavy, new_light, said = layered.build()
    assert same_heavy == heavy
    assert new_light != light
    assert "downloading light-1.1" in said
    assert "downloading heavy" not in said
    show = "import heavy, light; from importlib.metadata import version as v; print(v('heavy'), v('light'))"
    assert ran(layered.engine, layered.made[-1], show) == "1.0 1.1\n"
    again = layered.build(no_cache=True)
    assert "downloading heavy" in again[2]
    assert again[:2] == (heavy, new_light), "the same packages give the same layers, bit for bit"


# --- sizes ------------------------------------------------------------------------------------------------


def test_a_library_that_a_base_and_a_wheel_both_bring_is_named(engine: Engine, tiny: str) -> None:
    wheel = "/opt/venv/lib/python3.11/site-packages/nvidia/cuda_runtime/lib/libcudart.so.12"
    steps = [
        "COPY a /usr/local/cuda/lib64/libcudart.so.12.4.127",
        f"COPY b {wheel}",
        "COPY b /libcufft.so.12",
    ]
    context: dict[str, bytes | str] = {
        "Dockerfile": "\n".join([f"FROM {tiny}", *steps]),
        "a": b"a" * 70_000,
        "b": b"b" * 50_000,
    }
    built = build(engine, tar(context), secrets={}, on_event=lambda event: None)
    try:
        sizes = measure(engine, built.id)
        (duplicate,) = sizes.duplicates
        assert duplicate.soname == "libcudart.so.12"
        assert duplicate.files == {wheel: 50_000, "/usr/local/cuda/lib64/libcudart.so.12.4.127": 70_000}
        assert sizes.layers[-3:] == list(zip(steps, (70_000, 50_000, 50_000), strict=True))
        image = engine.image(built.id)
        assert image is not None
        if engine.info.store == "classic":
            assert sizes.total == image.size
    finally:
        engine.api.remove_image(built.id, force=True)


def test_an_image_that_is_not_there_has_no_size(engine: Engine) -> None:
    with pytest.raises(ImageNotFound):
        measure(engine, "modelbake-test/none:1")


def test_an_image_that_is_too_large_gets_no_tag(world: World) -> None:
    world.repo("acme/tiny", {"config.json": b'{"kind": "tiny"}\n', "model.safetensors": b"\3" * 3_000_000})
    world.models(tiny={"max_size": "3.1 MB"})
    world.run("lock")
    refused = world.build_py("build", "tiny")
    assert refused.code == 47
    assert "more than `max_size: 3.1 MB`; the largest: (everything else)" in refused.err
    assert ", (weights) 3.00 MB" in refused.err
    assert world.docker("image", "ls", "--quiet", "modelbake/tiny").out == ""

    world.models(tiny={"max_size": "3 GB"})
    world.run("build")
    told = json.loads(world.build_py("size", "tiny", "--json").ok().out)
    assert told["packages"]["(weights)"] == 3_000_017
    assert told["bytes"] == sum(layer["bytes"] for layer in told["layers"])
    assert told["duplicates"] == []
    assert told["previous"] is None
    # Another version, of less: `push` refuses what models.yaml allows no more, and `size` compares.
    world.models(tiny={"version": "1.1.0", "max_size": "3 GB", "include": ["*.json"]})
    world.run("lock", "build")
    assert "since 1.0.0: -3.0 MB ((weights) -3.0 MB" in world.build_py("size", "tiny").ok().out
    world.models(tiny={"version": "1.1.0", "max_size": "1 kB", "include": ["*.json"]})
    assert world.build_py("push", "tiny").code == 47
    # Weights that cannot fit are not even asked for.
    world.login()
    world.models(tiny={"version": "1.2.0", "max_size": "2 MB"})
    world.run("lock")
    world.hub.reset_log()
    refused = world.build_py("publish", "tiny")
    assert refused.code == 47
    assert "the image is at least 3.00 MB unpacked" in refused.err
    assert world.hub.requests() == []

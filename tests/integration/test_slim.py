"""Layers of packages on a real engine: what a change of one of them leaves as it was."""

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
from modelbake.render import render_runtime
from modelbake.runtime import load_runtime
from tests.integration.world import Services
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

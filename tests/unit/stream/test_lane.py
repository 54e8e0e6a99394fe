"""What the lane refuses of an OCI layout before any of it moves; the registry is one over a real socket."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelbake.errors import ImageTooLarge, RegistryLimit
from modelbake.lock import Lock, LockedModel
from modelbake.lockfile import write_lock
from modelbake.output import Output
from modelbake.stream.lane import Lane
from modelbake.stream.layout import LayoutRepository
from modelbake.stream.limits import RegistryLimits
from modelbake.stream.publish import make_image, put_image
from modelbake.workspace import Workspace
from tests.servers.upload_registry import PASSWORD, USER, UploadRegistry
from tests.unit.stream.material import bytes_of, content, locked, put_runtime, stored

FILES = {"config.json": b"{}", "model.safetensors": content(40_000)}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadRegistry]:
    with UploadRegistry() as server:
        login = {"auths": {server.host: {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}}}
        (tmp_path / "docker").mkdir()
        (tmp_path / "docker/config.json").write_text(json.dumps(login))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
        yield server


def lane(folder: Path, registry: UploadRegistry, **keys: str) -> Lane:
    """Return the lane of a model that is locked, and of which `folder/layout` holds the image."""
    entry = {"version": "1.0.0", "source": "hf://acme/minilm", "runtime": "weights", **keys}
    (folder / "models.yaml").write_text(
        json.dumps({"registry": f"{registry.host}/ml", "models": {"m": entry}})
    )
    workspace = Workspace(folder / "models.yaml")
    (spec,) = workspace.config.models.values()
    write_lock(workspace.lock_path, Lock({"m": LockedModel.of(spec, "c" * 40, locked(FILES))}))
    plan = workspace.plan(spec)
    layout = LayoutRepository.create(folder / "layout", image=plan.repository)
    weights = (stored(FILES),)
    layout.put(bytes_of(FILES), weights[0].blob.media_type)
    image = make_image(plan, put_runtime(layout), weights, workspace.context(plan).digest)
    put_image(image, layout, plan.version, runtimes=layout, weights=layout)
    output = Output(stdout=io.StringIO(), stderr=io.StringIO())
    return Lane(workspace, plan, secrets={}, output=output, jobs=2)


@pytest.mark.parametrize("most", ["40 kB", "40.1 kB"])  # the second is enough for the weights alone
def test_what_is_too_large_is_not_sent(tmp_path: Path, registry: UploadRegistry, most: str) -> None:
    with (
        lane(tmp_path, registry, max_size=most) as small,
        pytest.raises(ImageTooLarge, match="the image is at least 43"),
    ):
        small.publish_layout(tmp_path / "layout", candidate_only=True)
    assert {seen.method for seen in registry.seen} <= {"GET", "HEAD"}
    with lane(tmp_path, registry, max_size="1 MB") as fits:
        said = fits.publish_layout(tmp_path / "layout", candidate_only=True)
    assert said.startswith(f"{registry.host}/ml/m@sha256:")
    assert "PUT" in {seen.method for seen in registry.seen}, "control: what fits is sent"


def test_what_the_registry_would_refuse_is_not_sent(
    tmp_path: Path, registry: UploadRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelbake.stream.limits.KNOWN", (RegistryLimits("Here", ("127.0.0.1",), 40_000),))
    with (
        lane(tmp_path, registry) as refused,
        pytest.raises(RegistryLimit, match="Here would refuse this image: a layer of 4"),
    ):
        refused.publish_layout(tmp_path / "layout", candidate_only=True)
    assert {seen.method for seen in registry.seen} <= {"GET", "HEAD"}

"""gs:// through the command line: what a lock says, and that it tells no secret and leaves nothing half done.

Every refusal and fault: tests/unit/test_sources_gcs.py, against the same server.
"""

from __future__ import annotations

import json

import pytest

from modelbake.errors import SourceAuthError
from tests.integration.world import World
from tests.servers.gcs import GcsServer

pytestmark = pytest.mark.engine


def test_lock_tells_no_secret_and_is_whole_or_not_at_all(world: World, gcs_server: GcsServer) -> None:
    bucket = gcs_server.bucket()
    for account in (gcs_server.reader, gcs_server.stranger, gcs_server.wrong):
        key = json.loads(account.key_file.read_text())["private_key"]
        world.secrets |= {line for line in key.splitlines() if len(line) == 64}
    content = {"config.json": b'{"kind": "tiny"}', "model.safetensors": b"1" * 1000}
    generations = {path: gcs_server.put(bucket, f"llama/{path}", data) for path, data in content.items()}
    world.models(tiny={"source": f"gs://{bucket}/llama", "endpoint": gcs_server.endpoint})
    arguments = ("lock", "tiny", "--log-format", "json")
    told = world.build_py(*arguments, **gcs_server.environment_for(gcs_server.reader)).ok()
    lock = (world.folder / "models.lock").read_bytes()
    files = json.loads(lock)["models"]["tiny"]["files"]
    assert {file["path"]: file["version"] for file in files} == generations
    gcs_server.put(bucket, "llama/config.json", b'{"kind": "tiny", "more": 1}')
    for somebody in (gcs_server.stranger, gcs_server.wrong, None):
        refused = world.build_py(*arguments, **gcs_server.environment_for(somebody))
        assert refused.code == SourceAuthError.exit_code, refused.err
        assert "GOOGLE_APPLICATION_CREDENTIALS" in refused.err
        assert (world.folder / "models.lock").read_bytes() == lock
    assert "ya29." not in told.err + told.out, "no bearer token"
    assert world.leaks() == []

"""What happens in the setting, in the order in which the rows ask for it. Each step happens once: `steps`.

It is told in three parts: `beginning`, `changes`, and here what does not take the model.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence

from bench.beginning import MODEL
from bench.changes import Changes
from bench.measure import Measured
from bench.setting import RUNTIMES, Models
from bench.steps import once
from bench.verification import Verifications, verify_in_turns
from bench.weights import write_hole
from modelbake.credentials import Secret
from modelbake.dockerconfig import RegistryCredentials
from modelbake.registry import Registry
from modelbake.stream.publish import copy_image
from modelbake.stream.repository import RegistryRepository
from tests.servers.environment import ROOT
from tests.servers.minilm import cache_folder

GB = 1_000_000_000


class Story(Changes):
    """All steps."""

    # --- what an image does before it serves ---------------------------------------------------------------

    @once
    def verifications(self) -> Verifications:
        """Verifications of weights by start.py, and what one core hashes; no engine takes part."""
        sizes = self.sizes
        return verify_in_turns(cache_folder().parent / "bench", sizes.files, sizes.file_bytes, sizes.rounds)

    # --- models of any size --------------------------------------------------------------------------------

    @once
    def memory(self) -> dict[int, Measured]:
        """Publishes of one file of 1 GB and of one that is huge, into a registry that keeps no bytes."""
        self.runtime()
        command = [sys.executable, "-m", "bench.sink"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                address = process.stdout.readline().strip()
                self._copy_runtime(address)
                return {size: self._publish_hole(size, address) for size in (1, self.setting.sizes.huge_gb)}
            finally:
                process.terminate()

    def _copy_runtime(self, address: str) -> None:
        store = self.setting.store
        login = RegistryCredentials(store.user, Secret(store.password_file.read_text().strip()))
        with Registry(store.host, login) as source, Registry(address) as target:
            here, there = RegistryRepository(source, RUNTIMES), RegistryRepository(target, RUNTIMES)
            for tag in source.tags(RUNTIMES):
                if manifest := here.manifest(tag):
                    copy_image(manifest, here, there, tag)

    def _publish_hole(self, size: int, address: str) -> Measured:
        path = write_hole(self.setting.folder / f"weights/hole-{size}", size * GB)
        self.setting.hub.repo(f"acme/hole{size}", {"model.safetensors": path})
        models = Models({MODEL: {"source": f"hf://acme/hole{size}"}})
        runner = self.setting.runner(f"hole-{size}", models, registry=address)
        runner.build_py("lock")
        return runner.build_py("publish", MODEL, "--candidate")


def median(times: Sequence[float]) -> float:
    """Return the middle one."""
    return statistics.median(times)

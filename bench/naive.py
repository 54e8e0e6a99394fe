"""What one writes by hand: a Dockerfile that downloads, verifies and copies; `docker build` and `push`."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from bench.engine import Engine
from tests.servers.hub import Repo

_DOCKERFILE = """\
FROM {base} AS weights
COPY download.py SHA256SUMS /
RUN --mount=type=secret,id=hf_token python3 /download.py
RUN cd /models && sha256sum --check --quiet /SHA256SUMS

FROM {runtime}
COPY --from=weights /models /models
"""
# The base image has no curl. The token goes to the hub only, not where it redirects to.
_DOWNLOAD = """\
import shutil, urllib.request
from pathlib import Path
from urllib.parse import urlsplit

token = Path("/run/secrets/hf_token").read_text().strip()

class Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, reply, code, message, headers, url):
        made = super().redirect_request(request, reply, code, message, headers, url)
        if urlsplit(url).netloc != urlsplit(request.full_url).netloc:
            made.remove_header("Authorization")
        return made

opener = urllib.request.build_opener(Redirects)
for path in {paths!r}:
    request = urllib.request.Request({prefix!r} + path, headers=dict(Authorization="Bearer " + token))
    target = Path("/models") / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with opener.open(request) as reply, target.open("wb") as file:
        shutil.copyfileobj(reply, file, 1 << 20)
"""


@dataclass(frozen=True)
class Naive:
    """How long each step took, in seconds."""

    build: float
    push: float

    @property
    def seconds(self) -> float:
        """Of both."""
        return self.build + self.push


def build_and_push(
    engine: Engine, folder: Path, *, base: str, runtime: str, hub: str, token: Path, repo: Repo, name: str
) -> Naive:
    """Build the image and push it as `name`; nothing of it is cached before or after. Raises Failed.

    `base` and `runtime` are on the engine already, and stay there.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = [file.path for file in repo.head.files]
    sums = "".join(f"{file.sha256}  {file.path}\n" for file in repo.head.files)
    prefix = f"{hub}/{repo.name}/resolve/{repo.head.id}/"
    (folder / "Dockerfile").write_text(_DOCKERFILE.format(base=base, runtime=runtime))
    (folder / "download.py").write_text(_DOWNLOAD.format(paths=paths, prefix=prefix))
    (folder / "SHA256SUMS").write_text(sums)
    began = time.monotonic()
    secret = f"id=hf_token,src={token}"
    engine.docker("build", "--quiet", "--no-cache", "--secret", secret, "--tag", name, ".", folder=folder)
    built = time.monotonic()
    engine.docker("push", "--quiet", name)
    pushed = time.monotonic()
    engine.forget(keep=[base, runtime])
    return Naive(built - began, pushed - built)

"""install.py, run as the real program against a real package index."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import ssl
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.servers.hub_certificate import make_certificate
from tests.servers.running import RunsInThread

BUILDER = Path(__file__).parents[3] / "images" / "builder"
INSTALL = BUILDER / "install.py"
USER, PASSWORD = "somebody", "canary0password"


def make_wheel(name: str, version: str, requires: str = "") -> bytes:
    """Return a wheel with one module, one console script and one file that is no valid Python."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}/__init__.py": f"C = {{'red', 'green', 'blue', {name!r}}}\n\ndef main():\n    print(1)\n",
        f"{name}/template.py": "def {{ name }}():\n",
        f"{info}/METADATA": metadata + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-say = {name}:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path), text)  # the same bytes in every process
    return buffer.getvalue()


WHEELS = {
    "alpha-1.0-py3-none-any.whl": make_wheel("alpha", "1.0", "beta"),
    "alpha-0.9-py3-none-any.whl": make_wheel("alpha", "0.9"),
    "beta-2.0-py3-none-any.whl": make_wheel("beta", "2.0"),
}


def pin(wheel: str) -> str:
    name, version = wheel.split("-")[:2]
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(WHEELS[wheel]).hexdigest()}\n"


PINNED = "# pinned\n" + pin("alpha-1.0-py3-none-any.whl") + pin("beta-2.0-py3-none-any.whl")


class Index(RunsInThread, ThreadingHTTPServer):
    """A package index of WHEELS behind a password; `spoilt` names wheels that it garbles."""

    daemon_threads = True

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spoilt: set[str] = set()
        self.status = 0
        self.asked: list[str] = []
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            scheme = "https"
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.url = f"{scheme}://{USER}:{PASSWORD}@{self.host}/secret-path/simple"

    def handle_error(self, request: Any, client_address: Any) -> None:
        assert isinstance(sys.exception(), OSError), sys.exception()


class _Handler(BaseHTTPRequestHandler):
    server: Index
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        folder, _, name = self.path.rstrip("/").rpartition("/")
        if self.headers["Authorization"] != expected:
            self._reply(401, b"no")
        elif self.server.status:
            self._reply(self.server.status, b"no")
        elif folder.endswith("/files"):
            data = WHEELS[name]
            self._reply(200, data[:-1] + b"!" if name in self.server.spoilt else data)
        else:
            links = [
                f'<a href="../../files/{wheel}">{wheel}</a>' for wheel in WHEELS if wheel.startswith(name)
            ]
            self._reply(200 if links else 404, "".join(links).encode())

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@dataclass
class Bench:
    """A folder of secrets and a place for the environment."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.venv = self.folder / "venv"
        self.requirements = self.folder / "requirements.txt"
        self.secrets = self.folder / "secrets"
        self.secrets.mkdir()
        self.requirements.write_text(PINNED)
        self.python = sys.executable
        self.options: list[str] = []

    def secret(self, name: str, text: str) -> None:
        (self.secrets / name).write_text(text)

    def run(self) -> tuple[int, dict[str, Any], str]:
        """Run the program; return its exit code, its last event ({} if none) and all that it printed."""
        done = subprocess.run(
            [
                sys.executable,
                str(INSTALL),
                str(self.venv),
                str(self.requirements),
                "--secrets",
                str(self.secrets),
                *self.options,
            ],
            # What the caller's environment says of indexes must not count.
            env={**os.environ, "PIP_INDEX_URL": "http://127.0.0.1:9/of-the-environment", **self.environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        text = done.stdout + done.stderr
        events = [json.loads(line) for line in text.splitlines()]
        for canary in (PASSWORD, USER, "secret-path", "Traceback"):
            assert canary not in text
        if done.returncode:
            (line,) = done.stderr.splitlines()
            assert json.loads(line)["code"] == done.returncode
            assert json.loads(line)["event"] == "error"
            assert not self.venv.exists() or self.venv.is_file() or list(self.venv.iterdir()) == []
        return done.returncode, events[-1] if events else {}, text

    def say(self) -> str:
        return subprocess.run(
            [str(self.venv / "bin" / "alpha-say")], capture_output=True, text=True, check=True
        ).stdout

    def tree(self) -> dict[str, tuple[int, int, str]]:
        """Return everything of the environment: path -> mode, time, contents."""
        found = {}
        for path in sorted(self.venv.rglob("*")):
            state = path.lstat()
            if path.is_symlink():
                contents = str(path.readlink())
            else:
                contents = "" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
            found[path.relative_to(self.venv).as_posix()] = (state.st_mode, state.st_mtime_ns, contents)
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def index() -> Iterator[Index]:
    with Index() as index:
        yield index


@pytest.fixture
def ready(bench: Bench, index: Index) -> Iterator[Bench]:
    """A bench that knows the index."""
    bench.secret("index_url", index.url + "\n")
    yield bench
    index.status = 0
    index.spoilt.clear()


def test_packages_are_slimmed_before_they_are_compiled(ready: Bench) -> None:
    instructions = ready.folder / "slim.json"
    instructions.write_text('{"remove": {"alpha/template.py": "no Python"}, "stub": {}, "keep": []}')
    ready.options = ["--slim", str(instructions)]
    code, event, text = ready.run()
    assert code == 0, text
    message = "alpha/template.py: 0.0 MB less (no Python)"
    assert event == {
        "event": "slimmed", "pattern": "alpha/template.py", "files": 1, "bytes": 18, "message": message,
    }  # fmt: skip
    assert not [path for path in ready.tree() if "template" in path and "alpha" in path]
    assert [path for path in ready.tree() if path.endswith("beta/template.py")]
    assert {time for _, time, _ in ready.tree().values()} == {0}
    assert ready.say() == "1\n"
    shutil.rmtree(ready.venv)
    instructions.write_text("[]")
    code, event, _ = ready.run()
    assert code == 35
    assert str(instructions) in event["message"]


def test_a_layer_to_copy_has_the_same_times_all_over(ready: Bench) -> None:
    layer = ready.folder / "layer"
    ready.options = ["--output", str(layer)]
    code, _, text = ready.run()
    assert code == 0, text
    assert not ready.venv.exists()
    moved = layer / ready.venv.relative_to("/")
    assert (moved / "bin/alpha-say").read_text().startswith(f"#!{ready.venv}/bin/python")
    assert {path.lstat().st_mtime_ns for path in (layer, *layer.rglob("*"))} == {0}


def test_layers_together_are_what_one_layer_is(ready: Bench) -> None:
    """Made apart and laid over each other they are the environment that is made at once, byte for byte."""
    assert ready.run()[0] == 0
    whole = ready.tree()
    layers: dict[str, tuple[int, int, str]] = {}
    for wheel, options in (
        ("alpha-1.0-py3-none-any.whl", ["--part"]),
        ("beta-2.0-py3-none-any.whl", ["--beside", str(ready.folder / "below")]),
    ):
        ready.venv.rename(ready.folder / ("whole" if not layers else "below"))
        ready.requirements.write_text(pin(wheel))
        ready.options = options
        code, _, text = ready.run()
        assert code == 0, text
        layers |= ready.tree()
    assert layers == whole


def test_layers_that_do_not_fit_together_are_found(ready: Bench) -> None:
    """alpha needs beta, which no layer has: only where it is laid beside the others can that be known."""
    ready.requirements.write_text("")
    assert ready.run()[0] == 0
    ready.venv.rename(ready.folder / "below")
    ready.requirements.write_text(pin("alpha-1.0-py3-none-any.whl"))
    ready.options = ["--beside", str(ready.folder / "below")]
    code, event, _ = ready.run()
    assert code == 35
    assert "alpha 1.0 requires beta, which is not installed" in event["message"]
    assert "compile the pins again" in event["message"]


def test_the_same_requirements_give_the_same_bytes(ready: Bench) -> None:
    code, event, text = ready.run()
    assert code == 0, text
    assert event == {"event": "progress", "message": "installing 2 packages"}
    assert "downloading alpha-1.0-py3-none-any.whl" in text
    assert ready.say() == "1\n"
    first = ready.tree()
    names = {path.split("/")[-1] for path in first}
    assert not {name for name in names if name.startswith(("pip", "setuptools"))}
    assert {time for _, time, _ in first.values()} == {0}
    assert ready.venv.stat().st_mtime_ns == 0
    for mode, _, _ in first.values():
        assert stat.S_ISLNK(mode) or mode & 0o444 == 0o444
        assert stat.S_ISLNK(mode) or mode & 0o022 == 0
    # The byte code is of the kind that no time stamp makes invalid (PEP 552).
    compiled = next(ready.venv.rglob("alpha/__pycache__/__init__.*.pyc")).read_bytes()
    assert int.from_bytes(compiled[4:8], "little") == 0b01
    # Using it does not change it, as there is nothing left to compile.
    subprocess.run([str(ready.venv / "bin" / "alpha-say")], check=True, stdout=subprocess.DEVNULL)
    assert ready.tree() == first
    shutil.rmtree(ready.venv)
    ready.environment["PYTHONHASHSEED"] = "7"
    assert ready.run()[0] == 0
    assert ready.tree() == first


def test_source_date_epoch(ready: Bench) -> None:
    ready.requirements.write_text("")
    ready.environment["SOURCE_DATE_EPOCH"] = "86400"
    assert ready.run()[0] == 0
    assert {time for _, time, _ in ready.tree().values()} == {86_400_000_000_000}


@pytest.mark.parametrize("text", ["", "# nothing\n\n"])
def test_no_requirements(bench: Bench, text: str) -> None:
    bench.requirements.write_text(text)
    code, _, text = bench.run()
    assert code == 0, text
    python = bench.venv / "bin" / "python"
    done = subprocess.run([str(python), "-c", "import pip"], capture_output=True, check=False)
    assert b"No module named 'pip'" in done.stderr


def test_a_pip_configuration(bench: Bench, index: Index) -> None:
    bench.secret("pip_config", f"[global]\nindex-url = {index.url}\n")
    code, _, text = bench.run()
    assert code == 0, text
    assert bench.say() == "1\n"


def test_a_python_without_pip(ready: Bench, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    ready.python = str(tmp_path / "bare" / "bin" / "python")
    code, _, text = ready.run()
    assert code == 0, text
    assert ready.say() == "1\n"


def test_garbled_bytes(ready: Bench, index: Index) -> None:
    index.spoilt.add("beta-2.0-py3-none-any.whl")
    code, event, _ = ready.run()
    assert code == 30
    assert event["package"] == "beta==2.0"
    assert hashlib.sha256(WHEELS["beta-2.0-py3-none-any.whl"]).hexdigest() in event["message"]


@pytest.mark.parametrize(
    ("text", "package"),
    [
        ("alpha==1.0\n", "alpha==1.0"),
        (pin("alpha-1.0-py3-none-any.whl"), "beta"),  # needed by alpha, but not pinned
    ],
)
def test_requirements_without_hash(ready: Bench, text: str, package: str) -> None:
    ready.requirements.write_text(text)
    code, event, _ = ready.run()
    assert code == 30, event
    assert event["package"] == package
    assert "not pinned" in event["message"]


@pytest.mark.parametrize("name", ["alpha==3.0", "unknown==1.0"])
def test_nothing_fits(ready: Bench, name: str) -> None:
    ready.requirements.write_text(f"{name} --hash=sha256:{'0' * 64}\n")
    code, event, _ = ready.run()
    assert code == 31
    assert event["package"] == name
    if name.startswith("alpha"):
        assert "0.9, 1.0" in event["message"]


def test_wrong_password(ready: Bench, index: Index) -> None:
    ready.secret("index_url", index.url.replace(PASSWORD, "another1password"))
    code, event, text = ready.run()
    assert code == 37, event
    assert "another1password" not in text
    assert "127.0.0.1" in event["message"]


def test_no_password(ready: Bench, index: Index) -> None:
    ready.secret("index_url", index.url.replace(f"{USER}:{PASSWORD}@", ""))
    assert ready.run()[0] == 37


def test_an_index_that_cannot_be_reached(ready: Bench) -> None:
    ready.secret("index_url", f"http://{USER}:{PASSWORD}@127.0.0.1:9/secret-path/simple")
    ready.secret("pip_config", "[global]\nretries = 0\n")
    code, event, _ = ready.run()
    assert code == 32, event
    assert "127.0.0.1" in event["message"]


def test_an_index_that_fails(ready: Bench, index: Index) -> None:
    index.status = 503
    ready.secret("pip_config", "[global]\nretries = 0\n")
    code, event, _ = ready.run()
    assert code == 32, event


def test_a_private_authority(bench: Bench, tmp_path: Path) -> None:
    made = make_certificate(tmp_path / "tls")
    with Index((made.cert, made.key)) as index:
        bench.secret("index_url", index.url)
        bench.secret("pip_config", "[global]\nretries = 0\n")
        code, event, _ = bench.run()
        assert code == 33, event
        assert "ca_bundle" in event["message"]
        bench.secret("ca_bundle", made.authority.read_text())
        code, event, text = bench.run()
        assert code == 0, text
        assert bench.say() == "1\n"


def test_an_environment_that_exists(bench: Bench) -> None:
    bench.venv.write_text("")
    code, event, _ = bench.run()
    assert code == 35
    assert "exists already" in event["message"]


def test_no_requirements_file(bench: Bench) -> None:
    bench.requirements.unlink()
    assert bench.run()[0] == 35


def test_a_line_that_is_no_requirement(ready: Bench) -> None:
    ready.requirements.write_text("alpha = = 1\n")
    code, event, _ = ready.run()
    assert code == 35, event
    assert "alpha" in event["message"]


def test_a_full_disk(ready: Bench, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount here")
    try:
        ready.venv = disk / "venv"
        code, event, _ = ready.run()
        assert code == 34, event
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_what_fetch_needs_is_pinned() -> None:
    text = (BUILDER / "requirements.txt").read_text()
    wanted = [
        line for line in (BUILDER / "requirements.in").read_text().splitlines() if line and line[0] != "#"
    ]
    pinned = {line.split(" ")[0] for line in text.splitlines() if line and line[0] not in " #"}
    assert {line.replace("_", "-") for line in wanted} <= pinned
    assert all("==" in line for line in pinned)
    assert text.count("--hash=sha256:") >= len(pinned)
    assert "file:" not in text
    assert "find-links" not in text


@pytest.mark.parametrize(
    ("requirement", "secret", "asked"),
    [
        ("torch==2.13.0+cpu", None, True),
        ("torch==2.13.0", None, False),
        ("torch==2.13.0+cpu", "pip_config", False),
        ("torch==2.13.0+cpu", "index_url", False),
    ],
)
def test_a_cpu_build_is_looked_for_where_pytorch_has_it(
    ready: Bench, requirement: str, secret: str | None, asked: bool
) -> None:
    """Run in a process of its own, with the environment that pip would see instead of pip."""
    for given in ready.secrets.iterdir():
        given.unlink()
    if secret:
        ready.secret(secret, "http://127.0.0.1:9/simple" if secret == "index_url" else "[global]\n")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import install; from pathlib import Path;"
        "print(install._pip_environment(Path('/'), Path(sys.executable), Path(sys.argv[2]), sys.argv[3])"
        ".get('PIP_EXTRA_INDEX_URL', ''))"
    )
    command = [sys.executable, "-c", program, str(INSTALL.parent), str(ready.secrets), requirement]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert ("download.pytorch.org/whl/cpu" in said) is asked

"""Our own dockerd: its folder, its settings, and how it is started, stopped and cleaned up after."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import ipaddress
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from engine_api import EngineAPI
from engine_network import (
    add_bridge,
    bridges,
    delete_bridges,
    forward_policy,
    free_network,
    has_docker_chains,
    let_out,
    let_out_no_more,
    outgoing_mtu,
    remove_docker_chains,
)
from local_service import Problem, Service, command_line, say

# sockaddr_un holds 108 bytes, and dockerd's own sockets lie some folders below its exec-root.
_LONGEST_FOLDER = 70
_STOP_SECONDS = 40
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_KEPT_ENVIRONMENT = ("HOME", "LANG", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", *_PROXIES)


class OwnEngine:
    """The dockerd of one name, below ``<cache>/engine/<name>``."""

    def __init__(self, cache: Path, name: str) -> None:
        self.name = name
        self.folder = cache / "engine" / name
        self.host = f"unix://{self.folder}/docker.sock"
        # From the path, so that engines of two cache folders do not share one; interface names have 15 bytes.
        self._bridge = f"mb-{hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:10]}"
        self.service = Service(self.folder, "dockerd", f"{self.folder}/dockerd.pid")
        self.log = self.service.log_file
        self._config = self.folder / "daemon.json"
        self._path = self.folder / "path"
        self._release = self.folder / "release"
        # There while the iptables chains are this engine's: the FORWARD policy of before.
        self._policy = self.folder / "forward-policy"

    def running(self) -> bool:
        """Whether it answers."""
        return EngineAPI(self.host).answers()

    def require_usable(self) -> None:
        """Raises a Problem where its folder's path is too long for the sockets in it."""
        if len(str(self.folder)) > _LONGEST_FOLDER:
            raise Problem(
                f"{self.folder} is too long a path for sockets",
                "set MODELBAKE_CACHE to a shorter one, e.g. /var/tmp/mb",
            )

    def require_store(self, containerd_snapshotter: bool) -> bool:
        """Whether it has containerd's image store, once chosen; the caller may ask for that one only.

        Raises:
            Problem: it is asked for, and this engine was made with the classic store.
        """
        if not self._config.exists():
            return containerd_snapshotter
        has = bool(self._settings()["features"]["containerd-snapshotter"])
        if containerd_snapshotter and not has:
            hint = f"choose another --name, or scripts/engine down --name {self.name} --purge first"
            raise Problem(f"engine {self.name} was made with the classic image store", hint)
        return has

    def require_release(self, release: str | None, usual: str) -> str:
        """The Debian release whose engine it is; the caller may ask for that one only.

        Raises:
            Problem: another one is asked for than it was made with.
        """
        made = self._release.read_text().strip() if self._release.exists() else None
        if made is None and self._config.exists():
            made = usual
        if release and made and release != made:
            hint = f"choose another --name, or scripts/engine down --name {self.name} --purge first"
            raise Problem(f"engine {self.name} was made with {made}'s engine", hint)
        return made or release or usual

    def _settings(self) -> dict[str, Any]:
        """What it was last started with."""
        settings: dict[str, Any] = json.loads(self._config.read_text())
        return settings

    def start(self, path: list[Path], containerd_snapshotter: bool, release: str) -> None:
        """Starts it with the commands of ``path`` in front of PATH, and waits until it answers."""
        _require_cgroups()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._release.write_text(f"{release}\n")
        environment = {k: os.environ[k] for k in _KEPT_ENVIRONMENT if k in os.environ}
        environment["PATH"] = ":".join(
            [*map(str, path), os.environ.get("PATH", ""), "/usr/sbin:/usr/bin:/sbin:/bin"]
        )
        containerd_snapshotter = self.require_store(containerd_snapshotter)
        self._path.write_text(environment["PATH"])
        os.environ["PATH"] = environment["PATH"]
        network = self._network()
        add_bridge(self._bridge, network)
        alone = not any(Path((command_line(pid) or [""])[0]).name == "dockerd" for pid in _processes())
        config = {
            "features": {"containerd-snapshotter": containerd_snapshotter},
            "bridge": self._bridge,
            # The upper half is for `docker network create`; the bridge has the first /24.
            "default-address-pools": [{"base": str(list(network.subnets(1))[1]), "size": 24}],
            "mtu": outgoing_mtu(),
            "iptables": alone and self.name == "default",
            "ip6tables": False,
            "log-opts": {"max-size": "20m", "max-file": "2"},
            "shutdown-timeout": 5,
        }
        self._config.write_text(json.dumps(config, indent=2) + "\n")
        if not config["iptables"]:
            let_out(network)
        elif not has_docker_chains():
            self._policy.write_text(forward_policy())
        dockerd = shutil.which("dockerd", path=environment["PATH"])
        assert dockerd is not None
        command = [dockerd, "--config-file", str(self._config), "--data-root", f"{self.folder}/data"]
        command += [
            "--exec-root",
            f"{self.folder}/exec",
            "-H",
            self.host,
            "--pidfile",
            f"{self.folder}/dockerd.pid",
        ]
        # As a single argument this path is what tells our dockerd from any other.
        self.service.start(command, environment, self.running, 90)

    def stop(self) -> bool:
        """Stops it with its containers and takes away what it left: processes, mounts, bridge, rules."""
        api = EngineAPI(self.host)
        if self.service.pid() is not None and api.answers():
            for container in api.read("/containers/json?all=1"):
                with contextlib.suppress(Problem):
                    api.request("DELETE", f"/containers/{container['Id']}?force=1&v=1")
        stopped = self.service.stop(_STOP_SECONDS)
        self._kill_leftovers()
        for mount in sorted(_mounts_below(self.folder), reverse=True):
            ctypes.CDLL(None).umount2(os.fsencode(mount), 2)
        if self._config.exists() and self._path.exists():
            os.environ["PATH"] = self._path.read_text()
            settings, network = self._settings(), self._network()
            ours = bridges(network)
            if not settings["iptables"]:
                let_out_no_more(network)
            elif self._policy.exists():
                remove_docker_chains(ours, network, self._policy.read_text())
                self._policy.unlink()
            delete_bridges(ours)
        (self.folder / "docker.sock").unlink(missing_ok=True)
        return stopped

    def _kill_leftovers(self) -> None:
        """Ends what a dockerd that was killed leaves running: containerd, its shims, their containers."""
        containers = []
        ours = (
            f"{self.folder}/exec/containerd/containerd.toml",
            f"{self.folder}/exec/containerd/containerd.sock",
        )
        for pid in _processes():
            arguments = command_line(pid)
            if not any(path in arguments for path in ours):
                continue
            if "-id" in arguments[:-1]:
                containers.append(arguments[arguments.index("-id") + 1])
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in _processes() if containers else []:
            with contextlib.suppress(OSError):
                groups = Path(f"/proc/{pid}/cgroup").read_text()
                if any(container in groups for container in containers):
                    os.kill(pid, signal.SIGKILL)
        if containers:
            time.sleep(0.5)

    def _network(self) -> ipaddress.IPv4Network:
        """Its /16; the same one every time, once chosen."""
        chosen = self.folder / "network"
        if not chosen.exists():
            others = [
                ipaddress.IPv4Network(p.read_text().strip()) for p in self.folder.parent.glob("*/network")
            ]
            chosen.write_text(f"{free_network(others)}\n")
        return ipaddress.IPv4Network(chosen.read_text().strip())


def _require_cgroups() -> None:
    """Mounts the unified hierarchy where no controller is mounted at all (a bare virtual machine)."""
    kinds = [line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()]
    if "cgroup" in kinds or "cgroup2" in kinds:
        return
    say("engine: mounting cgroup2 at /sys/fs/cgroup")
    if ctypes.CDLL(None, use_errno=True).mount(b"cgroup2", b"/sys/fs/cgroup", b"cgroup2", 0, None):
        raise Problem(
            f"no cgroups here: {os.strerror(ctypes.get_errno())}", "is this a container? give it --privileged"
        )


def _mounts_below(folder: Path) -> list[str]:
    points = (line.split()[1] for line in Path("/proc/mounts").read_text().splitlines())
    decoded = (p.encode().decode("unicode_escape") for p in points)
    return [p for p in decoded if p.startswith(f"{folder}/")]


def _processes() -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]

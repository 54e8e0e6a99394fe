"""The network of an engine of our own: a free subnet, a bridge, and iptables rules that go away with it.

Engines fight over two things: the bridge ``docker0``, and the iptables chains, which every dockerd that
manages iptables flushes as it starts. So each of ours has a bridge of its own, and at most one manages
iptables; the others get the few rules here. Addresses are IPv4. Standard library and iptables only: iproute2
may be absent.
"""

from __future__ import annotations

import fcntl
import ipaddress
import shlex
import socket
import struct
import subprocess
from pathlib import Path

from local_service import Problem

# From linux/sockios.h and linux/if.h.
_ADD_BRIDGE, _DELETE_BRIDGE = 0x89A0, 0x89A1
_GET_ADDRESS, _SET_ADDRESS, _SET_NETMASK = 0x8915, 0x8916, 0x891C
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1


def free_network(taken: list[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
    """A private /16 that overlaps neither ``taken`` nor any route of the machine.

    Raises:
        Problem: there is none.
    """
    used = [*taken, *_routes()]
    candidates = [f"10.{n}.0.0/16" for n in range(213, 240)] + [f"172.{n}.0.0/16" for n in range(20, 32)]
    for candidate in map(ipaddress.IPv4Network, candidates):
        if not any(candidate.overlaps(other) for other in used):
            return candidate
    raise Problem(
        "no private /16 is free for the engine's bridge",
        "look at this machine's routes, or use an existing engine",
    )


def _routes() -> list[ipaddress.IPv4Network]:
    """The machine's routes, without the default one."""
    found = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        fields = line.split()
        target, mask = (socket.inet_ntoa(struct.pack("<L", int(fields[i], 16))) for i in (1, 7))
        if int(fields[7], 16):
            found.append(ipaddress.IPv4Network(f"{target}/{mask}", strict=False))
    return found


def outgoing_mtu() -> int:
    """The MTU of the default route: a bridge with a larger one loses big packets on tunnels."""
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        interface, destination, *_ = line.split()
        if destination == "00000000":
            return int(Path(f"/sys/class/net/{interface}/mtu").read_text())
    return 1500


def add_bridge(interface: str, network: ipaddress.IPv4Network) -> None:
    """Makes a bridge, unless it is there; its address is the first one of the network's first /24."""
    name = interface.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            if not Path(f"/sys/class/net/{interface}").exists():
                fcntl.ioctl(control, _ADD_BRIDGE, name + b"\0")
            for request, value in ((_SET_ADDRESS, str(network[1])), (_SET_NETMASK, "255.255.255.0")):
                address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))
                fcntl.ioctl(control, request, struct.pack("16s16s8x", name, address))
            _set_up(control, name, up=True)
        except OSError as error:
            raise Problem(
                f"cannot make the bridge {interface}: {error.strerror}",
                "is this a container without --privileged?",
            ) from error


def bridges(network: ipaddress.IPv4Network) -> list[str]:
    """The bridges with an address in the network: an engine's own, and those of `docker network create`."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for folder in Path("/sys/class/net").glob("*/bridge"):
            name = folder.parent.name
            try:
                reply = fcntl.ioctl(control, _GET_ADDRESS, struct.pack("16s24x", name.encode()))
            except OSError:  # it has no address
                continue
            if ipaddress.IPv4Address(reply[20:24]) in network:
                found.append(name)
    return found


def delete_bridges(names: list[str]) -> None:
    """Takes bridges away."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for name in names:
            _set_up(control, name.encode(), up=False)
            fcntl.ioctl(control, _DELETE_BRIDGE, name.encode() + b"\0")


def _set_up(control: socket.socket, name: bytes, *, up: bool) -> None:
    (flags,) = struct.unpack_from("H", fcntl.ioctl(control, _GET_FLAGS, struct.pack("16sH22x", name, 0)), 16)
    fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sH22x", name, flags | _UP if up else flags & ~_UP))


def let_out(network: ipaddress.IPv4Network) -> None:
    """Lets a network's containers reach the world, for an engine that does not manage iptables."""
    for table, chain, rule in _rules(network):
        if _iptables("-t", table, "-C", chain, *rule, check=False).returncode:
            # In front: an engine that manages iptables sets the FORWARD policy to DROP.
            _iptables("-t", table, "-I", chain, *rule)


def let_out_no_more(network: ipaddress.IPv4Network) -> None:
    """Takes the rules of `let_out` away."""
    for table, chain, rule in _rules(network):
        _iptables("-t", table, "-D", chain, *rule, check=False)


def _rules(network: ipaddress.IPv4Network) -> list[tuple[str, str, list[str]]]:
    inside, answers = str(network), ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
    return [
        ("nat", "POSTROUTING", ["-s", inside, "!", "-d", inside, "-j", "MASQUERADE"]),
        ("filter", "FORWARD", ["-s", inside, "-j", "ACCEPT"]),
        ("filter", "FORWARD", ["-d", inside, *answers, "-j", "ACCEPT"]),
    ]


def forward_policy() -> str:
    """The policy for forwarded packets as it is now: ``ACCEPT`` or ``DROP``."""
    return _iptables("-S", "FORWARD").stdout.split()[2]


def has_docker_chains() -> bool:
    """Whether some engine has its iptables chains here."""
    return "-N DOCKER" in _iptables("-t", "nat", "-S").stdout


def remove_docker_chains(interfaces: list[str], network: ipaddress.IPv4Network, policy: str) -> None:
    """Takes away what a dockerd that managed iptables leaves behind; sets the FORWARD policy of before."""
    _iptables("-P", "FORWARD", policy)
    for table in ("nat", "filter"):
        listed = [shlex.split(line) for line in _iptables("-t", table, "-S").stdout.splitlines()]
        for rule in (r for r in listed if r[0] == "-A" and not r[1].startswith("DOCKER")):
            if any(w.startswith("DOCKER") or w in interfaces or _is_subnet(w, network) for w in rule[2:]):
                _iptables("-t", table, "-D", *rule[1:], check=False)
        chains = [r[1] for r in listed if r[0] == "-N" and r[1].startswith("DOCKER")]
        for action in ("-F", "-X"):
            for chain in chains:
                _iptables("-t", table, action, chain, check=False)


def _is_subnet(word: str, network: ipaddress.IPv4Network) -> bool:
    try:
        return ipaddress.IPv4Network(word).subnet_of(network)
    except ValueError:
        return False


def _iptables(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["iptables", "-w", "10", *arguments], capture_output=True, text=True)
    if check and done.returncode:
        hint = (
            "does the kernel have nf_tables or ip_tables with NAT? is this a container without --privileged?"
        )
        raise Problem(f"iptables {' '.join(arguments)}: {done.stderr.strip()}", hint)
    return done

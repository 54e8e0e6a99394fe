"""Which hosts a hub may redirect to: not into the machine or network of whoever asks.

A hub that was taken over could otherwise have the build ask for http://169.254.169.254/, or for what listens
on this machine only. Link-local and cloud metadata addresses are refused always; loopback and private ones
where the hub itself is a public one (a hub of one's own may well have its files in the same network). The
name is resolved here and once more by the client: a name whose addresses change in between is not caught.
`images/builder/addresses.py` holds the builder stage to the same.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Collection

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str], Collection[Address]]

# Metadata services that are not at a link-local address: AWS (IPv6), Alibaba, Oracle, Azure.
_METADATA = frozenset(
    map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"))
)


def addresses_of(host: str) -> frozenset[Address]:
    """Return the addresses of a host name or of a literal address, however written; none if it has none.

    Where a proxy does the talking a name may be unknown here.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return frozenset()
    return frozenset(_plain(ipaddress.ip_address(str(each[4][0]))) for each in found)


def redirect_problem(hub: str, target: str, resolve: Resolve = addresses_of) -> str | None:
    """Return why a redirect from the hub at host `hub` to host `target` is not followed, or None."""
    if target.lower() == hub.lower():
        return None
    found = sorted(resolve(target), key=str)
    for address in found:
        if address in _METADATA or address.is_link_local or address.is_multicast or address.is_unspecified:
            return f"{target} is the link-local or metadata address {address}"
    inner = [address for address in found if not address.is_global]
    # A hub without an address here is asked through a proxy: taken for a public one.
    if inner and all(address.is_global for address in resolve(hub)):
        return f"{target} has the private address {inner[0]}, and the hub is a public one"
    return None


def _plain(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address.sixtofour or address
    return address

"""Which of this machine's addresses become host candidates?

RFC 8445, 5.1.1.1, pure: no loopback unless asked for (DEVIATION: on request, where that section has MUST NOT; pinned by
test_without_loopback_no_loopback_address_is_gathered); no deprecated IPv6 forms (IPv4-compatible, site-local,
IPv4-mapped); where an interface has temporary IPv6 addresses (RFC 8981), its stable ones of the same prefix and its
link-local ones are left out, so that they are not disclosed; tentative and deprecated addresses, and interfaces
without carrier, are of no use. DEVIATION: of "each IP address that the host has" deprecated ones are left out, and
169.254/16 beside a real one; pinned by test_ipv4_link_local_only_where_there_is_nothing_else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from iceagent.config import Config
from iceagent.net.address import IPAddress, canonical_host, ip_address
from iceagent.net.host import AddressFlag, Interface, InterfaceAddress, InterfaceKind

__all__ = ["HostAddress", "select_addresses"]

_UNUSABLE = frozenset({AddressFlag.TENTATIVE, AddressFlag.DEPRECATED, AddressFlag.DADFAILED})
_SITE_LOCAL = ipaddress.ip_network("fec0::/10")
_IPV4_COMPATIBLE = ipaddress.ip_network("::/96")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAddress:
    """An address to open a socket on, and the interface it stands on."""

    host: str
    interface: str
    index: int
    kind: InterfaceKind
    metered: bool


def select_addresses(interfaces: Sequence[Interface], config: Config) -> list[HostAddress]:
    """The addresses to gather on, in the system's order, each once."""
    wanted = {canonical_host(host) for host in config.bind_hosts}
    found: dict[str, HostAddress] = {}
    for interface in interfaces:
        if not _is_usable(interface, config):
            continue
        for address in _addresses(interface, explicit=wanted):
            if _is_wanted(address, interface, wanted, config):
                found.setdefault(address.host, _host_address(address, interface))
    return list(found.values())


def _is_usable(interface: Interface, config: Config) -> bool:
    if not interface.is_up:
        return False
    if interface.kind is InterfaceKind.LOOPBACK and not config.loopback:
        return False
    return config.interface_filter is None or config.interface_filter(interface)


def _addresses(interface: Interface, explicit: set[str]) -> Iterable[InterfaceAddress]:
    usable = [a for a in interface.addresses if not a.flags & _UNUSABLE]
    temporary = [_prefix(a) for a in usable if AddressFlag.TEMPORARY in a.flags and ":" in a.host]
    has_ipv4 = any(":" not in a.host and not ip_address(a.host).is_link_local for a in usable)
    for address in usable:
        ip = ip_address(address.host)
        if address.host in explicit:
            yield address
        elif AddressFlag.TEMPORARY not in address.flags and _is_traceable_beside(ip, temporary):
            continue
        elif ip.version == 4 and ip.is_link_local and has_ipv4:
            # 169.254/16 beside a real address reaches nobody who cannot be reached better.
            continue
        else:
            yield address


def _prefix(address: InterfaceAddress) -> ipaddress.IPv6Network:
    return ipaddress.IPv6Network((address.host, address.prefix_length), strict=False)


def _is_traceable_beside(ip: IPAddress, temporary: Sequence[ipaddress.IPv6Network]) -> bool:
    """Whether a stable address says who we are, while temporary ones in these prefixes do not."""
    if ip.version == 4 or not temporary:
        return False
    return ip.is_link_local or any(ip in prefix for prefix in temporary)


def _is_wanted(address: InterfaceAddress, interface: Interface, wanted: set[str], config: Config) -> bool:
    ip = ip_address(address.host)
    if wanted and address.host not in wanted:
        return False
    if (ip.version == 4 and not config.ipv4) or (ip.version == 6 and not config.ipv6):
        return False
    if ip.version == 6 and not ip.is_loopback and (ip in _SITE_LOCAL or ip in _IPV4_COMPATIBLE or ip.ipv4_mapped):
        return False
    return config.address_filter is None or config.address_filter(ip)


def _host_address(address: InterfaceAddress, interface: Interface) -> HostAddress:
    return HostAddress(
        host=address.host,
        interface=interface.name,
        index=interface.index,
        kind=interface.kind,
        metered=interface.metered,
    )

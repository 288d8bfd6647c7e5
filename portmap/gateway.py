"""Which routers can be asked for mappings, and with which address of ours?

Every router that a default route leads to (RFC 6887, 8.1: "the default router list (for IPv4 and IPv6)"; RFC 6886, 3:
"their default gateway"), on an interface that is up, once for each address of ours that could be mapped there. Nothing
is guessed: without a default route with a router there is no gateway, and for tunnels, whose routes have none, the
application names it.

Unique local IPv6 addresses are left out: nobody outside could reach them, and "IPv6 addresses without global
reachability (e.g., ULAs) SHOULD NOT be used as the source interface when generating a PCP request" (RFC 6887, 8.4).
DEVIATION: from which address a gateway is asked that the application names is the routes' choice, be it such a one:
``test_a_named_gateway_is_asked_from_where_the_routes_say_whatever_that_is``. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from iceagent.net.address import ip_address
from iceagent.net.host import AddressFlag, DefaultRoute, Interface, InterfaceAddress
from portmap.values import Gateway

__all__ = ["find_gateways", "named_gateways"]

_UNIQUE_LOCAL = ipaddress.IPv6Network("fc00::/7")
"""RFC 4193, 3.1."""
_UNUSABLE = frozenset({AddressFlag.TENTATIVE, AddressFlag.DADFAILED, AddressFlag.DEPRECATED})


def find_gateways(interfaces: Sequence[Interface], routes: Sequence[DefaultRoute]) -> tuple[Gateway, ...]:
    """Routers and our addresses, in the order of the routes; IPv4 before IPv6.

    An IPv4 address that has the router in its network goes with it; where none has (point-to-point, /32), all of the
    interface's do but link-local ones. With an IPv6 router go the global addresses, stable ones first (RFC 8981:
    temporary ones end). RFC 6887, 8.4: those with "global reachability (e.g., GUAs) SHOULD be used", private IPv4
    addresses "MAY".
    """
    by_index = {interface.index: interface for interface in interfaces}
    found = [
        gateway
        for route in routes
        if route.router is not None and (interface := by_index.get(route.index)) is not None
        for gateway in _gateways(route.router, interface)
    ]
    return tuple(sorted(dict.fromkeys(found), key=lambda gateway: gateway.version))


def named_gateways(hosts: Iterable[str], interfaces: Sequence[Interface], source_of: dict[str, str]) -> list[Gateway]:
    """Gateways that the application names.

    Args:
        hosts: their addresses.
        interfaces: the table.
        source_of: the address of ours that the routes choose for each.

    An address that no route leads to is left out; one that is named twice counts once.
    """
    return [
        _gateway(host, interface, address)
        for host in dict.fromkeys(hosts)
        for interface in interfaces
        for address in interface.addresses
        if address.host == source_of.get(host)
    ]


def _gateways(router: str, interface: Interface) -> Iterator[Gateway]:
    if not interface.is_up:
        return
    version = ip_address(router).version
    usable = [
        address
        for address in interface.addresses
        if ip_address(address.host).version == version and not address.flags & _UNUSABLE
    ]
    if version == 6:
        usable = [address for address in usable if _is_routed(address.host)]
        usable.sort(key=lambda address: AddressFlag.TEMPORARY in address.flags)
    else:
        near = [address for address in usable if ip_address(router) in _network(address)]
        usable = near or [address for address in usable if _is_routed(address.host)]
    for address in usable:
        yield _gateway(router, interface, address)


def _gateway(router: str, interface: Interface, address: InterfaceAddress) -> Gateway:
    return Gateway(
        host=router,
        interface=interface.name,
        index=interface.index,
        source=address.host,
        network=str(_network(address)),
    )


def _is_routed(host: str) -> bool:
    """Whether packets from there get past the router."""
    ip = ip_address(host)
    if ip.is_link_local or ip.is_loopback or ip.is_multicast:
        return False
    # RFC 3879: site-local ones are like those.
    return ip.version == 4 or not (ip in _UNIQUE_LOCAL or ip.is_site_local)


def _network(address: InterfaceAddress) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network((address.host, address.prefix_length), strict=False)

"""Which routers do the default routes of this machine lead to?

:func:`read_default_routes` asks the kernel (rtnetlink(7)) for all of them: of every table and every metric.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from iceagent.net.address import canonical_host
from iceagent.net.host import DefaultRoute
from iceagent.net.netlink import INTERFACE_GROUPS, NLMSGHDR, RTM_DELROUTE, RTM_GETROUTE, RTM_NEWROUTE, dump, parsed

__all__ = ["ROUTE_GROUPS", "may_change_default_routes", "read_default_routes"]

RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE = 0x40, 0x400
ROUTE_GROUPS = RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE | INTERFACE_GROUPS
"""Netlink groups that tell of changes. A link that goes down takes its IPv4 routes along without a word of them."""

RTN_UNICAST = 1
DESTINATION_LENGTH_OFFSET = NLMSGHDR.size + 1  # rtm_dst_len, after rtm_family


def may_change_default_routes(message: bytes) -> bool:
    """Whether a notification is of a link, an address, or a default route. A router may have a million others."""
    kind = NLMSGHDR.unpack_from(message)[1] if len(message) >= NLMSGHDR.size else None
    return kind not in (RTM_NEWROUTE, RTM_DELROUTE) or _is_default(message)


def read_default_routes(sock: socket.socket) -> tuple[DefaultRoute, ...]:
    """Ask the kernel for all default routes, those with the lowest metric first. Blocks for milliseconds, at most 3 s.

    Args:
        sock: a NETLINK_ROUTE socket that no one else reads.

    Raises:
        OSError: the kernel refused or did not answer in time.
    """
    raw = [message for message in dump(sock, RTM_GETROUTE) if _is_default(message)]
    found = {route for message in parsed(raw, RTM_NEWROUTE) for route in _routes(message)}
    return tuple(sorted(found, key=lambda route: (route.metric, route.index, route.router or "")))


def _is_default(message: bytes) -> bool:
    """Whether the destination of a route message has length 0."""
    return len(message) > DESTINATION_LENGTH_OFFSET and message[DESTINATION_LENGTH_OFFSET] == 0


def _routes(message: Any) -> Iterator[DefaultRoute]:
    """One route may have several next hops."""
    if message["type"] != RTN_UNICAST:
        return
    metric = message.get_attr("RTA_PRIORITY") or 0
    family = message["family"]
    if family not in (socket.AF_INET, socket.AF_INET6):
        return
    hops = [(hop["oif"], hop) for hop in message.get_attr("RTA_MULTIPATH") or ()]
    hops.append((message.get_attr("RTA_OIF"), message))
    for index, hop in hops:
        if index is not None:
            router = _router(hop)
            yield DefaultRoute(index=index, router=router, version=4 if family == socket.AF_INET else 6, metric=metric)


def _router(hop: Any) -> str | None:
    """The next hop; ``None``: there is none (a tunnel), or it is of the other IP version (RTA_VIA)."""
    host = hop.get_attr("RTA_GATEWAY")
    return None if host is None else canonical_host(host)

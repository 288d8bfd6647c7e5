"""What interfaces and addresses has this machine?

:func:`read_interfaces` asks the kernel (rtnetlink(7)) for its links and addresses; :mod:`iceagent.net.tables` keeps
what it says warm.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iceagent.net.address import canonical_host
from iceagent.net.host import Interface, InterfaceAddress
from iceagent.net.links import BRIDGING_KINDS, Link, address_flags, kind_of, uplinks
from iceagent.net.netlink import RTM_GETADDR, RTM_GETLINK, RTM_NEWADDR, RTM_NEWLINK, dump, parsed
from iceagent.net.routes import read_default_routes

__all__ = ["read_interfaces"]

# <linux/if.h>
IFF_UP = 0x1


def read_interfaces(sock: socket.socket) -> tuple[Interface, ...]:
    """Ask the kernel for all interfaces, in its order. Blocks for milliseconds, at most 3 s; imports pyroute2.

    Args:
        sock: a NETLINK_ROUTE socket that no one else reads.

    Raises:
        OSError: the kernel refused or did not answer in time.
    """
    links = [_link(message) for message in parsed(dump(sock, RTM_GETLINK), RTM_NEWLINK)]
    addresses = _addresses(parsed(dump(sock, RTM_GETADDR), RTM_NEWADDR))
    needs_routes = any(link.info_kind in BRIDGING_KINDS and not link.master for link in links)
    leading_out = uplinks(links, {route.index for route in read_default_routes(sock)} if needs_routes else ())
    return tuple(
        Interface(
            name=link.name,
            index=link.index,
            kind=kind_of(link, link.index in leading_out),
            mtu=link.mtu,
            is_up=link.is_up,
            addresses=tuple(addresses.get(link.index, ())),
        )
        for link in links
    )


def _link(message: Any) -> Link:
    name = _text(message.get_attr("IFLA_IFNAME"))
    return Link(
        name=name,
        index=message["index"],
        info_kind=message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "",
        hardware_type=message["ifi_type"],
        master=message.get_attr("IFLA_MASTER") or 0,
        is_wireless=_is_wireless(name, message["index"]),
        mtu=message.get_attr("IFLA_MTU") or 0,
        is_up=bool(message["flags"] & IFF_UP) and message.get_attr("IFLA_OPERSTATE") in ("UP", "UNKNOWN"),
    )


def _text(name: str | bytes) -> str:
    """The kernel lets a name have any bytes; pyroute2 gives those that are no UTF-8 as they are. Such a link has its
    addresses, and is found under no name.
    """
    return name if isinstance(name, str) else name.decode(errors="replace")


def _is_wireless(name: str, index: int) -> bool:
    """Whether /sys knows the link as a WLAN card. /sys may show another namespace's links, so the index must agree."""
    folder = Path("/sys/class/net", name)
    if not (folder.joinpath("phy80211").exists() or folder.joinpath("wireless").exists()):
        return False
    with contextlib.suppress(OSError):
        return folder.joinpath("ifindex").read_text().strip() == str(index)
    return False


def _addresses(messages: Iterator[Any]) -> dict[int, list[InterfaceAddress]]:
    """Addresses by interface."""
    found: dict[int, list[InterfaceAddress]] = {}
    for message in messages:
        # On a point-to-point link IFA_ADDRESS is the other end; IPv6 has no IFA_LOCAL otherwise.
        host = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        if message["family"] not in (socket.AF_INET, socket.AF_INET6) or host is None:
            continue
        flags = message.get_attr("IFA_FLAGS") or message["flags"]
        address = InterfaceAddress(
            host=canonical_host(host),
            prefix_length=message["prefixlen"],
            flags=address_flags(flags, message["family"] == socket.AF_INET6),
        )
        found.setdefault(message["index"], []).append(address)
    return found

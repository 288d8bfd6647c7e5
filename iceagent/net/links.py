"""What is a network interface made of, and does the world lie behind it?

A guess from what the kernel says of a link: what made it, its hardware type, its name. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from iceagent.net.host import AddressFlag, InterfaceKind

__all__ = ["BRIDGING_KINDS", "Link", "address_flags", "kind_of", "uplinks"]

# <linux/if_addr.h>
IFA_F_TEMPORARY, IFA_F_OPTIMISTIC, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x01, 0x04, 0x08, 0x20, 0x40

# <linux/if_arp.h>
ARPHRD_ETHER, ARPHRD_RAWIP, ARPHRD_LOOPBACK = 1, 519, 772
# PPP, IPIP tunnels over IPv4 and IPv6, SIT, GRE over IPv4 and IPv6, and "no link layer" (tun, WireGuard).
TUNNEL_TYPES = frozenset({512, 768, 769, 776, 778, 823, 0xFFFE})

# IFLA_INFO_KIND, what made a link.
BRIDGING_KINDS = frozenset({"bridge", "veth"})
TUNNEL_KINDS = frozenset(
    {"tun", "tap", "wireguard", "ipip", "ip6tnl", "sit", "gre", "gretap", "ip6gre", "ip6gretap", "erspan", "ip6erspan"}
    | {"ppp", "vti", "vti6", "xfrm", "l2tp", "ovpn", "ovpn-dco"}
)
CONTAINER_NAME = re.compile(r"docker|br-|cni|virbr|veth|lxcbr|lxdbr|podman|cali|flannel")
VPN_NAME = re.compile(r"tailscale|wg|tun|tap|ppp|utun|zt|nordlynx|proton|ipsec")
CELLULAR_NAME = re.compile(r"wwan|wwp|rmnet|ccmni")
WIFI_NAME = re.compile(r"wl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What the kernel says of a link, as far as its kind depends on it.

    Attributes:
        name: as the system calls it.
        index: the kernel's number.
        info_kind: IFLA_INFO_KIND, what made it (``veth``, ``bridge`` …); empty for hardware.
        hardware_type: ARPHRD_*, 1 for Ethernet.
        master: index of the bridge or bond it belongs to; 0: none.
        is_wireless: it is a WLAN card.
        mtu: bytes.
        is_up: administratively up and with carrier.
    """

    name: str
    index: int
    info_kind: str = ""
    hardware_type: int = ARPHRD_ETHER
    master: int = 0
    is_wireless: bool = False
    mtu: int = 1500
    is_up: bool = True


def kind_of(link: Link, is_uplink: bool = False) -> InterfaceKind:
    """What a link is made of.

    Args:
        link: the link.
        is_uplink: the world is behind it (see :func:`uplinks`): then a bridge, or a container's end of a veth pair, is
            this machine's Ethernet and no way into a container.
    """
    if link.hardware_type == ARPHRD_LOOPBACK:
        return InterfaceKind.LOOPBACK
    if link.info_kind in TUNNEL_KINDS:
        return InterfaceKind.VPN
    if link.info_kind in BRIDGING_KINDS:
        return InterfaceKind.ETHERNET if is_uplink else InterfaceKind.CONTAINER
    if link.is_wireless:
        return InterfaceKind.WIFI
    return _kind_of_hardware(link)


def _kind_of_hardware(link: Link) -> InterfaceKind:
    """By name and hardware type: drivers do not say what they are."""
    if link.hardware_type == ARPHRD_RAWIP or CELLULAR_NAME.match(link.name):
        return InterfaceKind.CELLULAR
    if link.hardware_type in TUNNEL_TYPES or VPN_NAME.match(link.name):
        return InterfaceKind.VPN
    if CONTAINER_NAME.match(link.name):
        return InterfaceKind.CONTAINER
    if WIFI_NAME.match(link.name):
        return InterfaceKind.WIFI
    return InterfaceKind.ETHERNET if link.hardware_type == ARPHRD_ETHER else InterfaceKind.OTHER


def uplinks(links: Sequence[Link], default_routes: Collection[int]) -> frozenset[int]:
    """Which bridges and veth ends lead to the world.

    A member of a bridge never does, nor what is down. Of the others, those that a default route goes through do; and in
    a namespace that has nothing but ends of veth pairs (and loopback), all of them: a container with several networks.

    Args:
        links: all links.
        default_routes: indexes of the interfaces that default routes go through.
    """
    # Every namespace has idle tunnels (sit0, tunl0 …) where their modules are loaded: only what is up counts.
    others = [link for link in links if link.is_up and link.hardware_type != ARPHRD_LOOPBACK]
    only_veths = all(link.info_kind == "veth" and not link.master for link in others)
    return frozenset(link.index for link in others if not link.master and (only_veths or link.index in default_routes))


def address_flags(flags: int, is_ipv6: bool) -> frozenset[AddressFlag]:
    """IFA_FLAGS as this project names them.

    0x01 is "temporary" (RFC 8981) for IPv6 only; for IPv4 it is "secondary", which says nothing to us. An optimistic
    address (RFC 4429) may be used although it is still tentative.
    """
    found = set()
    if flags & IFA_F_TENTATIVE and not flags & IFA_F_OPTIMISTIC:
        found.add(AddressFlag.TENTATIVE)
    if flags & IFA_F_DEPRECATED:
        found.add(AddressFlag.DEPRECATED)
    if flags & IFA_F_DADFAILED:
        found.add(AddressFlag.DADFAILED)
    if flags & IFA_F_TEMPORARY and is_ipv6:
        found.add(AddressFlag.TEMPORARY)
    return frozenset(found)

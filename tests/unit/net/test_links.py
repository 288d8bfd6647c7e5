"""What a link is made of, from what the kernel says of it."""

from __future__ import annotations

import pytest

from iceagent.net.host import AddressFlag, InterfaceKind
from iceagent.net.links import Link, address_flags, kind_of, uplinks

LOOPBACK = Link(name="lo", index=1, hardware_type=772)


@pytest.mark.parametrize(
    ("link", "kind"),
    [
        (LOOPBACK, InterfaceKind.LOOPBACK),
        (Link(name="eth0", index=2), InterfaceKind.ETHERNET),
        (Link(name="enp3s0", index=2), InterfaceKind.ETHERNET),
        (Link(name="bond0", index=2, info_kind="bond"), InterfaceKind.ETHERNET),
        (Link(name="eth0.7", index=2, info_kind="vlan"), InterfaceKind.ETHERNET),
        (Link(name="enp4s0", index=2, is_wireless=True), InterfaceKind.WIFI),
        (Link(name="wlp2s0", index=2), InterfaceKind.WIFI),
        (Link(name="wwan0", index=2), InterfaceKind.CELLULAR),
        (Link(name="wwp0s20u4", index=2), InterfaceKind.CELLULAR),
        (Link(name="rmnet_data0", index=2, hardware_type=519), InterfaceKind.CELLULAR),
        (Link(name="usb0", index=2, hardware_type=519), InterfaceKind.CELLULAR),
        (Link(name="office", index=2, info_kind="tun", hardware_type=0xFFFE), InterfaceKind.VPN),
        (Link(name="tap3", index=2, info_kind="tun"), InterfaceKind.VPN),
        (Link(name="mesh", index=2, info_kind="wireguard", hardware_type=0xFFFE), InterfaceKind.VPN),
        (Link(name="tunl0", index=2, info_kind="ipip", hardware_type=768), InterfaceKind.VPN),
        (Link(name="gre0", index=2, info_kind="gre", hardware_type=778), InterfaceKind.VPN),
        (Link(name="ppp0", index=2, hardware_type=512), InterfaceKind.VPN),
        (Link(name="tailscale0", index=2), InterfaceKind.VPN),
        (Link(name="wg0", index=2), InterfaceKind.VPN),
        (Link(name="docker0", index=2, info_kind="bridge"), InterfaceKind.CONTAINER),
        (Link(name="br-1234", index=2, info_kind="bridge"), InterfaceKind.CONTAINER),
        (Link(name="virbr0", index=2, info_kind="bridge"), InterfaceKind.CONTAINER),
        (Link(name="cni0", index=2), InterfaceKind.CONTAINER),
        (Link(name="veth12ab", index=2, info_kind="veth", master=3), InterfaceKind.CONTAINER),
        (Link(name="can0", index=2, hardware_type=280), InterfaceKind.OTHER),
    ],
    ids=lambda value: value.name if isinstance(value, Link) else value.value,
)
def test_kinds(link: Link, kind: InterfaceKind) -> None:
    assert kind_of(link) is kind


def veth(index: int, master: int = 0, is_up: bool = True) -> Link:
    return Link(name=f"eth{index}", index=index, info_kind="veth", master=master, is_up=is_up)


def test_a_containers_own_veth_is_its_ethernet() -> None:
    """It has no master here, and the default route goes through it."""
    links = [LOOPBACK, veth(2)]
    assert uplinks(links, {2}) == {2}
    assert kind_of(links[1], is_uplink=True) is InterfaceKind.ETHERNET


def test_a_namespace_of_veths_only_has_nothing_else_to_leave_by() -> None:
    """Two networks, a default route through one, and idle tunnels that the kernel puts into every namespace."""
    idle = Link(name="tunl0", index=9, info_kind="ipip", hardware_type=768, is_up=False)
    assert uplinks([LOOPBACK, veth(2), veth(3), idle], {2}) == {2, 3}


def test_on_the_machine_that_runs_the_containers_their_veths_are_no_uplinks() -> None:
    """With a bridge (Docker) and without (Calico: routes to each veth, the default one to eth0)."""
    ethernet = Link(name="eth0", index=2)
    bridge = Link(name="docker0", index=3, info_kind="bridge")
    assert uplinks([LOOPBACK, ethernet, bridge, veth(4, master=3), veth(5)], {2}) == {2}


def test_a_member_of_a_bridge_is_no_uplink_but_the_bridge_may_be() -> None:
    """A virtual machine's host: its Ethernet card is a port of the bridge that has its address."""
    bridge = Link(name="vmbr0", index=3, info_kind="bridge")
    links = [LOOPBACK, Link(name="eno1", index=2, master=3), bridge, veth(4, master=3)]
    assert uplinks(links, {3}) == {3}
    assert kind_of(bridge, is_uplink=True) is InterfaceKind.ETHERNET


def test_a_tunnel_with_the_default_route_stays_a_vpn() -> None:
    tunnel = Link(name="wg0", index=2, info_kind="wireguard", hardware_type=0xFFFE)
    assert kind_of(tunnel, is_uplink=True) is InterfaceKind.VPN


@pytest.mark.parametrize(
    ("flags", "is_ipv6", "expected"),
    [
        (0x80, True, set()),  # permanent
        (0x40, True, {AddressFlag.TENTATIVE}),
        (0x44, True, set()),  # RFC 4429: an optimistic address may be used before it is known to be unique
        (0x20, True, {AddressFlag.DEPRECATED}),
        (0x48, True, {AddressFlag.TENTATIVE, AddressFlag.DADFAILED}),
        (0x01, True, {AddressFlag.TEMPORARY}),
        (0x01, False, set()),  # IPv4: a secondary address
        (0x21, True, {AddressFlag.TEMPORARY, AddressFlag.DEPRECATED}),
    ],
)
def test_flags(flags: int, is_ipv6: bool, expected: set[AddressFlag]) -> None:
    assert address_flags(flags, is_ipv6) == expected

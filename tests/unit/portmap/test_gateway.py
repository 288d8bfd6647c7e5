"""Which routers are asked for mappings, and from which addresses? RFC 6887, 8.1 and 8.4; RFC 6886, 3."""

from __future__ import annotations

import pytest

from iceagent.net.host import AddressFlag, DefaultRoute, Interface, InterfaceAddress, InterfaceKind
from portmap.gateway import find_gateways, named_gateways
from portmap.values import Gateway

ROUTER_6 = "fe80::1"


def address(text: str, *flags: AddressFlag) -> InterfaceAddress:
    """``host/prefix length``."""
    host, _, length = text.partition("/")
    return InterfaceAddress(host=host, prefix_length=int(length), flags=frozenset(flags))


def interface(name: str, index: int, *addresses: str | InterfaceAddress, is_up: bool = True) -> Interface:
    """A network card."""
    return Interface(
        name=name,
        index=index,
        kind=InterfaceKind.ETHERNET,
        is_up=is_up,
        addresses=tuple(address(each) if isinstance(each, str) else each for each in addresses),
    )


def route(index: int, router: str | None, *, metric: int = 0) -> DefaultRoute:
    """A default route."""
    return DefaultRoute(index=index, router=router, version=6 if router and ":" in router else 4, metric=metric)


def pairs(gateways: tuple[Gateway, ...]) -> list[tuple[str, str, str]]:
    """Router, interface and our address of each."""
    return [(gateway.host, gateway.interface, gateway.source) for gateway in gateways]


# --- IPv4 --------------------------------------------------------------------------------------------------------


def test_a_router_goes_with_the_address_that_is_in_its_network() -> None:
    card = interface("eth0", 2, "10.9.9.9/24", "192.168.1.10/24")
    assert find_gateways([card], [route(2, "192.168.1.1")]) == (
        Gateway(host="192.168.1.1", interface="eth0", index=2, source="192.168.1.10", network="192.168.1.0/24"),
    )


def test_two_addresses_in_the_network_of_the_router_are_two_ways_to_be_mapped() -> None:
    card = interface("eth0", 2, "192.168.1.10/24", "192.168.1.11/24")
    found = find_gateways([card], [route(2, "192.168.1.1")])
    assert [gateway.source for gateway in found] == ["192.168.1.10", "192.168.1.11"]


def test_several_default_routes_are_several_gateways_in_their_order() -> None:
    """RFC 6887, 8.1: "the default router list"; the host sorts it by metric, and not only the best one is asked:
    mappings are wanted for the addresses of each interface."""
    cards = [
        interface("eth0", 2, "192.168.1.10/24"),
        interface("wlan0", 3, "192.168.2.10/24"),
        interface("wwan0", 4, "100.64.3.10/24"),
    ]
    routes = [
        route(3, "192.168.2.1", metric=50),
        route(2, "192.168.1.1", metric=100),
        route(2, "192.168.1.254", metric=200),
        route(4, "100.64.3.1", metric=700),
    ]
    assert pairs(find_gateways(cards, routes)) == [
        ("192.168.2.1", "wlan0", "192.168.2.10"),
        ("192.168.1.1", "eth0", "192.168.1.10"),
        ("192.168.1.254", "eth0", "192.168.1.10"),
        ("100.64.3.1", "wwan0", "100.64.3.10"),
    ]


def test_a_router_that_stands_in_two_routes_is_one_gateway() -> None:
    card = interface("eth0", 2, "192.168.1.10/24")
    routes = [route(2, "192.168.1.1", metric=100), route(2, "192.168.1.1", metric=300)]
    assert len(find_gateways([card], routes)) == 1


def test_one_router_on_two_interfaces_is_two_gateways() -> None:
    """By cable and by radio into one network: our addresses differ, and so do their mappings."""
    cards = [interface("eth0", 2, "192.168.1.10/24"), interface("wlan0", 3, "192.168.1.11/24")]
    found = find_gateways(cards, [route(2, "192.168.1.1"), route(3, "192.168.1.1")])
    assert [(gateway.index, gateway.source) for gateway in found] == [(2, "192.168.1.10"), (3, "192.168.1.11")]


def test_a_router_in_no_network_of_ours_goes_with_all_addresses_that_are_routed() -> None:
    """A host of a cloud has a /32, and its router is "on link" all the same."""
    card = interface("ens4", 2, "169.254.7.7/16", "10.128.0.2/32", "10.128.0.3/32")
    found = find_gateways([card], [route(2, "10.128.0.1")])
    assert [(gateway.source, gateway.network) for gateway in found] == [
        ("10.128.0.2", "10.128.0.2/32"),
        ("10.128.0.3", "10.128.0.3/32"),
    ]


def test_a_link_local_router_goes_with_a_link_local_address_of_its_network() -> None:
    card = interface("usb0", 2, "169.254.7.7/16", "10.0.0.5/32")
    assert pairs(find_gateways([card], [route(2, "169.254.7.1")])) == [("169.254.7.1", "usb0", "169.254.7.7")]


# --- IPv6 --------------------------------------------------------------------------------------------------------


def test_a_link_local_router_is_asked_from_global_addresses_stable_ones_first() -> None:
    """RFC 6887, 8.4: "IPv6 addresses with global reachability (e.g., GUAs) SHOULD be used as the source address"; of
    privacy addresses: "This PCP request SHOULD be sent from the IPv6 privacy address itself"."""
    card = interface(
        "eth0",
        2,
        "fe80::10/64",
        address("2001:db8:1::aaaa/64", AddressFlag.TEMPORARY),
        "2001:db8:1::10/64",
        address("2001:db8:2::bbbb/64", AddressFlag.TEMPORARY),
        "2001:db8:2::10/64",
    )
    found = find_gateways([card], [route(2, ROUTER_6)])
    assert [gateway.source for gateway in found] == [
        "2001:db8:1::10",
        "2001:db8:2::10",
        "2001:db8:1::aaaa",
        "2001:db8:2::bbbb",
    ]
    assert {(gateway.host, gateway.index, gateway.version) for gateway in found} == {(ROUTER_6, 2, 6)}
    assert found[0].network == "2001:db8:1::/64"


@pytest.mark.parametrize("host", ["fd12:3456:789a::10", "fc00::10", "fec0::10", "fe80::10"])
def test_addresses_without_global_reachability_are_not_used(host: str) -> None:
    """RFC 6887, 8.4: "IPv6 addresses without global reachability (e.g., ULAs) SHOULD NOT be used as the source
    interface when generating a PCP request"."""
    alone = interface("eth0", 2, f"{host}/64")
    assert find_gateways([alone], [route(2, ROUTER_6)]) == ()
    beside = interface("eth0", 2, f"{host}/64", "2001:db8:1::10/64")
    assert pairs(find_gateways([beside], [route(2, ROUTER_6)])) == [(ROUTER_6, "eth0", "2001:db8:1::10")]


def test_routers_of_two_interfaces_that_have_the_same_link_local_address_are_two() -> None:
    cards = [interface("eth0", 2, "2001:db8:1::10/64"), interface("wlan0", 3, "2001:db8:2::10/64")]
    found = find_gateways(cards, [route(2, ROUTER_6), route(3, ROUTER_6)])
    assert [(gateway.host, gateway.index) for gateway in found] == [(ROUTER_6, 2), (ROUTER_6, 3)]


def test_ipv4_stands_before_ipv6_whatever_the_metrics_say() -> None:
    """RFC 6887, 8.1: "it will have an IPv4 PCP server (its IPv4 default router) for its IPv4 mappings, and an IPv6 PCP
    server (its IPv6 default router) for its IPv6 mappings"."""
    card = interface("eth0", 2, "2001:db8:1::10/64", "192.168.1.10/24")
    found = find_gateways([card], [route(2, ROUTER_6, metric=1), route(2, "192.168.1.1", metric=100)])
    assert [(gateway.version, gateway.source) for gateway in found] == [(4, "192.168.1.10"), (6, "2001:db8:1::10")]


# --- what is left out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [AddressFlag.TENTATIVE, AddressFlag.DADFAILED, AddressFlag.DEPRECATED])
def test_addresses_that_are_not_or_not_for_long_in_use_are_left_out(flag: AddressFlag) -> None:
    card = interface(
        "eth0",
        2,
        address("2001:db8:1::10/64", flag),
        address("2001:db8:1::aaaa/64", AddressFlag.TEMPORARY, flag),
        address("192.168.1.10/24", flag),
        "192.168.1.11/24",
    )
    found = find_gateways([card], [route(2, "192.168.1.1"), route(2, ROUTER_6)])
    assert pairs(found) == [("192.168.1.1", "eth0", "192.168.1.11")]


def test_an_interface_that_is_down_or_unknown_has_no_gateway() -> None:
    cards = [interface("eth0", 2, "192.168.1.10/24", is_up=False)]
    assert find_gateways(cards, [route(2, "192.168.1.1"), route(9, "192.168.9.1")]) == ()


def test_an_interface_without_an_address_of_that_version_has_no_gateway() -> None:
    cards = [interface("eth0", 2, "fe80::10/64", "2001:db8:1::10/64")]
    assert find_gateways(cards, [route(2, "192.168.1.1")]) == ()


def test_a_tunnel_whose_route_has_no_router_has_no_gateway_and_none_is_guessed() -> None:
    """Its far end is often 10.2.0.1, and as often it is not."""
    assert find_gateways([interface("wg0", 5, "10.2.0.2/32", "2001:db8:2::2/128")], [route(5, None)]) == ()


def test_without_a_default_route_there_is_no_gateway() -> None:
    assert find_gateways([interface("eth0", 2, "192.168.1.10/24")], []) == ()


# --- named gateways ----------------------------------------------------------------------------------------------


def test_a_named_gateway_is_asked_from_where_the_routes_say_whatever_that_is() -> None:
    """DEVIATION from RFC 6887, 8.4, if that is a unique local address. 8.1: "if a PCP server is configured (e.g., in a
    configuration file or via DHCP), that single configuration source is used"."""
    cards = [
        interface("eth0", 2, "192.168.1.10/24"),
        interface("wg0", 5, "10.2.0.2/32", "fd12::2/128"),
    ]
    sources = {"10.2.0.1": "10.2.0.2", "fd12::1": "fd12::2"}
    assert named_gateways(["10.2.0.1", "fd12::1"], cards, sources) == [
        Gateway(host="10.2.0.1", interface="wg0", index=5, source="10.2.0.2", network="10.2.0.2/32"),
        Gateway(host="fd12::1", interface="wg0", index=5, source="fd12::2", network="fd12::2/128"),
    ]


def test_a_named_gateway_that_no_route_leads_to_is_left_out() -> None:
    cards = [interface("eth0", 2, "192.168.1.10/24")]
    sources = {"192.168.1.1": "192.168.1.10", "172.16.0.1": "172.16.0.2"}
    assert [gateway.host for gateway in named_gateways(["10.2.0.1", "172.16.0.1", "192.168.1.1"], cards, sources)] == [
        "192.168.1.1"
    ]


def test_a_gateway_that_is_named_twice_is_one() -> None:
    cards = [interface("eth0", 2, "192.168.1.10/24")]
    assert len(named_gateways(["192.168.1.1", "192.168.1.1"], cards, {"192.168.1.1": "192.168.1.10"})) == 1

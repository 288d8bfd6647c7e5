"""Which addresses are gathered on: every rule of RFC 8445, 5.1.1.1, and of the configuration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceagent import Config
from iceagent.gather.host import HostAddress, select_addresses
from iceagent.net.address import ip_address
from iceagent.net.host import AddressFlag, Interface, InterfaceAddress, InterfaceKind

TEMPORARY = AddressFlag.TEMPORARY


def address(host: str, *flags: AddressFlag, prefix_length: int | None = None) -> InterfaceAddress:
    length = (64 if ":" in host else 24) if prefix_length is None else prefix_length
    return InterfaceAddress(host=host, prefix_length=length, flags=frozenset(flags))


def interface(*addresses: InterfaceAddress | str, name: str = "eth0", **options: object) -> Interface:
    found = tuple(address(each) if isinstance(each, str) else each for each in addresses)
    values: dict[str, object] = {"index": 2, "kind": InterfaceKind.ETHERNET, **options}
    return Interface(name=name, addresses=found, **values)  # type: ignore[arg-type]


LOOPBACK = interface("127.0.0.1", "::1", name="lo", index=1, kind=InterfaceKind.LOOPBACK)


def hosts(*interfaces: Interface, **options: object) -> list[str]:
    return [each.host for each in select_addresses(interfaces, Config(**options))]  # type: ignore[arg-type]


def test_every_address_in_the_systems_order_each_once() -> None:
    first = interface("192.0.2.1", "2001:db8::1")
    second = interface("198.51.100.1", "192.0.2.1", name="eth1", index=3)
    assert hosts(first, second) == ["192.0.2.1", "2001:db8::1", "198.51.100.1"]


def test_an_address_remembers_its_interface() -> None:
    modem = interface("192.0.2.1", name="wwan0", index=7, kind=InterfaceKind.CELLULAR, metered=True)
    assert select_addresses([modem], Config()) == [
        HostAddress(host="192.0.2.1", interface="wwan0", index=7, kind=InterfaceKind.CELLULAR, metered=True)
    ]


def test_loopback_only_on_request() -> None:
    """RFC 8445, 5.1.1.1: "Addresses from a loopback interface MUST NOT be included"."""
    assert hosts(LOOPBACK, interface("192.0.2.1")) == ["192.0.2.1"]
    assert hosts(LOOPBACK, bind_hosts=("127.0.0.1",)) == []
    assert hosts(LOOPBACK, interface("192.0.2.1"), loopback=True) == ["127.0.0.1", "::1", "192.0.2.1"]


def test_an_interface_without_carrier_is_of_no_use() -> None:
    assert hosts(interface("192.0.2.1", is_up=False), interface("192.0.2.2", name="eth1")) == ["192.0.2.2"]


@pytest.mark.parametrize("flag", [AddressFlag.TENTATIVE, AddressFlag.DEPRECATED, AddressFlag.DADFAILED])
def test_addresses_that_are_not_in_full_use(flag: AddressFlag) -> None:
    assert hosts(interface(address("2001:db8::1", flag), "2001:db8::2")) == ["2001:db8::2"]
    assert hosts(interface(address("2001:db8::1", flag)), bind_hosts=("2001:db8::1",)) == []


@pytest.mark.parametrize("host", ["fec0::1", "feff:ffff::1", "::192.0.2.1", "::2", "::ffff:192.0.2.1"])
def test_deprecated_forms_of_ipv6(host: str) -> None:
    """RFC 8445, 5.1.1.1: IPv4-compatible and site-local MUST NOT, IPv4-mapped SHOULD NOT be included."""
    assert hosts(interface(host, "2001:db8::1")) == ["2001:db8::1"]


class TestTemporaryAddresses:
    """RFC 8445, 5.1.1.1: beside an address that prevents location tracking, those that allow it are not gathered."""

    STABLE, LINK_LOCAL = "2001:db8::1", "fe80::1"

    def test_they_hide_stable_ones_of_their_prefix_and_link_local_ones(self) -> None:
        eth0 = interface("192.0.2.1", self.LINK_LOCAL, self.STABLE, address("2001:db8::abcd", TEMPORARY))
        assert hosts(eth0) == ["192.0.2.1", "2001:db8::abcd"]

    def test_the_prefix_is_the_temporary_ones(self) -> None:
        """DHCPv6 gives a /128 within the network that the router announces."""
        by_dhcp = address(self.STABLE, prefix_length=128)
        assert hosts(interface(by_dhcp, address("2001:db8::abcd", TEMPORARY))) == ["2001:db8::abcd"]

    def test_a_stable_address_of_another_prefix_stays(self) -> None:
        """ "... and are part of the same network prefix": the temporary one may be of the private network."""
        eth0 = interface("fd00::1", address("fd00::abcd", TEMPORARY), self.STABLE, self.LINK_LOCAL)
        assert hosts(eth0) == ["fd00::abcd", self.STABLE]

    def test_another_interface_is_not_concerned(self) -> None:
        eth0 = interface(self.STABLE, address("2001:db8::abcd", TEMPORARY))
        eth1 = interface("fe80::2", "2001:db8::2", name="eth1", index=3)
        assert hosts(eth0, eth1) == ["2001:db8::abcd", "fe80::2", "2001:db8::2"]

    @pytest.mark.parametrize("flag", [AddressFlag.TENTATIVE, AddressFlag.DEPRECATED])
    def test_one_that_is_of_no_use_hides_nothing(self, flag: AddressFlag) -> None:
        eth0 = interface(self.STABLE, address("2001:db8::abcd", TEMPORARY, flag))
        assert hosts(eth0) == [self.STABLE]

    def test_whoever_names_a_stable_address_gets_it(self) -> None:
        eth0 = interface(self.STABLE, address("2001:db8::abcd", TEMPORARY))
        assert hosts(eth0, bind_hosts=(self.STABLE,)) == [self.STABLE]


def test_ipv4_link_local_only_where_there_is_nothing_else() -> None:
    assert hosts(interface("169.254.1.1", "192.0.2.1")) == ["192.0.2.1"]
    assert hosts(interface("169.254.1.1", "fe80::1")) == ["169.254.1.1", "fe80::1"]
    assert hosts(interface("169.254.1.1", "192.0.2.1"), bind_hosts=("169.254.1.1",)) == ["169.254.1.1"]


def test_bind_hosts_in_any_spelling() -> None:
    eth0 = interface("192.0.2.1", "2001:db8::1", "2001:db8::2")
    assert hosts(eth0, bind_hosts=("2001:DB8:0:0::2", "::ffff:192.0.2.1")) == ["192.0.2.1", "2001:db8::2"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ipv4": False}, ["2001:db8::1"]),
        ({"ipv6": False}, ["192.0.2.1"]),
        ({"ipv4": False, "ipv6": False}, []),
        ({"ipv4": False, "bind_hosts": ("192.0.2.1",)}, []),
    ],
)
def test_families(options: dict[str, object], expected: list[str]) -> None:
    assert hosts(interface("192.0.2.1", "2001:db8::1"), **options) == expected


def test_the_interface_filter_sees_the_whole_interface() -> None:
    wired, tunnel = interface("192.0.2.1"), interface("10.0.0.1", name="wg0", index=3, kind=InterfaceKind.VPN)
    seen: list[Interface] = []

    def no_tunnels(each: Interface) -> bool:
        seen.append(each)
        return each.kind is not InterfaceKind.VPN

    assert hosts(wired, tunnel, interface_filter=no_tunnels) == ["192.0.2.1"]
    assert seen == [wired, tunnel]


def test_the_address_filter() -> None:
    eth0 = interface("10.0.0.1", "198.51.100.1", "2001:db8::1")
    in_ten = ip_address("10.0.0.1")
    assert hosts(eth0, address_filter=lambda ip: ip != in_ten) == ["198.51.100.1", "2001:db8::1"]
    assert hosts(eth0, address_filter=lambda ip: ip != in_ten, bind_hosts=("10.0.0.1",)) == []


_any_host = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
_any_address = st.builds(
    InterfaceAddress,
    host=_any_host,
    prefix_length=st.integers(0, 32),
    flags=st.frozensets(st.sampled_from(AddressFlag)),
)
_any_interface = st.builds(
    Interface,
    name=st.sampled_from(("a", "b")),
    index=st.integers(1, 9),
    kind=st.sampled_from(InterfaceKind),
    is_up=st.booleans(),
    addresses=st.lists(_any_address, max_size=4).map(tuple),
)


@given(interfaces=st.lists(_any_interface, max_size=4))
def test_nothing_is_invented_and_nothing_doubled(interfaces: list[Interface]) -> None:
    found = hosts(*interfaces)
    usable = {
        address.host
        for interface in interfaces
        for address in interface.addresses
        if interface.is_up and interface.kind is not InterfaceKind.LOOPBACK and address.flags <= {TEMPORARY}
    }
    assert len(set(found)) == len(found)
    assert set(found) <= usable

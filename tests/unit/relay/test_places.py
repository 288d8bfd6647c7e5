"""Where relayed addresses are, and which address is told for them."""

from __future__ import annotations

from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.host import AddressFlag, Interface, InterfaceAddress, InterfaceKind
from relay.places import Names, Places, Relaying
from relay.turn.server import Accounts, TurnOptions

TURN = TurnOptions(accounts=Accounts(realm="x", users={"a": "b"}))


def interface(index: int, *hosts: str, flags: frozenset[AddressFlag] = frozenset()) -> Interface:
    addresses = tuple(InterfaceAddress(host=host, prefix_length=24, flags=flags) for host in hosts)
    return Interface(name=f"eth{index}", index=index, kind=InterfaceKind.ETHERNET, addresses=addresses)


def places(*interfaces: Interface, **options: Any) -> Places:
    """Of a server that listens on every address of the host."""
    made = Places(Relaying(turn=TURN, **options), lambda: [a.host for i in interfaces for a in i.addresses])
    made.follow(interfaces)
    return made


def hosts_of(made: Places, near: str) -> tuple[str | None, ...]:
    """The IPv4 and the IPv6 host for who speaks to this one."""
    found: list[str | None] = []
    for version in (4, 6):
        try:
            found.append(made.host_of(version, near))
        except LookupError:
            found.append(None)
    return tuple(found)


LOOPBACK = interface(1, "127.0.0.1", "::1")
BRIDGE = interface(2, "172.17.0.1", "fd00::1")
WORLD = interface(3, "20.0.9.1", "2a00:1::1")


def test_a_container_bridge_is_no_relay_for_who_comes_from_the_internet() -> None:
    """The relayed address of the other IP version was the bridge's: nobody could have reached it."""
    made = places(LOOPBACK, BRIDGE, WORLD)
    assert hosts_of(made, "20.0.9.1") == hosts_of(made, "2a00:1::1") == ("20.0.9.1", "2a00:1::1")
    # Nor is it one where there is no other; who is on the bridge has it.
    alone = places(LOOPBACK, BRIDGE, interface(3, "20.0.9.1"))
    assert hosts_of(alone, "20.0.9.1") == ("20.0.9.1", None)
    assert hosts_of(alone, "172.17.0.1") == ("172.17.0.1", "fd00::1")
    assert hosts_of(alone, "127.0.0.1") == ("127.0.0.1", "::1")


def test_the_interface_that_was_reached_comes_first_and_then_what_is_known_farthest() -> None:
    other = interface(4, "20.0.8.1", "2a00:2::1", "fd00:2::1")
    assert hosts_of(places(other, WORLD), "20.0.9.1") == ("20.0.9.1", "2a00:1::1")
    assert hosts_of(places(other, WORLD), "20.0.8.1") == ("20.0.8.1", "2a00:2::1")
    private = interface(5, "10.0.0.5", "fd00:5::1", "2a00:5::1")
    assert hosts_of(places(other, private), "10.0.0.5") == ("10.0.0.5", "2a00:5::1")
    lone = interface(6, "10.0.0.6")
    assert hosts_of(places(BRIDGE, other, lone), "10.0.0.6") == ("10.0.0.6", "2a00:2::1")


def test_an_address_of_a_link_is_none_without_its_zone() -> None:
    made = places(interface(3, "fe80::1", "20.0.9.1", "2a00:1::1"), LOOPBACK)
    assert hosts_of(made, "fe80::1") == ("20.0.9.1", "2a00:1::1")
    assert hosts_of(places(interface(3, "fe80::1", "20.0.9.1")), "20.0.9.1") == ("20.0.9.1", None)


def test_an_address_that_is_about_to_go_comes_last() -> None:
    old = interface(3, "20.0.9.1", "2a00:1::bad", flags=frozenset({AddressFlag.DEPRECATED}))
    both = Interface(
        name="eth3", index=3, kind=InterfaceKind.ETHERNET, addresses=(*old.addresses, *WORLD.addresses[1:])
    )
    assert hosts_of(places(both), "20.0.9.1") == ("20.0.9.1", "2a00:1::1")
    assert hosts_of(places(old), "20.0.9.1") == ("20.0.9.1", "2a00:1::bad")


def test_the_operator_names_hosts() -> None:
    made = places(LOOPBACK, WORLD, hosts=("10.0.0.5", "2a00:9::1"))
    assert hosts_of(made, "20.0.9.1") == ("10.0.0.5", "2a00:9::1")
    assert made.told() == ("2a00:9::1", "10.0.0.5")
    assert hosts_of(places(WORLD, hosts=("127.0.0.1",)), "20.0.9.1") == (None, None)


def test_what_is_told_in_place_of_a_host() -> None:
    made = places(LOOPBACK, interface(3, "10.0.0.5", "10.0.0.6"), external={"198.41.0.4": "10.0.0.5"})
    assert [made.told_of(host) for host in ("10.0.0.5", "10.0.0.6")] == ["198.41.0.4", "10.0.0.6"]
    every = places(LOOPBACK, interface(3, "10.0.0.5", "fd00::1"), external={"198.41.0.4": None})
    assert [every.told_of(host) for host in ("10.0.0.5", "fd00::1", "127.0.0.1")] == [
        "198.41.0.4",
        "fd00::1",
        "127.0.0.1",
    ]
    assert every.told() == ("198.41.0.4", "fd00::1", "127.0.0.1", "::1")


def test_who_is_behind_a_nat_of_ours_comes_from_the_internet() -> None:
    """What he speaks to is private; what he is told of the other IP version must not be."""
    made = places(BRIDGE, interface(3, "10.0.0.5", "fd00:3::1"), external={"198.41.0.4": "10.0.0.5"})
    assert hosts_of(made, "10.0.0.5") == ("10.0.0.5", None)
    mapped = {"198.41.0.4": "10.0.0.5", "2a00:1::1": "fd00:3::1"}
    assert hosts_of(places(interface(3, "10.0.0.5", "fd00:3::1"), external=mapped), "10.0.0.5")[1] == "fd00:3::1"


def test_names_lead_both_ways_while_they_live() -> None:
    names, place, told = Names(), TransportAddress("10.0.0.5", 50_000), TransportAddress("198.41.0.4", 50_000)
    names.add(place, place)
    assert not names.told
    names.add(place, told)
    assert names.told == {place: told} and names.places == {told: place}
    names.discard(told)
    names.discard(told)
    assert not names.told and not names.places


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"hosts": "127.0.0.1"}, r'hosts is one text, several are expected: hosts=\("192.0.2.1",\)'),
        ({"hosts": ["x"]}, "hosts: 'x' is not an IP address"),
        ({"hosts": ["0.0.0.0"]}, "hosts: 0.0.0.0 is not the address of one host"),
        ({"hosts": ["224.0.0.1"]}, "is not the address of one host"),
        ({"hosts": [5]}, "something of type int"),
        ({"ports": (5, 1)}, "the first port is higher than the last"),
        ({"ports": (0, 70_000)}, "allowed are ports from 1 to 65535"),
        ({"ports": 5}, "two ports are expected"),
        ({"allow": "10.0.0.0/8"}, "allow is one text"),
        ({"deny": ["x"]}, "'x' is no network like"),
        ({"deny": 5}, "deny is of type int"),
        ({"external": ["198.41.0.4"]}, "a mapping of public to local addresses is expected"),
        ({"external": {"198.41.0.4": "fd00::1"}}, "are of different IP versions"),
        ({"external": {"198.41.0.4": "10.0.0.5", "198.41.0.5": "10.0.0.5"}}, "10.0.0.5 is to have two public"),
        ({"external": {"198.41.0.4": None, "198.41.0.5": None}}, "every IPv4 address is to have two public"),
        ({"external": {"::ffff:198.41.0.4": None, "198.41.0.4": "10.0.0.5"}}, "198.41.0.4 is given twice"),
    ],
)
def test_what_cannot_be_is_told(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Relaying(turn=TURN, **options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_allocations": 0}, "max_allocations is 0, allowed is at least 1"),
        ({"max_allocations": "9"}, "max_allocations is of type str, a number is expected"),
        ({"user_quota": 0}, "user_quota is 0, allowed is at least 1"),
        ({"max_bytes_per_s": -5}, "max_bytes_per_s is -5, allowed is at least 125"),
        ({"max_bytes_per_s": float("nan")}, "max_bytes_per_s is nan"),
        ({"max_lifetime_s": 599}, "allowed is 600 to 3600"),
        ({"max_connections": True}, "max_connections is of type bool"),
    ],
)
def test_limits_that_cannot_be_are_told(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TurnOptions(accounts=Accounts(realm="x"), **options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"secrets": "north"}, r'secrets is one text, several are expected: secrets=\("north", "south"\)'),
        ({"secrets": b"north"}, "secrets is one text"),
        ({"secrets": [b"north"]}, "secrets has something of type bytes"),
        ({"users": {"a": 5}}, "users, 'a' has something of type int where a text is expected"),
        ({"users": {5: "a"}}, "users has something of type int"),
        ({"users": "a:b"}, "users is of type str, a mapping is expected"),
        ({"users": {"a": ""}}, "users, 'a': an empty string"),
        ({"users": {"jose\u0301": "x", "jos\u00e9": "y"}}, "twice, in two spellings"),
        ({"realm": ""}, "realm: an empty string"),
        ({"realm": "x" * 128}, "realm: fewer than 128 characters"),
    ],
)
def test_accounts_that_cannot_be_are_told(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Accounts(**{"realm": "x", **options})

"""How a pinhole of an IPv6 firewall is opened, kept and closed."""

from __future__ import annotations

import pytest

from iceagent.net.address import TransportAddress
from portmap.events import GatewayRestarted, Mapped, MappingLost, MappingRefused, Unmapped
from portmap.upnp import MappingsListed
from portmap.values import MapRequest
from tests.unit.portmap.upnp_kit import (
    GATEWAY_6,
    HOST_6,
    ROUTER_6,
    Course,
    Router,
    about,
    arguments_of,
    request_6,
)


def begun(router: Router | None = None) -> Course:
    course = Course(router or Router(is_6=True), GATEWAY_6)
    course.discover()
    course.take()
    course.actions()
    return course


def kept() -> Course:
    course = begun()
    course.map(1, request_6())
    course.take()
    course.actions()
    return course


def mapped(port: int = 5000, *, key: int = 1, host: str = HOST_6) -> Mapped:
    external = TransportAddress(host, port)
    return Mapped(protocol="upnp", key=key, external=external, lifetime_s=3600, rtt_s=about(0.005))


def test_a_pinhole_is_opened_by_one_request() -> None:
    course = begun()
    course.map(1, MapRequest(transport="tcp", internal=TransportAddress(HOST_6, 5000), external_port=7777))
    assert course.take() == [mapped()]
    [(_, fetch)] = course.fetches
    assert list(arguments_of(fetch).items()) == [
        ("RemoteHost", ""),
        ("RemotePort", "0"),
        ("InternalClient", HOST_6),
        ("InternalPort", "5000"),
        ("Protocol", "6"),
        ("LeaseTime", "3600"),
    ]
    assert (fetch.server, fetch.target) == (TransportAddress(ROUTER_6, 5000), "/ctl/IP6FCtl")
    assert dict(fetch.headers)["SOAPAction"] == '"urn:schemas-upnp-org:service:WANIPv6FirewallControl:1#AddPinhole"'


def test_the_request_comes_from_the_address_that_the_pinhole_is_for() -> None:
    """miniupnp#731: else 606."""
    course = begun()
    temporary = "2001:db8:1::abcd"
    course.map(1, request_6(host=temporary))
    [(_, fetch)] = course.fetches
    assert fetch.source == temporary
    assert course.take() == [mapped(host=temporary)]


def test_a_pinhole_is_renewed_by_its_number() -> None:
    course = kept()
    course.run(1801.0)
    assert course.take() == [mapped()]
    [(_, fetch)] = course.fetches
    assert list(arguments_of(fetch).items()) == [("UniqueID", "1"), ("NewLeaseTime", "3600")]


def test_a_pinhole_that_is_not_known_any_more_is_opened_again() -> None:
    course = kept()
    course.map(2, request_6(5001))
    course.take()
    course.actions()
    course.router.pinholes.clear()
    course.run(1801.0)
    restarted, first, second = course.take()
    assert restarted == GatewayRestarted(protocol="upnp")
    assert [first, second] == [mapped(), mapped(5001, key=2)]
    assert course.actions() == ["UpdatePinhole", "UpdatePinhole", "AddPinhole", "AddPinhole"]


def test_a_restarted_firewall_that_refuses_has_lost_the_pinhole() -> None:
    course = kept()
    course.router.pinholes.clear()
    course.router.always["AddPinhole"] = 701
    course.run(1801.0)
    assert course.take() == [
        GatewayRestarted(protocol="upnp"),
        MappingLost(protocol="upnp", key=1, reason="701 PinholeSpaceExhausted"),
    ]


def test_a_pinhole_is_closed_by_its_number() -> None:
    course = kept()
    course.act(course.client.unmap, 1)
    course.run(1.0)
    assert course.take() == [Unmapped(protocol="upnp", key=1, is_confirmed=True)]
    assert course.router.pinholes == {} and course.actions() == ["DeletePinhole"]


def test_a_pinhole_that_is_gone_is_closed() -> None:
    course = kept()
    course.router.pinholes.clear()
    course.act(course.client.unmap, 1)
    course.run(1.0)
    assert course.take() == [Unmapped(protocol="upnp", key=1, is_confirmed=True)]


def test_unmap_while_it_is_being_opened_leaves_nothing() -> None:
    course = begun()
    course.map(1, request_6(), seconds=0.001)
    course.act(course.client.unmap, 1)
    course.run(1.0)
    assert course.take() == [Unmapped(protocol="upnp", key=1, is_confirmed=True)]
    assert course.router.pinholes == {}


@pytest.mark.parametrize(
    ("code", "reason", "is_passing"),
    [
        (606, "606 ActionNotAuthorized", False),
        (701, "701 PinholeSpaceExhausted", True),
        (702, "702 FirewallDisabled", False),
        (703, "703 InboundPinholeNotAllowed", False),
    ],
)
def test_a_refusal_is_told_with_code_and_words(code: int, reason: str, is_passing: bool) -> None:
    course = begun(Router(is_6=True, always={"AddPinhole": code}))
    course.map(1, request_6())
    [event] = course.of(MappingRefused)
    assert (event.code, event.reason, event.retry_s is not None) == (code, reason, is_passing)


@pytest.mark.parametrize("number", ["", "x", "-1", "65536", "1 2"])
def test_a_pinhole_without_a_number_is_refused(number: str) -> None:
    class Nameless(Router):
        def do_AddPinhole(self, arguments: dict[str, str], now: float) -> bytes | int:
            return f"<AddPinholeResponse><UniqueID>{number}</UniqueID></AddPinholeResponse>".encode()

    course = begun(Nameless(is_6=True))
    course.map(1, request_6())
    [event] = course.of(MappingRefused)
    assert (event.code, event.reason) == (None, "a pinhole without a UniqueID")


def test_an_ipv4_mapping_is_none_of_a_firewalls() -> None:
    course = begun()
    with pytest.raises(ValueError):
        course.client.map(
            1, MapRequest(transport="udp", internal=TransportAddress("192.168.1.10", 5000), external_port=0), course.now
        )


def test_pinholes_are_not_listed() -> None:
    course = kept()
    course.act(course.client.list_mappings)
    [listed] = course.of(MappingsListed)
    assert listed == MappingsListed(protocol="upnp", mappings=(), reason="a firewall does not list its pinholes")

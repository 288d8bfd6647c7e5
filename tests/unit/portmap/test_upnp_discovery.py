"""What is searched for, when, and which service is chosen."""

from __future__ import annotations

import errno

import pytest

from iceagent.net.address import TransportAddress
from portmap.events import Discovered, Fetch, NotFound
from portmap.upnp.discovery import MAX_LOCATIONS
from portmap.values import Gateway
from tests.unit.portmap.upnp_kit import (
    BASE,
    EXTERNAL,
    GATEWAY,
    GATEWAY_6,
    GROUP,
    ROUTER,
    ROUTER_6,
    START,
    Course,
    Router,
    about,
    answer,
    description,
    reply,
    request,
)

WAN = "WANIPConnection:1"


def sent(course: Course) -> list[tuple[float, str]]:
    """When and where searches went, several at once as one."""
    return list(dict.fromkeys((round(at - START, 3), str(each.destination)) for at, each in course.transmits))


def controls(course: Course) -> str:
    """Where the first mapping is asked for."""
    course.actions()
    course.map()
    return f"{course.fetches[0][1].server}{course.fetches[0][1].target}"


# --- when ------------------------------------------------------------------------------------------------------------


def test_the_gateway_is_asked_first_and_alone_if_it_answers() -> None:
    course = Course()
    course.discover()
    assert sent(course) == [(0.0, "192.168.1.1:1900")]
    assert all(each.base == BASE and each.ttl is None for _, each in course.transmits)
    assert course.events == [(START + 0.053, Discovered(protocol="upnp", external_host=EXTERNAL, rtt_s=about(0.008)))]
    assert course.actions() == ["/rootDesc.xml", "GetExternalIPAddress"]
    assert course.client.poll_timeout() is None


def test_silence_is_decided_after_1_2_s() -> None:
    course = Course(Router(is_silent=True))
    course.discover()
    assert course.events == [(START + 1.2, NotFound(protocol="upnp", reason="no answer within 1.2 s"))]
    assert sent(course) == [
        (0.0, "192.168.1.1:1900"),
        (0.1, "239.255.255.250:1900"),
        (0.4, "192.168.1.1:1900"),
        (0.4, "239.255.255.250:1900"),
    ]
    targets = [each.data.partition(b"ST: urn:schemas-upnp-org:")[2].strip() for _, each in course.transmits]
    assert targets[:2] == targets[2:4] == [b"device:InternetGatewayDevice:1", b"device:InternetGatewayDevice:2"]
    assert targets[4:8] == [*targets[:2], b"service:WANIPConnection:1", b"service:WANPPPConnection:1"]
    assert not course.fetches and course.client.poll_timeout() is None


def test_a_gateway_that_hears_the_group_only_is_found() -> None:
    """tailscale#3197."""
    course = Course(Router(is_silent=True))
    course.act(course.client.discover)
    course.run(0.101)
    assert course.transmits[-1][1].destination == GROUP
    course.receive(reply())
    course.run(1.0)
    assert [type(event) for event in course.take()] == [Discovered]


def test_a_closed_port_brings_the_multicast_forward() -> None:
    course = Course(Router(is_silent=True))
    course.act(course.client.discover)
    course.act(course.client.handle_error, BASE, ROUTER, errno.EHOSTUNREACH)
    course.act(course.client.handle_error, BASE, TransportAddress(GATEWAY.host, 5351), errno.ECONNREFUSED)
    assert {each.destination for _, each in course.transmits} == {ROUTER}
    course.act(course.client.handle_error, BASE, ROUTER, errno.ECONNREFUSED)
    course.act(course.client.handle_error, BASE, ROUTER, errno.ECONNREFUSED)
    assert [each.destination for _, each in course.transmits] == [ROUTER] * 2 + [GROUP] * 2


def test_an_answer_may_come_from_any_port() -> None:
    """tailscale#7377."""
    course = Course(Router(replies=[(0.003, TransportAddress(GATEWAY.host, 49152), reply())]))
    course.discover()
    assert len(course.of(Discovered)) == 1


def test_a_late_answer_is_found_too() -> None:
    """MX lets a device wait for a second."""
    course = Course(Router(replies=[(1.1, ROUTER, reply())]))
    course.discover()
    [event] = course.of(Discovered)
    assert event.rtt_s == about(1.105)


def test_a_second_search_while_one_is_under_way_does_nothing() -> None:
    course = Course()
    course.act(course.client.discover)
    course.act(course.client.discover)
    course.run(3.0)
    assert len(course.transmits) == 2 and len(course.of(Discovered)) == 1


def test_a_later_search_searches_again() -> None:
    course = Course()
    course.discover()
    course.discover()
    assert len(course.transmits) == 4 and len(course.of(Discovered)) == 2


def test_over_ipv6_the_link_local_router_and_its_group_are_asked() -> None:
    course = Course(Router(is_6=True), GATEWAY_6)
    course.discover()
    assert sent(course) == [(0.0, "[fe80::1]:1900")]
    assert course.of(Discovered)[0].external_host is None
    [(_, fetch)] = course.fetches
    assert (fetch.server, fetch.source) == (TransportAddress(ROUTER_6, 5000), GATEWAY_6.source)


def test_a_silent_ipv6_router_is_asked_by_the_group() -> None:
    course = Course(Router(is_silent=True), GATEWAY_6)
    course.discover()
    assert sent(course)[1] == (0.1, "[ff02::c]:1900")
    assert course.transmits[-1][1].data.endswith(b"WANIPv6FirewallControl:1\r\n\r\n")


# --- whom to believe -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "data", "why"),
    [
        ("192.168.2.1", reply(), "SSDP message from another network"),
        ("8.8.8.8", reply(), "SSDP message from another network"),
        ("192.168.1.1", reply("http://(null):49152/"), "LOCATION refused"),
        ("192.168.1.1", reply("https://192.168.1.1/"), "LOCATION refused"),
        ("192.168.1.1", reply("http://router/"), "LOCATION refused"),
        ("192.168.1.1", reply("http://192.168.1.1:0/"), "LOCATION refused"),
        ("192.168.1.1", reply("http://8.8.8.8/"), "LOCATION refused"),
        ("192.168.1.1", reply("http://[2001:db8::1]/"), "LOCATION refused"),
        ("192.168.1.1", b"garbage", "not an answer to a search"),
        ("192.168.1.7", b"HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.7/\r\n\r\n", "SSDP answer that names nothing"),
    ],
)
def test_an_answer_that_is_of_no_use_is_dropped_and_counted(source: str, data: bytes, why: str) -> None:
    course = Course(Router(replies=[(0.003, TransportAddress(source, 1900), data)]))
    course.discover()
    assert course.drops == [why]
    assert course.client.counters == {f"dropped: {why}": 1}
    assert len(course.of(NotFound)) == 1 and not course.fetches


def test_a_refused_location_is_the_reason() -> None:
    course = Course(Router(replies=[(0.003, ROUTER, reply("http://(null):49152/d.xml"))]))
    course.discover()
    [event] = course.of(NotFound)
    assert event.reason == "the LOCATION of 192.168.1.1 is refused: '(null):49152' is not an IP address"


def test_an_answer_after_the_search_is_dropped() -> None:
    course = Course()
    course.receive(reply())
    assert course.drops == ["SSDP message after the search"]


def test_an_answer_of_the_gateway_without_st_is_followed() -> None:
    data = b"HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/d.xml\r\n\r\n"
    course = Course(Router(replies=[(0.003, ROUTER, data)]))
    course.discover()
    assert len(course.of(Discovered)) == 1


def test_a_router_with_a_floating_address_is_found_at_its_own() -> None:
    """tailscale#5502."""
    own = TransportAddress("192.168.1.2", 1900)
    course = Course(Router(replies=[(0.003, own, reply("http://192.168.1.2:5000/rootDesc.xml"))]))
    course.discover()
    assert len(course.of(Discovered)) == 1
    assert controls(course) == "192.168.1.2:5000/ctl/IPConn"


def test_the_gateway_is_preferred_to_a_neighbour_even_a_faster_one() -> None:
    neighbour = TransportAddress("192.168.1.66", 1900)
    course = Course(
        Router(
            replies=[(0.001, neighbour, reply("http://192.168.1.66:5000/")), (0.04, ROUTER, reply())],
            external="10.0.0.2",
            delay_s=0.1,
        )
    )
    course.discover()
    assert controls(course) == "192.168.1.1:5000/ctl/IPConn"


def test_a_dead_neighbour_delays_nobody() -> None:
    """flyte/upnpclient#37: it cost minutes."""
    neighbour = TransportAddress("192.168.1.66", 1900)

    class Quiet(Router):
        def fetch(self, fetch: Fetch, now: float) -> tuple[int, bytes] | str | None:
            return None if fetch.server.host == neighbour.host else super().fetch(fetch, now)

    replies = [(0.001, neighbour, reply("http://192.168.1.66:9999/")), (0.004, ROUTER, reply())]
    course = Course(Quiet(replies=replies))
    course.discover()
    assert [round(at - START, 3) for at, event in course.events if isinstance(event, Discovered)] == [0.051]


def test_of_a_flood_of_locations_ten_are_fetched_and_the_gateway_is_among_them() -> None:
    flood = [
        (0.001, TransportAddress(f"192.168.1.{number}", 1900), reply(f"http://192.168.1.{number}:5001/"))
        for number in range(20, 60)
    ]
    course = Course(Router(replies=[*flood, (0.01, ROUTER, reply())]))
    course.discover()
    described = [fetch for _, fetch in course.fetches if fetch.method == "GET"]
    assert len(described) == 7 < MAX_LOCATIONS
    assert course.client.counters == {"dropped: too many LOCATIONs": 34}
    assert controls(course) == "192.168.1.1:5000/ctl/IPConn"


def test_a_gateway_that_floods_is_bounded_as_well() -> None:
    flood = [(0.001, ROUTER, reply(f"http://192.168.1.1:5000/{number}.xml")) for number in range(40)]
    course = Course(Router(replies=flood))
    course.discover()
    assert sum(fetch.method == "GET" for _, fetch in course.fetches) == MAX_LOCATIONS


def test_duplicates_are_fetched_once() -> None:
    course = Course(Router(replies=[(0.001 * number, ROUTER, reply()) for number in range(1, 30)]))
    course.discover()
    assert course.actions() == ["/rootDesc.xml", "GetExternalIPAddress"]
    assert not course.drops


# --- what is described -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (b"<html>", "not well-formed XML: no element found: line 1, column 6"),
        (
            description(("ContentDirectory:1", "/x")),
            "it has no WANIPConnection, WANPPPConnection or WANIPv6FirewallControl",
        ),
        (description(("WANIPv6FirewallControl:1", "/x")), "it has no WANIPConnection"),
        (
            description((WAN, "http://8.8.8.8/x")),
            "the controlURL of its WANIPConnection: 'http://8.8.8.8/x' is on another host than 192.168.1.1",
        ),
    ],
)
def test_a_description_of_no_use_is_the_reason(page: bytes, why: str) -> None:
    course = Course(Router(page=page))
    course.discover()
    [event] = course.of(NotFound)
    assert event.reason == f"the description at 192.168.1.1:5000 is of no use: {why}"
    # The rest of the network was asked all the same.
    assert GROUP in {each.destination for _, each in course.transmits}


def test_a_description_that_cannot_be_had_is_the_reason() -> None:
    course = Course(Router(reason="Connection refused"))
    course.discover()
    [event] = course.of(NotFound)
    assert event.reason == "the description at 192.168.1.1:5000 is of no use: Connection refused"


@pytest.mark.parametrize("status", [301, 302, 404, 500])
def test_a_redirect_or_error_instead_of_a_description_is_not_followed(status: int) -> None:
    course = Course(Router(deaf={"GET"}))
    course.act(course.client.discover)
    course.run(0.1)
    [(_, fetch)] = course.fetches
    course.client.handle_response(fetch.number, status, (("location", "http://8.8.8.8/"),), b"", course.now)
    course.drain()
    course.run(2.0)
    assert [event.reason for event in course.of(NotFound)] == [
        f"the description at 192.168.1.1:5000 is of no use: HTTP {status}"
    ]
    assert len(course.fetches) == 1


def test_a_description_that_never_comes_ends_the_search_all_the_same() -> None:
    course = Course(Router(deaf={"GET"}))
    course.discover()
    assert course.events == [
        (
            START + 0.003 + 1.25,
            NotFound(protocol="upnp", reason="the description at 192.168.1.1:5000 is of no use: no answer within 1 s"),
        )
    ]


def test_what_is_fetched_is_bounded() -> None:
    course = Course()
    course.discover()
    assert [(fetch.timeout_s, fetch.max_bytes) for _, fetch in course.fetches] == [(1.0, 131072), (1.0, 32768)]
    assert all(fetch.source == GATEWAY.source for _, fetch in course.fetches)


# --- which of several ------------------------------------------------------------------------------------------------


class TwoLines(Router):
    """A gateway with two lines: what each says of itself, by its control path."""

    says: dict[str, tuple[str, str]]

    def fetch(self, fetch: Fetch, now: float) -> tuple[int, bytes] | str | None:
        if fetch.method == "POST" and fetch.target in self.says:
            external, status = self.says[fetch.target]
            if b"GetExternalIPAddress" in fetch.body:
                return 200, answer("GetExternalIPAddress", NewExternalIPAddress=external)
            if b"GetStatusInfo" in fetch.body:
                return 200, answer("GetStatusInfo", NewConnectionStatus=status, NewLastConnectionError="", NewUptime=5)
        return super().fetch(fetch, now)


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        (("11.22.33.4", "Disconnected"), ("11.22.33.5", "Connected"), "/b"),
        (("", "Connected"), ("11.22.33.5", "Connected"), "/b"),
        (("0.0.0.0", ""), ("10.0.0.2", ""), "/b"),
        (("100.64.0.2", "Connected"), ("11.22.33.5", "Connected"), "/b"),
        (("11.22.33.4", "Connected"), ("11.22.33.5", "Connected"), "/a"),
        (("10.0.0.2", "Connected"), ("11.22.33.5", "Connecting"), "/a"),
        (("11.22.33.4", "up"), ("11.22.33.5", "Connected"), "/a"),
        (("nonsense", "nonsense"), ("nonsense", "nonsense"), "/a"),
    ],
)
def test_of_two_lines_the_connected_one_is_taken(first: tuple[str, str], second: tuple[str, str], chosen: str) -> None:
    router = TwoLines(page=description((WAN, "/a"), ("WANPPPConnection:1", "/b")))
    router.says = {"/a": first, "/b": second}
    course = Course(router)
    course.discover()
    assert controls(course) == f"192.168.1.1:5000{chosen}"


def test_version_2_is_preferred() -> None:
    course = Course(Router(page=description((WAN, "/a"), ("WANIPConnection:2", "/b"))))
    course.discover()
    assert controls(course) == "192.168.1.1:5000/b"


def test_an_external_address_that_does_not_come_is_not_waited_for() -> None:
    course = Course(Router(deaf={"GetExternalIPAddress"}))
    course.discover()
    assert course.events == [
        (
            about(START + 0.008 + 0.2),
            Discovered(protocol="upnp", external_host=None, rtt_s=about(0.008)),
        )
    ]


@pytest.mark.parametrize(
    ("external", "told"),
    [
        ("11.22.33.4", "11.22.33.4"),
        ("10.0.0.2", "10.0.0.2"),
        ("100.64.0.2", "100.64.0.2"),
        ("", None),
        ("0.0.0.0", None),
        ("router", None),
        ("2001:db8::1", None),
    ],
)
def test_the_external_address_is_told_as_it_is(external: str, told: str | None) -> None:
    course = Course(Router(external=external))
    course.discover()
    assert course.of(Discovered)[0].external_host == told


def test_a_public_network_has_its_gateway_only() -> None:
    public = Gateway(host="20.0.1.1", interface="eth0", index=2, source="20.0.1.10", network="20.0.1.0/24")
    course = Course(Router(replies=[]), public)
    course.act(course.client.discover)
    course.receive(reply("http://20.0.1.7/"), TransportAddress("20.0.1.7", 1900))
    course.receive(reply("http://20.0.1.1/"), TransportAddress("20.0.1.1", 1900))
    assert [fetch.server.host for _, fetch in course.fetches] == ["20.0.1.1"]


def test_mapping_before_a_search_searches_first() -> None:
    course = Course()
    course.map(seconds=1.0)
    assert [type(event).__name__ for event in course.take()] == ["Mapped"]
    course = Course(Router(is_silent=True))
    course.map(1, request(), seconds=2.0)
    assert str(course.take()[0]).startswith(
        "MappingRefused(protocol='upnp', key=1, code=None, reason='no answer within 1.2 s', retry_s=2"
    )

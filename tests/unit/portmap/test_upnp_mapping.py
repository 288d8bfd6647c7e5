"""How a port is mapped, and what every quirk of a router is answered with."""

from __future__ import annotations

import pytest

from iceagent.net.address import TransportAddress
from portmap.events import Mapped, MappingLost, MappingRefused
from portmap.values import MapRequest
from tests.unit.portmap.upnp_kit import EXTERNAL, HOST, Course, Router, Rule, about, answer, arguments_of, request

ADD = "AddPortMapping"
ADD_ANY = "AddAnyPortMapping"
LOOK = "GetSpecificPortMappingEntry"
OTHER_HOST = "192.168.1.77"


def begun(router: Router | None = None) -> Course:
    """A course whose search is over."""
    course = Course(router)
    course.discover()
    course.take()
    course.actions()
    return course


def mapped(port: int, *, key: int = 1, lifetime_s: int = 3600, host: str = EXTERNAL) -> Mapped:
    external = TransportAddress(host, port)
    return Mapped(protocol="upnp", key=key, external=external, lifetime_s=lifetime_s, rtt_s=about(0.005))


def ports(course: Course, action: str) -> list[int]:
    """The outside ports that were asked for."""
    return [
        int(arguments_of(fetch)["NewExternalPort"])
        for _, fetch in course.fetches
        if dict(fetch.headers).get("SOAPAction", "").endswith(f'#{action}"')
    ]


# --- the usual way ---------------------------------------------------------------------------------------------------


def test_a_port_is_looked_at_taken_and_looked_at_again() -> None:
    """The second look is not waited for."""
    course = begun()
    at = course.now
    course.map()
    assert course.events == [(at + 0.01, mapped(5000))]
    assert course.actions() == [LOOK, ADD, LOOK]
    assert course.router.rules == {5000: Rule(HOST, 5000, at + 0.01 + 3600, "test")}


def test_the_arguments_are_in_the_order_of_the_specification() -> None:
    course = begun()
    course.map(1, MapRequest(transport="tcp", internal=TransportAddress(HOST, 5000), external_port=6000))
    [fetch] = [fetch for _, fetch in course.fetches if b"AddPortMapping" in fetch.body]
    assert list(arguments_of(fetch).items()) == [
        ("NewRemoteHost", ""),
        ("NewExternalPort", "6000"),
        ("NewProtocol", "TCP"),
        ("NewInternalPort", "5000"),
        ("NewInternalClient", HOST),
        ("NewEnabled", "1"),
        ("NewPortMappingDescription", "iceagent"),
        ("NewLeaseDuration", "3600"),
    ]
    assert (fetch.server, fetch.target, fetch.source) == (TransportAddress("192.168.1.1", 5000), "/ctl/IPConn", HOST)


def test_version_2_may_choose_the_port() -> None:
    course = begun(Router(version=2, rules={}))
    course.router.always[LOOK] = 401
    course.router.rules[5000] = Rule(OTHER_HOST, 5000, None)
    course.map()
    assert course.take() == [mapped(5001)]
    assert ADD_ANY in course.actions()


def test_a_description_loses_what_no_router_should_see() -> None:
    """Some do not escape it, and some store nothing then."""
    course = begun()
    course.map(1, request(5000, description='<a>&"x\r\n' + "b" * 100))
    course.map(2, request(5001, description="ü"))
    assert course.router.rules[5000].description == "ax" + "b" * 62
    assert course.router.rules[5001].description == "iceagent"


@pytest.mark.parametrize(("lifetime_s", "asked"), [(120, "120"), (3600, "3600"), (86400, "3600"), (0, "1")])
def test_no_lease_is_longer_than_an_hour(lifetime_s: int, asked: str) -> None:
    course = begun()
    course.map(1, request(lifetime_s=lifetime_s))
    [add] = [fetch for _, fetch in course.fetches if b"AddPortMapping" in fetch.body]
    assert arguments_of(add)["NewLeaseDuration"] == asked


def test_a_low_port_inside_is_no_low_port_outside() -> None:
    course = begun()
    course.map(1, request(53))
    [port] = ports(course, ADD)
    assert port >= 1024


def test_two_mappings_of_ours_do_not_take_one_port() -> None:
    course = begun()
    course.map(1, request(5001, external_port=5000))
    course.map(2, request(5000))
    assert len(course.router.rules) == 2 and course.router.rules[5000].port == 5001


@pytest.mark.parametrize(
    "wanted",
    [
        request(0),
        request(70000),
        request(external_port=70000),
        request(external_port=-1),
        MapRequest(transport="udp", internal=TransportAddress("2001:db8::1", 5000), external_port=0),
    ],
)
def test_what_cannot_be_mapped_is_our_fault(wanted: MapRequest) -> None:
    """A port of 70000 would open another one at some routers."""
    course = begun()
    with pytest.raises(ValueError):
        course.client.map(1, wanted, course.now)
    course.drain()
    assert not course.fetches


# --- the external address --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("external", "host"),
    [("", "0.0.0.0"), ("0.0.0.0", "0.0.0.0"), ("10.0.0.2", "10.0.0.2"), ("100.64.1.2", "100.64.1.2")],
)
def test_a_useless_external_address_is_told_as_it_is(external: str, host: str) -> None:
    course = begun(Router(external=external))
    course.map()
    assert course.take() == [mapped(5000, host=host)]


def test_an_old_external_address_is_asked_for_beside_the_mapping() -> None:
    course = begun()
    course.run(60.0)
    course.router.external = "11.22.33.5"
    course.map()
    assert course.take() == [mapped(5000, host="11.22.33.5")]
    assert course.actions()[:2] == ["GetExternalIPAddress", LOOK]


def test_a_slow_external_address_is_waited_for_a_moment_and_told_later() -> None:
    course = begun()
    course.run(60.0)
    router = course.router
    router.deaf.add("GetExternalIPAddress")
    at = course.now
    course.map(seconds=2.0)
    assert course.events == [(about(at + 0.01 + 0.2), mapped(5000))]


def test_an_external_address_that_is_known_at_last_is_told() -> None:
    course = begun(Router(deaf={"GetExternalIPAddress"}))
    course.map(seconds=1.0)
    assert course.take() == [mapped(5000, host="0.0.0.0")]
    course.router.deaf.clear()
    course.run(301.0)
    assert course.take() == [mapped(5000)]


# --- others' mappings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("rule", [Rule(HOST, 7000, None), Rule(OTHER_HOST, 5000, None)])
def test_another_mapping_on_the_port_is_left_alone(version: int, rule: Rule) -> None:
    """A router lets a host take its own port again: the other program's mapping would be ours."""
    course = begun(Router(version=version, rules={5000: rule}))
    course.map()
    [event] = course.of(Mapped)
    assert event.external.port != 5000 and event.external.port >= 1024
    assert course.router.rules[5000] is rule
    assert course.router.rules[event.external.port].port == 5000


def test_our_own_mapping_of_a_former_run_is_taken_over() -> None:
    course = begun(Router(rules={5000: Rule(HOST, 5000, None)}))
    course.map()
    assert course.take() == [mapped(5000)]
    assert course.router.rules[5000].expires_at is not None
    # It was seen before: no need to look again.
    assert course.actions() == [LOOK, ADD]


def test_a_router_full_of_others_is_given_up() -> None:

    class Full(Router):
        def do_GetSpecificPortMappingEntry(self, arguments: dict[str, str], now: float) -> bytes | int:
            self.rules[int(arguments["NewExternalPort"])] = Rule(OTHER_HOST, 9, None)
            return super().do_GetSpecificPortMappingEntry(arguments, now)

    course = begun(Full())
    course.map(seconds=1.0)
    [event] = course.of(MappingRefused)
    assert event.code is None and event.reason.endswith("is taken by 192.168.1.77 port 9")
    assert event.retry_s == pytest.approx(30, rel=0.1)
    assert course.actions() == [LOOK] * 5


@pytest.mark.parametrize("code", [401, 402, 501, 602, 606, 713])
def test_a_router_that_does_not_let_us_look_is_believed(code: int) -> None:
    course = begun(Router(always={LOOK: code}))
    course.map(seconds=5.0)
    assert course.take() == [mapped(5000)]
    assert course.actions() == [LOOK, ADD, LOOK]


def test_a_look_that_is_not_answered_costs_a_second() -> None:
    course = begun(Router(deaf={LOOK}))
    at = course.now
    course.map(seconds=5.0)
    assert course.events == [(about(at + 1.25 + 0.005), mapped(5000))]


# --- quirks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [725, 402])
@pytest.mark.parametrize("version", [1, 2])
def test_a_router_without_leases_gets_a_permanent_mapping(code: int, version: int) -> None:
    """725: nicotine-plus#2200, syncthing#1831; 402 instead: tailscale#15223."""
    action = ADD_ANY if version == 2 else ADD
    course = begun(Router(version=version, faults={action: [code]}))
    course.map()
    assert course.take() == [mapped(5000, lifetime_s=0)]
    assert course.actions() == [LOOK, action, action, LOOK]
    # The next one is asked for like that at once.
    course.map(2, request(5001))
    assert course.take() == [mapped(5001, key=2, lifetime_s=0)]
    assert course.actions() == [LOOK, action, LOOK]


def test_402_may_mean_add_any() -> None:
    course = begun(Router(version=2, always={ADD_ANY: 402}))
    course.map()
    assert course.take() == [mapped(5000)]
    assert course.actions() == [LOOK, ADD_ANY, ADD_ANY, ADD, LOOK]


@pytest.mark.parametrize("code", [401, 602])
def test_a_version_2_that_is_none_gets_add_port_mapping(code: int) -> None:
    course = begun(Router(version=2, always={ADD_ANY: code}))
    course.map()
    assert course.take() == [mapped(5000)]
    assert course.actions() == [LOOK, ADD_ANY, ADD, LOOK]
    course.map(2, request(5001))
    assert course.actions() == [LOOK, ADD, LOOK]


def test_an_add_any_that_names_no_port_is_repeated_as_add_port_mapping() -> None:

    class Terse(Router):
        def do_AddAnyPortMapping(self, arguments: dict[str, str], now: float) -> bytes | int:
            return self.add(5000, arguments, now) or answer("AddAnyPortMapping")

    course = begun(Terse(version=2))
    course.map()
    assert course.take() == [mapped(5000)]
    assert course.actions() == [LOOK, ADD_ANY, ADD, LOOK]


def test_a_conflict_is_answered_with_another_port() -> None:
    """718: nicotine-plus#3364."""
    course = begun(Router(faults={ADD: [718, 718, 718, 718]}))
    course.map(seconds=1.0)
    asked = ports(course, ADD)
    assert len(set(asked)) == 5 and asked[0] == 5000 and all(1024 <= port <= 65535 for port in asked)
    assert course.take() == [mapped(asked[4])]


def test_a_conflict_that_goes_on_is_given_up() -> None:
    course = begun(Router(always={ADD: 718}))
    course.map(seconds=1.0)
    [event] = course.of(MappingRefused)
    assert (event.code, event.reason) == (718, "718 ConflictInMappingEntry")
    assert event.retry_s == pytest.approx(30, rel=0.1)
    assert len(ports(course, ADD)) == 5


def test_action_failed_is_answered_with_another_port_once() -> None:
    course = begun(Router(faults={ADD: [501]}))
    course.map()
    asked = ports(course, ADD)
    assert len(asked) == 2 and course.take() == [mapped(asked[1])]
    course = begun(Router(always={ADD: 501}))
    course.map()
    [event] = course.of(MappingRefused)
    assert (event.code, event.reason) == (501, "501 ActionFailed")
    assert len(ports(course, ADD)) == 2


def test_the_same_port_inside_and_outside_if_it_must_be() -> None:
    """724."""
    course = begun(Router(faults={ADD: [724]}))
    course.map(1, request(5000, external_port=6000))
    assert course.take() == [mapped(5000)]
    course.map(2, request(5001, external_port=6001))
    assert course.take() == [mapped(5001, key=2)]
    assert ports(course, ADD) == [6000, 5000, 5001]


def test_a_router_that_wants_the_same_port_and_has_it_taken_is_given_up() -> None:
    course = begun(Router(faults={ADD: [724]}, rules={5000: Rule(OTHER_HOST, 5000, None)}))
    course.map(1, request(5000, external_port=6000))
    [event] = course.of(MappingRefused)
    assert event.reason == "port 5000 is taken by 192.168.1.77 port 5000"


def test_a_low_port_that_is_not_allowed_is_answered_with_a_high_one() -> None:
    course = begun(Router(faults={ADD: [606]}))
    course.map(1, request(5000, external_port=443))
    assert [event.external.port >= 1024 for event in course.of(Mapped)] == [True]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (606, "606 ActionNotAuthorized"),
        (716, "716 WildCardNotPermittedInExtPort"),
        (724, "724 SamePortValuesRequired"),
        (726, "726 RemoteHostOnlySupportsWildcard"),
        (727, "727 ExternalPortOnlySupportsWildcard"),
        (729, "729 ConflictWithOtherMechanisms"),
        (401, "401 InvalidAction"),
        (899, "899 Something"),
    ],
)
def test_a_refusal_for_good_is_told_with_code_and_words(code: int, reason: str) -> None:
    """729: Open.NAT#70. 727 asks for all ports of the host, which nobody wants to be open."""
    course = begun(Router(always={ADD: code}))
    course.map()
    refused = MappingRefused(protocol="upnp", key=1, code=code, reason=reason, retry_s=None)
    assert course.take() == [refused]
    assert ports(course, ADD) == [5000]
    assert course.client.poll_timeout() is None


@pytest.mark.parametrize(("code", "reason"), [(728, "728 NoPortMapsAvailable"), (603, "603 OutOfMemory")])
def test_a_full_table_is_asked_again_later(code: int, reason: str) -> None:
    """syncthing#2648."""
    course = begun(Router(faults={ADD: [code, code]}))
    course.map(seconds=200.0)
    first, second, last = course.events
    assert isinstance(first[1], MappingRefused) and isinstance(second[1], MappingRefused)
    assert (first[1].code, first[1].reason) == (code, reason)
    assert first[1].retry_s == pytest.approx(30, rel=0.1) and second[1].retry_s == pytest.approx(60, rel=0.1)
    assert second[0] - first[0] == pytest.approx(first[1].retry_s, abs=0.1)
    assert last[1] == mapped(5000)


def test_a_private_line_has_no_ports_and_says_so() -> None:
    """miniupnpd behind another NAT: found, connected, no address, 501 to every mapping."""
    course = begun(Router(external="", always={ADD: 501}))
    course.map()
    [event] = course.of(MappingRefused)
    assert (event.code, event.reason) == (501, "501 ActionFailed")


def test_silence_ends_the_attempt() -> None:
    course = begun(Router(deaf={LOOK, ADD}))
    at = course.now
    course.map(seconds=5.0)
    assert course.events[0][0] == pytest.approx(at + 1.25 + 2.75)
    [event] = course.of(MappingRefused)
    assert (event.code, event.reason) == (None, "no answer within 2.5 s")
    assert event.retry_s == pytest.approx(30, rel=0.1)


def test_a_slow_router_that_refuses_every_port_is_left_after_a_while() -> None:
    course = begun(Router(always={ADD: 718}, delay_s=0.7))
    at = course.now
    course.map(seconds=20.0)
    assert len(course.of(MappingRefused)) == 1
    assert course.events[0][0] - at < 8.0


@pytest.mark.parametrize("body", [b"", b"<html>Log in", b"\xff" * 100])
def test_nonsense_is_no_answer(body: bytes) -> None:
    course = begun(Router(deaf={ADD}))
    course.map()
    number = course.fetches[-1][1].number
    course.act(lambda now: course.client.handle_response(number, 200, (), body, now))
    [event] = course.of(MappingRefused)
    assert event.code is None and event.retry_s is not None


# --- success without effect ------------------------------------------------------------------------------------------


def test_a_mapping_that_is_not_there_is_lost_again() -> None:
    course = begun(Router(has_effect=False))
    at = course.now
    course.map(seconds=5.0)
    lost = MappingLost(protocol="upnp", key=1, reason="the gateway said yes, and has no such mapping")
    assert [event for _, event in course.events] == [mapped(5000), lost]
    assert course.events[1][0] == pytest.approx(at + 0.015 + 1.005)


def test_after_that_a_mapping_is_told_only_once_it_was_seen() -> None:
    course = begun(Router(has_effect=False))
    course.map(seconds=100.0)
    assert [type(event) for event in course.take()] == [Mapped, MappingLost]
    course.router.has_effect = True
    course.run(300.0)
    assert course.take() == [mapped(5000)]


def test_a_router_that_lists_a_mapping_late_is_given_a_moment() -> None:
    course = begun()
    course.router.faults[LOOK] = [714, 714]
    course.map(seconds=5.0)
    assert course.take() == [mapped(5000)]


def test_a_mapping_that_is_there_but_not_in_force_is_lost() -> None:

    class Disabling(Router):
        def add(self, port: int, arguments: dict[str, str], now: float) -> int:
            code = super().add(port, arguments, now)
            self.rules[port].enabled = 0
            return code

    course = begun(Disabling())
    course.map(seconds=5.0)
    lost = MappingLost(protocol="upnp", key=1, reason="the gateway said yes, and the mapping is not as it should be")
    assert course.take() == [mapped(5000), lost]


def test_an_entry_that_says_nothing_is_no_evidence() -> None:
    """Some answer with empty values, some with a name instead of an address."""

    class Vague(Router):
        def do_GetSpecificPortMappingEntry(self, _: dict[str, str], __: float) -> bytes:
            return answer("GetSpecificPortMappingEntry", NewInternalClient="laptop", NewInternalPort="")

    course = begun(Vague())
    course.map(seconds=5.0)
    assert course.take() == [mapped(5000)]


def test_a_shorter_lease_than_asked_for_is_noticed() -> None:
    """miniupnp#197: a lease that is not honoured."""
    course = begun(Router(longest_lease=600))
    at = course.now
    course.map(seconds=310.0)
    shorter = mapped(5000, lifetime_s=599)
    assert [event for _, event in course.events] == [mapped(5000), shorter, shorter]
    assert course.events[2][0] == pytest.approx(at + 300, abs=1)

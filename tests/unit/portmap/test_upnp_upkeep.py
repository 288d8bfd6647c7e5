"""How a mapping is kept, lost, made again and deleted, while the router does what routers do."""

from __future__ import annotations

import pytest

from iceagent.net.address import TransportAddress
from portmap.events import Discovered, GatewayRestarted, Mapped, MappingLost, MappingRefused, Unmapped
from portmap.upnp import Entry, MappingsListed
from tests.unit.portmap.upnp_kit import HOST, Course, Router, Rule, about, arguments_of, request

ADD = "AddPortMapping"
LOOK = "GetSpecificPortMappingEntry"
DELETE = "DeletePortMapping"
ASK = "GetExternalIPAddress"
OTHER_HOST = "192.168.1.77"


def kept(router: Router | None = None, count: int = 1) -> Course:
    """A course with mappings from port 5000 on, made and looked at."""
    course = Course(router)
    course.discover()
    for key in range(1, count + 1):
        course.map(key, request(4999 + key))
    assert len(course.of(Mapped)) == count
    course.take()
    course.actions()
    return course


def names(course: Course) -> list[str]:
    return [type(event).__name__ for event in course.take()]


# --- renewing --------------------------------------------------------------------------------------------------------


def test_a_lease_is_renewed_at_its_half() -> None:
    course = kept()
    begun_at = course.now - 0.1
    course.run(3000.0)
    [(at, event)] = course.events
    assert isinstance(event, Mapped) and event.external.port == 5000 and event.lifetime_s == 3600
    assert at - begun_at == pytest.approx(1800, abs=0.1)
    assert [action for action in course.actions() if action != ASK] == [LOOK, ADD]
    assert course.router.rules[5000].expires_at == pytest.approx(at + 3600, abs=0.1)


def test_a_permanent_mapping_is_looked_for_every_20_minutes() -> None:
    course = kept(Router(only_permanent=True))
    course.run(2500.0)
    assert [event.lifetime_s for event in course.of(Mapped)] == [0, 0]
    assert [action for action in course.actions() if action != ASK] == [LOOK, LOOK]


def test_a_permanent_mapping_that_is_not_one_is_made_anew_before_its_end() -> None:
    """RFC 6970, 4.1: IGD:2 makes 604,800 s of it."""
    course = kept(Router(only_permanent=True))
    course.router.rules[5000].expires_at = course.now + 604_800
    course.run(604_700.0 - 2400)
    assert ADD not in course.actions()
    course.router.only_permanent = True
    course.run(2500.0)
    assert course.actions().count(ADD) == 1
    assert all(isinstance(event, Mapped) for event in course.take())
    assert course.router.rules[5000].expires_at is None


def test_a_permanent_mapping_where_we_may_not_look_is_made_anew() -> None:
    course = kept(Router(only_permanent=True, always={LOOK: 401}))
    course.router.rules.clear()
    course.run(1300.0)
    assert course.router.rules[5000].port == 5000
    assert names(course) == ["Mapped"]


def test_version_2_renews_the_port_that_there_is() -> None:
    course = Course(Router(version=2, always={LOOK: 401}, rules={5000: Rule(OTHER_HOST, 5000, None)}))
    course.discover()
    course.map()
    assert course.of(Mapped)[-1].external.port == 5001
    course.actions()
    course.run(1900.0)
    assert course.of(Mapped)[-1].external.port == 5001
    [add] = [fetch for _, fetch in course.fetches if b"AddPortMapping" in fetch.body]
    assert arguments_of(add)["NewExternalPort"] == "5001"


def test_a_renewal_that_fails_is_repeated_until_the_lease_ends() -> None:
    course = kept()
    begun_at = course.now - 0.1
    course.router.always[ADD] = 729
    course.run(3700.0)
    lost = course.of(MappingLost)
    assert [event.reason for event in lost] == ["not renewed within its lifetime: 729 ConflictWithOtherMechanisms"]
    assert course.events[0][0] - begun_at == pytest.approx(3600, abs=0.1)
    times = [at - begun_at for at, fetch in course.fetches if b"#AddPortMapping" in str(fetch.headers).encode()]
    assert times[:3] == [pytest.approx(1800, abs=1), pytest.approx(2700, abs=1), pytest.approx(3150, abs=1)]
    # Then it is asked for again, and refused for good.
    course.run(100.0)
    [refused] = course.of(MappingRefused)
    assert (refused.code, refused.retry_s) == (729, None)


def test_a_renewal_that_works_the_second_time_loses_nothing() -> None:
    course = kept()
    course.router.faults[ADD] = [501, 718]
    course.run(3200.0)
    assert names(course) == ["Mapped"]
    assert list(course.router.rules) == [5000]


# --- restarts and other changes --------------------------------------------------------------------------------------


def test_a_restart_is_noticed_at_the_next_renewal_and_all_is_made_again() -> None:
    course = kept(count=3)
    course.router.rules.clear()
    course.run(1800.0)
    events = course.take()
    assert [type(event).__name__ for event in events] == ["GatewayRestarted", "Mapped", "Mapped", "Mapped"]
    assert {event.key for event in events if isinstance(event, Mapped)} == {1, 2, 3}
    assert sorted(course.router.rules) == [5000, 5001, 5002]


def test_a_restarted_gateway_that_refuses_has_lost_the_mapping() -> None:
    course = kept()
    course.router.rules.clear()
    course.router.always[ADD] = 728
    course.run(1801.0)
    assert course.take() == [
        GatewayRestarted(protocol="upnp"),
        MappingLost(protocol="upnp", key=1, reason="728 NoPortMapsAvailable"),
    ]
    del course.router.always[ADD]
    course.run(60.0)
    assert names(course) == ["Mapped"]


def test_a_port_that_another_host_has_got_meanwhile_is_left_to_it() -> None:
    course = kept()
    course.router.rules[5000] = Rule(OTHER_HOST, 5000, None)
    course.run(1801.0)
    [event] = course.take()
    assert isinstance(event, Mapped) and event.external.port != 5000
    assert course.router.rules[5000].host == OTHER_HOST


def test_another_external_address_is_told_within_five_minutes() -> None:
    course = kept(count=2)
    course.router.external = "11.22.33.5"
    course.run(310.0)
    events = course.take()
    assert [event.external for event in events if isinstance(event, Mapped)] == [
        TransportAddress("11.22.33.5", 5000),
        TransportAddress("11.22.33.5", 5001),
    ]
    # A router that has dialled anew may have forgotten its mappings: they are looked for.
    assert course.actions() == [ASK, LOOK, LOOK]


def test_a_router_that_has_dialled_anew_and_forgot_the_mappings_gets_them_again() -> None:
    course = kept(count=2)
    course.router.external = "11.22.33.5"
    course.router.rules.clear()
    course.run(310.0)
    assert names(course) == ["Mapped", "Mapped", "GatewayRestarted", "Mapped", "Mapped"]
    assert sorted(course.router.rules) == [5000, 5001]


def test_nothing_is_asked_where_nothing_is_mapped() -> None:
    course = kept()
    course.act(course.client.unmap, 1)
    course.run(2000.0)
    assert course.actions() == [DELETE]
    assert course.client.poll_timeout() is None


def test_a_service_that_has_moved_is_found_again_and_quietly() -> None:
    """A router that restarts may take another port for its HTTP."""
    course = kept(count=2)
    course.router.port = 5555
    course.router.rules.clear()
    course.run(305.0)
    assert names(course) == ["GatewayRestarted", "Mapped", "Mapped"]
    assert sorted(course.router.rules) == [5000, 5001]
    assert not course.of(Discovered)


def test_a_gateway_that_is_away_is_searched_for_and_the_mapping_expires() -> None:
    course = kept()
    course.router.reason = "No route to host"
    course.router.is_silent = True
    course.run(3700.0)
    [lost, *refused] = course.take()
    assert lost == MappingLost(protocol="upnp", key=1, reason="not renewed within its lifetime: No route to host")
    assert all(isinstance(event, MappingRefused) and event.code is None for event in refused)
    course.router.reason = ""
    course.router.is_silent = False
    course.run(700.0)
    assert isinstance(course.take()[-1], Mapped)


def test_a_gateway_that_is_away_is_not_asked_too_often() -> None:
    course = kept()
    course.router.reason = "No route to host"
    course.run(24 * 3600.0)
    assert len(course.fetches) < 1500
    retries = [event.retry_s for event in course.of(MappingRefused) if event.retry_s is not None]
    assert max(retries) <= 660 and retries[:2] == [pytest.approx(60, rel=0.1), pytest.approx(120, rel=0.1)]


def test_refresh_renews_at_once() -> None:
    course = kept(count=2)
    course.run(100.0)
    course.act(course.client.refresh)
    course.run(1.0)
    assert course.actions() == [ASK, LOOK, LOOK, ADD, ADD]
    assert names(course) == ["Mapped", "Mapped"]


def test_refresh_asks_again_for_what_was_refused() -> None:
    course = Course(Router(faults={ADD: [728]}))
    course.discover()
    course.map()
    course.act(course.client.refresh)
    course.run(1.0)
    assert names(course) == ["Discovered", "MappingRefused", "Mapped"]


def test_refresh_without_mappings_does_nothing() -> None:
    course = Course()
    course.discover()
    course.actions()
    course.act(course.client.refresh)
    assert course.actions() == [] and course.client.poll_timeout() is None


# --- the end ---------------------------------------------------------------------------------------------------------


def test_unmap_deletes() -> None:
    course = kept()
    course.act(course.client.unmap, 1)
    course.act(course.client.unmap, 1)
    course.run(1.0)
    assert course.take() == [Unmapped(protocol="upnp", key=1, is_confirmed=True)]
    assert course.router.rules == {} and course.client.poll_timeout() is None


def test_what_is_gone_already_is_deleted() -> None:
    course = kept()
    course.router.rules.clear()
    course.act(course.client.unmap, 1)
    course.run(1.0)
    assert course.take() == [Unmapped(protocol="upnp", key=1, is_confirmed=True)]


@pytest.mark.parametrize("code", [501, 606])
def test_a_no_is_no_confirmation(code: int) -> None:
    course = kept(Router(always={DELETE: code}))
    course.act(course.client.unmap, 1)
    course.run(1.0)
    assert course.take() == [Unmapped(protocol="upnp", key=1, is_confirmed=False)]


def test_unmap_waits_no_longer_than_half_a_second() -> None:
    course = kept(Router(deaf={DELETE}))
    at = course.now
    course.act(course.client.unmap, 1)
    course.run(5.0)
    assert course.events == [(about(at + 0.5), Unmapped(protocol="upnp", key=1, is_confirmed=False))]
    assert course.client.poll_timeout() is None


def test_unmap_of_an_unknown_key_does_nothing() -> None:
    course = kept()
    course.act(course.client.unmap, 7)
    course.client.abandon(7)
    assert course.take() == [] and course.actions() == []


@pytest.mark.parametrize("after_s", [0.001, 0.006])
def test_unmap_while_it_is_being_made_leaves_nothing(after_s: float) -> None:
    course = Course()
    course.discover()
    course.take()
    course.map(seconds=after_s)
    course.act(course.client.unmap, 1)
    course.run(1.0)
    assert course.take() == [Unmapped(protocol="upnp", key=1, is_confirmed=True)]
    assert course.router.rules == {} and course.client.poll_timeout() is None


def test_what_is_granted_after_unmap_has_ended_is_deleted_still() -> None:
    course = Course(Router(delay_s=0.8))
    course.discover()
    course.take()
    course.map(seconds=1.0)
    course.act(course.client.unmap, 1)
    course.run(5.0)
    assert course.take() == [Unmapped(protocol="upnp", key=1, is_confirmed=False)]
    assert course.actions()[-2:] == [ADD, DELETE] and course.router.rules == {}


def test_unmap_during_a_renewal_leaves_nothing() -> None:
    course = kept()
    course.act(course.client.refresh)
    course.run(0.006)
    course.act(course.client.unmap, 1)
    course.run(1.0)
    assert course.take() == [Unmapped(protocol="upnp", key=1, is_confirmed=True)]
    assert course.router.rules == {}


def test_unmap_of_what_was_refused_or_never_found_ends_at_once() -> None:
    for router in (Router(always={ADD: 729}), Router(is_silent=True)):
        course = Course(router)
        course.map(seconds=0.5)
        course.take()
        course.act(course.client.unmap, 1)
        assert course.take() == [Unmapped(protocol="upnp", key=1, is_confirmed=True)]
        course.run(100.0)
        assert course.take() == [] and course.client.poll_timeout() is None


def test_what_is_abandoned_is_left_alone() -> None:
    course = kept()
    course.client.abandon(1)
    course.run(10_000.0)
    assert course.take() == [] and course.actions() == [] and 5000 in course.router.rules


def test_what_is_abandoned_while_it_is_being_made_is_left_alone() -> None:
    course = Course()
    course.discover()
    course.take()
    course.map(seconds=0.006)
    course.client.abandon(1)
    course.run(10.0)
    assert course.take() == [] and 5000 in course.router.rules


def test_an_answer_nobody_waits_for_is_counted() -> None:
    course = kept()
    course.client.handle_response(999, 200, (), b"", course.now)
    course.client.handle_failure(999, "late", course.now)
    assert course.client.counters == {"responses nobody waited for": 2}


def test_a_shell_that_forgets_a_fetch_holds_nothing_up() -> None:
    course = Course(Router(deaf={LOOK, ADD, ASK, "GET"}))
    course.map(seconds=60.0)
    assert {event.code for event in course.of(MappingRefused)} == {None}


# --- the list --------------------------------------------------------------------------------------------------------


def test_reading_the_list_of_an_unknown_gateway_says_so() -> None:
    course = Course()
    course.act(course.client.list_mappings)
    assert [event.reason for event in course.of(MappingsListed)] == ["no gateway was found"]


def test_the_list_has_everybodys_mappings() -> None:
    rules = {80: Rule(OTHER_HOST, 8080, None, "web"), 5000: Rule(HOST, 5000, 10_000.0, "game")}
    course = Course(Router(rules=rules))
    course.discover()
    course.act(course.client.list_mappings)
    course.act(course.client.list_mappings)
    course.run(1.0)
    [listed] = course.of(MappingsListed)
    assert listed.reason is None
    web = Entry(internal_host=OTHER_HOST, internal_port=8080, is_enabled=True, description="web", lease_s=0)
    game = Entry(internal_host=HOST, internal_port=5000, is_enabled=True, description="game", lease_s=8996)
    assert [each.entry for each in listed.mappings] == [web, game]
    assert [(each.transport, each.external_port, each.remote_host) for each in listed.mappings] == [
        ("udp", 80, ""),
        ("udp", 5000, ""),
    ]


def test_an_empty_list_is_empty() -> None:
    course = Course()
    course.discover()
    course.act(course.client.list_mappings)
    course.run(1.0)
    assert course.of(MappingsListed) == [MappingsListed(protocol="upnp", mappings=(), reason=None)]


def test_a_list_without_end_is_cut() -> None:
    course = Course(Router(rules={port: Rule(HOST, port, None) for port in range(1, 1000)}))
    course.discover()
    course.act(course.client.list_mappings)
    course.run(10.0)
    [listed] = course.of(MappingsListed)
    assert (len(listed.mappings), listed.reason) == (256, "more than 256 mappings")


def test_a_slow_list_is_cut() -> None:
    course = Course(Router(rules={port: Rule(HOST, port, None) for port in range(1, 1000)}, delay_s=0.9))
    course.discover()
    course.act(course.client.list_mappings)
    course.run(20.0)
    [listed] = course.of(MappingsListed)
    assert (len(listed.mappings), listed.reason) == (12, "not done within 10 s")


@pytest.mark.parametrize("code", [402, 501])
def test_a_list_that_ends_with_another_code_may_be_whole(code: int) -> None:
    course = Course(Router(always={"GetGenericPortMappingEntry": code}))
    course.discover()
    course.act(course.client.list_mappings)
    course.run(1.0)
    [listed] = course.of(MappingsListed)
    assert listed.reason is not None and listed.reason.startswith(str(code))

"""Does anything from the network raise, or make a client grow or spin?"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from iceagent.net.address import TransportAddress
from portmap.events import Fetch, Unmapped
from tests.unit.portmap.upnp_kit import (
    GATEWAY,
    GATEWAY_6,
    GROUP,
    ROUTER,
    Course,
    Router,
    action_of,
    answer,
    description,
    fault,
    reply,
    request,
    request_6,
)

SOURCES = [ROUTER, TransportAddress("192.168.1.66", 1900), TransportAddress("8.8.8.8", 1900), GROUP]
LOCATIONS = ["http://192.168.1.1:5000/d", "http://192.168.1.66/", "http://8.8.8.8/", "http://[2001:db8:1::1]/", "x"]
CODES = [401, 402, 501, 606, 701, 704, 713, 714, 718, 724, 725, 726, 727, 728, 729, 999]
VALUES = [
    "",
    "0",
    "1",
    "5000",
    "65535",
    "65536",
    "99999999999",
    "-1",
    "x",
    "192.168.1.10",
    "192.168.1.77",
    "11.22.33.4",
]
NAMES = [
    "NewExternalIPAddress",
    "NewInternalClient",
    "NewInternalPort",
    "NewLeaseDuration",
    "NewEnabled",
    "NewReservedPort",
    "UniqueID",
    "NewConnectionStatus",
]

pages = st.one_of(
    st.binary(max_size=50),
    st.lists(
        st.tuples(
            st.sampled_from(
                ["WANIPConnection:1", "WANIPConnection:2", "WANPPPConnection:1", "WANIPv6FirewallControl:1"]
            ),
            st.sampled_from(["/a", "/b", "http://192.168.1.1:5000/c", "http://8.8.8.8/", ""]),
        ),
        max_size=6,
    ).map(lambda services: description(*services)),
)
bodies: Any = st.one_of(
    st.binary(max_size=50),
    st.sampled_from(CODES),
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES), max_size=8),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("map"), st.integers(1, 3)),
        st.tuples(st.just("unmap"), st.integers(1, 3)),
        st.tuples(st.just("abandon"), st.integers(1, 3)),
        st.tuples(st.sampled_from(["discover", "refresh", "list_mappings"]), st.just(0)),
        st.tuples(st.just("receive"), st.one_of(st.binary(max_size=50), st.sampled_from(LOCATIONS).map(reply))),
        st.tuples(st.just("run"), st.sampled_from([0.001, 0.006, 0.05, 0.3, 3.0, 700.0, 4000.0])),
    ),
    max_size=25,
)


class Mad(Router):
    """Answers with whatever comes next."""

    def __init__(self, data: st.DataObject, is_6: bool) -> None:
        super().__init__(is_6=is_6)
        self._data = data
        self._left = 60

    def fetch(self, fetch: Fetch, now: float) -> tuple[int, bytes] | str | None:
        self._left -= 1
        if self._left < 0 or self._data.draw(st.integers(0, 9)) < 4:
            return super().fetch(fetch, now)
        if self._data.draw(st.integers(0, 5)) == 0:
            return self._data.draw(st.sampled_from([None, "Connection refused"]))
        status = self._data.draw(st.sampled_from([200, 200, 200, 500, 302, 404]))
        if fetch.method == "GET":
            return status, self._data.draw(pages)
        body = self._data.draw(bodies)
        if isinstance(body, int):
            return 500, fault(body)
        return status, body if isinstance(body, bytes) else answer(action_of(fetch), **body)


@settings(max_examples=150)
@given(st.data(), steps, st.booleans())
def test_no_router_breaks_a_client(data: st.DataObject, script: list[tuple[str, Any]], is_6: bool) -> None:
    course = Course(Mad(data, is_6), GATEWAY_6 if is_6 else GATEWAY)
    begun: set[int] = set()
    abandoned: set[int] = set()
    for index, (what, value) in enumerate(script):
        if what == "run":
            course.run(value)
        elif what == "receive":
            course.receive(value, SOURCES[index % len(SOURCES)])
        elif what == "map":
            if value not in begun:
                begun.add(value)
                course.act(course.client.map, value, request_6(5000 + value) if is_6 else request(5000 + value))
        elif what == "abandon":
            abandoned.add(value)
            course.client.abandon(value)
            course.drain()
        elif what == "unmap":
            course.act(course.client.unmap, value)
        else:
            course.act(getattr(course.client, what))
        deadline = course.client.poll_timeout()
        assert deadline is None or deadline > course.now - 1e-6
    for key in (1, 2, 3):
        course.act(course.client.unmap, key)
    course.run(20.0)
    unmapped = [event.key for event in course.of(Unmapped)]
    assert len(unmapped) == len(set(unmapped))
    assert begun - abandoned <= set(unmapped) <= begun
    # Nothing is waited for any more.
    assert course.client.poll_timeout() is None
    everywhere = {fetch.server.host for _, fetch in course.fetches}
    assert everywhere <= ({"2001:db8:1::1"} if is_6 else {"192.168.1.1", "192.168.1.66"})


def test_a_flood_of_everything_costs_no_memory() -> None:
    """What is counted has a fixed number of names; what is queued is taken out."""
    course = Course(Router(is_silent=True))
    course.act(course.client.discover)
    for number in range(2000):
        course.receive(reply(f"http://192.168.1.1:{1 + number}/{number}"))
        course.receive(reply(f"http://10.{number % 200}.0.1/"))
        course.receive(bytes([number % 256]) * 9)
    assert set(course.client.counters) == {
        "dropped: too many LOCATIONs",
        "dropped: LOCATION refused",
        "dropped: not an answer to a search",
    }
    assert len(course.fetches) == 10

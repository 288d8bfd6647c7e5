"""What can a gateway, or somebody who poses as it, do to a session? Against the fake gateway, in virtual time."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections import Counter, deque
from errno import EAGAIN, ECONNREFUSED, ENETUNREACH, EPERM

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event
from portmap.events import Mapped, MappingLost, NoMapping, Unmapped
from portmap.pace import Pace
from portmap.session import LOSSES, MAX_MAPPINGS, NEWS
from portmap.upnp.description import Service
from portmap.upnp.exchanges import MAX_AT_ONCE, Answer, Exchanges
from portmap.upnp.urls import Url
from portmap.values import PROTOCOLS, ProtocolName
from tests.fakes.gateway import FakeGateway
from tests.fakes.gateway.faults import Delivery, Xml
from tests.fakes.gateway.journal import Reply
from tests.unit.portmap.natpmp_kit import external
from tests.unit.portmap.pcp_kit import announcement
from tests.unit.portmap.session_kit import BASE, GATEWAY, Bench
from tests.unit.portmap.test_session import gateway
from tests.unit.portmap.upnp_kit import Course, Rule
from tests.unit.portmap.upnp_kit import request as upnp_request

EVERYWHERE = TransportAddress("0.0.0.0", 5350)
SERVER = TransportAddress(GATEWAY.host, 5351)


def hear(bench: Bench, data: bytes, base: TransportAddress = BASE, source: TransportAddress = SERVER) -> None:
    """A datagram arrives."""
    bench.session.handle_datagram(Datagram(base, source, data), bench.now)
    bench._drain()


def contradictions(events: list[tuple[float, Event]]) -> list[str]:
    """What the events of all mappings say that cannot be."""
    found, mapped, over = [], set(), set()
    for _, event in events:
        if isinstance(event, Mapped | MappingLost | NoMapping | Unmapped):
            if event.key in over:
                found.append(f"{event} after the end")
            if isinstance(event, MappingLost):
                mapped.discard(event.key)
            elif isinstance(event, NoMapping) and event.key in mapped:
                found.append(f"{event} while there is one")
            elif isinstance(event, Mapped):
                mapped.add(event.key)
            elif isinstance(event, Unmapped):
                over.add(event.key)
    return found


# --- pace ------------------------------------------------------------------------------------------------------------


def test_a_pace_lets_so_many_through_at_once_and_then_one_for_each_that_is_long_ago() -> None:
    pace, told = Pace(3, 10.0), []
    for tenth in range(400):
        now = 100 + tenth / 10
        if pace.ready_at(now) <= now:
            pace.take(now)
            told.append(now)
    assert told == [100 + start + n / 10 for start in (0, 10, 20, 30) for n in range(3)]
    assert Pace(1, 5.0).ready_at(7.0) == 7.0


# --- mappings of one port --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_port_is_mapped_once_whether_the_gateway_is_known_or_not(name: ProtocolName, is_known: bool) -> None:
    """The second one raised out of whatever came next, where the gateway was not known yet, and was never told of."""
    bench = Bench(gateway(name))
    if is_known:
        bench.map(9, port=7000)
        bench.until(Mapped)
    bench.map(1)
    with pytest.raises(ValueError, match=r"udp 192\.168\.1\.2:6000 is mapped already"):
        bench.map(2)
    bench.map(3, transport="tcp")
    bench.run(5.0)
    assert {event.key for _, event in bench.events if isinstance(event, Mapped)} == {1, 3} | (
        {9} if is_known else set()
    )
    bench.unmap(1)
    bench.map(4)
    bench.run(5.0)
    assert not contradictions(bench.events) and bench.events[-1][1].key == 4  # type: ignore[attr-defined]
    assert len(bench.gateway.mappings) == 2 + is_known


def test_a_protocol_that_cannot_take_one_more_is_one_that_refuses() -> None:
    """Thousands are deleted at once, and the gateway says nothing: they count as well."""
    bench = Bench(gateway("pcp"))
    bench.map(1, port=7000)
    bench.until(Mapped)
    bench.gateway.faults.pcp.is_silent = True
    for key in range(2, 1200):
        bench.map(key, ("pcp",), port=10_000 + key)
        if any(isinstance(event, NoMapping) for _, event in bench.events):
            break
        bench.unmap(key)
    _, nothing = bench.events[-1]
    assert isinstance(nothing, NoMapping) and "1024 mappings" in nothing.reasons["pcp"] and nothing.retry_s == 30.0
    bench.gateway.faults.pcp.is_silent = False
    _, mapped = bench.until(Mapped, 31.0)
    assert mapped.key == nothing.key


# --- news ------------------------------------------------------------------------------------------------------------


def test_announcements_of_ever_new_addresses_are_told_once_a_second_and_the_last_one_is_told() -> None:
    """RFC 6886, 5: they "could be spoofed"."""
    bench = Bench(gateway("nat-pmp"))
    for key in range(1, 11):
        bench.map(key, port=6000 + key)
    bench.run(2.0)
    seen = len(bench.events)
    for turn in range(20_000):
        bench.run(0.001)
        hear(bench, external(5000 + int(bench.now - 1000), f"11.9.{turn // 250}.{turn % 250 + 1}"), EVERYWHERE)
    told = Counter(event.key for _, event in bench.events[seen:] if isinstance(event, Mapped))
    most = NEWS[0] * (20 / NEWS[1] + 1)
    assert all(0 < count <= most for count in told.values()) and len(told) <= 10
    hear(bench, external(5022, "11.22.33.44"), EVERYWHERE)
    bench.run(NEWS[1] + 5.0)
    last = {event.key: event.external.host for _, event in bench.events if isinstance(event, Mapped)}
    assert last == dict.fromkeys(range(1, 11), "11.22.33.44")


def test_epochs_that_make_no_sense_renew_each_mapping_a_few_times_a_minute() -> None:
    bench = Bench(gateway())
    for key in range(1, 6):
        bench.map(key, port=6000 + key)
    bench.run(2.0)
    before, rng = len(bench.gateway.requests), random.Random(1)
    for _ in range(60_000):
        bench.run(0.001)
        epoch = rng.randrange(2**32)
        hear(bench, rng.choice((announcement, external))(epoch), rng.choice((BASE, EVERYWHERE)))
    kinds = Counter((each.protocol, each.kind) for each in bench.gateway.requests[before:])
    assert kinds[("pcp", "MAP")] <= 5 * (60 / 15 + 1)
    assert len(bench.gateway.requests) - before < 120, kinds
    assert bench.kinds().count("GatewayRestarted") <= 2 * (60 / 15 + 1)
    assert not contradictions(bench.events)


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("lifetime_s", [1, 2, 7])
def test_a_mapping_that_is_lost_again_and_again_is_left_for_another_protocol(
    name: ProtocolName, lifetime_s: int
) -> None:
    bench = Bench(gateway(name))
    bench.gateway.faults.mapping.lifetime_s = lifetime_s
    bench.map()
    bench.run(600.0)
    lost = [at for at, event in bench.events if isinstance(event, MappingLost)]
    assert len(lost) <= LOSSES[0] * (600 / LOSSES[1] + 1) * 2
    assert len(bench.gateway.requests) < 600 and not contradictions(bench.events)


def test_the_next_protocol_maps_where_the_best_one_keeps_nothing() -> None:
    bench = Bench(gateway(shares_rules=False))
    bench.gateway.faults.mapping.lifetime_s = 1
    bench.map()
    bench.run(10.0)
    assert {event.protocol for _, event in bench.events if isinstance(event, Mapped)} >= {"pcp", "nat-pmp"}


# --- UPnP ------------------------------------------------------------------------------------------------------------


def test_a_port_that_is_another_hosts_by_now_is_not_deleted() -> None:
    """The gateway was off for a moment, somebody else was faster, and it lets anybody delete anything."""
    course = Course()
    course.discover()
    course.map(1, upnp_request(5000))
    course.run(120.0)
    course.router.rules[5000] = Rule("192.168.1.77", 5000, None)
    course.take()
    course.actions()
    course.act(course.client.unmap, 1)
    course.run(1.0)
    assert course.actions() == ["GetSpecificPortMappingEntry"]
    assert course.take() == [Unmapped(protocol="upnp", key=1, is_confirmed=True)]
    assert course.router.rules[5000].host == "192.168.1.77"


@pytest.mark.parametrize("is_silent", [False, True])
def test_an_old_mapping_is_deleted_within_half_a_second_even_where_it_cannot_be_looked_at(is_silent: bool) -> None:
    course = Course()
    course.discover()
    course.map(1, upnp_request(5000))
    course.run(120.0)
    if is_silent:
        course.router.deaf.add("GetSpecificPortMappingEntry")
    course.take()
    course.act(course.client.unmap, 1)
    course.run(0.5)
    assert course.take() == [Unmapped(protocol="upnp", key=1, is_confirmed=True)] and not course.router.rules


def test_a_gateway_has_so_many_exchanges_at_once_and_deletions_go_first() -> None:
    """A router's HTTP server has few connections, and drops what is more."""
    events: deque[Event] = deque()
    exchanges, ended = Exchanges(events), []
    url = Url(TransportAddress(GATEWAY.host, 5000), "/control")
    kind = "urn:schemas-upnp-org:service:WANIPConnection:1"
    service = Service(type=kind, version=1, is_firewall=False, control=url)

    def call(name: str, *, is_urgent: bool = False) -> None:
        def then(answer: Answer, at: float) -> None:
            ended.append((name, at, answer.reason, answer.rtt_s))

        exchanges.call(service, GATEWAY.source, "X", (), 1.0, 100.0, then, is_urgent=is_urgent)

    for number in range(MAX_AT_ONCE + 2):
        call(f"call {number}")
    call("deletion", is_urgent=True)
    assert len(events) == MAX_AT_ONCE and exchanges.poll_timeout() == 101.25
    assert exchanges.handle_failure(1, "refused", 100.5)
    assert len(events) == MAX_AT_ONCE + 1, "the deletion has its turn, and its time begins"
    exchanges.handle_timeout(101.25)
    assert len(events) == MAX_AT_ONCE + 3 and exchanges.poll_timeout() == 101.75
    exchanges.handle_timeout(101.75)
    exchanges.handle_timeout(102.5)
    assert ended[0] == ("call 0", 100.5, "refused", 0.5)
    assert [each[:2] for each in ended[MAX_AT_ONCE:]] == [
        ("deletion", 101.75),
        (f"call {MAX_AT_ONCE}", 102.5),
        (f"call {MAX_AT_ONCE + 1}", 102.5),
    ]
    assert len(ended) == MAX_AT_ONCE + 3 and exchanges.poll_timeout() is None


# --- everything at once ----------------------------------------------------------------------------------------------


class Recorder(FakeGateway):
    """Remembers what it said."""

    said: list[bytes]

    def answer_udp(self, *args: object, **options: object) -> list[Reply]:
        replies = list(super().answer_udp(*args, **options))  # type: ignore[arg-type]
        self.said = (getattr(self, "said", []) + [reply.data for reply in replies])[-200:]
        return replies


def altered(data: bytes, rng: random.Random) -> bytes:
    """An answer with something else in it."""
    changed = bytearray(data)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(changed)) if changed else 0
        if changed:
            changed[at : at + rng.choice((1, 1, 4))] = rng.randbytes(rng.choice((1, 1, 4)))
    if rng.random() < 0.2:
        del changed[rng.randrange(len(changed) + 1) :]
    if len(changed) >= 12 and rng.random() < 0.3:
        struct.pack_into("!I", changed, rng.choice((4, 8)), rng.choice((0, 1, 2**31, 2**32 - 1, rng.randrange(2**32))))
    return bytes(changed)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_comes_at_whatever_time_nothing_raises_spins_contradicts_itself_or_grows(seed: int) -> None:
    rng = random.Random(seed)
    fake = Recorder(gateway().options, now=1000.0, epoch=5000)
    bench = Bench(fake, seed=seed)
    key = 0
    keys: list[int] = []
    for _ in range(600):
        action = rng.random()
        if action < 0.06 and len(keys) < 20:
            key += 1
            try:
                bench.map(key, port=rng.randrange(6000, 6030), transport=rng.choice(("udp", "tcp")))
                keys.append(key)
            except ValueError as error:
                assert "mapped already" in str(error)
        elif action < 0.10 and keys:
            bench.unmap(keys.pop(rng.randrange(len(keys))))
        elif action < 0.12:
            bench.refresh()
        elif action < 0.14:
            bench.ask_for_list()
        elif action < 0.45:
            said = getattr(fake, "said", [b""])
            data = altered(rng.choice(said or [b""]), rng)
            host = rng.choice((GATEWAY.host, GATEWAY.host, "192.168.1.66", GATEWAY.source))
            port = rng.choice((5351, 5351, 1900, 5350, 7))
            hear(bench, data, rng.choice((BASE, BASE, EVERYWHERE)), TransportAddress(host, port))
        elif action < 0.50:
            code = rng.choice((EAGAIN, ENETUNREACH, EPERM, ECONNREFUSED))
            destination = TransportAddress(GATEWAY.host, rng.choice((5351, 1900, 5000)))
            bench.session.handle_error(BASE, destination, code, bench.now)
            bench._drain()
        elif action < 0.56 and bench.fetched:
            # An answer to a question of long ago, or a second one.
            number = rng.choice(bench.fetched[-30:]).number
            body = rng.choice((b"", b"<a/>", rng.randbytes(50), b"<s><Body><u:x/></Body></s>"))
            bench.session.handle_response(number, rng.choice((200, 302, 500, 599)), (), body, bench.now)
            bench._drain()
        elif action < 0.62:
            faults = fake.faults
            faults.pcp.result = rng.choice((0, 0, 0, 1, 2, 8, 11, 200))
            faults.natpmp.result = rng.choice((0, 0, 0, 2, 4, 300))
            faults.soap.errors = rng.choice(({}, {}, {"": 501}, {"AddPortMapping": rng.choice((402, 718, 725, 724))}))
            faults.mapping.lifetime_s = rng.choice((None, None, 0, 1, 3, 2**32 - 1))
            faults.mapping.external_port = rng.choice((None, None, 0, 1, 65535))
            faults.mapping.external_host = rng.choice((None, None, "0.0.0.0", "10.0.0.1", "11.1.1.1"))
            faults.http.control = rng.choice((Delivery.PLAIN, Delivery.PLAIN, Delivery.HANG))
            faults.http.xml = rng.choice((Xml.GOOD, Xml.GOOD, Xml.ENTITY, Xml.HUGE))
            faults.pcp.is_silent = rng.random() < 0.2
            faults.natpmp.is_silent = rng.random() < 0.2
        elif action < 0.64:
            fake.restart(bench.now)
        else:
            bench.run(rng.choice((0.0, 0.001, 0.05, 0.3, 3.0, 40.0)))
        timeout = bench.session.poll_timeout()
        if timeout is not None and timeout <= bench.now:
            bench.session.handle_timeout(bench.now)
            bench._drain()
            again = bench.session.poll_timeout()
            assert again is None or again > bench.now, "it wants to be called for ever"
    assert not contradictions(bench.events)
    elapsed = bench.now - 1000.0
    assert len(bench.fetched) < 20 * elapsed
    for each in keys:
        bench.unmap(each)
    for fault in (fake.faults.pcp, fake.faults.natpmp):
        fault.is_silent = False
    bench.run(20.0)
    session = bench.session
    assert not session._wanted and not session._ending and not session._by_client_key
    assert session.upnp is not None and not session.upnp._upkeeps and not session.upnp._desk.ports
    # Nothing is wanted: nothing is done.
    before = len(fake.requests), len(bench.fetched)
    bench.run(3600.0)
    assert (len(fake.requests), len(bench.fetched)) == before and session.poll_timeout() is None


def test_thousands_of_useless_datagrams_leave_no_trace_but_a_number() -> None:
    bench = Bench(gateway())
    bench.map()
    bench.run(2.0)
    rng = random.Random(1)
    said = [rng.randbytes(rng.choice((0, 8, 16, 60, 1100))) for _ in range(500)]
    said += [b"HTTP/1.1 200 OK\r\nLOCATION: http://10.9.9.9/\r\n\r\n", external(5000), announcement(5000)]

    def flood(count: int) -> None:
        for turn in range(count):
            source = TransportAddress(
                rng.choice((GATEWAY.host, "192.168.1.66")), rng.choice((5351, 1900, turn % 65536))
            )
            hear(bench, rng.choice(said), rng.choice((BASE, EVERYWHERE)), source)

    flood(5_000)
    tracemalloc.start()
    try:
        before = tracemalloc.take_snapshot()
        flood(20_000)
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    grown = sum(
        each.size_diff for each in after.compare_to(before, "filename") if "/portmap/" in each.traceback[0].filename
    )
    assert grown < 50_000
    assert len(bench.session.counters) < 40
    assert sum(bench.session.counters.values()) > 20_000


def test_there_are_no_more_mappings_than_there_may_be() -> None:
    bench = Bench(gateway("pcp"))
    for key in range(MAX_MAPPINGS):
        bench.map(key, port=10_000 + key)
    with pytest.raises(ValueError, match="256 mappings"):
        bench.map(9999, port=9999)
    bench.run(5.0)
    assert len(bench.gateway.mappings) == MAX_MAPPINGS

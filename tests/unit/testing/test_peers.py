"""Pumping cores without asyncio."""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass

import pytest

from iceagent.net.address import TransportAddress as Address
from iceagent.net.core import Datagram, Event, Transmit
from iceagent.testing.links import Fate
from iceagent.testing.network import Network
from iceagent.testing.peers import Exchange, Peer, SessionPair, StepLimit

A = Address("192.0.2.1", 1)
B = Address("192.0.2.2", 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard(Event):
    """The echo core got something."""

    at: float
    what: bytes | int


class Pinger:
    """Sends a ping every ``period_s``, answers every ping, tells everything."""

    def __init__(self, base: Address, remote: Address, period_s: float | None = None) -> None:
        self.base, self.remote, self.period_s = base, remote, period_s
        self.next_at = period_s
        self.timeouts: list[float] = []
        self.out: deque[Transmit] = deque()
        self.events: deque[Event] = deque()

    def ping(self, data: bytes = b"ping") -> None:
        self.out.append(Transmit(self.base, self.remote, data))

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        self.events.append(Heard(at=now, what=datagram.data))
        if datagram.data == b"ping":
            self.out.append(Transmit(datagram.base, datagram.source, b"pong"))

    def handle_error(self, base: Address, destination: Address, errno: int, now: float) -> None:
        self.events.append(Heard(at=now, what=errno))

    def handle_timeout(self, now: float) -> None:
        self.timeouts.append(now)
        if self.next_at is not None and self.period_s is not None and now >= self.next_at:
            self.next_at += self.period_s
            self.ping()

    def poll_timeout(self) -> float | None:
        return self.next_at

    def poll_transmit(self) -> Transmit | None:
        return self.out.popleft() if self.out else None

    def poll_event(self) -> Event | None:
        return self.events.popleft() if self.events else None


def build(a_period_s: float | None = None, *, icmp_errors: bool = False) -> SessionPair[Pinger, Pinger]:
    network = Network.seeded(42, icmp_errors=icmp_errors)
    a = Peer("a", Pinger(A, B, a_period_s), network.add_node("a", [A.host], latency_s=0.25))
    b = Peer("b", Pinger(B, A), network.add_node("b", [B.host], latency_s=0.25))
    return SessionPair(network, a, b)


def test_a_command_is_collected_and_the_answer_comes_a_round_trip_later() -> None:
    pair = build()
    pair.a.core.ping()
    assert pair.run(lambda: bool(pair.a.events))
    assert pair.now == 1.0
    assert pair.a.transmits == [(0.0, Transmit(A, B, b"ping"))]
    assert pair.b.transmits == [(0.5, Transmit(B, A, b"pong"))]
    assert pair.b.events == [Heard(at=0.5, what=b"ping")]
    assert pair.a.events == [Heard(at=1.0, what=b"pong")]


def test_the_clock_goes_from_deadline_to_deadline() -> None:
    pair = build(a_period_s=10.0)
    assert pair.run(seconds=35.0)
    assert pair.now == 35.0
    assert pair.a.core.timeouts == [10.0, 20.0, 30.0]
    assert list(pair.a.events) == [Heard(at=at, what=b"pong") for at in (11.0, 21.0, 31.0)]


def test_run_ends_at_its_limit_without_what_was_waited_for() -> None:
    pair = build(a_period_s=10.0)
    assert pair.run(lambda: False, seconds=5.0) is False
    assert pair.now == 5.0
    assert pair.a.core.timeouts == []


def test_a_quiet_pair_has_no_next_step() -> None:
    pair = build()
    assert pair.step() is False
    pair.a.core.ping()
    steps = 0
    while pair.step():
        steps += 1
    assert (steps, pair.now) == (4, 1.0)


def test_drain_sends_what_a_command_wants() -> None:
    pair = build()
    pair.a.core.ping()
    pair.drain(pair.a)
    assert pair.network.in_flight == 1
    assert pair.a.core.poll_transmit() is None


def test_a_failed_send_and_an_icmp_error_reach_the_core() -> None:
    pair = build(icmp_errors=True)
    pair.b.node.ports = set()
    pair.a.core.ping(bytes(70_000))
    pair.a.core.ping()
    pair.run(seconds=5.0)
    assert pair.a.events == [Heard(at=0.0, what=errno.EMSGSIZE), Heard(at=1.0, what=errno.ECONNREFUSED)]


def test_a_core_that_does_not_come_to_rest_is_an_error_with_the_seed() -> None:
    pair = build()
    pair.b.core.next_at = 0.0
    pair.a.core.ping()
    with pytest.raises(StepLimit, match=r"(?s)200000 steps, and the clock at 0\.0+ s of 60\.0+ s.*seed 42\n.*sent +a"):
        pair.run()


def test_a_core_that_never_stops_sending_is_an_error_with_the_seed() -> None:
    class Chatterbox(Pinger):
        def poll_transmit(self) -> Transmit | None:
            return Transmit(A, B, b"!")

    network = Network.seeded(42)
    peer = Peer("a", Chatterbox(A, B), network.add_node("a", [A.host]))
    with pytest.raises(StepLimit, match=r"a gave out 10000 datagrams after one input \(seed 42\)"):
        peer.drain(network, 0.0)


def test_bystanders_are_pumped_too_and_may_die() -> None:
    network = Network.seeded(1)
    a = Peer("a", Pinger(A, Address("192.0.2.3", 3)), network.add_node("a", [A.host]))
    b = Peer("b", Pinger(B, A), network.add_node("b", [B.host]))
    server = Peer("server", Pinger(Address("192.0.2.3", 3), A), network.add_node("server", ["192.0.2.3"]))
    pair = SessionPair(network, a, b, server)
    a.core.ping()
    assert pair.run(lambda: bool(a.events))
    pair.exchange.remove(server)
    a.core.ping()
    assert pair.run(lambda: len(a.events) > 1) is False


def test_a_node_has_one_core() -> None:
    network = Network.seeded(1)
    node = network.add_node("a", [A.host])
    with pytest.raises(ValueError, match="node 'a' has a core already: 'first'"):
        Exchange(network, [Peer("first", Pinger(A, B), node), Peer("second", Pinger(A, B), node)])


def test_the_trace_is_readable() -> None:
    pair = build()
    pair.b.node.link.down.is_cut = True
    pair.a.core.ping()
    pair.run(seconds=1.0)
    lines = [line.split() for line in pair.trace().splitlines()]
    words = ["192.0.2.1:1", ">", "192.0.2.2:2", "payload,", "4", "bytes"]
    assert lines == [["seed", "42"], ["0.0000", "sent", "a", *words], ["0.2500", "cut", "b", *words]]
    assert pair.trace(last=1).splitlines()[1:] == pair.trace().splitlines()[2:]
    assert pair.network.counters[Fate.CUT] == 1

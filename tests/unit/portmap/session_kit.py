"""A :class:`GatewaySession` at a fake gateway, in virtual time: datagrams and HTTP exchanges take their time, no
sockets.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from errno import ECONNREFUSED
from functools import partial
from random import Random
from typing import TypeVar

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, PacketDropped
from portmap.events import Fetch
from portmap.session import GatewaySession
from portmap.values import PROTOCOLS, Gateway, MapRequest, ProtocolName
from tests.fakes.gateway.gateway import FakeGateway
from tests.fakes.gateway.journal import PortClosed

__all__ = ["BASE", "GATEWAY", "Bench", "request"]

GATEWAY = Gateway(host="192.168.1.1", interface="eth0", index=2, source="192.168.1.2", network="192.168.1.0/24")
BASE = TransportAddress(GATEWAY.source, 40000)
RTT_S = 0.002

E = TypeVar("E", bound=Event)


def request(port: int = 6000, **changes: object) -> MapRequest:
    """A mapping of a UDP port, the same outside."""
    values = {"transport": "udp", "internal": TransportAddress(GATEWAY.source, port), "external_port": port, **changes}
    return MapRequest(**values)  # type: ignore[arg-type]


class Bench:
    """A session, a gateway and a clock.

    Attributes:
        now: the time.
        session: under test.
        gateway: a fake.
        is_there: it answers; else everything that is sent gets lost.
        events: what the session told, with the time.
        fetched: the HTTP exchanges that it wanted.
    """

    def __init__(
        self, gateway: FakeGateway | None, *, seed: int = 1, protocols: Sequence[ProtocolName] = PROTOCOLS
    ) -> None:
        self.now = 1000.0
        self.gateway = FakeGateway() if gateway is None else gateway
        self.is_there = gateway is not None
        self.session = GatewaySession(GATEWAY, BASE, Random(seed), Random(seed), protocols)
        self.events: list[tuple[float, Event]] = []
        self.fetched: list[Fetch] = []
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._drain()

    def map(self, key: int = 1, protocols: Sequence[ProtocolName] | None = None, **changes: object) -> None:
        """Want a mapping."""
        self.session.map(key, request(**changes), self.now, protocols)  # type: ignore[arg-type]
        self._drain()

    def unmap(self, key: int = 1) -> bool:
        """Want it no more."""
        is_asked = self.session.unmap(key, self.now)
        self._drain()
        return is_asked

    def refresh(self) -> None:
        """The network changed."""
        self.session.refresh(self.now)
        self._drain()

    def ask_again(self) -> None:
        """A mapping that nobody gave is needed badly."""
        self.session.ask_again(self.now)
        self._drain()

    def ask_for_list(self) -> None:
        """Want the list of all mappings."""
        self.session.list_mappings(self.now)
        self._drain()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        for _ in range(200_000):
            timeout = self.session.poll_timeout()
            due = min((at for at in (timeout, self._due[0][0] if self._due else None) if at is not None), default=None)
            if due is None or due > end:
                self.now = end
                return
            self.now = max(self.now, due)
            if self._due and self._due[0][0] <= self.now:
                heapq.heappop(self._due)[2](self.now)
            else:
                self.session.handle_timeout(self.now)
            self._drain()
        raise AssertionError("the session does not come to rest")

    def until(self, kind: type[E], seconds: float = 30.0) -> tuple[float, E]:
        """The next event of a kind, and how long it took."""
        start, seen = self.now, len(self.events)
        for _ in range(int(seconds * 200)):
            for at, event in self.events[seen:]:
                if isinstance(event, kind):
                    return at - start, event
            seen = len(self.events)
            self.run(0.005)
        raise AssertionError(f"no {kind.__name__} within {seconds} s, but {self.kinds()}")

    def kinds(self) -> list[str]:
        """What was told."""
        return [type(event).__name__ for _, event in self.events]

    def _later(self, delay_s: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self._due, (self.now + delay_s, next(self._order), what))

    def _drain(self) -> None:
        while (transmit := self.session.poll_transmit()) is not None:
            self._transmit(transmit.data, transmit.destination)
        while (event := self.session.poll_event()) is not None:
            if isinstance(event, Fetch):
                self._fetch(event)
            elif not isinstance(event, PacketDropped):
                self.events.append((self.now, event))

    def _transmit(self, data: bytes, destination: TransportAddress) -> None:
        if not self.is_there:
            return
        try:
            replies = self.gateway.answer_udp(data, BASE, self.now, destination=destination)
        except PortClosed:
            self._later(RTT_S, lambda now: self.session.handle_error(BASE, destination, ECONNREFUSED, now))
            return
        for reply in replies:
            arrived = partial(self.session.handle_datagram, Datagram(BASE, reply.source, reply.data))
            self._later(RTT_S + reply.delay_s, arrived)

    def _fetch(self, fetch: Fetch) -> None:
        self.fetched.append(fetch)
        number = fetch.number

        def fail(now: float, reason: str = "no answer") -> None:
            self.session.handle_failure(number, reason, now)

        if not self.is_there:
            self._later(fetch.timeout_s, fail)
            return
        try:
            reply = self.gateway.answer_http(
                fetch.method,
                fetch.target,
                fetch.headers,
                fetch.body,
                self.now,
                source=TransportAddress(fetch.source, 50000),
                server=fetch.server,
            )
        except PortClosed:
            self._later(RTT_S, lambda now: fail(now, "refused"))
            return
        if not reply.delivery.is_readable or len(reply.body) > fetch.max_bytes:
            self._later(fetch.timeout_s, fail)
            return
        self._later(
            2 * RTT_S,
            lambda now: self.session.handle_response(number, reply.status, reply.headers, reply.body, now),
        )

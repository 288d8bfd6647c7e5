"""A client of PCP or NAT-PMP in virtual time, and a gateway that is a function from a request to its answers."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from errno import ECONNREFUSED
from typing import TypeVar

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, PacketDropped
from portmap.events import ProtocolClient
from portmap.values import Gateway, MapRequest, Transport

E = TypeVar("E", bound=Event)

GATEWAY = Gateway(host="192.168.1.1", interface="eth0", index=2, source="192.168.1.10", network="192.168.1.0/24")
GATEWAY_6 = Gateway(host="fe80::1", interface="eth0", index=2, source="2001:db8:1::10", network="2001:db8:1::/64")
BASE = TransportAddress("192.168.1.10", 40000)
BASE_6 = TransportAddress("2001:db8:1::10", 40000)
ANNOUNCEMENTS = TransportAddress("224.0.0.1", 5350)
SERVER = TransportAddress("192.168.1.1", 5351)
DELAY_S = 0.01
"""From us to the gateway, and the same back."""
START = 1000.0

Answer = Callable[[bytes], Sequence[bytes]]


def request(
    port: int = 5000,
    *,
    transport: Transport = "udp",
    external_port: int = 0,
    lifetime_s: int = 3600,
    host: str = BASE.host,
) -> MapRequest:
    """A mapping that is wanted."""
    internal = TransportAddress(host, port)
    return MapRequest(transport=transport, internal=internal, external_port=external_port, lifetime_s=lifetime_s)


def silent(data: bytes) -> Sequence[bytes]:
    """A gateway that says nothing."""
    return ()


class Play:
    """A client and its gateway.

    Attributes:
        now: the time; it starts at :data:`START`.
        answer: what the gateway says; may be changed at any time.
        sent: what the client sent, and when, in seconds since :data:`START`.
        events: all but drops, likewise.
        dropped: reasons of drops.
    """

    def __init__(self, client: ProtocolClient, answer: Answer = silent) -> None:
        self.client = client
        self.answer = answer
        self.now = START
        self.sent: list[tuple[float, bytes]] = []
        self.events: list[tuple[float, Event]] = []
        self.dropped: list[str] = []
        self.base = BASE
        self.server = SERVER
        self._arrivals: list[tuple[float, int, bytes]] = []
        self._count = 0

    def drain(self) -> None:
        """Take what came out."""
        at = round(self.now - START, 6)
        while (transmit := self.client.poll_transmit()) is not None:
            assert transmit.base == self.base
            assert transmit.destination == self.server
            self.sent.append((at, transmit.data))
            for data in self.answer(transmit.data):
                self._count += 1
                heapq.heappush(self._arrivals, (self.now + 2 * DELAY_S, self._count, data))
        while (event := self.client.poll_event()) is not None:
            if isinstance(event, PacketDropped):
                self.dropped.append(event.reason)
            else:
                self.events.append((at, event))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        self.drain()
        for _ in range(100_000):
            deadline = self.client.poll_timeout()
            arrival_at = self._arrivals[0][0] if self._arrivals else math.inf
            at = min(math.inf if deadline is None else deadline, arrival_at)
            if at > end:
                break
            self.now = max(self.now, at)
            if arrival_at <= self.now:
                self.receive(heapq.heappop(self._arrivals)[2])
            else:
                self.client.handle_timeout(self.now)
            self.drain()
        else:
            raise AssertionError("time stands still")
        self.now = end

    def receive(
        self, data: bytes, *, base: TransportAddress | None = None, source: TransportAddress | None = None
    ) -> None:
        """A datagram arrives now."""
        self.client.handle_datagram(Datagram(base or self.base, source or self.server, data), self.now)
        self.drain()

    def refuse(self, errno: int = ECONNREFUSED) -> None:
        """An ICMP error arrives now."""
        self.client.handle_error(self.base, self.server, errno, self.now)
        self.drain()

    def take(self) -> list[Event]:
        """The events since the last time, without drops."""
        self.drain()
        events = [event for _, event in self.events]
        self.events.clear()
        return events

    def only(self, kind: type[E]) -> E:
        """The one event since the last time."""
        (event,) = self.take()
        assert isinstance(event, kind), event
        return event

    @property
    def times(self) -> list[float]:
        """When something was sent."""
        return [at for at, _ in self.sent]

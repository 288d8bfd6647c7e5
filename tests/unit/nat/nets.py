"""A far end on the Internet, and sockets behind a NAT, in virtual time: what the tests of punching share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

from iceagent.nat.lifetime import LifetimeProbe
from iceagent.nat.lifetime_report import (
    LifetimeFailed,
    LifetimeMeasured,
    LifetimeReport,
    SilenceProbed,
    SocketsDone,
    SocketsWanted,
)
from iceagent.nat.responding import FarEnd
from iceagent.net.address import TransportAddress
from iceagent.net.core import Core, Datagram, Event, Transmit
from iceagent.testing.nat import Middlebox, NatModel
from iceagent.testing.network import Network, Node
from iceagent.testing.peers import Peer, SessionPair

FAR = TransportAddress("198.51.100.1", 3478)
INSIDE = "10.0.0.2"
OUTSIDE = "20.0.1.1"

EventT = TypeVar("EventT", bound=Event)


class OnlyAnswersRefresh(NatModel):
    """A NAT behind which a flow dies so many seconds after the last packet that came in, whatever it sends; packets of
    a flow that is dead are dropped.
    """

    def __init__(self, external: Sequence[str], rng: Random, *, answers_s: float, **options: Any) -> None:
        super().__init__(external, rng, inbound_refresh=True, **options)
        self._answers_s = answers_s
        self._heard: dict[tuple[TransportAddress, TransportAddress], float] = {}

    def outbound(self, source: TransportAddress, destination: TransportAddress, now: float) -> TransportAddress | None:
        if now - self._heard.setdefault((source, destination), now) >= self._answers_s:
            return None
        return super().outbound(source, destination, now)

    def inbound(self, source: TransportAddress, destination: TransportAddress, now: float) -> TransportAddress | None:
        inside = super().inbound(source, destination, now)
        if inside is None or now - self._heard.get((inside, source), now) >= self._answers_s:
            return None
        self._heard[inside, source] = now
        return inside


class Lifetimes:
    """A lifetime probe with a shell: opens the sockets that it wants.

    Attributes:
        most: sockets that were open at the same time.
        opened: sockets in all.
    """

    def __init__(self, core: LifetimeProbe, asker: TransportAddress, node: Node, *, limit: int = 10_000) -> None:
        self.core = core
        self.most = self.opened = 0
        self._node = node
        self._limit = limit
        self._now = 0.0
        self._open = {asker}

    def start(self, now: float) -> None:
        self._now = now
        self.core.start(now)

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        self._now = now
        if datagram.base in self._open:
            self.core.handle_datagram(datagram, now)

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        self._now = now
        self.core.handle_error(base, destination, errno, now)

    def handle_timeout(self, now: float) -> None:
        self._now = now
        self.core.handle_timeout(now)

    def poll_timeout(self) -> float | None:
        return self.core.poll_timeout()

    def poll_transmit(self) -> Transmit | None:
        return self.core.poll_transmit()

    def poll_event(self) -> Event | None:
        event = self.core.poll_event()
        if isinstance(event, SocketsWanted):
            count = min(event.count, self._limit)
            bases = [TransportAddress(INSIDE, 20_000 + self.opened + number) for number in range(count)]
            self.opened += count
            self._open.update(bases)
            self.most = max(self.most, len(self._open))
            self.core.add(bases, self._now)
        elif isinstance(event, SocketsDone):
            self._open.difference_update(event.bases)
        return event


class Measurement:
    """A host behind a middlebox measures its lifetime.

    Args:
        box: the middlebox; ``None``: there is none.
        far: what answers; ``None``: our far end.
        options: of the probe.
    """

    def __init__(
        self,
        box: Middlebox | None,
        far: Core | None = None,
        *,
        seed: int = 1,
        limit: int = 10_000,
        latency_s: float = 0.02,
        **options: Any,
    ) -> None:
        self.network = Network.seeded(seed, icmp_errors=True)
        behind = None if box is None else self.network.add_nat("nat", box)
        node = self.network.add_node("host", [INSIDE], behind, latency_s=latency_s)
        self.link = node.link
        self.far = Peer[Core]("far", far or FarEnd(), self.network.add_node("far", [FAR.host]))
        asker = TransportAddress(INSIDE, 10_000)
        probe = LifetimeProbe(FAR, asker, Random(seed), **options)
        self.shell = Lifetimes(probe, asker, node, limit=limit)
        self.host = Peer("host", self.shell, node)
        self.pair = SessionPair(self.network, self.host, self.far)

    def events(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.host.events if isinstance(event, kind)]

    @property
    def is_over(self) -> bool:
        return bool(self.events(LifetimeMeasured) or self.events(LifetimeFailed))

    def run(self, seconds: float = 3_000.0, until: Callable[[], bool] | None = None) -> None:
        """Measure; the clock stands where it ended."""
        self.shell.start(self.pair.now)
        assert self.pair.run(until or (lambda: self.is_over), seconds=seconds), self.pair.trace(last=30)

    @property
    def report(self) -> LifetimeReport:
        (event,) = self.events(LifetimeMeasured)
        return event.report

    @property
    def reason(self) -> str:
        (event,) = self.events(LifetimeFailed)
        return event.reason

    @property
    def looks(self) -> list[SilenceProbed]:
        return self.events(SilenceProbed)

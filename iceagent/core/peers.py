"""Whose data is the peer's?

Data is accepted from an address once an authenticated request or response came from it on that base (a stranger's is
held for a moment, see ``held.py``). The table per base is read by the data path for every datagram
(``gather/bases.py``), so it stays the same object for as long as the base lives.
"""

from __future__ import annotations

from iceagent.core.context import Context
from iceagent.core.held import Held
from iceagent.core.pair import CandidatePair, Traffic
from iceagent.events import DataReceived
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram

__all__ = ["MAX_PEERS_PER_BASE", "Peers"]

# Authenticated addresses per base; the peer alone can make them, by sending checks from many places.
MAX_PEERS_PER_BASE = 256


class Peers:
    """Authenticated addresses, and the data that came from them without taking the data path."""

    __slots__ = (
        "_context",
        "_held",
        "_tables",
    )

    def __init__(self, context: Context, held: Held) -> None:
        self._context = context
        self._held = held
        self._tables: dict[TransportAddress, dict[TransportAddress, Traffic]] = {}

    def table(self, base: TransportAddress) -> dict[TransportAddress, Traffic]:
        """The authenticated addresses of a base."""
        return self._tables.setdefault(base, {})

    def allow(
        self,
        base: TransportAddress,
        source: TransportAddress,
        component: int,
        now: float,
        pair: CandidatePair | None = None,
        *,
        is_answer: bool = False,
    ) -> None:
        """An authenticated message came from there: its data is the peer's, also what was held.

        A request can be replayed from anywhere, an answer to ours cannot: in a full table, an answer takes a
        request's place.
        """
        table = self.table(base)
        traffic = table.get(source)
        if traffic is None:
            if len(table) >= MAX_PEERS_PER_BASE and not (is_answer and self._make_room(table)):
                self._context.counters["five-tuples over the limit"] += 1
                return
            traffic = table[source] = pair.traffic if pair is not None else Traffic(component)
            for datagram in self._held.take_data(base, source):
                self._deliver(datagram, traffic, now)
        traffic.has_answered |= is_answer
        if pair is not None:
            pair.traffic = traffic

    @staticmethod
    def _make_room(table: dict[TransportAddress, Traffic]) -> bool:
        victim = next((source for source, traffic in table.items() if not traffic.has_answered), None)
        if victim is not None:
            del table[victim]
        return victim is not None

    def forbid(self, pair: CandidatePair) -> None:
        """Consent is gone: data from there is a stranger's again."""
        self.table(pair.base).pop(pair.destination, None)

    def remove_base(self, base: TransportAddress) -> None:
        """The socket is gone."""
        self._tables.pop(base, None)

    def handle_data(self, datagram: Datagram, now: float) -> bool:
        """Deliver or hold a datagram that is no STUN; whether it was delivered."""
        traffic = self.table(datagram.base).get(datagram.source)
        if traffic is None:
            self._held.hold_data(datagram, now)
            return False
        self._deliver(datagram, traffic, now)
        return True

    def _deliver(self, datagram: Datagram, traffic: Traffic, now: float) -> None:
        traffic.packets_received += 1
        traffic.bytes_received += len(datagram.data)
        traffic.received_at = now
        self._context.emit(
            DataReceived(component=traffic.component, base=datagram.base, source=datagram.source, data=datagram.data)
        )

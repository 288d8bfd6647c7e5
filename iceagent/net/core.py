"""What does every sans-IO core promise?

One contract (:class:`Core`): bytes, errors and time go in through ``handle_*``; datagrams, events and one deadline come
out through ``poll_*``. After one input, drain :meth:`Core.poll_transmit` and :meth:`Core.poll_event` until they return
``None``, then read :meth:`Core.poll_timeout`. One file pumps cores in production (``iceagent/net/driver.py``), one in
tests (``iceagent/testing/peers.py``).

``now`` is in seconds of a monotonic clock everywhere. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from iceagent.net.address import TransportAddress

__all__ = ["Core", "Datagram", "Event", "PacketDropped", "Transmit"]


class Datagram(NamedTuple):
    """A datagram that arrived.

    Attributes:
        base: the local socket (or relayed address) it arrived on.
        source: who sent it.
        data: the payload.
    """

    base: TransportAddress
    source: TransportAddress
    data: bytes

    def __repr__(self) -> str:
        """Without the payload, which has no business in a log."""
        return f"Datagram({self.base} from {self.source}, {len(self.data)} bytes)"


class Transmit(NamedTuple):
    """A datagram to send.

    Attributes:
        base: the local socket to send from; over a stream, the shell frames.
        destination: where to.
        data: the payload.
        ttl: IP TTL or hop limit, where it is not the socket's default.
    """

    base: TransportAddress
    destination: TransportAddress
    data: bytes
    ttl: int | None = None

    def __repr__(self) -> str:
        """Without the payload, which has no business in a log."""
        return f"Transmit({self.base} to {self.destination}, {len(self.data)} bytes, ttl={self.ttl})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened in a core. Every event derives from this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketDropped(Event):
    """A datagram was not used.

    Attributes:
        base: the socket it arrived on.
        source: who sent it.
        reason: one short stable phrase; the number of different phrases is fixed.
        size: bytes.
    """

    base: TransportAddress
    source: TransportAddress
    reason: str
    size: int


class Core(Protocol):
    """A sans-IO state machine."""

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """Take one datagram. Never raises because of its content."""

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """The network said no: an ICMP error, a failed send, a closed stream."""

    def handle_timeout(self, now: float) -> None:
        """Time passed. Idempotent; an early call is harmless."""

    def poll_timeout(self) -> float | None:
        """The next deadline, or ``None``. A pure read."""

    def poll_transmit(self) -> Transmit | None:
        """One datagram to send, or ``None``."""

    def poll_event(self) -> Event | None:
        """One thing that happened, or ``None``."""

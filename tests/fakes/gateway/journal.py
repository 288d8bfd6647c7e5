"""What has been asked of the gateway, and what of it may nobody ask? All of it bounded. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from iceagent.net.address import TransportAddress
from portmap.values import ProtocolName

__all__ = ["MAX_REQUESTS", "MAX_VIOLATIONS", "Journal", "Outgoing", "PortClosed", "Reply", "Request"]

MAX_REQUESTS = 1024
"""Requests that are remembered; the oldest go first."""

MAX_VIOLATIONS = 64
"""Sentences about requests that break a rule; the first ones stay."""


class PortClosed(ConnectionRefusedError):
    """Nothing listens there: the sender hears it by ICMP (UDP), or by a reset (TCP)."""


class Reply(NamedTuple):
    """A datagram that answers another one.

    Attributes:
        delay_s: seconds until it leaves.
        source: where it leaves from.
        data: the payload.
    """

    delay_s: float
    source: TransportAddress
    data: bytes


class Outgoing(NamedTuple):
    """A datagram that nobody asked for; ``_replace(source=…)`` makes a forged one of it.

    Attributes:
        delay_s: seconds until it leaves.
        source: where it leaves from.
        destination: a multicast group mostly.
        data: the payload.
    """

    delay_s: float
    source: TransportAddress
    destination: TransportAddress
    data: bytes


class Request(NamedTuple):
    """Something that was asked.

    Attributes:
        at: the time.
        protocol: by which.
        kind: ``ANNOUNCE`` and ``MAP`` of PCP; ``external address``, ``map udp``, ``map tcp`` of NAT-PMP; ``M-SEARCH``,
            ``GET`` or the name of an action of UPnP.
        source: who asked; ``None``: an HTTP exchange that nobody says it of.
        fields: what the request says, by the names of the protocol's specification.
    """

    at: float
    protocol: ProtocolName
    kind: str
    source: TransportAddress | None
    fields: Mapping[str, Any]


@dataclass(slots=True)
class Journal:
    """What happened.

    Attributes:
        requests: the last ones, oldest first; those with a violation too, as far as they could be read.
        violations: what a client must not send, a sentence each; a test wants it to be empty.
        counters: answers by what became of them: ``answered``, ``lost``, ``silent``; and ``refused``.
    """

    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=MAX_REQUESTS))
    violations: list[str] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)

    def note(
        self, at: float, protocol: ProtocolName, kind: str, source: TransportAddress | None, **fields: Any
    ) -> None:
        """Remember a request."""
        self.requests.append(Request(at, protocol, kind, source, fields))

    def blame(self, protocol: ProtocolName, what: str) -> None:
        """Remember a violation."""
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(f"{protocol}: {what}")

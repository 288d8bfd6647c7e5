"""What do the clients of PCP and of NAT-PMP have in common?

One server at port 5351 of the gateway, which announces itself to port 5350 of everybody; whose datagrams are its own;
how often a request is repeated while it is not known whether anybody listens; what may be asked for. Pure.

DEVIATION: RFC 6887, Appendix A, and RFC 6886, 1.1, would have PCP asked first, and NAT-PMP only when the answer is
UNSUPP_VERSION. Old gateways that do not answer PCP at all would cost its whole silence, so both are asked at once:
``test_pcp_maps_where_all_three_are_spoken_and_it_takes_two_round_trips``.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from errno import ECONNREFUSED

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, PacketDropped, Transmit
from portmap.values import Gateway, MapRequest

__all__ = [
    "ANNOUNCEMENT_PORT",
    "DELETION_WAITS",
    "IS_CLOSED",
    "MAX_KEYS",
    "MAX_LIFETIME_S",
    "MIN_SPACING_S",
    "PROBE_S",
    "PROBE_WAITS",
    "RECREATION_DELAY_S",
    "RECREATION_SPACING_S",
    "SERVER_PORT",
    "SHORT_ERROR_S",
    "WAS_SILENT",
    "Attempts",
    "BadMessage",
    "Origin",
    "ServerLink",
    "is_for_pcp",
]

SERVER_PORT = 5351
ANNOUNCEMENT_PORT = 5350
"""RFC 6886, 3.1 and 3.2.1; RFC 6887, 19.1: the same ports."""

PROBE_WAITS = (0.25, 0.5)
"""Seconds to wait after the first request and after the second: those of RFC 6886, 3.1. RFC 6887, 8.1.1, waits for 3 s,
which is too long while nobody knows whether PCP is spoken; that schedule follows after.

DEVIATION: RFC 6886, 3.1, would have nobody say that NAT-PMP is not spoken before "its ninth attempt", in two minutes:
``test_a_silent_gateway_is_asked_twice_within_three_quarters_of_a_second``."""
PROBE_S = sum(PROBE_WAITS)
WAS_SILENT = f"no answer within {PROBE_S:g} s"
IS_CLOSED = f"its port {SERVER_PORT} is closed"

DELETION_WAITS = (0.25, 0.25)
"""RFC 6886, 3.1: "it may be acceptable for a client to retry only once or twice before giving up on deleting"."""

MAX_LIFETIME_S = 86400
"""RFC 6887, 15: an "absurdly long assigned lifetime" is treated like "24 hours"; and 8.3: so is one of an error."""

SHORT_ERROR_S = 30.0
"""RFC 6887, 7.4: "short lifetime errors use a 30-second lifetime". Nothing that was refused is asked for sooner."""

MIN_SPACING_S = 4.0
"""RFC 6887, 11.2.1: "renewal requests MUST NOT be sent less than four seconds apart"."""

RECREATION_DELAY_S = 5.0
"""RFC 6887, 14.1.3, and RFC 6886, 3.7: a random time up to this one before mappings are made again."""
RECREATION_SPACING_S = 15.0
"""DEVIATION from "immediately" (RFC 6886, 3.6) and "promptly" (RFC 6887, 8.5): no more often than this. A gateway whose
epoch makes no sense must not keep us busy: ``test_a_gateway_whose_epoch_makes_no_sense_does_not_keep_us_busy``."""

MAX_KEYS = 1024
"""Mappings of one client, those that are being deleted included."""

_UNSUPPORTED_VERSION = 1
_PCP_VERSION = 2
_LAST_OF_CLIENT_ADDRESS = slice(12, 24)


def is_for_pcp(data: bytes) -> bool:
    """Whether a datagram of the gateway's is about a request of PCP, and not of NAT-PMP: both come from port 5351.

    A server that does not know the version of a request answers in its own (RFC 6886, 3.5; RFC 6887, 9 and Appendix A).
    So "version 0, unsupported version" is about a request of PCP, and the same in version 2 mostly about one of
    NAT-PMP: the server speaks PCP only. But a server may refuse its own version 2. Then it "copies the last 96 bits of
    the PCP Client's IP Address field from the request" (RFC 6887, 7.2), which are not all zero; a request of NAT-PMP,
    of 12 bytes at most, has nothing there.
    """
    is_unsupported = len(data) >= 4 and data[2:4] == b"\0\x01"
    if data[:1] == b"\0":
        return is_unsupported
    if data[:1] == bytes([_PCP_VERSION]) and len(data) >= 4 and data[3] == _UNSUPPORTED_VERSION:
        return any(data[_LAST_OF_CLIENT_ADDRESS])
    return True


class BadMessage(ValueError):
    """Bytes that are no answer. Its text is one of a fixed number of short phrases."""


class Origin(Enum):
    """Where a datagram of the server's arrived."""

    UNICAST = "unicast"
    """At the socket that asks."""
    MULTICAST = "multicast"
    """At port 5350, where announcements are heard."""


@dataclass(slots=True, kw_only=True)
class Attempts:
    """A request that is repeated after fixed waits.

    Attributes:
        waits: seconds to wait after each time it was sent.
        started_at: when it was sent first.
        next_at: when it is to be sent again, or has failed.
        sent: how often.
    """

    waits: Sequence[float]
    started_at: float
    next_at: float
    sent: int = 1

    @classmethod
    def start(cls, waits: Sequence[float], now: float) -> Attempts:
        """It is sent now."""
        return cls(waits=waits, started_at=now, next_at=now + waits[0])

    def advance(self, now: float) -> bool:
        """Its wait is over. True: it is to be sent again now; False: it has failed."""
        if self.sent >= len(self.waits):
            return False
        self.next_at = now + self.waits[self.sent]
        self.sent += 1
        return True

    def rtt_s(self, now: float) -> float:
        """Seconds since it was sent first."""
        return now - self.started_at


class ServerLink:
    """A socket of ours, the server it speaks to, and what goes in and out.

    Args:
        gateway: see there.
        base: the socket.

    Attributes:
        server: where requests go.
        base: as given.
        counters: what was dropped, as ``dropped: <reason>``.
    """

    def __init__(self, gateway: Gateway, base: TransportAddress) -> None:
        self.server = TransportAddress(gateway.host, SERVER_PORT)
        self.base = base
        self.counters: Counter[str] = Counter()
        self._source = gateway.source
        self._transmits: deque[Transmit] = deque()
        self._events: deque[Event] = deque()

    def check(self, key: int, request: MapRequest, keys: Collection[int]) -> None:
        """Whether this can be asked for.

        Args:
            key: of the new mapping.
            request: see there.
            keys: of all others.

        Raises:
            ValueError: the key is in use, there are :data:`MAX_KEYS`, or the request is for another host or is none.
        """
        if key in keys:
            raise ValueError(f"key {key} is in use")
        if len(keys) >= MAX_KEYS:
            raise ValueError(f"there are {MAX_KEYS} mappings at {self.server.host} already")
        if request.internal.host != self._source:
            raise ValueError(f"{request.internal}: a mapping here can only be for {self._source}")
        if not 1 <= request.internal.port <= 65535 or not 0 <= request.external_port <= 65535:
            raise ValueError(f"{request.internal}, external port {request.external_port}: ports are 1 to 65535")
        if not 1 <= request.lifetime_s <= MAX_LIFETIME_S:
            raise ValueError(f"a lifetime of {request.lifetime_s} s: it is 1 to {MAX_LIFETIME_S} s")

    def origin_of(self, datagram: Datagram) -> Origin | None:
        """Whether it is the server's; ``None``: it is not, and was counted.

        RFC 6887, 8.3: "verifies that the source IP address and port belong to the PCP server"; RFC 6886, 3.2 and 3.2.1
        ask for the address only, but no server is known that answers from another port.
        """
        if datagram.base == self.base:
            origin = Origin.UNICAST
        elif datagram.base.port == ANNOUNCEMENT_PORT:
            origin = Origin.MULTICAST
        else:
            self.drop(datagram, "another socket")
            return None
        if datagram.source != self.server:
            self.drop(datagram, "not from the gateway")
            return None
        return origin

    def is_refusal(self, base: TransportAddress, destination: TransportAddress, errno: int) -> bool:
        """Whether an error says that nobody listens: an ICMP Port Unreachable. Whatever else it says may pass."""
        return errno == ECONNREFUSED and base == self.base and destination == self.server

    def send(self, data: bytes) -> None:
        """Send a request."""
        self._transmits.append(Transmit(self.base, self.server, data))

    def tell(self, event: Event) -> None:
        """Something happened."""
        self._events.append(event)

    def drop(self, datagram: Datagram, reason: str) -> None:
        """A datagram is of no use."""
        self.counters[f"dropped: {reason}"] += 1
        self.tell(
            PacketDropped(base=datagram.base, source=datagram.source, reason=reason, size=len(datagram.data)),
        )

    def poll_transmit(self) -> Transmit | None:
        """One datagram to send, or ``None``."""
        return self._transmits.popleft() if self._transmits else None

    def poll_event(self) -> Event | None:
        """One thing that happened, or ``None``."""
        return self._events.popleft() if self._events else None

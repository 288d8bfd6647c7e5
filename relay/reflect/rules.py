"""Which datagrams does a reflector answer, and how many?

Whoever forges a source has the answer sent to somebody else. An answer is as long as what it answers, so that wins a
false sender and no more; what could be won is two services that answer each other for ever, or a whole network that is
sent one datagram. So never answered are:

- the reflector's own port as the source port: what comes from there is another reflector's answer, or our own;
- source ports below 1024, where the services are that answer whatever comes: echo, chargen, DNS, NTP;
- sources that are no other host's: multicast, broadcast, unspecified and reserved addresses, loopback, and this host's
  own addresses.

What is left is limited: so many a second for each source (an IPv4 address, an IPv6 /56), and for all together.

A loopback address that speaks to a loopback address is answered, within the rules for ports and the limits: such
datagrams do not come from outside (the kernel drops them as "martian"), and it is how a reflector is tried out on one
machine. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_network
from typing import Any

from iceagent.net.address import ip_address, is_reserved
from iceagent.net.host import Interface
from relay.error_limits import ErrorLimiter

__all__ = ["FIRST_SAFE_PORT", "MAX_LIMIT", "MAX_SOURCES", "ReflectLimits", "Reflection", "own_and_broadcast"]

FIRST_SAFE_PORT = 1024
"""The first port that is no system's service."""

MAX_LIMIT = 1_000_000_000
"""Datagrams a second, and at once, that a limit may allow: one in a nanosecond, the kernel's unit."""

MAX_SOURCES = 1 << 20
"""Sources that may be remembered: some 200 MB of them."""

BURST_S = 5
"""A burst has as many as are allowed in this time, unless it is said."""

IPV4_SOURCE_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflectLimits:
    """How many datagrams are answered.

    Attributes:
        per_source: datagrams a second to one source: an IPv4 address, or an IPv6 network of 56 bits, which is what one
            household often gets. A hundred are a heartbeat every 15 seconds of 1,500 hosts behind one address.
        burst: of the same, at once after a pause; 0: as many as in five seconds.
        total: datagrams a second, and at once, to all sources together.
        sources: how many are remembered at the same time; while they are, others are not answered. One is forgotten
            when it was silent for as long as its burst takes to be whole again.

    Raises:
        ValueError: a number is out of its range, 1 … 1,000,000,000 (``sources``: 1,048,576), or of another type.
    """

    per_source: int = 100
    burst: int = 0
    total: int = 10_000
    sources: int = 65_536

    def __post_init__(self) -> None:
        _check("per_source", self.per_source, 1, MAX_LIMIT)
        _check("burst", self.burst, 0, MAX_LIMIT)
        _check("total", self.total, 1, MAX_LIMIT)
        _check("sources", self.sources, 1, MAX_SOURCES)
        if not self.burst:
            object.__setattr__(self, "burst", min(MAX_LIMIT, self.per_source * BURST_S))


class Reflection:
    """Says of every datagram whether it is answered, and counts.

    Args:
        port: the reflector's, 1 … 65535 once datagrams come.
        limits: see there.

    Attributes:
        port: the reflector's.
        counters: ``answered`` (datagrams), ``answered_bytes`` (of payload), ``refused`` (unsafe sources), the same by
            reason (``refused: low port``), and ``limited``.
    """

    def __init__(self, port: int, limits: ReflectLimits) -> None:
        self.port = port
        self._limiter = ErrorLimiter(
            limits.per_source,
            limits.sources,
            burst=limits.burst,
            in_all=limits.total,
            ipv4_bits=IPV4_SOURCE_BITS,
        )
        self._own: frozenset[str] = frozenset()
        self._broadcast: frozenset[str] = frozenset()
        self.counters: Counter[str] = Counter()

    def follow(self, interfaces: Iterable[Interface]) -> None:
        """These addresses are this host's own from now on, and the broadcast addresses of their networks are known."""
        self._own, self._broadcast = own_and_broadcast(interfaces)

    def admits(self, count: int, source: tuple[str, int], local_host: str, now: float) -> int:
        """How many of ``count`` datagrams, which came from ``source`` to ``local_host``, are to be answered; those that
        are not have been counted. Tell :meth:`note_answered` of those that left.
        """
        reason = self.refusal(source, local_host)
        if reason is not None:
            self.note_refused(count, reason)
            return 0
        admitted = self._limiter.admits_of(count, source[0], now)
        if admitted < count:
            self.counters["limited"] += count - admitted
        return admitted

    def note_answered(self, count: int, octets: int) -> None:
        """So many datagrams have left, with so many bytes of payload."""
        self.counters["answered"] += count
        self.counters["answered_bytes"] += octets

    def note_refused(self, count: int, reason: str) -> None:
        """So many datagrams get no answer."""
        self.counters["refused"] += count
        self.counters[f"refused: {reason}"] += count

    def refusal(self, source: tuple[str, int], local_host: str) -> str | None:
        """Why what comes from ``source`` to ``local_host`` is never answered; ``None``: it may be."""
        host, port = source
        if port == self.port:
            return "own port"
        if port < FIRST_SAFE_PORT:
            return "low port"
        kind = _kind(host)
        if kind is not None:
            return None if kind == _LOOPBACK and _kind(local_host) == _LOOPBACK else kind
        if host == local_host or host in self._own:
            return "own address"
        return "broadcast" if host in self._broadcast else None


def own_and_broadcast(interfaces: Iterable[Interface]) -> tuple[frozenset[str], frozenset[str]]:
    """The addresses of this host, and the broadcast addresses of its networks."""
    own, broadcast = set(), set()
    for interface in interfaces:
        for address in interface.addresses:
            own.add(address.host)
            # RFC 3021: a network of 31 bits has no broadcast address.
            if ip_address(address.host).version == 4 and address.prefix_length < 31:
                network = ip_network((address.host, address.prefix_length), strict=False)
                # Some hosts take the network's own number for one, too.
                broadcast |= {str(network.broadcast_address), str(network.network_address)}
    return frozenset(own), frozenset(broadcast)


_LOOPBACK = "loopback"


@lru_cache(maxsize=4_096)
def _kind(host: str) -> str | None:
    """What an address is that is no other host's, whatever the networks are."""
    ip = ip_address(host)
    if ip.is_loopback:
        return _LOOPBACK
    if ip.is_multicast:
        return "multicast"
    if ip.is_unspecified:
        return "unspecified"
    if host == "255.255.255.255":
        return "broadcast"
    return "reserved" if is_reserved(ip) else None


def _check(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is of type {type(value).__name__}, a whole number is expected ({low} to {high})")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, allowed is {low} to {high}")

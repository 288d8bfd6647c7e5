"""How many error responses may leave, and to whom?

Whoever is refused may have forged the source: what is answered then goes to somebody else. A Binding error is hardly
longer than its request; a TURN server's question for credentials is (112 bytes for a request of 28), and its answers to
wrong passwords are what a guesser waits for. So there are two budgets for each source network, by
:class:`ErrorLimiter`: a small one for errors (:data:`ERRORS_PER_SECOND`), and a large one for the questions with which
every client begins (:func:`challenge_limiter`), since many clients have one address, an office's or a carrier's. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache

from iceagent.net.address import ip_address

__all__ = [
    "CHALLENGES_IN_ALL",
    "CHALLENGES_PER_SECOND",
    "CHALLENGE_BURST",
    "ERRORS_PER_SECOND",
    "SOURCE_LIMIT",
    "ErrorLimiter",
    "challenge_limiter",
]

ERRORS_PER_SECOND = 10
"""Error responses to one source network, and the burst of them. As many as coturn allows itself.
DEVIATION: RFC 8489, 6.3.1 has no limit; pinned by test_a_flood_gets_ten_errors_a_second."""

SOURCE_LIMIT = 4_096
"""Source networks whose error responses are counted; one is forgotten when it has been idle for as long as its bucket
takes to fill."""

CHALLENGES_PER_SECOND, CHALLENGE_BURST = 100, 500
"""Questions for credentials to one source network, and the burst of them. The burst is what a site sends when its
clients all begin at once; one that is not answered asks seven times in half a minute (RFC 8489, 6.2.1), which is time
for three thousand. Whoever forges a network's addresses has 11 kB sent there in a second, for 3 kB of his own."""

CHALLENGES_IN_ALL = 5_000
"""The same, to all networks together, and the burst of it: half a megabyte a second, to whomever. It is more than a
server of one process makes allocations for."""

IPV4_SOURCE_BITS = 24
IPV6_SOURCE_BITS = 56
"""Prefix lengths of a source network: the least that is routed on its own, and what one household often gets."""


class ErrorLimiter:
    """How many responses a source network may be sent: a bucket each.

    A bucket that was not used for as long as it takes to fill is full, and not remembered. While ``limit`` others are
    in use, a new network is refused: forgetting one of them would fill it at once, which is what an attacker would
    want.

    Args:
        per_second: of one network, at least 1.
        limit: networks remembered.
        burst: of one network; ``None``: one second's worth.
        in_all: of all networks together, in a second and at once; ``None``: no limit but that of networks.
        ipv4_bits: prefix length of a source network, 1 … 32.
    """

    def __init__(
        self,
        per_second: int = ERRORS_PER_SECOND,
        limit: int = SOURCE_LIMIT,
        *,
        burst: int | None = None,
        in_all: int | None = None,
        ipv4_bits: int = IPV4_SOURCE_BITS,
    ) -> None:
        self._per_second = per_second
        self._limit = limit
        self._burst = float(per_second if burst is None else burst)
        self._full_after_s = self._burst / per_second
        self._in_all = in_all
        self._ipv4_bits = ipv4_bits
        self._left, self._left_at = float(in_all or 0), 0.0
        self._buckets: OrderedDict[tuple[int, int], tuple[float, float]] = OrderedDict()

    def admits(self, host: str, now: float) -> bool:
        """Whether one more may be sent to the network of ``host``; if so, it counts."""
        return self.admits_of(1, host, now) == 1

    def admits_of(self, count: int, host: str, now: float) -> int:
        """How many of ``count`` more may be sent to the network of ``host``; so many count."""
        while self._buckets and next(iter(self._buckets.values()))[1] + self._full_after_s <= now:
            self._buckets.popitem(last=False)
        network = _network(host, self._ipv4_bits)
        bucket = self._buckets.get(network)
        if bucket is None and len(self._buckets) >= self._limit:
            return 0
        tokens, at = (self._burst, now) if bucket is None else bucket
        tokens = min(self._burst, tokens + (now - at) * self._per_second)
        admitted = self._take_in_all(min(count, int(tokens)), now)
        if admitted or bucket is not None:
            self._buckets[network] = (tokens - admitted, now)
            self._buckets.move_to_end(network)
        return admitted

    def __len__(self) -> int:
        return len(self._buckets)

    def _take_in_all(self, count: int, now: float) -> int:
        """How many of ``count`` all networks together may be sent; so many count."""
        if self._in_all is None or not count:
            return count
        self._left = min(float(self._in_all), self._left + (now - self._left_at) * self._in_all)
        self._left_at = now
        taken = min(count, int(self._left))
        self._left -= taken
        return taken


def challenge_limiter() -> ErrorLimiter:
    """Of questions for credentials. What is admitted in all bounds the networks that are remembered."""
    remembered_s = CHALLENGE_BURST // CHALLENGES_PER_SECOND + 1
    limit = CHALLENGES_IN_ALL * (remembered_s + 1)
    return ErrorLimiter(CHALLENGES_PER_SECOND, limit, burst=CHALLENGE_BURST, in_all=CHALLENGES_IN_ALL)


@lru_cache(maxsize=4_096)
def _network(host: str, ipv4_bits: int) -> tuple[int, int]:
    ip = ip_address(host)
    bits = IPV6_SOURCE_BITS if ip.version == 6 else ipv4_bits
    return ip.version, int(ip) >> (ip.max_prefixlen - bits)

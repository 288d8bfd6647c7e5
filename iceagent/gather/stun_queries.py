"""What do STUN servers say our addresses are?

A sans-IO core (``iceagent/net/core.py``): Binding requests from every base to every server of its family, side by
side. RFC 8445, 14.2 paces them by Ta like checks, with the same burst and under the same ceiling. The RTO is 500 ms
or more, and grows with what still waits to be sent (14.3 counts all candidates, but permits "other mechanisms"). A
success is repeated every 15 s until :meth:`StunQueries.stop_refreshing` (5.1.1.4: candidates are kept
alive until ICE concludes; the answer keeps bindings that a one-way heartbeat does not, and shows a new mapping).
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from random import Random

from iceagent.core.pacing import TokenBucket
from iceagent.net.address import TransportAddress, is_reserved
from iceagent.net.core import Datagram, Event, PacketDropped, Transmit
from relay.stun import (
    MAPPED_ADDRESS,
    XOR_MAPPED_ADDRESS,
    BadMessage,
    Message,
    MessageClass,
    Method,
    TransactionTable,
    build,
    parse,
)

__all__ = ["MappedAddress", "QueryFailed", "StunQueries"]

# RFC 8445, 11: no less than 15 s between keepalives of one kind.
_REFRESH_S = 15.0
# Sends at 0, 0.5, 1.5 and 3.5 s: what fits into a gathering's 5 s.
_SENDS = 4
_LAST_WAIT_RTOS = 3
# RFC 8489, 18.3.1, "was … prior to [RFC5389]": RESPONSE-ADDRESS, SOURCE-ADDRESS, CHANGED-ADDRESS, PASSWORD and
# REFLECTED-FROM, which later RFCs do
# not know. Beside a plain MAPPED-ADDRESS they say nothing that we would have to understand.
_CLASSIC_ATTRIBUTES = frozenset({0x0002, 0x0004, 0x0005, 0x0007, 0x000B})
# Bases × servers; a hundred interfaces and a handful of servers stay below.
MAX_QUERIES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedAddress(Event):
    """A server answered.

    Attributes:
        rtt_s: ``None`` when the request had to be repeated (Karn's rule).
        is_refresh: a repetition; the address may have changed since.
    """

    base: TransportAddress
    server: TransportAddress
    mapped: TransportAddress
    rtt_s: float | None
    is_refresh: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryFailed(Event):
    """A server did not answer, or not usefully."""

    base: TransportAddress
    server: TransportAddress
    reason: str


@dataclass(slots=True, eq=False)
class _Query:
    base: TransportAddress
    server: TransportAddress
    refresh_at: float | None = None
    has_answered: bool = False


class StunQueries:
    """Asks servers for our mapped addresses.

    Args:
        ta_s: seconds between two new queries, once the burst is used up.
        ceiling: what all transactions of the process share (RFC 8445, 14.2); ``None``: there are no others.

    Attributes:
        counters: datagrams that were of no use, by reason.
    """

    def __init__(
        self, system_rng: Random, *, ta_s: float, burst: int, rto_s: float, ceiling: TokenBucket | None = None
    ) -> None:
        self._system_rng = system_rng
        self._rto_s = rto_s
        self._ta_s = ta_s
        own = TokenBucket(rate=1 / ta_s, capacity=burst)
        self._buckets = (own,) if ceiling is None else (own, ceiling)
        self._table = TransactionTable(limit=MAX_QUERIES)
        self._queries: dict[tuple[TransportAddress, TransportAddress], _Query] = {}
        self._waiting: deque[_Query] = deque()
        self._events: deque[Event] = deque()
        self._refreshing = True
        self._wait_until: float | None = None
        self.counters: Counter[str] = Counter()

    # --- commands ------------------------------------------------------------------------------------------------

    def ask(self, base: TransportAddress, server: TransportAddress, now: float) -> None:
        """Ask ``server`` from ``base``, once."""
        if (base, server) in self._queries:
            return
        if len(self._queries) >= MAX_QUERIES:
            reason = f"{MAX_QUERIES} queries are open already"
            self._events.append(QueryFailed(base=base, server=server, reason=reason))
            return
        query = self._queries[base, server] = _Query(base, server)
        self._waiting.append(query)
        self._send_waiting(now)

    def forget_base(self, base: TransportAddress, now: float) -> None:
        """The socket is gone."""
        for key in [key for key in self._queries if key[0] == base]:
            del self._queries[key]
            for transaction in self._table.pending(*key):
                self._table.remove(transaction)
        self._waiting = deque(query for query in self._waiting if query.base != base)

    def stop_refreshing(self, now: float) -> None:
        """ICE concluded: consent keeps the paths that are used (5.1.1.4)."""
        self._refreshing = False
        self._waiting = deque(query for query in self._waiting if not query.has_answered)

    def resume_refreshing(self, now: float) -> None:
        """ICE begins anew (RFC 8445, 9): who answered is asked again at once, and then every 15 s."""
        self._refreshing = True
        waiting = set(self._waiting)
        for query in self._queries.values():
            is_open = query in waiting or self._table.pending(query.base, query.server)
            if not is_open:
                query.refresh_at = None
                self._waiting.append(query)
        self._send_waiting(now)

    @property
    def pending(self) -> int:
        """Queries that have neither an answer nor a failure yet."""
        return sum(not query.has_answered for query in self._queries.values())

    def is_server(self, base: TransportAddress, address: tuple[str, int]) -> bool:
        """Whether a datagram on ``base`` from ``address`` is for this core."""
        return (base, address) in self._queries

    # --- the contract --------------------------------------------------------------------------------------------

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """A server's response."""
        try:
            message = parse(datagram.data)
        except BadMessage:
            self._drop(datagram, "malformed STUN")
            return
        is_response = message.is_success or message.is_error
        transaction = is_response and self._table.match(message.transaction_id, datagram.base, datagram.source)
        if not transaction:
            self._drop(datagram, "response to no request of ours")
            return
        query: _Query = transaction.context
        if self._queries.get((query.base, query.server)) is not query:
            return
        mapped = _mapped(message, query.base)
        if mapped is None:
            self._fail(query, _complaint(message), now)
            return
        is_refresh, query.has_answered = query.has_answered, True
        query.refresh_at = now + _REFRESH_S
        self._events.append(
            MappedAddress(
                base=query.base, server=query.server, mapped=mapped, rtt_s=transaction.rtt(now), is_refresh=is_refresh
            )
        )

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """Nobody listens there, or there is no way: fail at once, another server may do better."""
        query = self._queries.get((base, destination))
        for transaction in self._table.pending(base, destination):
            self._table.remove(transaction)
            if query is not None:
                self._fail(query, f"network error, errno {errno}", now)

    def handle_timeout(self, now: float) -> None:
        """Repeat, give up, refresh."""
        for transaction in self._table.handle_timeout(now):
            query: _Query = transaction.context
            if self._queries.get((query.base, query.server)) is query:
                self._fail(query, "no response", now)
        for query in self._queries.values():
            if query.refresh_at is not None and now >= query.refresh_at:
                query.refresh_at = None
                if self._refreshing:
                    self._waiting.append(query)
        self._send_waiting(now)

    def poll_timeout(self) -> float | None:
        """The next repetition, query or refresh."""
        refreshes = (q.refresh_at for q in self._queries.values() if q.refresh_at is not None and self._refreshing)
        due = (self._table.poll_timeout(), self._wait_until, min(refreshes, default=None))
        return min((at for at in due if at is not None), default=None)

    def poll_transmit(self) -> Transmit | None:
        """One request."""
        return self._table.poll_transmit()

    def poll_event(self) -> Event | None:
        """One answer or failure."""
        return self._events.popleft() if self._events else None

    # --- inside --------------------------------------------------------------------------------------------------

    def _send_waiting(self, now: float) -> None:
        self._wait_until = None
        # 14.3: "MAX (500ms, Ta * (Num-Of-Cands))"; those that were sent already need no room before a repetition.
        rto = max(self._rto_s, self._ta_s * len(self._waiting))
        while self._waiting:
            if any(bucket.tokens(now) < 1 for bucket in self._buckets):
                self._wait_until = max(bucket.ready_at(1, now) for bucket in self._buckets)
                return
            for bucket in self._buckets:
                bucket.take(now)
            query = self._waiting.popleft()
            identity = self._system_rng.getrandbits(96).to_bytes(12, "big")
            request = build(Method.BINDING, MessageClass.REQUEST, identity).encode(fingerprint=False)
            self._table.start(
                identity, query.base, query.server, request, now, rto=rto, rc=_SENDS, rm=_LAST_WAIT_RTOS, context=query
            )

    def _fail(self, query: _Query, reason: str, now: float) -> None:
        if query.has_answered:
            # A refresh that was lost; the next one may not be.
            query.refresh_at = now + _REFRESH_S
            return
        del self._queries[query.base, query.server]
        self._events.append(QueryFailed(base=query.base, server=query.server, reason=reason))

    def _drop(self, datagram: Datagram, reason: str) -> None:
        self.counters[f"dropped: {reason}"] += 1
        self._events.append(
            PacketDropped(base=datagram.base, source=datagram.source, reason=reason, size=len(datagram.data))
        )


def _mapped(message: Message, base: TransportAddress) -> TransportAddress | None:
    """XOR-MAPPED-ADDRESS, or what servers of RFC 3489 send instead."""
    if not message.is_success:
        return None
    mapped, unknown = message.get(XOR_MAPPED_ADDRESS), set(message.unknown_required)
    if mapped is None:
        mapped, unknown = message.get(MAPPED_ADDRESS), unknown - _CLASSIC_ATTRIBUTES
    if unknown:
        return None
    return mapped if mapped is not None and _is_usable(mapped, base) else None


def _is_usable(mapped: TransportAddress, base: TransportAddress) -> bool:
    """Whether a peer could reach us there: what a server says is no more than a claim."""
    ip = mapped.ip
    if mapped.port == 0 or mapped.version != base.version or ip.is_loopback != base.ip.is_loopback:
        return False
    return not (ip.is_unspecified or ip.is_multicast or is_reserved(ip))


def _complaint(message: Message) -> str:
    error = message.error
    return f"the server answered {error.code} {error.reason}" if error else "the answer has no usable mapped address"

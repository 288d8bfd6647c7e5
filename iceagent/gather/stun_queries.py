"""What do STUN servers say our addresses are?

A sans-IO core (``iceagent/net/core.py``): Binding requests from every base to every server of its family, side by
side. RFC 8445, 14.2 paces them by Ta like checks, with the same burst and under the same ceiling. The RTO is 500 ms
or more, and grows with what still waits to be sent (14.3 counts all candidates, but permits "other mechanisms"). As
with checks, a lost first packet must not cost that much: a query that has no answer gets early *new* transactions,
where there are tokens that nobody else waits for.

After 5 s without an answer a query counts as failed, and nobody waits for it any more; but it goes on for 39.5 s (RFC
8489, 6.2.1), and an answer that late still gives a candidate. A success is repeated every 15 s until
:meth:`StunQueries.stop_refreshing` (5.1.1.4: candidates are kept alive until ICE concludes; the answer keeps bindings
that a one-way heartbeat does not, and shows a new mapping).

While a path is in doubt, one more request tells what broke (:meth:`StunQueries.question`): the server that answered
last is asked, and 0.3 s later another one, or it again. It sees us where it saw us before: then it is the peer, or the
way there. It sees us elsewhere: our NAT has forgotten us, and everybody is asked anew. Nobody says anything for a
second: our own network is dead.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from errno import EHOSTUNREACH
from random import Random

from iceagent.core.pacing import TokenBucket
from iceagent.events import Cause
from iceagent.gather.diagnosis import Diagnosed
from iceagent.net.address import TransportAddress, is_reserved
from iceagent.net.core import Datagram, Event, PacketDropped, Transmit
from iceagent.net.errno_words import errno_in_words
from relay.stun import (
    DEFAULT_RC,
    DEFAULT_RM,
    MAPPED_ADDRESS,
    XOR_MAPPED_ADDRESS,
    BadMessage,
    Message,
    MessageClass,
    Method,
    Transaction,
    TransactionTable,
    build,
    parse,
)

__all__ = ["MappedAddress", "QueryFailed", "StunQueries"]

_REFRESH_RC, _REFRESH_RM = 4, 3
# As long as a gathering lasts at worst.
_PATIENCE_S = 5.0
# An early one is sent once, and answered or lost by then.
_EARLY_LIFETIME_S = 5.0
# RFC 8445, 11: no less than 15 s between keepalives of one kind.
_REFRESH_S = 15.0
# While a path is in doubt: a request that is lost too must not cost half a second, nor may the answer come when data
# has gone elsewhere long ago.
_SECOND_S = 0.3
_SILENCE_S = 1.0
# RFC 4787, 4.3 asks for two minutes at least; Linux keeps a mapping for half a minute where little was said.
_MAPPING_S = 30.0
# A doubt may come back every second.
_QUESTION_INTERVAL_S = 2.0
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
    mapped: TransportAddress | None = None
    """What the server saw last, and when it said so."""
    answered_at: float = 0.0
    refresh_at: float | None = None
    has_answered: bool = False
    main: Transaction | None = None
    """The one that is repeated, and whose end is the query's."""
    open: list[Transaction] = field(default_factory=list)
    """It, and early ones that are still waited for."""
    sent_at: float = 0.0
    early: int = 0
    """So many early ones were sent."""
    has_failed: bool = False
    """It was said that there is no answer, though it still may come."""


@dataclass(slots=True, eq=False)
class _Question:
    """What a base asks while a path is in doubt."""

    base: TransportAddress
    asked_at: float
    second_at: float | None
    """When the second request leaves."""
    is_open: bool = True

    @property
    def silent_at(self) -> float:
        return self.asked_at + _SILENCE_S


@dataclass(slots=True, eq=False)
class _Witness:
    """One request of a question, to a server that has seen us before."""

    question: _Question
    query: _Query


class StunQueries:
    """Asks servers for our mapped addresses.

    Args:
        ta_s: seconds between two new queries, once the burst is used up.
        ceiling: what all transactions of the process share (RFC 8445, 14.2); ``None``: there are no others.
        rc: how often a query is sent at most, early ones aside; RFC 8489, 6.2.1: 7 SHOULD be the default.
        rm: how many RTOs the last one is waited for; 16 there.
        early_s: when an unanswered query is asked anew, seconds after its first request.

    Attributes:
        counters: datagrams that were of no use, by reason.
    """

    def __init__(
        self,
        system_rng: Random,
        *,
        ta_s: float,
        burst: int,
        rto_s: float,
        ceiling: TokenBucket | None = None,
        rc: int = DEFAULT_RC,
        rm: int = DEFAULT_RM,
        early_s: Sequence[float] = (),
    ) -> None:
        self._system_rng = system_rng
        self._rto_s = rto_s
        self._ta_s = ta_s
        own = TokenBucket(rate=1 / ta_s, capacity=burst)
        self._buckets = (own,) if ceiling is None else (own, ceiling)
        self._rc, self._rm = rc, rm
        self._early_s = early_s
        # A question has two requests.
        self._table = TransactionTable(limit=MAX_QUERIES * (3 + len(early_s)))
        self._queries: dict[tuple[TransportAddress, TransportAddress], _Query] = {}
        self._waiting: deque[_Query] = deque()
        # The last one of each base.
        self._questions: dict[TransportAddress, _Question] = {}
        self._events: deque[Event] = deque()
        self._refreshing = True
        self._wait_until: float | None = None
        self._early_at: float | None = None
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
            self._end(self._queries.pop(key))
        self._questions.pop(base, None)
        self._waiting = deque(query for query in self._waiting if query.base != base)

    def stop_refreshing(self, now: float) -> None:
        """ICE concluded: consent keeps the paths that are used (5.1.1.4)."""
        self._refreshing = False
        self._waiting = deque(query for query in self._waiting if not query.has_answered)

    def resume_refreshing(self, now: float) -> None:
        """ICE begins anew (RFC 8445, 9): who answered is asked again at once, and then every 15 s."""
        self._refreshing = True
        self.ask_again(now)

    def ask_again(self, now: float) -> None:
        """Ask everybody once more who is not being asked."""
        self._ask_all_but(None, now)

    def question(self, base: TransportAddress, now: float) -> bool:
        """A path from ``base`` is in doubt: ask a server what it sees; :class:`Diagnosed` follows within a second.

        Returns:
            False: nobody is asked: no server has seen this base so far, or it asked less than two seconds ago.
        """
        last = self._questions.get(base)
        witnesses = self._witnesses(base)
        if not witnesses or (last is not None and now < last.asked_at + _QUESTION_INTERVAL_S):
            return False
        question = self._questions[base] = _Question(base, now, now + _SECOND_S)
        self._send_question(question, witnesses[0], now)
        return True

    @property
    def pending(self) -> int:
        """Queries that have neither an answer nor a failure yet."""
        return sum(not (query.has_answered or query.has_failed) for query in self._queries.values())

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
        context: _Query | _Witness = transaction.context
        query = context if isinstance(context, _Query) else context.query
        if self._queries.get((query.base, query.server)) is not query:
            return
        mapped = _mapped(message, query.base)
        if isinstance(context, _Witness):
            self._on_witness(context.question, query, mapped, now)
        else:
            self._end(query)
        if mapped is not None:
            self._on_mapped(query, mapped, transaction.rtt(now), now)
        elif isinstance(context, _Query):
            self._fail(query, _complaint(message), now)

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """Nobody listens there, or there is no way: fail at once, another server may do better. A host that is said to
        be unreachable is asked again: an opener that died on the way to the same address says so as well.
        """
        query = self._queries.get((base, destination))
        if errno == EHOSTUNREACH:
            return
        if query is not None and self._end(query):
            self._fail(query, errno_in_words(errno), now)

    def handle_timeout(self, now: float) -> None:
        """Repeat, give up, refresh."""
        for transaction in self._table.handle_timeout(now):
            query: _Query | _Witness = transaction.context
            if isinstance(query, _Witness):
                # Its question has a time of its own.
                continue
            if transaction is query.main:
                self._end(query)
                self._fail(query, "no response", now)
            elif transaction in query.open:
                query.open.remove(transaction)
        for query in self._queries.values():
            give_up_at = self._give_up_at(query)
            if give_up_at is not None and now >= give_up_at:
                query.has_failed = True
                self._events.append(QueryFailed(base=query.base, server=query.server, reason="no response"))
            if query.refresh_at is not None and now >= query.refresh_at:
                query.refresh_at = None
                if self._refreshing:
                    self._waiting.append(query)
        for question in self._questions.values():
            self._go_on(question, now)
        self._send_waiting(now)

    def poll_timeout(self) -> float | None:
        """The next repetition, query, refresh, or end of a question."""
        refreshes = (q.refresh_at for q in self._queries.values() if q.refresh_at is not None and self._refreshing)
        failures = (at for q in self._queries.values() if (at := self._give_up_at(q)) is not None)
        questions = (q.silent_at if q.second_at is None else q.second_at for q in self._questions.values() if q.is_open)
        times = (min(refreshes, default=None), min(failures, default=None), min(questions, default=None))
        due = (self._table.poll_timeout(), self._wait_until, self._early_at, *times)
        return min((at for at in due if at is not None), default=None)

    def poll_transmit(self) -> Transmit | None:
        """One request."""
        return self._table.poll_transmit()

    def poll_event(self) -> Event | None:
        """One answer or failure."""
        return self._events.popleft() if self._events else None

    # --- inside --------------------------------------------------------------------------------------------------

    def _ask_all_but(self, witness: _Query | None, now: float) -> None:
        waiting = set(self._waiting)
        for query in self._queries.values():
            is_open = query in waiting or (query.open and not query.has_failed)
            if not is_open and query is not witness:
                self._end(query)
                query.has_failed = False
                query.refresh_at = None
                self._waiting.append(query)
        self._send_waiting(now)

    def _on_mapped(self, query: _Query, mapped: TransportAddress, rtt_s: float | None, now: float) -> None:
        query.has_failed = False
        query.mapped, query.answered_at = mapped, now
        is_refresh, query.has_answered = query.has_answered, True
        query.refresh_at = now + _REFRESH_S
        self._events.append(
            MappedAddress(base=query.base, server=query.server, mapped=mapped, rtt_s=rtt_s, is_refresh=is_refresh)
        )

    def _witnesses(self, base: TransportAddress) -> list[_Query]:
        """Who has seen a base, the last one first."""
        found = [query for query in self._queries.values() if query.base == base and query.mapped is not None]
        return sorted(found, key=lambda query: -query.answered_at)

    def _send_question(self, question: _Question, query: _Query, now: float) -> None:
        """Past the buckets: at most two in two seconds, and they must not wait."""
        for bucket in self._buckets:
            bucket.take(now)
        context = _Witness(question, query)
        self._request(query, now, rto=question.silent_at - now, rc=1, rm=1, context=context)

    def _go_on(self, question: _Question, now: float) -> None:
        if not question.is_open:
            return
        if now >= question.silent_at:
            question.is_open = False
            reason = f"no STUN server has answered for {_SILENCE_S:g} s"
            self._events.append(Diagnosed(base=question.base, cause=Cause.UPLINK, reason=reason))
        elif question.second_at is not None and now >= question.second_at:
            question.second_at = None
            witnesses = self._witnesses(question.base)
            if witnesses:
                self._send_question(question, witnesses[1 % len(witnesses)], now)

    def _on_witness(self, question: _Question, query: _Query, mapped: TransportAddress | None, now: float) -> None:
        if not question.is_open:
            return
        question.is_open = False
        if mapped is None:
            # Our network lives, and that is all.
            return
        if mapped == query.mapped:
            cause, words = Cause.PATH, f"sees us at {mapped} as before"
        else:
            cause, words = Cause.NAT, f"sees us at {mapped} now, not at {query.mapped}"
            self._ask_all_but(query, now)
        if cause is Cause.PATH or self._was_live(query, mapped, now):
            reason = f"the STUN server {query.server} {words}"
            self._events.append(Diagnosed(base=question.base, cause=cause, reason=reason))

    def _was_live(self, query: _Query, mapped: TransportAddress, now: float) -> bool:
        """Whether another address is news: where a NAT has a mapping for each destination, that to a server ends by
        itself, once nothing goes there any more.
        """
        others = (each for each in self._witnesses(query.base) if each.server.host != query.server.host)
        return (
            query.mapped is None
            or mapped.host != query.mapped.host
            or now < query.answered_at + _MAPPING_S
            or any(other.mapped == query.mapped for other in others)
        )

    def _send_waiting(self, now: float) -> None:
        # What waits comes before what is asked anew.
        self._wait_until = self._early_at = None
        # 14.3: "MAX (500ms, Ta * (Num-Of-Cands))"; those that were sent already need no room before a repetition.
        rto = max(self._rto_s, self._ta_s * len(self._waiting))
        while self._waiting:
            if any(bucket.tokens(now) < 1 for bucket in self._buckets):
                self._wait_until = max(bucket.ready_at(1, now) for bucket in self._buckets)
                return
            for bucket in self._buckets:
                bucket.take(now)
            query = self._waiting.popleft()
            # A refresh has the next one behind it.
            rc, rm = (_REFRESH_RC, _REFRESH_RM) if query.has_answered else (self._rc, self._rm)
            query.main = self._start(query, now, rto=rto, rc=rc, rm=rm)
            query.sent_at = now
        self._send_early(now)

    def _send_early(self, now: float) -> None:
        """Ask anew who has not answered; what finds no token then is tried when there is one."""
        self._early_at = None
        if not self._early_s:
            return
        for query in self._queries.values():
            if query.main is None or query.has_answered:
                continue
            while query.early < len(self._early_s):
                at = query.sent_at + self._early_s[query.early]
                if at <= now:
                    at = max(bucket.ready_at(1, now) for bucket in self._buckets)
                if at > now:
                    self._early_at = at if self._early_at is None else min(at, self._early_at)
                    break
                for bucket in self._buckets:
                    bucket.take(now)
                query.early += 1
                self._start(query, now, rto=_EARLY_LIFETIME_S, rc=1, rm=1)

    def _give_up_at(self, query: _Query) -> float | None:
        is_waited_for = query.main is not None and not query.has_answered and not query.has_failed
        return query.sent_at + _PATIENCE_S if is_waited_for else None

    def _start(self, query: _Query, now: float, *, rto: float, rc: int, rm: int) -> Transaction:
        transaction = self._request(query, now, rto=rto, rc=rc, rm=rm, context=query)
        query.open.append(transaction)
        return transaction

    def _request(
        self, query: _Query, now: float, *, rto: float, rc: int, rm: int, context: _Query | _Witness
    ) -> Transaction:
        identity = self._system_rng.getrandbits(96).to_bytes(12, "big")
        request = build(Method.BINDING, MessageClass.REQUEST, identity).encode(fingerprint=False)
        return self._table.start(
            identity, query.base, query.server, request, now, rto=rto, rc=rc, rm=rm, context=context
        )

    def _end(self, query: _Query) -> bool:
        """Nothing of a query is repeated or waited for any more; whether anything was."""
        ended, query.open, query.main = query.open, [], None
        for transaction in ended:
            self._table.remove(transaction)
        return bool(ended)

    def _fail(self, query: _Query, reason: str, now: float) -> None:
        if query.has_answered:
            # A refresh that was lost; the next one may not be.
            query.refresh_at = now + _REFRESH_S
            return
        del self._queries[query.base, query.server]
        if query.has_failed:
            return
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

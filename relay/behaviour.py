"""What kind of NAT is in front of us?

The client side of RFC 5780, 4.3 and 4.4. Let A1:P1 be the server and A2:P2 what it calls OTHER-ADDRESS.

Mapping, from one base: I asks A1:P1, II asks A2:P1, III asks A2:P2 (where II saw another address than I, or nothing).
I = II: endpoint-independent. II = III: address-dependent. Else address-and-port-dependent. Filtering, from a fresh
base ("sensitive to prior state on the NAT"), which never sends to anything but A1:P1: I asks for an answer; II asks
for one from A2:P2, III for one from A1:P2. II arrives: endpoint-independent. Only III arrives: address-dependent.
Neither: address-and-port-dependent.

A lost packet is no verdict. Every question is sent five times. Where an answer must come, it is asked a second time
before it counts as silence; where silence is an answer, it is asked twice at once, ten packets in all, so that a path
that loses a fifth of its packets each way deceives us once in 25,000 times. And silence is believed only of a server
whose second address has answered something.

Without RFC 5780, what several servers saw still tells the mapping, if it is the same for all of them.

The retransmission timer starts at 0.1 s: a diagnosis that somebody waits for, of at most 60 packets in all.
DEVIATION: RFC 8489, 6.2.1, wants 500 ms or more; pinned by test_silence_is_ten_packets_and_then_a_verdict.

What it does not do: lifetimes, port preservation, allocation; open sockets (:class:`BehaviourProbe` is a core). Pure.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.behaviour import Filtering, Mapping
from iceagent.net.core import Datagram, Event, PacketDropped, Transmit
from iceagent.net.errno_words import errno_in_words
from relay.stun import (
    CHANGE_REQUEST,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    XOR_MAPPED_ADDRESS,
    BadMessage,
    ChangeRequest,
    Message,
    MessageClass,
    Method,
    Transaction,
    TransactionTable,
    build,
    is_stun,
    parse,
)

__all__ = ["BehaviourMeasured", "BehaviourProbe", "BehaviourReport", "Filtering", "Mapping", "Observation"]

MAX_SERVERS = 3
"""More would make over ten transactions in the first second (RFC 5780, 5: "SHOULD NOT generate more than ten")."""

RTO_S = 0.1
SENDS = 5
WAIT = 6
"""Sent after 0, 0.1, 0.3, 0.7 and 1.5 s; silence after another six times 0.1 s, enough for any path on Earth."""

COPY_STRETCH = 1.3
"""The RTO of the second copy of a question over that of the first, so that a burst of loss does not hit both."""

ROUNDS = 2
"""How often a question that must be answered is asked."""

EVENT_LIMIT = 256
"""Events that nobody has polled; the oldest go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one server saw.

    Attributes:
        server: who was asked.
        base: from where.
        mapped: what it saw: the source of the request, behind the NATs.
        rtt_ms: milliseconds from request to response; ``None`` if the request was sent more than once.
    """

    server: TransportAddress
    base: TransportAddress
    mapped: TransportAddress
    rtt_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviourReport:
    """What was measured.

    Attributes:
        mapping: ``Mapping.NONE`` where the outside sees the base itself.
        filtering: of the NAT or firewall.
        observations: every address that a server saw, in the order of the answers.
        evidence: sentences: what each verdict rests on, or why there is none.
    """

    mapping: Mapping
    filtering: Filtering
    observations: tuple[Observation, ...]
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviourMeasured(Event):
    """All questions are answered, or nobody answers any more. Told once."""

    report: BehaviourReport


class _Test(Enum):
    """The tests of RFC 5780, 4.3 and 4.4, by their names there."""

    MAPPING_I = "mapping I"
    MAPPING_II = "mapping II"
    MAPPING_III = "mapping III"
    FILTERING_I = "filtering I"
    FILTERING_II = "filtering II"
    FILTERING_III = "filtering III"


_CHANGES = {_Test.FILTERING_II: ChangeRequest(True, True), _Test.FILTERING_III: ChangeRequest(False, True)}


@dataclass(frozen=True, slots=True)
class _Question:
    """One test towards one server, and where its answer comes from."""

    test: _Test
    server: TransportAddress
    base: TransportAddress
    destination: TransportAddress
    answered_from: TransportAddress

    @property
    def may_be_silent(self) -> bool:
        return self.test in _CHANGES


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a question ended: a mapped address, or why there is none. ``is_silent``: nothing came at all."""

    mapped: TransportAddress | None = None
    other: TransportAddress | None = None
    failure: str = ""
    is_silent: bool = False


_UNASKED = _Outcome(failure="not asked")
_SILENT = _Outcome(failure="no answer", is_silent=True)


class BehaviourProbe:
    """Measures the NATs and firewalls between two bases and a server. Start it with :meth:`start`.

    Args:
        servers: 1 … 3 STUN servers of one IP version. The first that answers with an OTHER-ADDRESS is asked everything;
            the others only what they see.
        mapping_base: a socket on a concrete address (no wildcard), of the servers' IP version. It need not be new.
        filtering_base: one that has never sent anything; ``None``: filtering is not measured.
        system_rng: transaction ids; ``random.SystemRandom()`` in production.

    Attributes:
        counters: ``dropped: <reason>``.

    Raises:
        ValueError: none or too many servers, or addresses that do not go together.
    """

    def __init__(
        self,
        servers: Sequence[TransportAddress],
        mapping_base: TransportAddress,
        filtering_base: TransportAddress | None = None,
        *,
        system_rng: random.Random,
    ) -> None:
        bases = (mapping_base,) if filtering_base is None else (mapping_base, filtering_base)
        _check_addresses(servers, bases)
        self.counters: Counter[str] = Counter()
        self._servers = tuple(dict.fromkeys(servers))
        self._mapping_base = mapping_base
        self._filtering_base = filtering_base
        self._rng = system_rng
        self._table = TransactionTable()
        self._open: dict[tuple[_Test, TransportAddress], list[Transaction]] = {}
        self._rounds: Counter[tuple[_Test, TransportAddress]] = Counter()
        self._outcomes: dict[tuple[_Test, TransportAddress], _Outcome] = {}
        self._observations: list[Observation] = []
        self._discovery_server: TransportAddress | None = None
        self._is_done = False
        self._events: deque[Event] = deque(maxlen=EVENT_LIMIT)

    def start(self, now: float) -> None:
        """Ask the first questions. A second call does nothing."""
        for server in self._servers:
            if not self._rounds[_Test.MAPPING_I, server]:
                self._ask(self._question(_Test.MAPPING_I, server), now)

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """Take an answer; what is none is dropped."""
        try:
            message = parse(datagram.data) if is_stun(datagram.data) else None
        except BadMessage:
            message = None
        transaction = None if message is None else self._table.find(message.transaction_id)
        if message is None or transaction is None or transaction.base != datagram.base:
            self._drop(datagram, "not an answer to us")
            return
        question: _Question = transaction.context
        outcome = _outcome_of(message, question, datagram.source)
        if outcome is None:
            self._drop(datagram, "not the answer that was asked for")
            return
        if outcome.mapped is not None:
            self._observe(question, outcome.mapped, transaction.rtt(now))
        self._settle(question, outcome, now)

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """The network refuses to carry a question: it is not asked again."""
        questions: list[_Question] = [each.context for each in self._table.pending(base, destination)]
        for question in dict.fromkeys(questions):
            self._settle(question, _Outcome(failure=errno_in_words(errno)), now)

    def handle_timeout(self, now: float) -> None:
        """Send again what is unanswered; believe in silence when it is time."""
        for transaction in self._table.handle_timeout(now):
            question: _Question = transaction.context
            key = (question.test, question.server)
            copies = self._open.get(key, [])
            if transaction in copies:
                copies.remove(transaction)
                if not copies:
                    self._on_silence(question, now)

    def poll_timeout(self) -> float | None:
        """When a question is sent again or given up, or ``None``."""
        return self._table.poll_timeout()

    def poll_transmit(self) -> Transmit | None:
        """One question to send, or ``None``."""
        return self._table.poll_transmit()

    def poll_event(self) -> Event | None:
        """:class:`BehaviourMeasured` once, :class:`PacketDropped`, or ``None``."""
        return self._events.popleft() if self._events else None

    @property
    def is_done(self) -> bool:
        """Whether :class:`BehaviourMeasured` has been told."""
        return self._is_done

    @property
    def report(self) -> BehaviourReport:
        """What is known by now; final once :attr:`is_done`."""
        mapping, how_mapping = self._mapping()
        filtering, how_filtering = self._filtering()
        return BehaviourReport(
            mapping=mapping,
            filtering=filtering,
            observations=tuple(self._observations),
            evidence=(*self._what_was_seen(), f"mapping: {how_mapping}", f"filtering: {how_filtering}"),
        )

    def _question(self, test: _Test, server: TransportAddress) -> _Question:
        is_mapping = test in (_Test.MAPPING_I, _Test.MAPPING_II, _Test.MAPPING_III)
        base = self._mapping_base if is_mapping or self._filtering_base is None else self._filtering_base
        if test in (_Test.MAPPING_I, _Test.FILTERING_I):
            return _Question(test, server, base, server, server)
        other = self._outcome(_Test.MAPPING_I, server).other or server
        if test is _Test.MAPPING_II:
            alternate = TransportAddress(other.host, server.port)
            return _Question(test, server, base, alternate, alternate)
        if test is _Test.MAPPING_III:
            return _Question(test, server, base, other, other)
        source = other if test is _Test.FILTERING_II else TransportAddress(server.host, other.port)
        return _Question(test, server, base, server, source)

    def _ask(self, question: _Question, now: float) -> None:
        key = (question.test, question.server)
        self._rounds[key] += 1
        rtos = (RTO_S, RTO_S * COPY_STRETCH) if question.may_be_silent else (RTO_S,)
        self._open[key] = [self._start(question, rto, now) for rto in rtos]

    def _start(self, question: _Question, rto: float, now: float) -> Transaction:
        identity = self._rng.getrandbits(96).to_bytes(12, "big")
        change = _CHANGES.get(question.test)
        pairs = () if change is None else ((CHANGE_REQUEST, change),)
        data = build(Method.BINDING, MessageClass.REQUEST, identity, *pairs).encode(fingerprint=False)
        return self._table.start(
            identity, question.base, question.destination, data, now, rto=rto, rc=SENDS, rm=WAIT, context=question
        )

    def _observe(self, question: _Question, mapped: TransportAddress, rtt_s: float | None) -> None:
        rtt_ms = None if rtt_s is None else rtt_s * 1000
        self._observations.append(
            Observation(server=question.answered_from, base=question.base, mapped=mapped, rtt_ms=rtt_ms)
        )

    def _on_silence(self, question: _Question, now: float) -> None:
        is_last_round = self._rounds[question.test, question.server] >= ROUNDS
        is_needless = question.test is _Test.MAPPING_I and bool(self._observations)
        if question.may_be_silent or is_last_round or is_needless:
            self._settle(question, _SILENT, now)
        else:
            self._ask(question, now)

    def _settle(self, question: _Question, outcome: _Outcome, now: float) -> None:
        self._outcomes[question.test, question.server] = outcome
        self._end(question.test, question.server)
        if self._discovery_server is None and outcome.other is not None:
            self._discovery_server = question.server
        if self._discovery_server is not None:
            for test in self._due(self._discovery_server):
                if not self._rounds[test, self._discovery_server]:
                    self._ask(self._question(test, self._discovery_server), now)
        if not self._open and not self._is_done:
            self._is_done = True
            self._events.append(BehaviourMeasured(report=self.report))

    def _end(self, test: _Test, server: TransportAddress) -> None:
        for transaction in self._open.pop((test, server), []):
            self._table.remove(transaction)
        if test is _Test.FILTERING_II and self._outcome(test, server).mapped is not None:
            # Endpoint-independent: what test III would say is known.
            self._end(_Test.FILTERING_III, server)

    def _due(self, server: TransportAddress) -> Iterator[_Test]:
        """The tests whose time has come; most of them have been asked already."""
        yield _Test.MAPPING_II
        first, second = self._outcome(_Test.MAPPING_I, server), self._outcomes.get((_Test.MAPPING_II, server))
        if second is not None and second.mapped != first.mapped:
            yield _Test.MAPPING_III
        if self._filtering_base is not None:
            yield _Test.FILTERING_I
            if self._outcome(_Test.FILTERING_I, server).mapped is not None:
                yield _Test.FILTERING_II
                yield _Test.FILTERING_III

    def _outcome(self, test: _Test, server: TransportAddress) -> _Outcome:
        return self._outcomes.get((test, server), _UNASKED)

    def _what_was_seen(self) -> Iterator[str]:
        for seen in self._observations:
            yield f"{seen.server} saw {seen.mapped} for {seen.base}"
        for server in self._servers:
            failure = self._outcome(_Test.MAPPING_I, server).failure
            if failure:
                yield f"{server}: {failure}"

    def _mapping(self) -> tuple[Mapping, str]:
        seen = {
            server: outcome.mapped
            for server in self._servers
            if (outcome := self._outcome(_Test.MAPPING_I, server)).mapped is not None
        }
        server = self._discovery_server
        if not seen:
            return Mapping.UNKNOWN, "no server answered"
        if server is None:
            return _compare(self._mapping_base, seen)
        first, second, third = (
            self._outcome(test, server).mapped for test in (_Test.MAPPING_I, _Test.MAPPING_II, _Test.MAPPING_III)
        )
        mapping, how = _classify_mapping(self._mapping_base, first, second, third)
        if mapping in (Mapping.EIM, Mapping.NONE) and set(seen.values()) != {first}:
            return Mapping.UNKNOWN, f"{server} says {mapping.value}, but another server saw another address"
        return mapping, how

    def _filtering(self) -> tuple[Filtering, str]:
        server = self._discovery_server
        if server is None:
            return Filtering.UNKNOWN, "no server offers a second address (RFC 5780)"
        if self._filtering_base is None:
            return Filtering.UNKNOWN, "not tested: there was no fresh socket"
        first, second, third = (
            self._outcome(test, server) for test in (_Test.FILTERING_I, _Test.FILTERING_II, _Test.FILTERING_III)
        )
        if first.mapped is None:
            return Filtering.UNKNOWN, f"{server}: {first.failure} to the second socket"
        is_alternate_alive = any(
            self._outcome(test, server).mapped is not None for test in (_Test.MAPPING_II, _Test.MAPPING_III)
        )
        return _classify_filtering(second, third, is_alternate_alive)

    def _drop(self, datagram: Datagram, reason: str) -> None:
        self.counters[f"dropped: {reason}"] += 1
        size = len(datagram.data)
        self._events.append(PacketDropped(base=datagram.base, source=datagram.source, reason=reason, size=size))


def _check_addresses(servers: Sequence[TransportAddress], bases: Sequence[TransportAddress]) -> None:
    if not 1 <= len(servers) <= MAX_SERVERS:
        raise ValueError(f"{len(servers)} servers, not 1 to {MAX_SERVERS}")
    if len({address.version for address in (*servers, *bases)}) != 1:
        raise ValueError("servers and bases of different IP versions")
    if len(set(bases)) != len(bases):
        raise ValueError(f"{bases[0]}: filtering needs a base of its own")
    if any(ip_address(base.host).is_unspecified for base in bases):
        raise ValueError("a base on a wildcard address cannot be compared with what a server sees")


def _outcome_of(message: Message, question: _Question, source: TransportAddress) -> _Outcome | None:
    """What a response means; ``None``: it is none, or not one to this question."""
    if message.method != Method.BINDING or source not in (question.answered_from, question.destination):
        return None
    if message.is_error:
        return _Outcome(failure="an error response" if message.error is None else f"error {message.error.code}")
    mapped = message.get(XOR_MAPPED_ADDRESS) or message.get(MAPPED_ADDRESS)
    if not message.is_success or mapped is None:
        return None
    if source != question.answered_from:
        return _Outcome(failure=f"answered from {source}, not from {question.answered_from} as asked")
    return _Outcome(mapped, _usable_other(message.get(OTHER_ADDRESS), question))


def _usable_other(other: TransportAddress | None, question: _Question) -> TransportAddress | None:
    """OTHER-ADDRESS, where it can be one: RFC 5780, 7.4. We shall send there, so it must not be just anything."""
    server = question.server
    if question.test is not _Test.MAPPING_I or other is None or other.version != server.version:
        return None
    ip = ip_address(other.host)
    is_elsewhere = other.host != server.host and other.port not in (0, server.port)
    is_same_scope = ip.is_loopback == ip_address(server.host).is_loopback
    return other if is_elsewhere and is_same_scope and not ip.is_multicast and not ip.is_unspecified else None


def _classify_mapping(
    base: TransportAddress,
    first: TransportAddress | None,
    second: TransportAddress | None,
    third: TransportAddress | None,
) -> tuple[Mapping, str]:
    """RFC 5780, 4.3, from what tests I, II and III saw; ``None``: nothing."""
    if first == base:
        if second not in (None, base):
            return Mapping.UNKNOWN, "the server sees our own address, its second address does not"
        return Mapping.NONE, "the server sees our own address"
    if first in (second, third):
        return Mapping.EIM, "the same address is seen by both addresses of the server"
    if second is None:
        return Mapping.UNKNOWN, "the second address of the server does not answer at the first port"
    if third is None:
        return Mapping.UNKNOWN, "ADM or APDM: the second address of the server does not answer at the second port"
    if third == second:
        return Mapping.ADM, "another address is seen by the server's second address, the same at both of its ports"
    return Mapping.APDM, "every address and port of the server sees another address"


def _compare(base: TransportAddress, seen: dict[TransportAddress, TransportAddress]) -> tuple[Mapping, str]:
    """Mapping, from what servers without RFC 5780 saw (server → mapped address, at least one)."""
    mapped = set(seen.values())
    if mapped == {base}:
        return Mapping.NONE, "every server that answered sees our own address"
    if base in mapped:
        return Mapping.UNKNOWN, "some servers see our own address and some do not"
    by_host: dict[str, set[TransportAddress]] = {}
    for server, address in seen.items():
        by_host.setdefault(server.host, set()).add(address)
    if any(len(addresses) > 1 for addresses in by_host.values()):
        return Mapping.APDM, "two ports of one server see different addresses"
    if len(mapped) > 1:
        return Mapping.UNKNOWN, "ADM or APDM: servers see different addresses, and none has a second port"
    if len(by_host) > 1:
        return Mapping.EIM, f"{len(by_host)} servers see the same address"
    return Mapping.UNKNOWN, "only one server answered, and it has no second address"


def _classify_filtering(second: _Outcome, third: _Outcome, is_alternate_alive: bool) -> tuple[Filtering, str]:
    """RFC 5780, 4.4, from tests II and III."""
    if second.mapped is not None:
        return Filtering.EIF, "an answer from an address and port that we never sent to arrived"
    if not second.is_silent:
        return Filtering.UNKNOWN, f"the server did not do what was asked: {second.failure}"
    if not is_alternate_alive:
        return Filtering.UNKNOWN, "the second address of the server does not answer anything"
    if third.mapped is not None:
        return Filtering.ADF, "an answer from another port arrived, from another address it did not"
    if not third.is_silent:
        return Filtering.UNKNOWN, f"EIF is excluded, but the server did not do what was asked: {third.failure}"
    return Filtering.APDF, "no answer from a port that we never sent to arrived"

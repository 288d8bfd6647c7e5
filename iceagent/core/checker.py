"""What happens when a check of ours is sent, answered, refused or not answered?

RFC 8445, 7.2: a check is a Binding request with USERNAME, PRIORITY, ICE-CONTROLLING or -CONTROLLED and, when
nominating, USE-CANDIDATE together with NOMINATION; where our network costs something, NETWORK-COST (an extension of
libwebrtc). Its response proves the pair, shows the address the peer sees (a local peer-reflexive candidate where it is
new, 7.2.5.3.1), or a role conflict (7.2.5.1).

One pair may have several transactions under way. The *main* one is repeated on RFC 8489's schedule and decides about
failure; *single* ones (early checks, consent) are sent once, and any late response to them still counts. DEVIATION:
early new checks (RFC 8445, 6.1.4.2 and 14.3 know one transaction with an RTO of at least 500 ms), pinned by
test_an_unanswered_pair_gets_new_checks_after_100_200_and_400_ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from iceagent.candidate import Candidate, CandidateType
from iceagent.core.checklist import CheckList
from iceagent.core.context import Context
from iceagent.core.locals import Locals
from iceagent.core.pacing import RemoteBudget
from iceagent.core.pair import CandidatePair, PairState
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram
from iceagent.priority import candidate_priority
from relay.stun import (
    ICE_CONTROLLED,
    ICE_CONTROLLING,
    NETWORK_COST,
    NOMINATION,
    PATH_MESSAGE,
    PRIORITY,
    USE_CANDIDATE,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
    Message,
    MessageClass,
    Method,
    NetworkCost,
    Transaction,
    TransactionTable,
    build,
)

__all__ = ["Check", "CheckListener", "Checker", "Purpose"]

# RFC 8445, 7.2.5.1.
ROLE_CONFLICT = 487
# So long an answer to a consent check or early check is waited for; consent itself lasts no longer (RFC 7675, 5.1).
_SINGLE_LIFETIME_S = 30.0
# RFC 7675, 5.2: an authenticated 403 ends consent at once.
FORBIDDEN = 403
# Transactions of one pair that may still be answered: a main one, three early ones, 30 s of consent checks. The oldest
# gives way.
_MAX_PER_PAIR = 16


class Purpose(Enum):
    """Why a check was sent."""

    ORDINARY = "ordinary"
    TRIGGERED = "triggered"
    NOMINATION = "nomination"
    EARLY = "early"
    CONSENT = "consent"
    DOUBT = "doubt"
    SEARCH = "search"
    MESSAGE = "message"


# Sent once.
_SINGLE = frozenset({Purpose.EARLY, Purpose.CONSENT, Purpose.DOUBT, Purpose.SEARCH, Purpose.MESSAGE})
# What becomes of the pair if they are not answered is decided elsewhere.
_OF_LIFE = frozenset({Purpose.CONSENT, Purpose.DOUBT, Purpose.SEARCH, Purpose.MESSAGE})


@dataclass(slots=True, eq=False, kw_only=True)
class Check:
    """One transaction's meaning.

    Attributes:
        controlling: our role when it was sent, which a role conflict is judged by.
        nomination: value of NOMINATION, -1 for USE-CANDIDATE alone, ``None`` where it does not nominate.
        message: serial of the path message that it carries.
    """

    pair: CandidatePair
    purpose: Purpose
    controlling: bool
    nomination: int | None = None
    message: int | None = None


class CheckListener(Protocol):
    """Who hears what came of checks."""

    def check_succeeded(self, check: Check, now: float) -> None:
        """Its pair is valid."""

    def check_failed(self, check: Check, reason: str, now: float) -> None:
        """A main transaction did."""

    def role_conflicted(self, check: Check, now: float) -> None:
        """The peer says that both have the same role."""

    def consent_revoked(self, pair: CandidatePair, now: float) -> None:
        """The peer takes back its consent to a pair that was valid (RFC 7675, 5.2)."""

    def pair_remapped(self, pair: CandidatePair, former: Candidate, answered_at: float, now: float) -> None:
        """A valid pair has another local candidate than ``former``, with which it last answered then."""


class Checker:
    """Sends checks and reads their responses."""

    __slots__ = (
        "_budget",
        "_context",
        "_listener",
        "_locals",
        "_table",
        "checklist",
    )

    def __init__(
        self,
        context: Context,
        checklist: CheckList,
        budget: RemoteBudget,
        local: Locals,
        listener: CheckListener,
    ) -> None:
        self._context = context
        self.checklist = checklist
        self._budget = budget
        self._locals = local
        self._listener = listener
        # A pair in use of an earlier generation stands beside the check list, one for each component at most.
        pairs = context.config.max_pairs + context.config.components
        self._table = TransactionTable(limit=_MAX_PER_PAIR * pairs)

    # --- commands ------------------------------------------------------------------------------------------------

    def check(
        self,
        pair: CandidatePair,
        purpose: Purpose,
        now: float,
        nomination: int | None = None,
        message: tuple[int, bytes] | None = None,
    ) -> None:
        """Send a new check. One with the purposes ORDINARY, TRIGGERED and NOMINATION becomes the pair's main one;
        ``message``: serial and bytes of a path message that it carries.

        RFC 8445, 7.1.2: "The controlled agent MUST NOT include the USE-CANDIDATE attribute"; it may have been the
        controlling one when it began to nominate.
        """
        if not self._context.controlling:
            nomination = None
        single = purpose in _SINGLE
        if pair.asked_at <= pair.answered_at:
            pair.asked_at = now
        serial, carried = message or (None, None)
        controlling = self._context.controlling
        check = Check(pair=pair, purpose=purpose, controlling=controlling, nomination=nomination, message=serial)
        identity = self._context.transaction_id()
        data = self._request(check, identity, carried)
        self._make_room(pair)
        if single:
            transaction = self._table.start(
                identity, pair.base, pair.destination, data, now, rto=_SINGLE_LIFETIME_S, rc=1, rm=1, context=check
            )
        else:
            self._end_main(pair)
            # A nomination is what both ends wait for: it does not wait behind the checks that 14.3 scales the RTO by.
            rto = self._context.config.rto_s if purpose is Purpose.NOMINATION else self._rto()
            transaction = self._table.start(identity, pair.base, pair.destination, data, now, rto=rto, context=check)
            pair.main = transaction
            pair.check_started_at = now
        pair.transactions.append(transaction)

    def ask_for_consent(self, pair: CandidatePair, now: float) -> None:
        """Send a consent check. A nomination that is not answered yet may have been lost four times: then this is as
        good as a repetition.
        """
        main = self.main_check(pair)
        self.check(pair, Purpose.CONSENT, now, main.nomination if main is not None else None)

    def indicate(self, pair: CandidatePair, ttl: int | None = None) -> None:
        """Send a Binding indication, which opens NATs or keeps them open and asks for nothing (RFC 8445, 11)."""
        message = build(Method.BINDING, MessageClass.INDICATION, self._context.transaction_id())
        self._context.transmit(pair.base, pair.destination, message.encode(), ttl)

    def _make_room(self, pair: CandidatePair) -> None:
        if len(pair.transactions) >= _MAX_PER_PAIR:
            self._finish(next(t for t in pair.transactions if t is not pair.main))

    def main_check(self, pair: CandidatePair) -> Check | None:
        """What the pair's main transaction is about."""
        check = pair.main.context if pair.main is not None else None
        return check if isinstance(check, Check) else None

    def quiet(self, pair: CandidatePair) -> None:
        """Repeat nothing any more on this pair; late responses still count (RFC 8445, 7.3.1.4 and 8.1.2)."""
        self._end_main(pair)

    def forget(self, pair: CandidatePair) -> None:
        """Drop every transaction of a pair."""
        transactions, pair.main, pair.transactions = pair.transactions, None, []
        for transaction in transactions:
            self._table.remove(transaction)

    # --- the contract --------------------------------------------------------------------------------------------

    def handle_response(self, message: Message, datagram: Datagram, now: float) -> bool:
        """A success or error response arrived (RFC 8445, 7.2.5); whether it is routine: consent goes on, and that is
        all.
        """
        transaction = self._table.find(message.transaction_id)
        if transaction is None:
            self._context.drop(datagram, "response to no request of ours")
            return False
        check: Check = transaction.context
        if not message.verify(check.pair.keys.remote_key):
            # RFC 8489, 9.1.4: as if it had not arrived; a stranger may have guessed.
            self._context.drop(datagram, "response with wrong integrity")
            return False
        symmetric = datagram.source == transaction.destination and datagram.base == transaction.base
        if not symmetric and (check.pair.is_valid or check.purpose in _SINGLE):
            # 7.2.5.2.1 is about connectivity checks. Whoever sees a response can repeat it from elsewhere, and be
            # faster.
            self._context.drop(datagram, "response from another address")
        elif not symmetric:
            self._finish(transaction)
            # 7.2.5.2.1. Non-Symmetric Transport Addresses
            self._fail(check, "the response came from another address than the request went to", now)
        elif message.is_success:
            return self._on_response(message, transaction, check, now)
        else:
            self._finish(transaction)
            self._on_error_response(message, check, now)
        return False

    def handle_timeout(self, now: float) -> bool:
        """Repeat what is due, and end what was never answered (7.2.5.2.3); whether a pair's main check ended so."""
        has_failed = False
        for transaction in self._table.handle_timeout(now):
            check: Check = transaction.context
            was_main = check.pair.main is transaction
            self._finish(transaction)
            if was_main:
                has_failed = True
                self._fail(check, "no response", now)
        return has_failed

    def poll_timeout(self) -> float | None:
        """The next repetition or failure."""
        return self._table.poll_timeout()

    def flush(self, now: float) -> None:
        """Move due requests to the outgoing queue, within the budget of addresses that never answered."""
        while (transmit := self._table.poll_transmit()) is not None:
            if not self._budget.allows(transmit.destination, now):
                self._context.counters["checks held back: address never answered"] += 1
                continue
            self._budget.spend(transmit.destination, now)
            self._context.transmits.append(transmit)
            pair = self.checklist.find(transmit.base, transmit.destination)
            if pair is not None:
                pair.requests_sent += 1

    # --- requests ------------------------------------------------------------------------------------------------

    def _request(self, check: Check, identity: bytes, carried: bytes | None) -> bytes:
        pair, keys = check.pair, check.pair.keys
        # 7.2.2. PRIORITY: what a peer-reflexive candidate learnt from this check would have.
        local_preference = pair.local.priority >> 8 & 0xFFFF
        priority = candidate_priority(CandidateType.PEER_REFLEXIVE, pair.component, local_preference)
        role = ICE_CONTROLLING if check.controlling else ICE_CONTROLLED
        message = build(
            Method.BINDING,
            MessageClass.REQUEST,
            identity,
            (USERNAME, keys.username),
            (PRIORITY, priority),
            (role, self._context.tie_breaker),
            *_costing(pair),
            *_nominating(check),
            *(() if carried is None else ((PATH_MESSAGE, carried),)),
        )
        return message.encode(keys.remote_key)

    def _rto(self) -> float:
        # 14.3: MAX(500 ms, Ta * checks). N is taken as one check list; the formula's square would mean minutes.
        return max(self._context.config.rto_s, self._context.ta_s * self.checklist.unfinished)

    # --- responses -----------------------------------------------------------------------------------------------

    def _on_response(self, message: Message, transaction: Transaction, check: Check, now: float) -> bool:
        pair = check.pair
        mapped = message.get(XOR_MAPPED_ADDRESS)
        if mapped is None or message.unknown_required:
            # RFC 8489, 6.3.3: the transaction failed.
            self._finish(transaction)
            self._fail(check, "the response cannot be understood", now)
            return False
        rtt = transaction.rtt(now)
        if rtt is not None:
            pair.add_rtt(rtt)
        pair.add_answer(transaction.started_at)
        self._finish(transaction)
        self._budget.answered(pair.destination)
        pair.responses_received += 1
        answered_at, pair.responded_at = pair.answered_at, now
        pair.note_alive(now)
        pair.last_error = 0
        if pair.dead or self._is_discarded(pair):
            return False
        if _is_routine(check, mapped):
            self._listener.check_succeeded(check, now)
            return True
        # A response to any check ends the repetition of the others, unless the main one has more to say: it nominates.
        main = self.main_check(pair)
        is_told = main is None or main.nomination is None or main.nomination == check.nomination
        if is_told:
            self._end_main(pair)
        before = pair.valid_local
        self._set_valid(pair, mapped)
        if before is not None and before.address != mapped:
            self._listener.pair_remapped(pair, before, answered_at, now)
        if is_told:
            self.checklist.set_state(pair, PairState.SUCCEEDED)
        self._listener.check_succeeded(check, now)
        return False

    def _is_discarded(self, pair: CandidatePair) -> bool:
        """Whether the check list dropped the pair to make room for a better one."""
        return pair.keys is self._context.keys and self.checklist.find(*pair.key) is not pair

    def _set_valid(self, pair: CandidatePair, mapped: TransportAddress) -> None:
        """7.2.5.3.1 and 7.2.5.3.2: the valid pair's local candidate is the one at the mapped address."""
        known = pair.valid_local
        if known is not None and known.address == mapped:
            return
        candidate = self._locals.find(pair.component, pair.base, mapped)
        if candidate is None:
            local_preference = pair.local.priority >> 8 & 0xFFFF
            candidate = Candidate(
                foundation=f"p{pair.local.foundation}"[:32],
                component=pair.component,
                priority=candidate_priority(CandidateType.PEER_REFLEXIVE, pair.component, local_preference),
                address=mapped,
                type=CandidateType.PEER_REFLEXIVE,
                related_address=pair.base,
                base=pair.base,
                origin="a check's response",
            )
        pair.valid_local = candidate
        pair.rerank(self._context.controlling)

    def _on_error_response(self, message: Message, check: Check, now: float) -> None:
        error = message.error
        if error is not None and error.code == ROLE_CONFLICT:
            self._listener.role_conflicted(check, now)
        elif error is not None and error.code == FORBIDDEN and check.pair.is_valid:
            self._listener.consent_revoked(check.pair, now)
        elif check.purpose not in _OF_LIFE:
            code = f"{error.code} {error.reason}" if error is not None else "an error without a code"
            self._fail(check, f"the peer answered {code}", now)

    # --- ends ----------------------------------------------------------------------------------------------------

    def _fail(self, check: Check, reason: str, now: float) -> None:
        pair = check.pair
        if check.purpose in _OF_LIFE:
            return
        self._end_main(pair)
        self._listener.check_failed(check, reason, now)

    def _end_main(self, pair: CandidatePair) -> None:
        if pair.main is not None:
            self._table.cancel_retransmissions(pair.main)
            pair.main = None

    def _finish(self, transaction: Transaction) -> None:
        pair: CandidatePair = transaction.context.pair
        self._table.remove(transaction)
        if pair.main is transaction:
            pair.main = None
        if transaction in pair.transactions:
            pair.transactions.remove(transaction)


def _is_routine(check: Check, mapped: TransportAddress) -> bool:
    """Whether a response says only what was known: the pair is valid, and looks to the peer as it did before."""
    pair = check.pair
    return (
        check.purpose is Purpose.CONSENT
        and check.nomination is None
        and pair.state is PairState.SUCCEEDED
        and pair.nominate_with is None
        and pair.traffic.has_answered
        and pair.valid_local is not None
        and pair.valid_local.address == mapped
    )


def _costing(pair: CandidatePair) -> list[tuple[Attribute[Any], Any]]:
    """What our network costs; 0 is what the peer takes it for anyway."""
    local = pair.local
    return [(NETWORK_COST, NetworkCost(local.network_id, local.network_cost))] if local.network_cost else []


def _nominating(check: Check) -> list[tuple[Attribute[Any], Any]]:
    if check.nomination is None:
        return []
    if check.nomination < 0:
        return [(USE_CANDIDATE, True)]
    return [(USE_CANDIDATE, True), (NOMINATION, check.nomination)]

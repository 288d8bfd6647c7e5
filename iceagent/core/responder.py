"""What happens when a check of the peer's arrives?

RFC 8445, 7.3: authenticate (RFC 8489, 9.1.3), settle a role conflict (7.3.1.1), answer, and report an
:class:`IncomingCheck`, from which the session learns peer-reflexive candidates and queues triggered checks. Answers
leave at once, also before the peer's credentials are known (7.3: "the agent MUST immediately generate a response").

Strangers are told what the RFC wants them to be told (400, 401), but at most ten a second: nobody is amplified
through us (DEVIATION from RFC 8489, 9.1.3, pinned by test_strangers_get_ten_answers_a_second). A check without
FINGERPRINT is answered: its integrity says more (DEVIATION from 7.3, pinned by
test_a_check_without_a_fingerprint_is_answered_all_the_same).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from iceagent.core.context import Context
from iceagent.core.pacing import TokenBucket
from iceagent.credentials import Credentials
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram
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
    IntegrityKey,
    Message,
    Method,
    short_term_key,
)

__all__ = ["IncomingCheck", "Responder", "ResponderListener"]

# Answers to requests that prove nothing, per second.
_STRANGER_ANSWERS = 10
# Generations that are told apart from strangers.
_MAX_RETIRED = 8
# libwebrtc has none above.
_MAX_NETWORK_COST = 999
# A conflict is settled by one switch; a peer that goes on has something else in mind.
_MAX_ROLE_SWITCHES = 100


@dataclass(slots=True, kw_only=True)
class IncomingCheck:
    """An authenticated check of the peer's, already answered.

    Attributes:
        priority: what a peer-reflexive candidate learnt from it has.
        nomination: value of NOMINATION; -1: USE-CANDIDATE alone; ``None``: it does not nominate.
        ufrag: the peer's user name fragment, as it stands in USERNAME.
        own_ufrag: ours: which generation it belongs to.
        network_cost: what the peer's network costs, 0 … 999 (NETWORK-COST; 0 where it does not say).
        message: the path message that it carries (``path_message.py``), not looked at yet.
    """

    base: TransportAddress
    source: TransportAddress
    priority: int
    nomination: int | None
    ufrag: str
    own_ufrag: str
    message: bytes | None = None
    network_cost: int = 0


class ResponderListener(Protocol):
    """Who knows more than a request says."""

    def switch_role(self, controlling: bool, reason: str, now: float) -> None:
        """Our role gives way (7.3.1.1)."""

    def refusal(self, check: IncomingCheck) -> tuple[int, str] | None:
        """A code and its reason, with which an authenticated check is answered instead of success."""


class Responder:
    """Answers Binding requests."""

    __slots__ = (
        "_context",
        "_keys",
        "_listener",
        "_retired",
        "_strangers",
    )

    def __init__(
        self,
        context: Context,
        listener: ResponderListener,
    ) -> None:
        self._context = context
        self._listener = listener
        self._keys: dict[str, IntegrityKey] = {}
        # Of ours, that nobody is to believe in any more.
        self._retired: tuple[str, ...] = ()
        self._strangers = TokenBucket(rate=_STRANGER_ANSWERS, capacity=_STRANGER_ANSWERS)

    def accept(self, credentials: Credentials, in_use: Collection[str] = ()) -> None:
        """Answer checks for these credentials of ours from now on, and for those that paths in use were checked with,
        as long as they carry data (RFC 8445, 9).

        Args:
            credentials: the new ones.
            in_use: user name fragments of ours of those paths.
        """
        self.retire(in_use)
        self._keys[credentials.ufrag] = short_term_key(credentials.password)

    def retire(self, in_use: Collection[str]) -> None:
        """Answer no checks for any others: the peer would think that it has a path, where we have none. Nor are they
        refused, or its pairs would fail before it hears of our restart.
        """
        retired = [ufrag for ufrag in self._keys if ufrag not in in_use]
        for ufrag in retired:
            del self._keys[ufrag]
        self._retired = (*self._retired, *retired)[-_MAX_RETIRED:]

    def handle_request(self, message: Message, datagram: Datagram, now: float) -> IncomingCheck | None:
        """Answer a request, and say what it was if it was the peer's."""
        if message.method != Method.BINDING:
            self._context.drop(datagram, "request of another method than Binding")
            return None
        username = message.get(USERNAME)
        is_sha256 = message.has_integrity_sha256
        if username is None or not (message.has_integrity or is_sha256):
            self._refuse(message, datagram, 400, "Bad Request", now)
            return None
        own_ufrag, _, ufrag = username.partition(":")
        if own_ufrag in self._retired:
            self._context.drop(datagram, "check of a generation that is over")
            return None
        key = self._keys.get(own_ufrag)
        # RFC 8489, 9.1.3: where both are there, MESSAGE-INTEGRITY-SHA256 decides, and the answer uses it too.
        if key is None or not (message.verify_sha256(key) if is_sha256 else message.verify(key)):
            self._refuse(message, datagram, 401, "Unauthenticated", now)
            return None
        if message.unknown_required:
            self._answer(datagram, message.unknown_attributes_response().encode(key, sha256=is_sha256))
            return None
        priority = message.get(PRIORITY)
        if priority is None or not 0 < priority < 2**31:
            # 7.1.1: "The PRIORITY attribute MUST be included in a Binding request".
            self._answer(datagram, message.error_response(400, "Bad Request").encode(key, sha256=is_sha256))
            return None
        if not self._settle_roles(message, now):
            self._answer(datagram, message.error_response(487, "Role Conflict").encode(key, sha256=is_sha256))
            return None
        check = IncomingCheck(
            base=datagram.base,
            source=datagram.source,
            priority=priority,
            nomination=_nomination(message),
            ufrag=ufrag,
            own_ufrag=own_ufrag,
            message=message.get(PATH_MESSAGE),
            network_cost=_network_cost(message),
        )
        refusal = self._listener.refusal(check)
        if refusal is not None:
            self._context.counters[f"checks refused with {refusal[0]}"] += 1
            self._answer(datagram, message.error_response(*refusal).encode(key, sha256=is_sha256))
            return None
        self._answer(datagram, message.success((XOR_MAPPED_ADDRESS, datagram.source)).encode(key, sha256=is_sha256))
        return check

    def _settle_roles(self, message: Message, now: float) -> bool:
        """7.3.1.1. Detecting and Repairing Role Conflicts: whether the request may be answered with success."""
        context = self._context
        theirs = message.get(ICE_CONTROLLING if context.controlling else ICE_CONTROLLED)
        if theirs is None:
            return True
        we_win = context.tie_breaker >= theirs
        if context.controlling == we_win or context.counters["role switches"] >= _MAX_ROLE_SWITCHES:
            # Controlling with the larger tie-breaker, or controlled with the smaller: they have to switch.
            return False
        if context.config.lite:
            return True
        context.counters["role switches"] += 1
        self._listener.switch_role(not context.controlling, "the peer has the same role and wins the tie-break", now)
        return True

    def _refuse(self, message: Message, datagram: Datagram, code: int, reason: str, now: float) -> None:
        self._context.drop(datagram, f"request refused with {code}")
        if self._strangers.tokens(now) >= 1:
            self._strangers.take(now)
            self._context.transmit(datagram.base, datagram.source, message.error_response(code, reason).encode())

    def _answer(self, datagram: Datagram, data: bytes) -> None:
        self._context.transmit(datagram.base, datagram.source, data)


def _network_cost(message: Message) -> int:
    value = message.get(NETWORK_COST)
    return 0 if value is None else min(value.cost, _MAX_NETWORK_COST)


def _nomination(message: Message) -> int | None:
    value = message.get(NOMINATION)
    if message.get(USE_CANDIDATE) is None:
        # libwebrtc and pion send NOMINATION without USE-CANDIDATE too when they renominate.
        return value
    return -1 if value is None else value

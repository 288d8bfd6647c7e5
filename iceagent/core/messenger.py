"""What is the peer told over the paths that work, and what does it tell us?

Signalling may be dead, or slow, by the time a path breaks. So two of ours say over any valid pair, the relayed ones
included, what would need signalling otherwise (``path_message.py``): in Binding requests, which are answered, and are
repeated until they are. ``docs/path-messages.md`` says who may send what.

Only to a peer whose description has the ice-option; five such requests leave a second at most, and no more are heard.
DEVIATION: RFC 8838, 13 and 14 have no candidates after end-of-candidates but by a restart; pinned by
test_a_new_candidate_is_told_over_the_path_that_works. DEVIATION: RFC 8445, 14.2 paces all checks together; pinned by
test_what_is_not_answered_is_said_again_over_more_ways_with_the_same_serial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from iceagent.candidate import Candidate
from iceagent.core.checker import Checker, Purpose
from iceagent.core.context import Context
from iceagent.core.pacing import TokenBucket
from iceagent.core.pair import CandidatePair
from iceagent.core.path_message import MAX_CANDIDATES, PathMessage
from iceagent.net.address import TransportAddress
from relay.stun import BadMessage

__all__ = ["MessageListener", "Messenger"]

# Requests that carry a message, in any second.
_PER_SECOND = 5
# The peer's repetitions over several pairs come on top of what it may send.
_HEARD_AT_ONCE = 20.0
# From one transmission to the next; the last one again and again.
_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)
# Nobody is told any more of what happened so long ago: consent would have ended meanwhile (RFC 7675, 5.1).
_LASTS_S = 30.0
# A goodbye is repeated after two round trips, within these bounds, and said three times.
_GOODBYE_RTTS = 2.0
_SHORTEST_GOODBYE_S, _LONGEST_GOODBYE_S = 0.020, 0.100
_GOODBYES = 3
# Candidates that wait to be told; of more, the oldest are not.
_MAX_PENDING = 64
# Serials behind the highest that are told apart, as RFC 4303, 3.4.3 does.
_WINDOW = 64


class MessageListener(Protocol):
    """Who does what the peer says. All of it is authenticated."""

    def peer_told_candidates(self, added: Sequence[Candidate], withdrawn: Sequence[Candidate], now: float) -> None:
        """It has new candidates, and some are none any more."""

    def peer_checks(self, after_s: float, now: float) -> None:
        """It will check what may be better so long from now, and so are we to."""

    def peer_wishes(self, base: TransportAddress, source: TransportAddress, now: float, *, is_eaten: bool) -> None:
        """It is controlled, and wishes this pair to be nominated; the other one eats its data, perhaps."""

    def peer_closed(self, now: float) -> None:
        """It is gone."""


@dataclass(slots=True, eq=False)
class _Open:
    """A message that is not answered yet.

    Attributes:
        pair: the one that it is about; ``None``: it goes over whatever works.
        pauses: after each transmission, seconds; none: it is sent once, and no answer is waited for.
        lasts: the last pause counts again and again.
    """

    message: PathMessage
    data: bytes
    pair: CandidatePair | None
    pauses: tuple[float, ...]
    lasts: bool
    next_at: float
    expires_at: float
    tries: int = 0


class Messenger:
    """Tells the peer, of one generation.

    Args:
        ways: called with (everywhere, now): the pairs that a message may go over, best first, those that stand by among
            them where asked for.
    """

    __slots__ = (
        "_checker",
        "_context",
        "_heard",
        "_highest",
        "_left_at",
        "_listener",
        "_open",
        "_pending",
        "_seen",
        "_serial",
        "_ways",
    )

    def __init__(
        self,
        context: Context,
        checker: Checker,
        listener: MessageListener,
        ways: Callable[[bool, float], list[CandidatePair]],
    ) -> None:
        self._context = context
        self._checker = checker
        self._listener = listener
        self._ways = ways
        # When the last ones left.
        self._left_at: list[float] = []
        self._heard = TokenBucket(rate=_PER_SECOND, capacity=_HEARD_AT_ONCE)
        self._open: list[_Open] = []
        # By component and address: what is to be told of it, and whether it is withdrawn.
        self._pending: dict[tuple[int, TransportAddress], tuple[Candidate, bool]] = {}
        self._serial = 0
        self._highest = -1
        self._seen = 0

    # --- what is told --------------------------------------------------------------------------------------------

    def tell_candidate(self, candidate: Candidate, *, withdrawn: bool, now: float) -> None:
        """There is a new candidate, or one is none any more."""
        key = candidate.component, candidate.address
        self._pending.pop(key, None)
        self._pending[key] = candidate, withdrawn
        while len(self._pending) > _MAX_PENDING:
            del self._pending[next(iter(self._pending))]
            self._context.counters["candidates the peer was not told of"] += 1
        self._tell_pending(now)

    def ask_for_checks(self, pair: CandidatePair, now: float) -> float:
        """Say that we check what may be better.

        Returns:
            When: as the message arrives, as far as is known.
        """
        self._send(PathMessage(serial=self._next_serial(), check_after_s=0.0), pair, now, pauses=())
        return now + (pair.rtt_s or 0.0) / 2

    def wish(self, pair: CandidatePair, now: float, *, is_eaten: bool = False) -> None:
        """Ask for a pair to be nominated; instead of any other one. ``is_eaten``: see :class:`PathMessage`."""
        wishes = [each for each in self._open if each.message.nominate]
        if any(each.pair is pair for each in wishes):
            return
        for each in wishes:
            self._open.remove(each)
        message = PathMessage(serial=self._next_serial(), nominate=True, is_eaten=is_eaten)
        self._send(message, pair, now, pauses=_PAUSES_S)

    def wish_no_more(self, component: int) -> None:
        """The peer has nominated what we are content with: what we wished before is not asked for again."""
        self._open = [
            each
            for each in self._open
            if not (each.message.nominate and each.pair is not None and each.pair.component == component)
        ]

    def say_goodbye(self, now: float) -> float:
        """We close; three times at most: first where our last data went, which it does not overtake there, then on
        every way there is. How long until nobody has answered, seconds.
        """
        self._open.clear()
        rtt_s = min((pair.rtt_s or 0.0 for pair in self._ways(True, now)), default=0.0)
        pause_s = min(max(_GOODBYE_RTTS * rtt_s, _SHORTEST_GOODBYE_S), _LONGEST_GOODBYE_S)
        self._send(PathMessage(serial=self._next_serial(), closing=True), None, now, pauses=(pause_s,) * _GOODBYES)
        return pause_s * _GOODBYES

    @property
    def is_open(self) -> bool:
        """Whether an answer is waited for."""
        return bool(self._open)

    # --- the contract --------------------------------------------------------------------------------------------

    def handle_message(self, data: bytes, base: TransportAddress, source: TransportAddress, now: float) -> None:
        """The peer's authenticated request carried this."""
        counters = self._context.counters
        try:
            message = PathMessage.decode(data)
        except BadMessage:
            counters["path messages malformed"] += 1
            return
        if message.closing:
            # Whatever its serial: our restart may have made it a message of the generation before.
            counters["path messages received"] += 1
            self._listener.peer_closed(now)
            return
        if self._is_seen(message.serial):
            counters["path messages repeated"] += 1
            return
        if self._heard.tokens(now) < 1:
            counters["path messages over the limit"] += 1
            return
        self._heard.take(now)
        self._note_seen(message.serial)
        counters["path messages received"] += 1
        if message.added or message.withdrawn:
            self._listener.peer_told_candidates(message.added, message.withdrawn, now)
        if message.nominate:
            self._listener.peer_wishes(base, source, now, is_eaten=message.is_eaten)
        if message.check_after_s is not None:
            self._listener.peer_checks(message.check_after_s, now)

    def handle_way(self, now: float) -> None:
        """There is a path, after there may have been none."""
        for each in list(self._open):
            if not each.tries:
                self._transmit(each, now)

    def handle_answer(self, serial: int, now: float) -> None:
        """The peer has it."""
        self._open = [each for each in self._open if each.message.serial != serial]
        self._tell_pending(now)

    def handle_timeout(self, now: float) -> None:
        """Repeat what was not answered, and give up what is too old."""
        for each in list(self._open):
            if each.next_at <= now:
                self._transmit(each, now)
        self._tell_pending(now)

    def poll_timeout(self) -> float | None:
        """When something is repeated or given up."""
        return min((each.next_at for each in self._open), default=None)

    # --- inside --------------------------------------------------------------------------------------------------

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def _tell_pending(self, now: float) -> None:
        """One message at a time: what is withdrawn and comes again arrives in that order."""
        if not self._pending or any(each.message.added or each.message.withdrawn for each in self._open):
            return
        keys = list(self._pending)[:MAX_CANDIDATES]
        taken = [self._pending.pop(key) for key in keys]
        added = tuple(candidate for candidate, withdrawn in taken if not withdrawn)
        gone = tuple(candidate for candidate, withdrawn in taken if withdrawn)
        self._send(
            PathMessage(serial=self._next_serial(), added=added, withdrawn=gone),
            None,
            now,
            pauses=_PAUSES_S,
            lasts=True,
        )

    def _send(
        self,
        message: PathMessage,
        pair: CandidatePair | None,
        now: float,
        *,
        pauses: tuple[float, ...],
        lasts: bool = False,
    ) -> None:
        entry = _Open(message, message.encode(), pair, pauses, lasts, now, now + _LASTS_S)
        self._open.append(entry)
        self._transmit(entry, now)

    def _transmit(self, entry: _Open, now: float) -> None:
        is_over = 0 < entry.tries >= len(entry.pauses) and not entry.lasts
        if is_over or now >= entry.expires_at or (entry.pair is not None and not entry.pair.is_valid):
            self._open.remove(entry)
            self._context.counters["path messages not answered"] += 1
            return
        ways = [entry.pair] if entry.pair is not None else self._ways(entry.tries > 0, now)
        if not entry.message.closing:
            # Of the generation before, a goodbye is all that the peer believes.
            ways = [pair for pair in ways if pair.keys is self._context.keys]
        self._left_at = [at for at in self._left_at if now < at + 1.0]
        allowed = ways if entry.message.closing else ways[: max(0, _PER_SECOND - len(self._left_at))]
        for pair in allowed:
            self._left_at.append(now)
            self._checker.check(pair, Purpose.MESSAGE, now, message=(entry.message.serial, entry.data))
            self._context.counters["path messages sent"] += 1
        if not entry.pauses:
            self._open.remove(entry)
        elif allowed:
            entry.tries += 1
            entry.next_at = now + entry.pauses[min(entry.tries, len(entry.pauses)) - 1]
        else:
            # Too much was said, or there is no path at all: in a while.
            entry.next_at = self._left_at[0] + 1.0 if ways else now + _PAUSES_S[-1]

    def _is_seen(self, serial: int) -> bool:
        """Whether it was, or is too old to say."""
        behind = self._highest - serial
        return behind >= 0 and (behind >= _WINDOW or bool(self._seen >> behind & 1))

    def _note_seen(self, serial: int) -> None:
        if serial > self._highest:
            shift = serial - self._highest
            self._seen = (self._seen << shift | 1) & (1 << _WINDOW) - 1 if shift < _WINDOW else 1
            self._highest = serial
        else:
            self._seen |= 1 << self._highest - serial

"""When is a path checked that carries no data, but may have to at any moment?

While data flows, two valid pairs beside the one in use are kept warm, so that their NAT bindings and their consent are
fresh when it fails (DEVIATION from RFC 8445, 8.1.2, 8.3.1 and 11, pinned by
test_pairs_that_were_not_selected_are_kept_alive_and_take_over). Five minutes after the last datagram that ends.

Each is checked every 15 s, varied by 0.8 … 1.2 as RFC 7675, 5.1 has it: their checks leave together with one for
consent, mostly each third, and wake nobody up. One that is not answered is repeated with the next, or a second lost
packet would end the consent of a path that works.

There are NATs that forget within ten seconds. When the answer shows that a binding has died since the last one, or
several in a row do not come although the pair in use works, then what leaves from that socket is checked every 10 s
from now on, and every 5 s if that is not enough.

Being checks, they also keep NAT bindings alive where carriers drop a heartbeat that nobody answers, and measure the
round trip.
"""

from __future__ import annotations

import math

from iceagent.core.checker import Checker
from iceagent.core.context import Context
from iceagent.core.pair import CandidatePair
from iceagent.core.selection import Selection
from iceagent.net.address import TransportAddress
from relay.upgrade import TIMINGS

__all__ = ["LONGEST", "SHORTEST", "Standby"]

SHORTEST, LONGEST = 0.8, 1.2
"""RFC 7675, 5.1: "each interval MUST be randomized from between 0.8 and 1.2 times the basic period"."""

# One fails with its interface, the second may be another one's.
_PAIRS = 2

# One for all sessions that have learnt nothing: empty, and never written to.
_NOTHING_LEARNT: dict[TransportAddress, float] = {}


class Standby:
    """Keeps warm what stands by, and learns how often that is needed."""

    __slots__ = ("_checker", "_context", "_every_s", "_selection")

    def __init__(self, context: Context, checker: Checker, selection: Selection) -> None:
        self._context = context
        self._checker = checker
        self._selection = selection
        # Of the bases whose bindings are short.
        self._every_s = _NOTHING_LEARNT

    def keep(self, pair: CandidatePair, since: float, next_at: float, now: float) -> float:
        """Check what is due, beside a pair in use whose own check leaves now.

        Args:
            pair: in use.
            since: that is so.
            next_at: when this is called again anyway, at the latest.
            now: seconds.

        Returns:
            when it is to be called before that; infinity: it need not be.
        """
        flowed_at = max(pair.traffic.sent_at, pair.traffic.received_at, since)
        if not self._context.config.standby or now >= flowed_at + TIMINGS.keep_idle_s:
            return math.inf
        at = math.inf
        for each in self.pairs(pair, now):
            if now >= self._window(each, now)[0]:
                self._check(each, pair, now)
            earliest, latest = self._window(each, now)
            if latest < next_at:
                at = min(at, self._context.rng.uniform(max(earliest, now), latest))
        return at

    def pairs(self, pair: CandidatePair, now: float) -> list[CandidatePair]:
        """What stands by beside a pair in use: two that are valid. One leaves from another socket, if there is any, for
        what breaks is a network mostly; and one goes over a relay that this one does not need. Those that answer come
        before those that do not.
        """
        if not self._context.config.keep_pairs or pair.keys is not self._context.keys:
            return []
        valid = [each for each in self._selection.valid_pairs(pair.component) if each is not pair]
        if not valid:
            return []
        others = self._selection.preference.substitutes(pair, valid, now)
        others.sort(key=lambda each: self._is_silent(each, now))
        relay = next((each for each in others if each.is_beside(pair)), None)
        if relay is None or relay in others[:_PAIRS]:
            return others[:_PAIRS]
        return [*others[: _PAIRS - 1], relay]

    def note_mapping(self, pair: CandidatePair, before: TransportAddress, answered_at: float, now: float) -> None:
        """An answer shows that a pair has another mapped address than before, when it last answered."""
        seen = pair.valid_local
        is_port = seen is not None and seen.address.host == before.host
        if is_port and now <= answered_at + self._interval_s(pair) * LONGEST + TIMINGS.keep_again_latest_s:
            self._shorten(pair, "bindings seen to die")

    def forget(self, base: TransportAddress) -> None:
        """A socket is gone."""
        if base in self._every_s:
            del self._every_s[base]

    # --- inside --------------------------------------------------------------------------------------------------

    def _is_silent(self, pair: CandidatePair, now: float) -> bool:
        """Whether it was asked, and has not answered for so long that it has no consent any more."""
        return pair.is_unanswered and now >= pair.asked_at + self._context.config.consent_timeout_s

    def _check(self, each: CandidatePair, pair: CandidatePair, now: float) -> None:
        is_missed_again = each.is_unanswered and each.kept_at > each.asked_at
        if is_missed_again and pair.answered_at > each.asked_at and not self._is_silent(each, now):
            self._shorten(each, "standby checks missed in a row")
        each.kept_at = now
        self._checker.ask_for_consent(each, now)

    def _window(self, each: CandidatePair, now: float) -> tuple[float, float]:
        """From when until when its next check may leave."""
        last = max(each.kept_at, each.asked_at, each.answered_at)
        if each.is_unanswered and not self._is_silent(each, now):
            return last + TIMINGS.keep_again_s, last + TIMINGS.keep_again_latest_s
        # Who is silent altogether is asked on, in case it comes back, but needs no short intervals.
        interval_s = TIMINGS.keep_s if each.is_unanswered else self._interval_s(each)
        return last + interval_s * SHORTEST, last + interval_s * LONGEST

    def _interval_s(self, pair: CandidatePair) -> float:
        return self._every_s.get(pair.base, TIMINGS.keep_s)

    def _shorten(self, pair: CandidatePair, reason: str) -> None:
        shorter = next((s for s in TIMINGS.keep_short_s if s < self._interval_s(pair)), None)
        if shorter is not None:
            if self._every_s is _NOTHING_LEARNT:
                self._every_s = {}
            self._every_s[pair.base] = shorter
            self._context.counters[reason] += 1

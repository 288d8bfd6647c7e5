"""Does the peer still want our data?

RFC 7675, 5.1: while a pair carries data, a Binding request leaves every 4 … 6 s (each interval drawn anew), once
only, under a new transaction id. Only a valid response on that five-tuple renews consent; data, indications or the
peer's own requests do not. After 30 s without one, transmission stops and these credentials are dead on that
five-tuple.

Whenever it leaves, what stands by is checked with it, where that is due (``standby.py``).

Agents of one process send them together where their times allow (``wakeups.py``). DEVIATION from RFC 7675, 5.1, which
randomizes "to prevent synchronization"; pinned by test_agents_of_one_process_share_wake_ups.

A check of the peer's takes ours along where its time allows: both ends then wake up once to send and once for what
comes, instead of three times. Who is first stays first, and the other one's time is the last that the RFC allows.
DEVIATION from the same sentence, pinned by test_the_peers_check_takes_ours_along.

Being checks, they also keep NAT bindings alive, for some carriers drop a heartbeat that nobody answers, and measure
the round trip (DEVIATION from RFC 8445, 11, which sends indications; pinned by
test_consent_checks_are_sent_once_with_new_ids_and_do_not_nominate).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from iceagent.core.checker import Checker
from iceagent.core.context import Context
from iceagent.core.pair import CandidatePair
from iceagent.core.standby import LONGEST, SHORTEST, Standby
from iceagent.core.wakeups import WakeUps

__all__ = ["Consent", "ConsentListener"]

# RFC 8445, 11: Tr, for a lite agent, which asks nobody for consent and keeps its bindings alive by indications.
_LITE_KEEPALIVE_S = 15.0


@dataclass(slots=True)
class _Watch:
    """A pair in use.

    Attributes:
        since: that is so.
        keep_at: when what stands by is to be looked at, if no check leaves before.
    """

    next_at: float
    checked_at: float
    since: float
    keep_at: float = math.inf


class ConsentListener(Protocol):
    """Who hears of consent."""

    def consent_expired(self, pair: CandidatePair, now: float) -> None:
        """It ran out; once per pair."""

    def peer_asked(self, pair: CandidatePair, now: float) -> None:
        """The peer of a pair in use was asked."""


class Consent:
    """Keeps consent for the pairs that carry data.

    Args:
        wakeups: of all sessions of the process.
        standby: checks what stands by, whenever the peer is asked.
    """

    __slots__ = (
        "_checker",
        "_context",
        "_listener",
        "_standby",
        "_wakeups",
        "_watched",
    )

    def __init__(
        self,
        context: Context,
        checker: Checker,
        wakeups: WakeUps,
        standby: Standby,
        listener: ConsentListener,
    ) -> None:
        self._context = context
        self._checker = checker
        self._wakeups = wakeups
        self._standby = standby
        self._listener = listener
        self._watched: dict[CandidatePair, _Watch] = {}

    def watch(self, pair: CandidatePair, now: float) -> None:
        """Data goes there from now on; the response that made the pair valid is its consent."""
        if pair not in self._watched:
            self._watched[pair] = _Watch(self._next_at(now), now, now)

    def unwatch(self, pair: CandidatePair) -> None:
        """No data goes there any more."""
        watch = self._watched.pop(pair, None)
        if watch is not None:
            self._wakeups.leave(watch.next_at)

    def stop(self) -> None:
        """Watch nothing any more."""
        for pair in list(self._watched):
            self.unwatch(pair)

    def follow(self, pair: CandidatePair, now: float) -> bool:
        """The peer's own check came in on this pair; whether ours leaves with the answer, because its time allows."""
        config = self._context.config
        watch = self._watched.get(pair)
        if watch is None or not config.consent_follows or now < watch.checked_at + config.consent_interval_s * SHORTEST:
            return False
        self._wakeups.leave(watch.next_at)
        # The peer's next one comes before that, unless it is lost. With the longest of intervals, that would be when
        # consent expires.
        interval = config.consent_interval_s
        latest = min(now + interval * LONGEST, self._expires_at(pair) - interval * (LONGEST - 1))
        watch.next_at = max(latest, now + interval * SHORTEST)
        self._check(pair, watch, now)
        return True

    def handle_timeout(self, now: float) -> bool:
        """Send what is due, and report what expired; whether anything did."""
        has_expired = False
        for pair, watch in list(self._watched.items()):
            if self._context.config.lite:
                self._keep_alive(pair, watch, now)
            elif now >= self._expires_at(pair):
                self.unwatch(pair)
                has_expired = True
                self._listener.consent_expired(pair, now)
            elif now >= watch.next_at:
                watch.next_at = self._next_at(now)
                self._check(pair, watch, now)
            elif now >= watch.keep_at:
                watch.keep_at = self._standby.keep(pair, watch.since, watch.next_at, now)
        return has_expired

    def poll_timeout(self) -> float | None:
        """The next check or expiry."""
        deadline = math.inf
        for pair, watch in self._watched.items():
            deadline = min(deadline, watch.next_at, watch.keep_at, self._expires_at(pair))
        return None if deadline == math.inf else deadline

    def _keep_alive(self, pair: CandidatePair, watch: _Watch, now: float) -> None:
        """11: "All endpoints MUST send keepalives for each data session"."""
        if now >= watch.next_at:
            watch.next_at = now + _LITE_KEEPALIVE_S
            self._checker.indicate(pair)

    def _check(self, pair: CandidatePair, watch: _Watch, now: float) -> None:
        watch.checked_at = now
        self._listener.peer_asked(pair, now)
        self._checker.ask_for_consent(pair, now)
        watch.keep_at = self._standby.keep(pair, watch.since, watch.next_at, now)

    def _expires_at(self, pair: CandidatePair) -> float:
        if self._context.config.lite:
            return math.inf
        return pair.answered_at + self._context.config.consent_timeout_s

    def _next_at(self, now: float) -> float:
        config = self._context.config
        if config.lite:
            return now + _LITE_KEEPALIVE_S
        earliest, latest = now + config.consent_interval_s * SHORTEST, now + config.consent_interval_s * LONGEST
        at = self._context.rng.uniform(earliest, latest)
        return self._wakeups.join(at, earliest=earliest, latest=latest, slack_s=config.consent_slack_s, now=now)

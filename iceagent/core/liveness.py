"""Is the path that carries data alive, and where does data go when it is not?

``relay/upgrade.py`` decides, from when something was sent, heard, asked and answered; here it is shown the pairs, and
what it wants asked is asked. Checks that ask are ordinary Binding requests with a new transaction id each, sent once:
one on the pair in use, one on each that stands by.

DEVIATION: RFC 8445, 12.1 sends over the selected pair only, and RFC 7675, 5.1 has at least four seconds between the
checks for consent; these are none, for they are few, and an answer to one is one to the other. Pinned by
test_a_path_that_falls_silent_is_left_for_the_one_that_stands_by.

DEVIATION: RFC 8445, 14.2 paces all checks together; pinned by
test_a_question_does_not_wait_for_tokens_and_holds_up_nobody_for_long.
"""

from __future__ import annotations

import math
from typing import Protocol

from iceagent.core.checker import Checker, Purpose
from iceagent.core.context import Context
from iceagent.core.pair import CandidatePair
from iceagent.core.selection import Selection, as_path
from iceagent.core.standby import Standby
from iceagent.events import PathDoubted, PathTrusted, RestartAdvised
from relay.upgrade import TIMINGS, Decision, PathWatch, Verdict

__all__ = ["Liveness", "LivenessListener"]

_ELSEWHERE = "the peer sends over another path"
_REPORTED = "the application reports loss"
_PATHLESS = "no path is left"
_NOT_FOLLOWED = "the peer answers, and its data does not come"
# Who sent so long before its path was doubted sent until it died.
_UNTIL_S = 1.0


class LivenessListener(Protocol):
    """Who carries out what is decided."""

    def pair_died(self, pair: CandidatePair, decision: Decision, now: float) -> None:
        """It is to be left for another one."""

    def pair_fell_silent(self, pair: CandidatePair, reason: str, now: float) -> None:
        """Nothing answers, there and elsewhere."""


class Liveness:
    """Watches the pairs in use."""

    __slots__ = (
        "_checker",
        "_context",
        "_elsewhere_of",
        "_elsewhere_since",
        "_expected",
        "_listener",
        "_pathless",
        "_selection",
        "_standby",
        "_watches",
    )

    def __init__(
        self,
        context: Context,
        checker: Checker,
        selection: Selection,
        standby: Standby,
        listener: LivenessListener,
    ) -> None:
        self._context = context
        self._checker = checker
        self._selection = selection
        self._standby = standby
        self._listener = listener
        # For one component, a dict would be four times as large.
        self._watches: tuple[tuple[CandidatePair, PathWatch], ...] = ()
        # The pair in use that the peer's data does not come over, and since when.
        self._elsewhere_of: CandidatePair | None = None
        self._elsewhere_since = 0.0
        # Where the peer's data should come now, and since when.
        self._expected: tuple[CandidatePair, float] | None = None
        # A component that has no path any more, and since when.
        self._pathless: tuple[int, float] | None = None

    def watch(self, pair: CandidatePair, now: float) -> None:
        """Data goes there from now on."""
        if self._context.config.liveness and not self._context.config.lite:
            pair.traffic.is_asleep = True
            self._watches = (*self._watches, (pair, PathWatch(pair, now)))

    def unwatch(self, pair: CandidatePair) -> None:
        """No data goes there any more."""
        pair.is_silent = False
        self._watches = tuple(entry for entry in self._watches if entry[0] is not pair)

    def stop(self) -> None:
        """Watch nothing any more."""
        self._watches = ()
        self._expected = self._pathless = None

    def wake(self, pair: CandidatePair, now: float) -> None:
        """Data leaves again after a pause."""
        watch = self._watch_of(pair)
        if watch is not None:
            watch.wake(now)

    def doubt(self, pair: CandidatePair, reason: str, now: float, *, is_hearsay: bool = False) -> bool:
        """Something speaks against a pair; of one that is not in use, nothing follows. Whether an episode began."""
        watch = self._watch_of(pair)
        return watch is not None and self._doubt(pair, watch, reason, now, is_hearsay=is_hearsay)

    def in_doubt(self, pair: CandidatePair) -> bool:
        """Whether a pair in use has to prove that it works."""
        watch = self._watch_of(pair)
        return watch is not None and watch.in_doubt

    def on_data_elsewhere(self, pair: CandidatePair, other: CandidatePair, now: float) -> bool:
        """The peer's data comes over another pair than ours goes out on; called for every such datagram.

        Nothing may come over this one any more, so it is asked. If it answers, and the peer goes on like that, then it
        has left it for a reason that checks do not show; the controlling side follows.

        Returns:
            Whether something is to be decided.
        """
        watch = self._watch_of(pair)
        if watch is None:
            return False
        is_here = pair is not self._elsewhere_of or pair.traffic.received_at >= self._elsewhere_since
        if is_here or not self._selection.is_settled_on(pair):
            self._elsewhere_since, self._elsewhere_of = now, pair
        elif (
            self._context.controlling
            and now >= self._elsewhere_since + self._follow_s()
            and other in self._selection.alternatives(pair, now)
        ):
            decision = Decision(verdict=Verdict.MOVE, reason=_ELSEWHERE, to=other, since=now, is_reported=True)
            self._listener.pair_died(pair, decision, now)
            return True
        if now < watch.path.heard_at + TIMINGS.elsewhere_s:
            return False
        return self._doubt(pair, watch, _ELSEWHERE, now, is_hearsay=True)

    def report_loss(self, pair: CandidatePair, now: float) -> None:
        """The application's data does not get through, whatever is answered."""
        watch = self._watch_of(pair)
        if watch is not None:
            if not watch.in_doubt:
                self._tell_doubt(pair, _REPORTED)
            watch.report_loss(now)

    def expect_peer(self, left: CandidatePair, to: CandidatePair, since: float, now: float) -> None:
        """Data moved to a pair, because another one died; if the peer sent until then, it goes on, here or elsewhere.

        There are agents that answer every nomination and follow none that is worse (libnice): all that they send is
        lost then, and only a restart helps.
        """
        if left.traffic.received_at >= since - _UNTIL_S:
            self._expected = to, now

    def note_pathless(self, component: int, now: float) -> None:
        """No path is left. One may be found in a moment: on another interface, by a check of the peer's."""
        if not self._context.config.lite:
            self._pathless = component, now

    def note_data(self) -> None:
        """The peer's data comes."""
        self._expected = None

    def evaluate(self, now: float) -> None:
        """Ask, move, and tell."""
        if self._expected is not None and now >= self._expected[1] + TIMINGS.followed_s:
            (to, since), self._expected = self._expected, None
            # It may have moved on meanwhile.
            pair = next((each for each, _ in self._watches if each.component == to.component), None)
            if pair is not None and pair.traffic.received_at <= since:
                self._context.emit(RestartAdvised(component=pair.component, reason=_NOT_FOLLOWED))
        if self._pathless is not None and now >= self._pathless[1] + TIMINGS.pathless_s:
            (component, _), self._pathless = self._pathless, None
            if self._selection.current(component) is None:
                self._context.emit(RestartAdvised(component=component, reason=_PATHLESS))
        for pair, watch in self._watches:
            # Every look that is no STAY brings the next one nearer to it.
            while self._watch_of(pair) is watch and self._act(pair, watch, now):
                pass

    def poll_timeout(self) -> float | None:
        """When to look again."""
        at = min((watch.poll_timeout() for _, watch in self._watches), default=math.inf)
        if self._expected is not None:
            at = min(at, self._expected[1] + TIMINGS.followed_s)
        if self._pathless is not None:
            at = min(at, self._pathless[1] + TIMINGS.pathless_s)
        return None if at == math.inf else at

    def _follow_s(self) -> float:
        return TIMINGS.follow_s if self._context.remote_knows_messages else TIMINGS.follow_others_s

    def _doubt(self, pair: CandidatePair, watch: PathWatch, reason: str, now: float, *, is_hearsay: bool) -> bool:
        has_begun = watch.doubt(reason, now, is_hearsay=is_hearsay)
        if has_begun:
            self._tell_doubt(pair, reason)
        return has_begun

    def _tell_doubt(self, pair: CandidatePair, reason: str) -> None:
        self._context.counters["paths doubted"] += 1
        self._context.emit(PathDoubted(component=pair.component, path=as_path(pair), reason=reason))

    def _watch_of(self, pair: CandidatePair) -> PathWatch | None:
        return next((watch for each, watch in self._watches if each is pair), None)

    def _act(self, pair: CandidatePair, watch: PathWatch, now: float) -> bool:
        """One look; whether it is worth another one."""
        was_in_doubt = watch.in_doubt
        others = self._selection.alternatives(pair, now)
        if watch.is_reported:
            # What ate data a moment ago answers as well.
            others = [each for each in others if now >= each.reported_until]
        decision = watch.look(others, now)
        pair.traffic.is_asleep = not watch.is_awake
        if decision.verdict is Verdict.STAY:
            return False
        if watch.in_doubt and not was_in_doubt:
            self._tell_doubt(pair, decision.reason)
        if decision.verdict is Verdict.ASK:
            for each in (pair, *self._standby.pairs(pair, now)):
                self._checker.check(each, Purpose.DOUBT, now)
        elif decision.verdict is Verdict.TRUST:
            pair.is_silent = False
            self._context.emit(PathTrusted(component=pair.component, path=as_path(pair), reason=decision.reason))
        elif decision.verdict is Verdict.MOVE:
            self._listener.pair_died(pair, decision, now)
        elif decision.verdict is Verdict.STUCK:
            self._context.emit(RestartAdvised(component=pair.component, reason=decision.reason))
        else:
            pair.is_silent = True
            self._listener.pair_fell_silent(pair, decision.reason, now)
        return True

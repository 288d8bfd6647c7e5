"""Is there a better path than the one in use by now?

A firewall is opened, a NAT forgets, somebody walks back into the office: nobody tells. So, while data flows, single
checks leave on the pairs that would be better if they worked, for as long as the session lives; ``relay/upgrade.py``
says when. Both ends do, and each check opens what is in front of its sender for half a minute: whichever comes second
arrives. What is answered becomes a valid pair, which the controlling side nominates.

DEVIATION: RFC 8445, 8.1.2 and 8.3 end all checks once a pair is nominated; pinned by
test_a_relay_is_left_as_soon_as_a_direct_path_works.
"""

from __future__ import annotations

import math

from iceagent.core.checklist import CheckList
from iceagent.core.context import Context
from iceagent.core.pair import CandidatePair, PairState
from iceagent.core.scheduler import Scheduler
from iceagent.core.selection import Selection
from relay.upgrade import TIMINGS, Search

__all__ = ["MAX_LOOKS", "Searches"]

MAX_LOOKS = 10
"""Pairs that are looked at together, the best ones: with the pauses between, four packets a second at most."""


class Searches:
    """One for each component that has a path."""

    __slots__ = ("_checklist", "_context", "_scheduler", "_searches", "_selection")

    def __init__(self, context: Context, selection: Selection, scheduler: Scheduler) -> None:
        self._context = context
        self._selection = selection
        self._scheduler = scheduler
        self._checklist: CheckList | None = None
        # Of the pairs in use over which data went; for one component, a dict would be four times as large.
        self._searches: tuple[tuple[CandidatePair, Search], ...] = ()

    def use(self, checklist: CheckList) -> None:
        """A new generation begins."""
        self._checklist = checklist
        self._searches = ()

    def wake(self, pair: CandidatePair, now: float) -> None:
        """Data leaves on a pair again after a pause, or consent is looked after: who only hears sends no data."""
        config = self._context.config
        if not config.liveness or not config.renomination or config.lite:
            # Nothing better could be nominated.
            return
        flowed_at = _flowed_at(pair)
        if not flowed_at or now >= flowed_at + TIMINGS.search_idle_s:
            return
        search = next((search for each, search in self._searches if each is pair), None)
        if search is None:
            search = Search(now, is_relayed=pair.is_relayed)
            self._searches = (*self._searches, (pair, search))
        search.wake(now)

    def evaluate(self, now: float) -> None:
        """Look, where it is time."""
        if not self._searches:
            return
        currents = self._selection.currents()
        self._searches = tuple(entry for entry in self._searches if entry[0] in currents)
        looks = [
            better
            for pair, search in self._searches
            if search.is_due(_flowed_at(pair), now)
            for better in self._better(pair)
        ]
        if looks:
            self._context.counters["checks in search of a better path"] += len(looks)
            self._scheduler.look(looks)

    def poll_timeout(self) -> float | None:
        """When it may be time."""
        at = min((search.poll_timeout() for _, search in self._searches), default=math.inf)
        return None if at == math.inf else at

    def _better(self, current: CandidatePair) -> list[CandidatePair]:
        wanted = [
            pair
            for pair in self._checklist or ()
            if pair.component == current.component
            and pair.state in (PairState.FAILED, PairState.IN_PROGRESS)
            and not (pair.is_valid or pair.dead or self._scheduler.is_quiet(pair.base))
            and pair.priority > current.rank
        ]
        return sorted(wanted, key=lambda pair: pair.order, reverse=True)[:MAX_LOOKS]


def _flowed_at(pair: CandidatePair) -> float:
    """When data last went either way."""
    return max(pair.traffic.sent_at, pair.traffic.received_at)

"""Is there a better path than the one in use by now?

A firewall is opened, a NAT forgets, somebody walks back into the office: nobody tells. So, while data flows, single
checks leave on the pairs that would be better if they worked, for as long as the session lives; ``relay/upgrade.py``
says when. Both ends do, and each check opens what is in front of its sender for half a minute: whichever comes second
arrives. A peer that knows path messages is told, and both look at the same time, twice: there are firewalls and NATs
that a packet which comes too early closes. What is answered becomes a valid pair, which the controlling side nominates.

DEVIATION: RFC 8445, 8.1.2 and 8.3 end all checks once a pair is nominated; pinned by
test_a_path_survives.
"""

from __future__ import annotations

import math
from typing import Protocol

from iceagent.core.checklist import CheckList
from iceagent.core.context import Context
from iceagent.core.pair import CandidatePair, PairState
from iceagent.core.scheduler import Scheduler
from iceagent.core.selection import Selection
from iceagent.events import BetterPathSought
from relay.upgrade import TIMINGS, Search

__all__ = ["MAX_LOOKS", "SearchListener", "Searches"]

MAX_LOOKS = 10
"""Pairs that are looked at together, the best ones: with the pauses between, four packets a second at most,
eight where the peer looks, too."""


SECOND_LOOK_S = 0.150
"""After the first, where both ends look together: their clocks and half round trips differ."""


class SearchListener(Protocol):
    """Who may have the peer look, too."""

    def announce_search(self, pair: CandidatePair, now: float) -> float | None:
        """Better pairs than this one, which is in use, are about to be looked at; when the peer does; ``None``: it does
        not.
        """


class Searches:
    """One for each component that has a path."""

    __slots__ = ("_checklist", "_context", "_listener", "_planned", "_scheduler", "_searches", "_selection")

    def __init__(
        self,
        context: Context,
        selection: Selection,
        scheduler: Scheduler,
        listener: SearchListener,
    ) -> None:
        self._context = context
        self._listener = listener
        self._selection = selection
        self._scheduler = scheduler
        self._checklist: CheckList | None = None
        # Of the pairs in use over which data went; for one component, a dict would be four times as large.
        self._searches: tuple[tuple[CandidatePair, Search], ...] = ()
        # When to look, together with the peer.
        self._planned: tuple[float, ...] = ()

    def use(self, checklist: CheckList) -> None:
        """A new generation begins."""
        self._checklist = checklist
        self._searches = ()
        self._planned = ()

    def join(self, at: float, now: float) -> None:
        """The peer looks then, and once more; so do we."""
        config = self._context.config
        if config.lite or not (config.liveness and config.renomination):
            return
        self._planned = (at, at + SECOND_LOOK_S)
        for _, search in self._searches:
            search.looked(now)

    def hasten(self, now: float) -> None:
        """Something new may have made a better path."""
        for _, search in self._searches:
            search.hasten(now)

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
        if not (self._searches or self._planned):
            return
        currents = self._selection.currents()
        self._searches = tuple(entry for entry in self._searches if entry[0] in currents)
        looks: list[CandidatePair] = []
        for pair, search in self._searches:
            if not search.is_due(_flowed_at(pair), now):
                continue
            if pair.is_relayed:
                self._context.emit(BetterPathSought(component=pair.component))
            better = self._better(pair)
            at = self._listener.announce_search(pair, now) if better else None
            if at is None:
                looks += better
            else:
                self._planned = (at, at + SECOND_LOOK_S)
        if self._planned and now >= self._planned[0]:
            self._planned = self._planned[1:]
            looks = [better for pair in currents for better in self._better(pair)]
        if looks:
            self._context.counters["checks in search of a better path"] += len(looks)
            self._scheduler.look(looks)

    def poll_timeout(self) -> float | None:
        """When it may be time."""
        at = min((search.poll_timeout() for _, search in self._searches), default=math.inf)
        at = min((at, *self._planned))
        return None if at == math.inf else at

    def _better(self, current: CandidatePair) -> list[CandidatePair]:
        wanted = [
            pair
            for pair in self._checklist or ()
            if pair.component == current.component
            and pair.state in (PairState.FAILED, PairState.IN_PROGRESS)
            and not (pair.is_valid or pair.dead or self._scheduler.is_quiet(pair.base))
            and self._selection.preference.might_better(pair, current)
        ]
        return sorted(wanted, key=lambda pair: pair.order, reverse=True)[:MAX_LOOKS]


def _flowed_at(pair: CandidatePair) -> float:
    """When data last went either way."""
    return max(pair.traffic.sent_at, pair.traffic.received_at)

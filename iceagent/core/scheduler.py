"""Which check leaves now, and when is the next look?

The order of RFC 8445, 6.1.4.2, with nominations in front: nominations, the triggered-check queue, then the best
Waiting pair. When nothing of that waits and tokens are left over, a pair that has not answered gets an *early* new
check 100, 200 and 400 ms after its first (``Config.early_checks_s``): a lost first packet then costs 100 ms instead
of an RTO of 500 ms.

The first check to a reflexive address has an *opener* in front of it, where there are tokens for both and for whatever
else waits, or at the cost of the next, three times; and so have its early checks, each one hop farther
(``nat/openers.py`` says why). Between an opener and its check others have their turn.

A base that was re-rolled (``reroll.py``) sends openers *only*, until the peer's check arrives on it. The first of them
leave before the peer is told of it, whatever is in the agent's bucket; it is overdrawn then.

DEVIATION: 6.1.4.2 checks a Waiting pair whenever Ta fires; pinned by
test_openers_go_before_the_first_check_and_farther_before_each_early_one and
test_a_new_socket_sends_openers_and_no_check.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from iceagent.candidate import CandidateType
from iceagent.core.checker import Checker, Purpose
from iceagent.core.checklist import CheckList
from iceagent.core.context import Context
from iceagent.core.pacing import CheckPacer, RemoteBudget
from iceagent.core.pair import CandidatePair, PairState
from iceagent.core.selection import Selection
from iceagent.nat import openers
from iceagent.net.address import TransportAddress

__all__ = ["Scheduler"]

# An early check that found no spare token within this time of its due time is not worth sending any more.
_EARLY_PATIENCE_S = 0.3
# With two addresses a side there are four pairs between reflexive addresses; the last check of all waits for so many
# tokens more.
_MAX_DELAYING = 3


# One for all agents that need none: empty, and never written to.
_NO_BASES: frozenset[TransportAddress] = frozenset()
_NO_PAIRS: dict[CandidatePair, float] = {}


class Scheduler:
    """Sends checks as fast as pacing allows, and no faster."""

    __slots__ = (
        "_budget",
        "_budget_at",
        "_checker",
        "_checklist",
        "_context",
        "_deferred",
        "_delaying",
        "_early",
        "_looks",
        "_opened",
        "_opened_at",
        "_pacer",
        "_quiet",
        "_quiet_at",
        "_selection",
        "_token_at",
    )

    def __init__(
        self,
        context: Context,
        checker: Checker,
        selection: Selection,
        budget: RemoteBudget,
        pacer: CheckPacer,
    ) -> None:
        self._context = context
        self._checker = checker
        self._selection = selection
        self._budget = budget
        self._pacer = pacer
        self._checklist: CheckList | None = None
        self._early: list[tuple[float, int, CandidatePair, float]] = []
        self._deferred: dict[CandidatePair, float] = {}
        # Single checks that wait for a token each.
        self._looks: tuple[CandidatePair, ...] = ()
        # Pairs whose opener has left, and when their check follows.
        self._opened = _NO_PAIRS
        # Openers that cost another check its token.
        self._delaying = 0
        # Bases that send openers only.
        self._quiet = _NO_BASES
        self._quiet_at: float | None = None
        self._token_at: float | None = None
        self._budget_at: float | None = None
        self._opened_at: float | None = None

    def use(self, checklist: CheckList) -> None:
        """A new generation begins."""
        self._checklist = checklist
        self._early.clear()
        self._deferred.clear()
        self._looks = ()
        self._opened = _NO_PAIRS
        self._delaying = 0
        self._quiet = _NO_BASES

    def trigger_at(self, pair: CandidatePair, at: float) -> None:
        """Trigger a check of an In-Progress pair later, unless it is answered by then."""
        self._deferred.setdefault(pair, at)

    def look(self, pairs: Sequence[CandidatePair]) -> None:
        """Send one check on each of these pairs, that nothing follows; what still waits of earlier ones does not."""
        self._looks = tuple(pairs)

    def use_openers_only(self, base: TransportAddress) -> None:
        """No check leaves from this base until :meth:`release`."""
        self._quiet |= {base}

    def release(self, base: TransportAddress) -> None:
        """The peer's check arrived there, or the base is gone."""
        if base in self._quiet:
            self._quiet -= {base}

    def is_quiet(self, base: TransportAddress) -> bool:
        """Whether a base sends openers only."""
        return base in self._quiet

    def set_ta(self, ta_s: float) -> None:
        """Both sides' pacing is known."""
        self._pacer.set_ta(ta_s)

    def run(self, now: float) -> None:
        """Send what may leave."""
        self._token_at = self._budget_at = self._opened_at = self._quiet_at = None
        if self._context.keys is None or self._context.config.lite or self._checklist is None:
            return
        self._trigger_deferred(self._checklist, now)
        if self._quiet:
            self._send_openers(self._checklist, now)
        while self._send_next(self._checklist, now):
            pass
        # Those that are due and are still here wait for a token.
        self._opened_at = min((at for at in self._opened.values() if at > now), default=None)
        while self._early and self._early[0][0] + _EARLY_PATIENCE_S < now:
            heapq.heappop(self._early)
        if self._token_at is None:
            self._send_early(self._checklist, now)
        if self._looks:
            self._send_looks(self._checklist, now)

    def poll_timeout(self) -> float | None:
        """When something is due; early checks have no turn before everything else had its token."""
        deferred_at = min(self._deferred.values(), default=None)
        early_at = self._early[0][0] if self._early and self._token_at is None else None
        times = (self._token_at, self._budget_at, self._opened_at, self._quiet_at, deferred_at, early_at)
        return min((at for at in times if at is not None), default=None)

    def exhausted(self, pair: CandidatePair, now: float) -> bool:
        """Whether this pair waits only because its address never answered, or for the peer's check."""
        return pair.base in self._quiet or not self._budget.allows(pair.destination, now)

    # --- inside --------------------------------------------------------------------------------------------------

    def _trigger_deferred(self, checklist: CheckList, now: float) -> None:
        for pair in [pair for pair, at in self._deferred.items() if at <= now]:
            del self._deferred[pair]
            if pair.state is PairState.IN_PROGRESS and checklist.find(*pair.key) is pair:
                self._checker.quiet(pair)
                checklist.trigger(pair)

    def _send_next(self, checklist: CheckList, now: float) -> bool:
        """Send one check; false when none is wanted or none may leave."""
        nomination = self._selection.next_nomination()
        triggered = checklist.next_triggered()
        pair = nomination or triggered or self._next_opened(checklist, now)
        urgent = pair is not None
        if pair is None:
            if not self._pacer.may_send(now, urgent=False) and checklist.has_unchecked:
                # Which one it will be is decided when it may leave.
                self._token_at = self._pacer.ready_at(now, urgent=False)
                return False
            pair = checklist.next_ordinary(lambda p: p not in self._opened and self._is_wanted(p, now))
        if pair is None:
            self._wait_for_budget(checklist, now)
            return False
        if not self._pacer.may_send(now, urgent=urgent):
            self._token_at = self._pacer.ready_at(now, urgent=urgent)
            return False
        if not urgent and self._open(pair, checklist, now):
            return True
        self._pacer.take(now)
        if nomination is not None:
            value = self._selection.take_nomination(nomination, now)
            self._checker.check(nomination, Purpose.NOMINATION, now, value)
        else:
            self._opened.pop(pair, None)
            checklist.untrigger(pair)
            checklist.set_state(pair, PairState.IN_PROGRESS)
            self._checker.check(pair, Purpose.TRIGGERED if pair is triggered else Purpose.ORDINARY, now)
        self._plan_early(pair, now, now)
        return True

    def _is_wanted(self, pair: CandidatePair, now: float) -> bool:
        is_held = pair.dead or pair.base in self._quiet
        return not is_held and self._selection.wants(pair) and self._budget.allows(pair.destination, now)

    def _wait_for_budget(self, checklist: CheckList, now: float) -> None:
        """Pairs held back by limit 3 of ``pacing.py`` are looked at again when the first of them may go on."""
        waiting = (
            self._budget.next_at(p.destination, now)
            for p in checklist
            if p.state is PairState.WAITING and not p.dead and p.base not in self._quiet and self._selection.wants(p)
        )
        self._budget_at = min((at for at in waiting if at > now), default=None)

    def _send_looks(self, checklist: CheckList, now: float) -> None:
        for number, pair in enumerate(self._looks):
            if pair.is_valid or pair.dead or checklist.find(*pair.key) is not pair:
                continue
            if self._token_at is not None or not self._pacer.may_send(now, urgent=False):
                self._token_at = self._token_at or self._pacer.ready_at(now, urgent=False)
                self._looks = self._looks[number:]
                return
            self._pacer.take(now)
            self._budget.grant(pair.destination, now)
            self._checker.check(pair, Purpose.SEARCH, now)
        self._looks = ()

    # --- openers -------------------------------------------------------------------------------------------------

    def _next_opened(self, checklist: CheckList, now: float) -> CandidatePair | None:
        """The first pair whose opener had its time; one that needs no check any more is forgotten."""
        for pair, at in list(self._opened.items()):
            if at > now:
                continue
            is_listed = checklist.find(*pair.key) is pair and pair.state is PairState.WAITING
            if is_listed and self._is_wanted(pair, now):
                return pair
            del self._opened[pair]
        return None

    def _open(self, pair: CandidatePair, checklist: CheckList, now: float) -> bool:
        """Send the opener before a pair's first check, which follows; false: none is needed, or it has no token."""
        if pair.openers or pair.check_started_at is not None or not self._has_opener(pair, checklist):
            return False
        if not self._budget.may_open(pair.destination):
            return False
        waiting = sum(p.state is PairState.WAITING and self._is_wanted(p, now) for p in checklist)
        if not self._pacer.may_open(now, waiting):
            # It takes the token of one that waits behind it.
            if self._delaying == _MAX_DELAYING or not self._pacer.may_open(now, waiting=1):
                return False
            self._delaying += 1
        self._send_opener(pair, now)
        if self._opened is _NO_PAIRS:
            self._opened = {}
        self._opened[pair] = now + openers.lead_s(self._context.ta_s)
        return True

    def _send_openers(self, checklist: CheckList, now: float) -> None:
        """Those that no check follows, of pairs of quiet bases, best pairs first."""
        delays = self._context.config.early_checks_s
        quiet = [p for p in checklist if p.base in self._quiet and openers.is_outside(p.remote)]
        wanted = [p for p in quiet if not p.dead and self._selection.wants(p) and self._budget.may_open(p.destination)]
        for pair in sorted(wanted, key=lambda p: p.order, reverse=True):
            at = now if pair.opened_at is None else openers.repeat_at(pair.openers, pair.opened_at, delays)
            if at is None:
                continue
            if at <= now:
                may_leave = self._pacer.may_send(now, urgent=False)
                if may_leave or (not pair.openers and self._pacer.may_lend(now)):
                    self._send_opener(pair, now)
                    at = openers.repeat_at(pair.openers, now, delays)
                else:
                    at = self._pacer.ready_at(now, urgent=False)
            if at is not None:
                self._quiet_at = at if self._quiet_at is None else min(self._quiet_at, at)

    def _has_opener(self, pair: CandidatePair, checklist: CheckList) -> bool:
        context = self._context
        is_asked_for = context.config.openers and not context.remote_lite
        # From a relayed address there is nothing to open.
        is_relayed = pair.local.type is CandidateType.RELAYED
        if not is_asked_for or is_relayed or not openers.is_wanted(pair.base, pair.remote.type):
            return False
        return not openers.has_many_ports(pair.remote, checklist.remotes(pair.component))

    def _send_opener(self, pair: CandidatePair, now: float) -> None:
        ttl = openers.opener_ttl(pair.openers)
        if ttl is not None:
            self._pacer.take(now)
            self._budget.opened(pair.destination, now)
            self._checker.indicate(pair, ttl)
            self._context.counters["openers sent"] += 1
            pair.openers += 1
            pair.opened_at = now

    # --- early checks --------------------------------------------------------------------------------------------

    def _plan_early(self, pair: CandidatePair, started_at: float, now: float) -> None:
        delays = self._context.config.early_checks_s
        if pair.early_checks < len(delays):
            due = max(started_at + delays[pair.early_checks], now)
            heapq.heappush(self._early, (due, pair.number, pair, started_at))

    def _send_early(self, checklist: CheckList, now: float) -> None:
        while self._early and self._early[0][0] <= now:
            due, number, pair, started_at = heapq.heappop(self._early)
            check = self._checker.main_check(pair)
            is_answered = check is None or pair.check_started_at != started_at or checklist.find(*pair.key) is not pair
            if is_answered or not self._budget.allows(pair.destination, now, early=True):
                continue
            if not self._pacer.may_send(now, urgent=False):
                if now < due + _EARLY_PATIENCE_S:
                    at = self._pacer.ready_at(now, urgent=False)
                    heapq.heappush(self._early, (at, number, pair, started_at))
                continue
            assert check is not None
            if pair.openers and self._pacer.may_open(now, waiting=1) and self._budget.may_open(pair.destination):
                self._send_opener(pair, now)
            self._pacer.take(now)
            pair.early_checks += 1
            self._checker.check(pair, Purpose.EARLY, now, check.nomination)
            self._plan_early(pair, started_at, now)

"""Which parts does a session have, what becomes of its pairs, and when does it decide?

:class:`Engine` makes the parts of this folder and hears what they find out: a check was answered or not, a pair died or
fell silent, consent ended, data moved. After an input it *decides*: which pair to nominate, which checks may leave,
what the session's state is. Routine traffic changes nothing of that, and nothing is decided anew before the next time
that the last decision named. What the peer says is in ``peer_side.py``, what the application says in ``session.py``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from random import Random

from iceagent.candidate import Candidate
from iceagent.config import Config
from iceagent.core.checker import Check, Checker
from iceagent.core.checklist import CheckList
from iceagent.core.consent import Consent
from iceagent.core.context import Context
from iceagent.core.held import Held
from iceagent.core.liveness import Liveness
from iceagent.core.locals import Locals
from iceagent.core.pacing import CheckPacer, RemoteBudget, TokenBucket
from iceagent.core.pair import CandidatePair, PairState
from iceagent.core.path_talk import PathTalk
from iceagent.core.peers import Peers
from iceagent.core.remotes import Remotes
from iceagent.core.reroll import Reroll
from iceagent.core.scheduler import Scheduler
from iceagent.core.search import Searches
from iceagent.core.selection import Selection, as_path
from iceagent.core.standby import Standby
from iceagent.core.status import Status
from iceagent.core.wakeups import WakeUps
from iceagent.events import (
    AgentState,
    PeerClosed,
    RestartAdvised,
    RoleChanged,
    SelectedPathChanged,
)
from iceagent.net.address import TransportAddress
from relay.upgrade import Decision

__all__ = ["Engine"]


class Engine(ABC):
    """The parts of a session, and what they tell each other; see :class:`iceagent.core.session.IceSession`."""

    __slots__ = (
        "_budget",
        "_checker",
        "_checklist",
        "_clocks",
        "_consent",
        "_context",
        "_deadline",
        "_decide_at",
        "_held",
        "_is_life_next",
        "_liveness",
        "_locals",
        "_peers",
        "_preferred_host",
        "_remotes",
        "_reroll",
        "_scheduler",
        "_searches",
        "_selection",
        "_standby",
        "_status",
        "_talk",
        "_unpaired",
        "config",
    )

    def __init__(
        self,
        *,
        config: Config,
        controlling: bool,
        rng: Random,
        system_rng: Random,
        ceiling: TokenBucket | None,
        wakeups: WakeUps | None,
        preferred_host: Callable[[TransportAddress], str | None],
    ) -> None:
        self.config = config
        self._context = Context(
            config=config,
            rng=rng,
            system_rng=system_rng,
            controlling=controlling,
            tie_breaker=system_rng.getrandbits(64),
            ta_s=config.ta_s,
        )
        self._preferred_host = preferred_host if config.route_order else _from_anywhere
        self._budget = RemoteBudget()
        self._locals = Locals()
        self._checklist = CheckList(self._context, self._preferred_host, self)
        self._checker = Checker(self._context, self._checklist, self._budget, self._locals, self)
        self._selection = Selection(self._context, self)
        self._standby = Standby(self._context, self._checker, self._selection)
        wakeups = WakeUps() if wakeups is None else wakeups
        self._consent = Consent(self._context, self._checker, wakeups, self._standby, self)
        self._liveness = Liveness(self._context, self._checker, self._selection, self._standby, self)
        self._selection.use(self._checklist)
        self._held = Held(self._context)
        self._peers = Peers(self._context, self._held)
        # RFC 8445, 14.2: one transaction per 5 ms, of all agents together; without a shared bucket there is but this
        # one.
        pacer = CheckPacer(ceiling or TokenBucket(rate=1000, capacity=1000), burst=config.burst, ta_s=config.ta_s)
        self._scheduler = Scheduler(self._context, self._checker, self._selection, self._budget, pacer)
        self._scheduler.use(self._checklist)
        self._reroll = Reroll(self._context, self._selection, self._locals)
        self._reroll.use(self._checklist)
        self._status = Status(self._context, self._selection)
        self._remotes = Remotes(self._context, self._held, self._locals, self._budget)
        self._searches = Searches(self._context, self._selection, self._scheduler, self)
        self._searches.use(self._checklist)
        self._talk = PathTalk(
            self._context, self._checker, self._selection, self._liveness, self._searches, self._remotes, self
        )
        self._talk.use(self._checklist)
        # Relayed candidates that were announced a moment ago, and when they are paired.
        self._unpaired: tuple[tuple[float, Candidate], ...] = ()
        # Whose time passes without any decision, too.
        self._clocks = (self._checker, self._consent, self._held, self._status, self._talk, self._liveness)
        # When the last decisions must be looked at again, whatever happens until then.
        self._decide_at = -math.inf
        self._deadline: float | None = None
        self._is_life_next = False

    def current(self, component: int = 1) -> CandidatePair | None:
        """The pair that data goes out on."""
        return self._selection.current(component)

    # --- outcomes of our checks ----------------------------------------------------------------------------------

    def check_succeeded(self, check: Check, now: float) -> None:
        pair = check.pair
        self._talk.handle_success(check, now)
        if check.nomination is None and pair.traffic.has_answered and self._selection.is_settled_on(pair):
            return
        self._peers.allow(pair.base, pair.destination, pair.component, now, pair, is_answer=True)
        if pair.keys is not self._context.keys:
            return
        self._selection.on_valid(pair, now)
        if self._selection.selected(pair.component) is None or self._selection.has_rival(pair, now):
            # Nothing is settled, or this one is better.
            self._decide_at = -math.inf
        if check.nomination is not None:
            self._selection.on_nomination_answered(pair, check.nomination, now)

    def check_failed(self, check: Check, reason: str, now: float) -> None:
        pair = check.pair
        if pair.keys is not self._context.keys:
            return
        if pair is self.current(pair.component) and check.nomination is None:
            # An earlier check proved it; a recheck that was lost leaves it to consent.
            self._checklist.set_state(pair, PairState.SUCCEEDED)
            return
        self._status.note_failure(pair, reason)
        self._selection.on_failed(pair, now)
        if not pair.is_valid:
            self._checklist.untrigger(pair)
            self._checklist.set_state(pair, PairState.FAILED)

    def nomination_unanswered(self, pair: CandidatePair, now: float) -> None:
        self._checker.forget(pair)
        self._selection.on_lost(pair, "its nomination was not answered", now)
        self._checklist.set_state(pair, PairState.FAILED)

    def role_conflicted(self, check: Check, now: float) -> None:
        """7.2.5.1: the peer has our role and won the tie-break."""
        if check.controlling == self._context.controlling:
            self.switch_role(not check.controlling, "the peer answered role conflict", now)
            self._context.tie_breaker = self._context.system_rng.getrandbits(64)
        if check.pair.state is not PairState.SUCCEEDED and check.pair.keys is self._context.keys:
            self.check_again(check.pair)

    def switch_role(self, controlling: bool, reason: str, now: float) -> None:
        self._context.controlling = controlling
        self._checklist.rerank()
        self._selection.on_role()
        self._context.emit(RoleChanged(controlling=controlling, reason=reason))
        self._decide_at = -math.inf

    def pair_selected(self, selected: CandidatePair) -> None:
        """8.1.2: checks that can improve nothing any more are not repeated; the valid pairs are kept (or not,
        8.3.1).
        """
        if not self.config.keep_pairs:
            self._free_others(selected)
        for pair in self._checklist:
            is_idle = pair.state is not PairState.IN_PROGRESS or pair is selected
            if pair.component == selected.component and not is_idle and not self._selection.wants(pair):
                self._checker.quiet(pair)
                self._checklist.set_state(pair, PairState.WAITING)

    def pair_discarded(self, pair: CandidatePair) -> None:
        self._checker.forget(pair)

    def _free_others(self, selected: CandidatePair) -> None:
        """8.3.1: free what was not selected."""
        self._checklist.retain(lambda pair: pair is selected or pair.component != selected.component)

    # --- paths ---------------------------------------------------------------------------------------------------

    def path_moved(self, old: CandidatePair | None, new: CandidatePair | None, now: float) -> None:
        if old is not None:
            self._consent.unwatch(old)
            self._liveness.unwatch(old)
            if old.keys is not self._context.keys:
                self._checker.forget(old)
        if new is None and old is not None:
            self._recheck(old.component)
            self._liveness.note_pathless(old.component, now)
        elif new is not None:
            self._consent.watch(new, now)
            self._liveness.watch(new, now)
            self._talk.on_path(new, now)

    def peer_asked(self, pair: CandidatePair, now: float) -> None:
        self._searches.wake(pair, now)
        at = self._searches.poll_timeout()
        if at is not None:
            self._decide_at = min(self._decide_at, at)

    def pair_remapped(self, pair: CandidatePair, former: Candidate, answered_at: float, now: float) -> None:
        """Our NAT gave us another address; the peer sends there by now, or will."""
        self._standby.note_mapping(pair, former.address, answered_at, now)
        path = as_path(pair)
        if path is not None and pair is self.current(pair.component):
            old = replace(path, local=former)
            reason = "the peer sees another address of ours"
            self._context.emit(SelectedPathChanged(component=pair.component, old=old, new=path, reason=reason))

    def _recheck(self, component: int) -> None:
        """Nothing in use is known to work any more: whatever is left is tried again."""
        for pair in self._checklist:
            is_held = pair.dead or self._scheduler.is_quiet(pair.base)
            if pair.component == component and not is_held and pair is not self.current(component):
                self.check_again(pair)

    def pair_died(self, pair: CandidatePair, decision: Decision, now: float) -> None:
        """It does not answer, another one does; it may come back. What else shares an end with it has to prove that it
        works.
        """
        self._checker.quiet(pair)
        self._status.note_failure(pair, decision.reason)
        for each in self._selection.leave(pair, decision, now):
            self._checklist.trigger(each)
        to = self.current(pair.component)
        if to is not None:
            self._liveness.expect_peer(pair, to, decision.since, now)
        # One of the generation before stands in no list.
        if pair.keys is self._context.keys:
            self._checklist.set_state(pair, PairState.FAILED)

    def pair_fell_silent(self, pair: CandidatePair, reason: str, now: float) -> None:
        """Nothing answers. Data goes on over the last pair until consent ends; whatever there is is tried again."""
        self._status.move(AgentState.DISCONNECTED, reason)
        self._recheck(pair.component)
        self._context.emit(RestartAdvised(component=pair.component, reason=reason))

    def nomination_superseded(self, pair: CandidatePair) -> None:
        """See :class:`iceagent.core.selection.SelectionListener`."""
        self._checker.quiet(pair)

    def announce_search(self, pair: CandidatePair, now: float) -> float | None:
        """See :class:`iceagent.core.search.SearchListener`."""
        return self._talk.announce_search(pair, now)

    # --- what the peer tells over paths (SessionPart) ------------------------------------------------------------

    def check_again(self, pair: CandidatePair) -> None:
        """See :class:`iceagent.core.path_talk.SessionPart`."""
        self._checker.quiet(pair)
        self._checklist.trigger(pair)

    def end_by_peer(self, now: float) -> None:
        """See :class:`iceagent.core.path_talk.SessionPart`."""
        reason = "the peer has closed"
        self._checklist.is_over = True
        currents = self._selection.currents()
        for pair in (*self._checklist, *currents):
            # What it said before is still on its way, perhaps.
            pair.dead = True
            self._checker.forget(pair)
            self._checklist.untrigger(pair)
            if pair.keys is self._context.keys:
                self._checklist.set_state(pair, PairState.FAILED)
        for pair in currents:
            self._selection.on_lost(pair, reason, now)
        self._liveness.stop()
        self._context.emit(PeerClosed(reason=reason))
        self._status.move(AgentState.FAILED, reason)

    # --- ends ----------------------------------------------------------------------------------------------------

    def consent_expired(self, pair: CandidatePair, now: float) -> None:
        self._on_consent_ended(pair, "consent expired", now)

    def consent_revoked(self, pair: CandidatePair, now: float) -> None:
        self._on_consent_ended(pair, "the peer revoked consent", now)

    def _on_consent_ended(self, pair: CandidatePair, reason: str, now: float) -> None:
        """RFC 7675, 5.1: these credentials are dead on this five-tuple; what else was valid is tried again."""
        pair.dead = True
        self._peers.forbid(pair)
        self._checker.forget(pair)
        self._checklist.set_state(pair, PairState.FAILED)
        self._status.note_failure(pair, reason)
        self._selection.on_lost(pair, reason, now)
        self._recheck(pair.component)

    # --- what the peer's side adds -------------------------------------------------------------------------------

    @abstractmethod
    def add_told_candidate(self, candidate: Candidate, now: float) -> None:
        """See :class:`iceagent.core.path_talk.SessionPart`."""

    # --- deciding ------------------------------------------------------------------------------------------------

    def _decide(self, now: float) -> None:
        if self._status.state is AgentState.CLOSED:
            return
        self._pair_relays(now)
        self._liveness.evaluate(now)
        self._selection.evaluate(now)
        self._reroll.evaluate(now)
        self._searches.evaluate(now)
        self._talk.evaluate(now)
        self._scheduler.run(now)
        self._status.update(self._checklist, self._scheduler.exhausted, now)
        self._checker.flush(now)
        self._set_decide_at()
        self._set_deadline()

    def _set_decide_at(self) -> None:
        deciders = (self._selection, self._reroll, self._searches, self._scheduler)
        self._decide_at = min(_or_never(part.poll_timeout()) for part in deciders)
        if self._unpaired:
            self._decide_at = min(self._decide_at, self._unpaired[0][0])

    def _pair_relays(self, now: float, base: TransportAddress | None = None) -> None:
        """Those that the peer had time to hear of; and the one at ``base``."""
        due = [local for at, local in self._unpaired if at <= now or local.base == base]
        if due:
            self._unpaired = tuple(entry for entry in self._unpaired if entry[1] not in due)
            for local in due:
                self._checklist.add_local(local)

    def _set_deadline(self) -> None:
        deadline, at = self._decide_at, None
        for part in self._clocks:
            at = part.poll_timeout()
            if at is not None and at < deadline:
                deadline = at
        self._deadline = None if deadline == math.inf else deadline
        # The last clock is that of life: doubt comes before the next check unless this one is answered.
        self._is_life_next = at == deadline


def _from_anywhere(remote: TransportAddress) -> str | None:
    """No host is preferred."""
    return None


def _or_never(at: float | None) -> float:
    return math.inf if at is None else at

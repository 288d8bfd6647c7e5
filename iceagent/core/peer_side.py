"""What do the peer's credentials, candidates and checks do?

Generations (RFC 8445, 9): a description begins one, other credentials than before are a restart, and what was in use
goes on carrying data until a new pair is found. Checks (RFC 8445, 7.3): authenticated by ``responder.py``, they make
candidates and pairs, trigger checks of ours, and nominate.
"""

from __future__ import annotations

from random import Random
from typing import Any

from iceagent.candidate import Candidate
from iceagent.core.checklist import CheckList
from iceagent.core.context import Keys
from iceagent.core.engine import Engine
from iceagent.core.pair import CandidatePair, PairState
from iceagent.core.path_message import OPTION
from iceagent.core.responder import IncomingCheck, Responder
from iceagent.credentials import Credentials
from iceagent.description import Description
from iceagent.events import (
    AgentState,
    IceRestarted,
)

__all__ = ["PeerSide"]


# Credentials that change again within this time, before any check came of them, belong to one exchange.
_SETTLING_S = 5.0
# A check of ours that the peer's firewall ate, or a relay that had no permission yet, is sent again this long after it;
# by then most answers that are on their way are here.
_FIRST_TRIGGER_S = 0.010
# Generations of the peer's that were used and are over.
_MAX_SPENT_UFRAGS = 10


class PeerSide(Engine):
    """What the peer says, done by the parts; see :class:`iceagent.core.session.IceSession`."""

    __slots__ = (
        "_began_at",
        "_former",
        "_is_answer",
        "_is_used",
        "_responder",
        "_spent_ufrags",
        "local_credentials",
        "remote_credentials",
    )

    def __init__(self, *, credentials: Credentials | None, system_rng: Random, **options: Any) -> None:
        super().__init__(system_rng=system_rng, **options)
        self.local_credentials = credentials or Credentials.random(system_rng)
        self.remote_credentials: Credentials | None = None
        self._responder = Responder(self._context, self)
        self._responder.accept(self.local_credentials)
        self._spent_ufrags: tuple[str, ...] = ()
        self._began_at = 0.0
        self._is_used = False
        self._is_answer = False
        # What the peer had said, while a restart of ours waits for its answer.
        self._former: Description | None = None

    # --- generations ---------------------------------------------------------------------------------------------

    def _begin(self, description: Description, now: float) -> None:
        """The peer's credentials are known: pairs can form, checks can leave."""
        config, context = self.config, self._context
        self.remote_credentials = description.credentials
        context.keys = Keys.of(self.local_credentials, description.credentials)
        context.remote_lite = description.lite
        context.remote_trickles = description.trickles
        # RFC 8839, 5.5: the larger of both values, 50 ms where a side says nothing.
        context.ta_s = max(config.ta_s, (50 if description.pacing_ms is None else description.pacing_ms) / 1000)
        context.ta_s = min(context.ta_s, 60.0)
        self._scheduler.set_ta(context.ta_s)
        self._talk.begin(description.options)
        if description.lite and not config.lite and not context.controlling:
            # 6.1.1: "The full agent MUST take the controlling role".
            self.switch_role(True, "the peer is a lite agent", now)
        elif config.lite and context.controlling:
            self.switch_role(False, "we are a lite agent", now)
        self._status.begin(now)
        self._began_at, self._is_used = now, False
        self._former = None
        if description.lite and config.lite:
            # DEVIATION from 6.1.1 and 8.2, which pair two lite agents without any check; pinned by
            # ``tests/sim/test_roles.py::test_two_lite_agents_are_told_at_once``.
            self._status.move(AgentState.FAILED, "both agents are lite")
        self._unpaired = ()
        for local in self._locals:
            self._checklist.add_local(local)
        for candidate in self._held.take_candidates():
            self._add_remote(candidate, now)
        for check in self._held.take_checks():
            self._on_check(check, now)

    def _on_new_credentials(self, now: float) -> None:
        """The peer's credentials changed: a restart, to be answered by new ones of ours.

        Two of its restarts in a row are answered once: with two offers under way, the answer to the first would look
        like
        a restart to the peer, its answer to that like one to us, and so on for ever. So while ours are such an answer,
        a moment old and not used yet, they answer the newer ones too. DEVIATION: RFC 8839, 4.4.2.1 has new ones each
        time; pinned by test_two_restarts_in_a_row_are_answered_once.
        """
        is_settling = self._is_answer and not self._is_used and now < self._began_at + _SETTLING_S
        if not is_settling:
            self._restart(None, by_peer=True)
            return
        self._forget_remote()
        # The peer may have had ours already, and have forgotten them with its second restart: they have to be said
        # again.
        self._context.emit(IceRestarted(by_peer=True))

    def _restart(self, credentials: Credentials | None, *, by_peer: bool) -> None:
        self.local_credentials = credentials or Credentials.random(self._context.system_rng)
        self._is_answer = by_peer
        self._responder.accept(self.local_credentials, self._ufrags_in_use())
        if self.remote_credentials is not None:
            self._former = None if by_peer else self._known_of_peer(self.remote_credentials)
            self._forget_remote()
        self._context.emit(IceRestarted(by_peer=by_peer))

    def _on_consent_ended(self, pair: CandidatePair, reason: str, now: float) -> None:
        super()._on_consent_ended(pair, reason, now)
        if pair.keys.local.ufrag != self.local_credentials.ufrag:
            self._responder.retire({self.local_credentials.ufrag, *self._ufrags_in_use()})

    def _ufrags_in_use(self) -> set[str]:
        """Ours, with which the paths that carry data were checked."""
        return {pair.keys.local.ufrag for pair in self._selection.currents()}

    def _known_of_peer(self, credentials: Credentials) -> Description:
        options = ("trickle",) * self._context.remote_trickles + (OPTION,) * self._talk.peer_knows
        return Description(
            credentials=credentials,
            options=options,
            pacing_ms=round(self._context.ta_s * 1000),
            lite=self._context.remote_lite,
            candidates=tuple(self._remotes.all()),
        )

    def _resume(self, former: Description, now: float) -> None:
        """Our restart waits for an answer, and the peer checks with our new credentials and those that it had: they are
        its answer, which it may think that we know (:meth:`_on_new_credentials`). DEVIATION: RFC 8445, 9 changes both
        sides'; pinned by test_a_second_restart_before_any_check_passed_is_answered_by_what_is_known.
        """
        self._spent_ufrags = tuple(each for each in self._spent_ufrags if each != former.credentials.ufrag)
        self._remotes.resume_generation(former.credentials.ufrag)
        self._begin(former, now)
        for candidate in former.candidates:
            self._add_remote(candidate, now)

    def _forget_remote(self) -> None:
        """Pairs of the old generation go, but for those in use: they carry data, and keep their consent (RFC 7675,
        5.1).
        """
        if self.remote_credentials is not None:
            self._remotes.end_generation(self.remote_credentials.ufrag)
            if self._is_used:
                # A peer that never used ours may not have seen them, and answers our restart with the same of its own.
                self._spent_ufrags = (*self._spent_ufrags, self.remote_credentials.ufrag)[-_MAX_SPENT_UFRAGS:]
        in_use = self._selection.currents()
        for pair in self._checklist:
            if pair not in in_use:
                self._checker.forget(pair)
            else:
                self._checker.quiet(pair)
        self._checklist = CheckList(self._context, self._preferred_host, self)
        self._checker.checklist = self._checklist
        self._selection.use(self._checklist)
        self._scheduler.use(self._checklist)
        self._reroll.use(self._checklist)
        self._searches.use(self._checklist)
        self._talk.use(self._checklist)
        self._context.keys = None
        self.remote_credentials = None
        self._status.remote_done = False

    def _add_remote(self, candidate: Candidate, now: float, via: str = "signalling") -> None:
        if self._status.remote_done and not self.config.late_candidates:
            self._context.counters["late candidates ignored"] += 1
        elif self._remotes.add(candidate, self._checklist, via):
            self._status.on_new_candidate(now)
            self._searches.hasten(now)

    def add_told_candidate(self, candidate: Candidate, now: float) -> None:
        """See :class:`iceagent.core.path_talk.SessionPart`."""
        self._add_remote(candidate, now, "path message")

    # --- checks of the peer --------------------------------------------------------------------------------------

    def _on_check(self, check: IncomingCheck, now: float) -> bool:
        """7.3.1: an authenticated check, already answered; whether it is routine: all that it says is known."""
        keys = self._context.keys
        is_current = check.own_ufrag == self.local_credentials.ufrag
        is_of_now = is_current and keys is not None and check.ufrag == keys.remote.ufrag
        pair = self._checklist.find(check.base, check.source)
        if is_of_now and check.message is None and pair is not None and self._is_routine(pair, check):
            pair.requests_received += 1
            pair.responses_sent += 1
            pair.requested_at = now
            pair.note_alive(now)
            self._is_used = True
            if self._consent.follow(pair, now):
                self._checker.flush(now)
                self._set_deadline()
            return True
        component = self._locals.component_of(check.base)
        if component is None:
            return False
        if not is_current:
            # The peer keeps consent for the path of the generation before, from wherever it is by now.
            self._peers.allow(check.base, check.source, component, now)
            self._talk.handle_old_check(check, now)
            return False
        former = self._former
        if former is not None and keys is None and check.ufrag == former.credentials.ufrag:
            self._resume(former, now)
            return self._on_check(check, now)
        # Who checks it has been told of it.
        self._pair_relays(now, check.base)
        self._budget.asked(check.source, now)
        if not is_of_now:
            # Also a peer whose next credentials are ahead of their description.
            self._peers.allow(check.base, check.source, component, now)
            self._held.hold_check(check)
            return False
        # Only who has our credentials can send this; responses prove less, they come before the peer knows them.
        self._is_used = True
        self._scheduler.release(check.base)
        if self._is_freed(check, component):
            return False
        remote = self._remotes.find_or_learn(check, component, self._checklist)
        local = self._checklist.local(component, check.base)
        pair = self._checklist.form(local, remote) if local is not None and remote is not None else None
        if pair is None:
            self._context.counters["checks without a pair"] += 1
            return False
        pair.requests_received += 1
        pair.responses_sent += 1
        pair.requested_at = now
        pair.note_alive(now)
        pair.remote_cost = check.network_cost
        self._peers.allow(check.base, check.source, component, now, pair)
        if self.config.lite:
            self._on_check_as_lite(pair, check, now)
            return False
        needs_check = check.nomination is not None and self._selection.on_nominated(pair, check.nomination, now)
        self._trigger(pair, now, again=needs_check)
        self._talk.handle_check(check, now)
        return False

    def _is_routine(self, pair: CandidatePair, check: IncomingCheck) -> bool:
        """Whether a check of the peer's is for its consent alone."""
        is_known = check.nomination is None and check.network_cost == pair.remote_cost
        return pair.state is PairState.SUCCEEDED and is_known and not self.config.lite

    def _is_freed(self, check: IncomingCheck, component: int) -> bool:
        """8.3.1: what was not selected is gone, where it is not kept; the check was answered, and that is all."""
        if self.config.keep_pairs or self._selection.selected(component) is None:
            return False
        return self._checklist.find(check.base, check.source) is None

    def refusal(self, check: IncomingCheck) -> tuple[int, str] | None:
        """What an authenticated check is answered with instead of success."""
        component = self._locals.component_of(check.base)
        if component is not None and self._talk.refuse():
            return 403, "Forbidden"
        if component is None or check.own_ufrag != self.local_credentials.ufrag:
            return None
        pair = self._checklist.find(check.base, check.source)
        if pair is not None and pair.dead:
            # RFC 7675, 5.1 and 5.2: the peer had better know that these credentials are of no use here any more.
            return 403, "Forbidden"
        if check.nomination is not None and pair is None and self._remotes.refuses(check, component):
            # 7.3.1.5: "MUST reject the nomination request with an appropriate error code response (e.g., 400)".
            return 400, "Bad Request"
        return None

    def _trigger(self, pair: CandidatePair, now: float, *, again: bool = False) -> None:
        """7.3.1.4. Triggered Checks; ``again``: also of a pair that succeeded long ago."""
        if pair.state is PairState.SUCCEEDED and not again:
            return
        if pair.state is PairState.IN_PROGRESS:
            # Two ends that answer each other's checks with checks would go on at the rate of the round trip, and the
            # response to ours may be on its way; or a firewall ate ours, because the peer had not sent yet. So:
            # again, soon at first, then one per Ta. DEVIATION: 7.3.1.4 queues it at once; pinned by
            # test_checks_of_the_peer_that_come_at_once_trigger_one_check_per_ta.
            wait = self._context.ta_s if pair.requests_sent > 1 else min(_FIRST_TRIGGER_S, self._context.ta_s)
            at = (pair.check_started_at or 0.0) + wait
            if now < at:
                self._scheduler.trigger_at(pair, at)
                return
            self._checker.quiet(pair)
        self._checklist.trigger(pair)
        self._status.on_new_candidate(now)

    def _on_check_as_lite(self, pair: CandidatePair, check: IncomingCheck, now: float) -> None:
        """7.3.2: a lite agent's pair is valid once the peer nominates it."""
        if check.nomination is None:
            return
        pair.valid_local = pair.local
        pair.rerank(self._context.controlling)
        if pair.state is PairState.FROZEN:
            self._checklist.set_state(pair, PairState.WAITING)
        self._checklist.set_state(pair, PairState.SUCCEEDED)
        pair.responded_at = now
        self._selection.on_valid(pair, now)
        self._selection.on_nominated(pair, check.nomination, now)

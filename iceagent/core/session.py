"""How do the parts of ICE work together?

:class:`IceSession` joins the cores of this folder behind the contract of ``iceagent/net/core.py``::

    datagram ─▶ responder (request) / checker (response) / held (data of strangers)
                     │                    │
                     ▼                    ▼
               checklist (which pair) ◀─ selection (which path, nominations) ─▶ consent
                     │
                     ▼
               pacing (when) ─▶ checker ─▶ transmit

After an input the session *decides*: which pair to nominate, which checks may leave, what its state is. Routine traffic
of a connected session (the consent checks of both sides, answered in time) changes nothing of that, and nothing is
decided anew before the next time that the last decision named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from random import Random

from iceagent.candidate import Candidate, CandidateType
from iceagent.config import Config
from iceagent.core.checker import Check, Checker
from iceagent.core.checklist import CheckList
from iceagent.core.consent import Consent
from iceagent.core.context import Context, Keys
from iceagent.core.held import Held
from iceagent.core.liveness import Liveness
from iceagent.core.locals import Locals
from iceagent.core.pacing import CheckPacer, RemoteBudget, TokenBucket
from iceagent.core.pair import CandidatePair, PairState, Traffic
from iceagent.core.path_message import OPTION
from iceagent.core.path_talk import PathTalk
from iceagent.core.peers import Peers
from iceagent.core.remotes import Remotes
from iceagent.core.reroll import Reroll
from iceagent.core.responder import IncomingCheck, Responder
from iceagent.core.scheduler import Scheduler
from iceagent.core.search import Searches
from iceagent.core.selection import Selection, as_path
from iceagent.core.standby import Standby
from iceagent.core.status import Status
from iceagent.core.wakeups import WakeUps
from iceagent.credentials import Credentials
from iceagent.description import Description
from iceagent.events import (
    AgentState,
    IceRestarted,
    LocalCandidateFound,
    MachineSlept,
    Path,
    PeerClosed,
    RestartAdvised,
    RoleChanged,
    SelectedPathChanged,
)
from iceagent.nat import openers
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from iceagent.net.errno_words import errno_in_words
from relay.stun import BadMessage, is_stun, parse
from relay.upgrade import Decision, Verdict

__all__ = ["IceSession"]

# Credentials that change again within this time, before any check came of them, belong to one exchange.
_SETTLING_S = 5.0
# A check of ours that the peer's firewall ate, or a relay that had no permission yet, is sent again this long after it;
# by then most answers that are on their way are here.
_FIRST_TRIGGER_S = 0.010
# A relayed candidate that the application was told of is checked after this: it has had its turn to signal it.
_SIGNAL_LEAD_S = 0.010
# What has answered so short a time ago has done so since a server was lost: that takes longer to be noticed.
_FRESH_S = 1.0
# Generations of the peer's that were used and are over.
_MAX_SPENT_UFRAGS = 10


class IceSession:
    """A full (or lite) ICE agent for one data stream, sans-IO.

    Args:
        controlling: our initial role (RFC 8445, 6.1.1).
        rng: order and jitter.
        system_rng: credentials, tie-breaker and transaction ids; ``random.SystemRandom()`` in production.
        ceiling: checks per second of all sessions of a process; ``None``: this session alone is no danger to anyone.
        wakeups: when the sessions of a process send consent checks; ``None``: this session goes by itself.
        preferred_host: the local host that the kernel routes a remote address from.
        credentials: ours; drawn if not given.
    """

    __slots__ = (
        "_began_at",
        "_budget",
        "_checker",
        "_checklist",
        "_clocks",
        "_consent",
        "_context",
        "_deadline",
        "_decide_at",
        "_former",
        "_held",
        "_is_answer",
        "_is_life_next",
        "_is_used",
        "_liveness",
        "_locals",
        "_peers",
        "_preferred_host",
        "_remotes",
        "_reroll",
        "_responder",
        "_scheduler",
        "_searches",
        "_selection",
        "_spent_ufrags",
        "_standby",
        "_status",
        "_talk",
        "_unpaired",
        "config",
        "local_credentials",
        "remote_credentials",
    )

    def __init__(
        self,
        *,
        config: Config,
        controlling: bool,
        rng: Random,
        system_rng: Random,
        ceiling: TokenBucket | None = None,
        wakeups: WakeUps | None = None,
        preferred_host: Callable[[TransportAddress], str | None] = lambda remote: None,
        credentials: Credentials | None = None,
    ) -> None:
        self.config = config
        self.local_credentials = credentials or Credentials.random(system_rng)
        self.remote_credentials: Credentials | None = None
        self._context = Context(
            config=config,
            rng=rng,
            system_rng=system_rng,
            controlling=controlling,
            tie_breaker=system_rng.getrandbits(64),
            ta_s=config.ta_s,
        )
        self._preferred_host = preferred_host if config.route_order else (lambda remote: None)
        self._budget = RemoteBudget()
        self._locals = Locals()
        self._checklist = CheckList(self._context, self._preferred_host, self._on_discarded)
        self._checker = Checker(
            self._context,
            self._checklist,
            self._budget,
            on_success=self._on_check_success,
            on_failure=self._on_check_failure,
            on_role_conflict=self._on_role_conflict,
            on_revoked=self._on_consent_revoked,
            on_remapped=self._on_remapped,
            find_local=self._locals.find,
        )
        self._responder = Responder(self._context, self._switch_role, self._check_refusal)
        self._responder.accept(self.local_credentials)
        self._selection = Selection(
            self._context,
            on_current=self._on_current,
            on_unanswered=self._on_nomination_unanswered,
            on_superseded=self._checker.quiet,
            on_selected=self._on_selected,
        )
        self._standby = Standby(self._context, self._checker, self._selection)
        self._consent = Consent(
            self._context,
            self._checker,
            WakeUps() if wakeups is None else wakeups,
            on_expired=self._on_consent_expired,
            keep=self._standby.keep,
            on_check=self._on_asked,
        )
        self._liveness = Liveness(
            self._context,
            self._checker,
            self._selection,
            standby=self._standby.pairs,
            on_dead=self._on_dead,
            on_silent=self._on_silent,
        )
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
        self._remotes = Remotes(self._context, self._held, self._locals, self._budget.has_answered)
        self._searches = Searches(self._context, self._selection, self._scheduler, self._announce_search)
        self._searches.use(self._checklist)
        self._talk = PathTalk(
            self._context, self._checker, self._selection, self._liveness, self._searches, self._remotes, self
        )
        self._talk.use(self._checklist)
        self._spent_ufrags: tuple[str, ...] = ()
        self._began_at = 0.0
        self._is_used = False
        self._is_answer = False
        # What the peer had said, while a restart of ours waits for its answer.
        self._former: Description | None = None
        # Relayed candidates that were announced a moment ago, and when they are paired.
        self._unpaired: tuple[tuple[float, Candidate], ...] = ()
        # Whose time passes without any decision, too.
        self._clocks = (self._checker, self._consent, self._held, self._status, self._talk, self._liveness)
        # When the last decisions must be looked at again, whatever happens until then.
        self._decide_at = -math.inf
        self._deadline: float | None = None
        self._is_life_next = False

    # --- commands ------------------------------------------------------------------------------------------------

    def add_local_candidate(self, candidate: Candidate, now: float) -> bool:
        """Use a candidate of ours.

        Returns:
            False if it is redundant (RFC 8838, 9: address and base of an earlier one, whatever the priorities) or one
            too many.
        """
        added = self._locals.add(candidate)
        if added is None:
            return False
        self._context.emit(LocalCandidateFound(candidate=added))
        # DEVIATION: RFC 8838, 10 pairs it when the peer was told; pinned by
        # test_a_candidate_is_paired_before_the_peer_was_told.
        if added.type is CandidateType.RELAYED and self.remote_credentials is not None:
            # But a relay: the peer would learn it as peer-reflexive, and rank it above what is direct.
            self._unpaired = (*self._unpaired, (now + _SIGNAL_LEAD_S, added))
        else:
            self._checklist.add_local(added)
        if added.type is not CandidateType.HOST:
            self._reroll.note_candidates(now)
        self._talk.tell_candidate(added, now)
        self._searches.hasten(now)
        self._decide(now)
        return True

    def use_openers_only(self, base: TransportAddress, now: float) -> None:
        """A base is about to come that was re-rolled: no check leaves from it before one of the peer's arrived."""
        self._scheduler.use_openers_only(base)

    def end_local_candidates(self, now: float) -> None:
        """Gathering is done; only now can every pair have failed."""
        self._status.local_done = True
        self._decide(now)

    def remove_base(self, base: TransportAddress, reason: str, now: float) -> None:
        """A socket is gone, with its candidates and pairs."""
        withdrawn = self._locals.remove_base(base)
        self._unpaired = tuple(entry for entry in self._unpaired if entry[1].base != base)
        self._peers.remove_base(base)
        self._scheduler.release(base)
        self._standby.forget(base)
        self._selection.preference.deprecate(base, is_deprecated=False)
        gone = self._checklist.remove_base(base)
        gone += [pair for pair in self._selection.currents() if pair.base == base and pair not in gone]
        for pair in gone:
            self._checker.forget(pair)
            self._selection.on_lost(pair, reason, now)
        self._tell_withdrawn(withdrawn, now)
        self._decide(now)

    def withdraw(self, base: TransportAddress, address: TransportAddress, now: float) -> None:
        """A candidate of ours is none any more, though its base stays: it is not signalled again."""
        self._tell_withdrawn(self._locals.remove(base, address), now)
        self._decide(now)

    def deprecate(self, base: TransportAddress, is_deprecated: bool, now: float) -> None:
        """The address of a base is about to go, though it still works: pairs elsewhere come first from now on; or it is
        not any more.
        """
        self._selection.preference.deprecate(base, is_deprecated=is_deprecated)
        self._decide(now)

    def set_link(self, base: TransportAddress, is_up: bool, now: float) -> None:
        """The interface of a base has lost its carrier, or has it again. Its address stays, and may work again in a
        moment: so its pairs are left at once where another one works, and are tried again when it is back.
        """
        self._selection.preference.deprecate(base, is_deprecated=not is_up)
        for pair in self._checklist:
            if pair.base != base:
                continue
            current = self.current(pair.component)
            if is_up and not pair.dead and pair is not current:
                self.check_again(pair)
            elif not is_up and pair is current:
                others = [p for p in self._selection.alternatives(pair, now) if p.base != base]
                if others:
                    reason = "its interface is down"
                    self._on_dead(pair, Decision(verdict=Verdict.MOVE, reason=reason, to=others[0], since=now), now)
        self._decide(now)

    def doubt_base(self, base: TransportAddress, now: float) -> None:
        """What is in use there has moved: it is checked at once."""
        for pair in self._selection.currents():
            if pair.base == base:
                self._liveness.doubt(pair, "our end of it moved", now)
        self._decide(now)

    def doubt_all(self, reason: str, now: float) -> None:
        """What is in use has to prove that it works."""
        for pair in self._selection.currents():
            self._liveness.doubt(pair, reason, now)
        self._decide(now)

    def note_sleep(self, seconds: float, now: float) -> None:
        """This machine was suspended, while the monotonic clock stood still: answers are as much older (RFC 7675, 5.1
        counts the peer's time), and what is in use has to prove that it still works.
        """
        for pair in {*self._checklist, *self._selection.currents()}:
            if pair.responded_at is not None:
                pair.responded_at -= seconds
        self._context.emit(MachineSlept(seconds=seconds))
        self.doubt_all(f"this machine slept for {seconds:.0f} s", now)

    def doubt_relays(self, hosts: Collection[str], now: float) -> None:
        """Relayed addresses of ours at these hosts are lost: what the peer has there probably is too, and has to answer
        before it carries data.
        """
        for pair in self._checklist:
            is_there = pair.remote.type is CandidateType.RELAYED and pair.remote.address.host in hosts
            if is_there and now < pair.heard_at + _FRESH_S:
                self._liveness.doubt(pair, "the server of its relay is lost", now)
            elif is_there and pair.is_valid:
                self._checker.quiet(pair)
                self._selection.on_lost(pair, "the server of its relay is lost", now)
                self._checklist.trigger(pair)
        self._decide(now)

    def set_remote_description(self, description: Description, now: float) -> None:
        """Take the peer's credentials, options, pacing and candidates.

        Other credentials than before are an ICE restart by the peer; it is answered once by new ones of ours (the event
        :class:`IceRestarted`), unless ours changed since theirs last did (RFC 8445, 9).
        """
        credentials = description.credentials
        if credentials.ufrag in self._spent_ufrags:
            # Said again, late, while we wait for the answer to our own restart.
            self._context.counters["descriptions of an earlier generation"] += 1
            return
        if self.remote_credentials is not None and self.remote_credentials != credentials:
            # After a restart of our own, the peer's credentials are unknown: these are the answer then, no second
            # restart.
            self._on_new_credentials(now)
        if self.remote_credentials != credentials:
            self._begin(description, now)
        for candidate in description.candidates:
            self._add_remote(candidate, now)
        if description.ignored:
            self._context.counters["candidate lines of an unknown kind"] += len(description.ignored)
        if description.complete or not description.trickles:
            # A peer that does not trickle has told everything in one go.
            self._status.remote_done = True
        self._reroll.note_candidates(now)
        self._decide(now)

    def add_remote_candidate(self, candidate: Candidate, now: float) -> None:
        """Take a trickled candidate; before the description, or with the user name fragment of a later one, it
        waits.
        """
        self._add_remote(candidate, now)
        if openers.is_outside(candidate):
            self._reroll.note_candidates(now)
        self._decide(now)

    def end_remote_candidates(self, now: float) -> None:
        """The peer says end-of-candidates; later ones are still taken."""
        self._status.remote_done = True
        self._decide(now)

    def restart(self, now: float, credentials: Credentials | None = None) -> Credentials:
        """Begin a new generation with new credentials of ours (RFC 8445, 9); the old path carries data until then."""
        self._restart(credentials, by_peer=False)
        self._decide(now)
        return self.local_credentials

    def note_data(self, base: TransportAddress, source: TransportAddress, now: float) -> None:
        """Data came in on another five-tuple than ours goes out on (the data path tells)."""
        pair = self._checklist.find(base, source)
        if pair is None or pair is self.current(pair.component):
            return
        current = self.current(pair.component)
        self._liveness.note_data()
        counts = self._selection.on_data(pair, now)
        if counts or (current is not None and self._liveness.on_data_elsewhere(current, pair, now)):
            self._decide(now)

    def note_sending(self, component: int, now: float) -> None:
        """Data leaves, for the first time or after a pause (the data path tells)."""
        pair = self.current(component)
        if pair is not None:
            self._liveness.wake(pair, now)
            self._on_asked(pair, now)
            self._set_deadline()

    def report_loss(self, component: int, now: float) -> None:
        """The application's data does not arrive, whatever is answered: data moves as soon as another path answers."""
        pair = self.current(component)
        if pair is not None:
            self._liveness.report_loss(pair, now)
            self._decide(now)

    def say_goodbye(self, now: float) -> float:
        """Tell the peer that we close: it ends at once instead of after 30 s. To a peer that knows no path messages, a
        refusal of its checks says the same, from now on (RFC 7675, 5.2).

        Returns:
            How long to wait at most until :attr:`is_heard`, seconds; 0.0: nobody would answer.
        """
        if self._status.state is AgentState.CLOSED:
            return 0.0
        wait_s = self._talk.say_goodbye(now)
        self._checker.flush(now)
        self._set_deadline()
        return wait_s

    def close(self, now: float) -> None:
        """Nothing is sent, answered or waited for any more."""
        self._status.move(AgentState.CLOSED, "closed by the application")
        self._consent.stop()
        self._liveness.stop()
        self._context.transmits.clear()
        self._deadline = None

    # --- the contract --------------------------------------------------------------------------------------------

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """Take a datagram: STUN is ours, everything else the application's (RFC 7983, 7)."""
        if self._status.state is AgentState.CLOSED:
            return
        if not is_stun(datagram.data):
            if self._peers.handle_data(datagram, now):
                self.note_data(datagram.base, datagram.source, now)
            self._set_deadline()
            return
        try:
            message = parse(datagram.data)
        except BadMessage as error:
            self._context.drop(datagram, "malformed STUN")
            self._context.counters[f"malformed: {error.__class__.__name__}"] += 1
            return
        if message.is_request:
            check = self._responder.handle_request(message, datagram, now)
            is_routine = check is not None and self._on_check(check, now)
        elif message.is_indication:
            # 11. Keepalives of peers that send Binding indications: nothing is to be done.
            self._context.counters["indications received"] += 1
            is_routine = True
        else:
            is_routine = self._checker.handle_response(message, datagram, now)
        if not is_routine or now >= self._decide_at or self._status.state is not AgentState.CONNECTED:
            self._decide(now)
        elif self._is_life_next:
            self._set_deadline()

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """The network said no. It may lie (ICMP is easily forged), or be early: doubt, never death.

        DEVIATION: RFC 8445, 7.2.5.2.2 fails the pair; pinned by test_an_icmp_error_asks_for_a_check_and_kills_nothing.
        """
        pair = self._checklist.find(base, destination)
        if pair is not None and openers.explains(errno, pair.opened_at, now):
            # A router on which an opener died, as it should. Anything else would be seen again with the next check.
            self._context.counters["openers expired"] += 1
            return
        for candidate in (pair, *self._selection.currents()):
            if candidate is not None and candidate.key == (base, destination):
                candidate.last_error = errno
                self._liveness.doubt(candidate, f"the network says: {errno_in_words(errno)}", now, is_hearsay=True)
        self._context.counters["network errors"] += 1
        self._decide(now)

    def handle_timeout(self, now: float) -> None:
        """Time passed."""
        if self._status.state is AgentState.CLOSED:
            return
        has_failed = self._checker.handle_timeout(now)
        has_expired = self._consent.handle_timeout(now)
        self._held.handle_timeout(now)
        self._talk.handle_timeout(now)
        if not (has_failed or has_expired):
            # Nothing leaves before it is known that nothing is to be decided: that may cancel what is due.
            self._set_deadline()
            if self._deadline is None or now < self._deadline:
                self._checker.flush(now)
                return
        self._decide(now)

    def poll_timeout(self) -> float | None:
        """The next deadline."""
        return self._deadline

    def poll_transmit(self) -> Transmit | None:
        """One datagram to send."""
        return self._context.transmits.pop(0) if self._context.transmits else None

    def poll_event(self) -> Event | None:
        """One thing that happened."""
        return self._context.events.pop(0) if self._context.events else None

    # --- questions -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> AgentState:
        return self._status.state

    @property
    def state_reason(self) -> str:
        """Why the state is what it is."""
        return self._status.reason

    @property
    def controlling(self) -> bool:
        return self._context.controlling

    @property
    def pairs(self) -> list[CandidatePair]:
        """All pairs, best first; not to be changed."""
        return sorted(self._checklist, key=lambda pair: pair.order, reverse=True)

    @property
    def local_candidates(self) -> list[Candidate]:
        return self._locals.all()

    @property
    def remote_candidates(self) -> list[Candidate]:
        return self._remotes.all()

    @property
    def remote_done(self) -> bool:
        return self._status.remote_done

    @property
    def counters(self) -> Mapping[str, int]:
        """What was dropped, refused and held back, by reason."""
        return self._context.counters

    def peers(self, base: TransportAddress) -> dict[TransportAddress, Traffic]:
        """Addresses that authenticated themselves on a base: data from there is the peer's. The data path reads
        this table.
        """
        return self._peers.table(base)

    def current(self, component: int = 1) -> CandidatePair | None:
        """The pair that data goes out on."""
        return self._selection.current(component)

    def path(self, component: int = 1) -> Path | None:
        """The same as the application sees it."""
        return as_path(self._selection.current(component))

    def selected(self, component: int = 1) -> CandidatePair | None:
        """The pair that both ends agreed on by nomination."""
        return self._selection.selected(component)

    def standby_of(self, component: int, now: float) -> CandidatePair | None:
        """The best other pair that may carry data, if it leaves from another socket or over another relay than the one
        in use.
        """
        pair = self.current(component)
        others = [] if pair is None else self._selection.alternatives(pair, now)
        # Whatever was heard since the pair in use was, first.
        return max(others, key=lambda each: pair is not None and each.heard_at > pair.heard_at, default=None)

    @property
    def peer_knows_messages(self) -> bool:
        """Whether the peer understands path messages."""
        return self._talk.peer_knows

    @property
    def is_heard(self) -> bool:
        """Whether the peer has answered all that it was told over paths."""
        return self._talk.is_heard

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
            self._switch_role(True, "the peer is a lite agent", now)
        elif config.lite and context.controlling:
            self._switch_role(False, "we are a lite agent", now)
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
        a moment old and not used yet, they answer the newer ones too.
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
        self._responder.accept(self.local_credentials)
        if self.remote_credentials is not None:
            self._former = None if by_peer else self._known_of_peer(self.remote_credentials)
            self._forget_remote()
        self._context.emit(IceRestarted(by_peer=by_peer))

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
        its answer, which it may think that we know (:meth:`_on_new_credentials`).
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
        self._checklist = CheckList(self._context, self._preferred_host, self._on_discarded)
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

    def _check_refusal(self, check: IncomingCheck) -> tuple[int, str] | None:
        """What an authenticated check is answered with instead of success."""
        component = self._locals.component_of(check.base)
        if component is not None and self._talk.is_closing and not self._talk.peer_knows:
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

    # --- outcomes of our checks ----------------------------------------------------------------------------------

    def _on_check_success(self, check: Check, now: float) -> None:
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

    def _on_check_failure(self, check: Check, reason: str, now: float) -> None:
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

    def _on_nomination_unanswered(self, pair: CandidatePair, now: float) -> None:
        self._checker.forget(pair)
        self._selection.on_lost(pair, "its nomination was not answered", now)
        self._checklist.set_state(pair, PairState.FAILED)

    def _on_role_conflict(self, check: Check, now: float) -> None:
        """7.2.5.1: the peer has our role and won the tie-break."""
        if check.controlling == self._context.controlling:
            self._switch_role(not check.controlling, "the peer answered role conflict", now)
            self._context.tie_breaker = self._context.system_rng.getrandbits(64)
        if check.pair.state is not PairState.SUCCEEDED and check.pair.keys is self._context.keys:
            self._checker.quiet(check.pair)
            self._checklist.trigger(check.pair)

    def _switch_role(self, controlling: bool, reason: str, now: float) -> None:
        self._context.controlling = controlling
        self._checklist.rerank()
        self._selection.on_role()
        self._context.emit(RoleChanged(controlling=controlling, reason=reason))
        self._decide_at = -math.inf

    def _on_selected(self, selected: CandidatePair) -> None:
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

    def _on_discarded(self, pair: CandidatePair) -> None:
        self._checker.forget(pair)

    def _free_others(self, selected: CandidatePair) -> None:
        """8.3.1: free what was not selected."""
        self._checklist.retain(lambda pair: pair is selected or pair.component != selected.component)

    # --- paths ---------------------------------------------------------------------------------------------------

    def _on_current(self, old: CandidatePair | None, new: CandidatePair | None, now: float) -> None:
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

    def _on_asked(self, pair: CandidatePair, now: float) -> None:
        self._searches.wake(pair, now)
        at = self._searches.poll_timeout()
        if at is not None:
            self._decide_at = min(self._decide_at, at)

    def _on_remapped(self, pair: CandidatePair, former: Candidate, answered_at: float, now: float) -> None:
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
                self._checker.quiet(pair)
                self._checklist.trigger(pair)

    def _on_dead(self, pair: CandidatePair, decision: Decision, now: float) -> None:
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

    def _on_silent(self, pair: CandidatePair, reason: str, now: float) -> None:
        """Nothing answers. Data goes on over the last pair until consent ends; whatever there is is tried again."""
        self._status.move(AgentState.DISCONNECTED, reason)
        self._recheck(pair.component)
        self._context.emit(RestartAdvised(component=pair.component, reason=reason))

    # --- what the peer tells over paths (SessionPart) ------------------------------------------------------------

    def add_told_candidate(self, candidate: Candidate, now: float) -> None:
        """See :class:`iceagent.core.path_talk.SessionPart`."""
        self._add_remote(candidate, now, "path message")

    def check_again(self, pair: CandidatePair) -> None:
        """See :class:`iceagent.core.path_talk.SessionPart`."""
        self._checker.quiet(pair)
        self._checklist.trigger(pair)

    def end_by_peer(self, now: float) -> None:
        """See :class:`iceagent.core.path_talk.SessionPart`."""
        reason = "the peer has closed"
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
        self._context.emit(PeerClosed(reason=reason))
        self._status.move(AgentState.FAILED, reason)

    def _announce_search(self, pair: CandidatePair, now: float) -> float | None:
        return self._talk.announce_search(pair, now)

    def _tell_withdrawn(self, candidates: Sequence[Candidate], now: float) -> None:
        still = {(each.component, each.address) for each in self._locals}
        for candidate in candidates:
            if (candidate.component, candidate.address) not in still:
                self._talk.tell_candidate(candidate, now, withdrawn=True)

    # --- ends ----------------------------------------------------------------------------------------------------

    def _on_consent_expired(self, pair: CandidatePair, now: float) -> None:
        self._on_consent_ended(pair, "consent expired", now)

    def _on_consent_revoked(self, pair: CandidatePair, now: float) -> None:
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


def _or_never(at: float | None) -> float:
    return math.inf if at is None else at

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

from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random

from iceagent.candidate import Candidate, CandidateType
from iceagent.config import Config
from iceagent.core.pacing import TokenBucket
from iceagent.core.pair import CandidatePair, Traffic
from iceagent.core.peer_side import PeerSide
from iceagent.core.selection import as_path
from iceagent.core.wakeups import WakeUps
from iceagent.credentials import Credentials
from iceagent.description import Description
from iceagent.events import (
    AgentState,
    LocalCandidateFound,
    MachineSlept,
    Path,
)
from iceagent.nat import openers
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from iceagent.net.errno_words import errno_in_words
from relay.stun import BadMessage, is_stun, parse
from relay.upgrade import Decision, Verdict

__all__ = ["IceSession"]

# A relayed candidate that the application was told of is checked after this: it has had its turn to signal it.
_SIGNAL_LEAD_S = 0.010
# Changes that are told by the state and by ``AgentStatistics.path_switches``: an empty counter costs an idle agent
# nothing.
_EVERYBODYS = frozenset({"state.changed", "path.selected"})
# What has answered so short a time ago has done so since a server was lost: that takes longer to be noticed.
_FRESH_S = 1.0


class IceSession(PeerSide):
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

    __slots__ = ()

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
        super().__init__(
            credentials=credentials,
            system_rng=system_rng,
            config=config,
            controlling=controlling,
            rng=rng,
            ceiling=ceiling,
            wakeups=wakeups,
            preferred_host=preferred_host,
        )

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
        self._selection.preference.forget(base)
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
        self._selection.preference.set_link(base, is_up=is_up)
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
                    self.pair_died(pair, Decision(verdict=Verdict.MOVE, reason=reason, to=others[0], since=now), now)
        self._decide(now)

    def doubt_base(self, base: TransportAddress, now: float) -> None:
        """What is in use there has moved: it is checked at once."""
        for pair in self._selection.currents():
            if pair.base == base:
                self._liveness.doubt(pair, "our end of it moved", now)
        self._decide(now)

    def doubt_all(self, reason: str, now: float) -> None:
        """What is in use has to prove that it works; and there may be something better."""
        for pair in self._selection.currents():
            self._liveness.doubt(pair, reason, now)
        self._searches.hasten(now)
        self._decide(now)

    def note_sleep(self, seconds: float, now: float) -> None:
        """This machine was suspended, while the monotonic clock stood still: answers are as much older (RFC 7675, 5.1
        counts the peer's time), and what is in use has to prove that it still works.
        """
        for pair in {*self._checklist, *self._selection.currents()}:
            if pair.responded_at is not None:
                pair.responded_at -= seconds
        self._context.emit(MachineSlept(seconds=seconds))
        # Nothing may leave where consent has ended meanwhile.
        self._consent.handle_timeout(now)
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
                self._selection.on_lost(pair, "the server of its relay is lost", now)
                self.check_again(pair)
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
            self.peer_asked(pair, now)
            self._set_deadline()

    def set_role(self, controlling: bool, now: float) -> None:
        """Take a role (RFC 8445, 6.1.1)."""
        self.switch_role(controlling, "the application says so", now)

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
            How long to wait at most until :attr:`is_heard`, seconds; 0.0: not at all.
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
        """What was dropped, refused and held back, by reason; and changes, by name."""
        return self._context.counters

    def count(self, name: str) -> None:
        """One more change; but the first ones, which every session has, are no news."""
        if name not in _EVERYBODYS:
            self._context.counters[name] += 1

    def peers(self, base: TransportAddress) -> dict[TransportAddress, Traffic]:
        """Addresses that authenticated themselves on a base: data from there is the peer's. The data path reads
        this table.
        """
        return self._peers.table(base)

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

    # --- inside --------------------------------------------------------------------------------------------------

    def _tell_withdrawn(self, candidates: Sequence[Candidate], now: float) -> None:
        still = {(each.component, each.address) for each in self._locals}
        for candidate in candidates:
            if (candidate.component, candidate.address) not in still:
                self._talk.tell_candidate(candidate, now, withdrawn=True)

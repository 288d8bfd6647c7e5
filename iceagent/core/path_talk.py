"""What becomes of what the peer tells over the paths, and when do we tell it something?

We tell: candidates that come or go while there is a path; that the pair in use is to be nominated, where we are
controlled and the nominated one does not work or is not wanted; when we look for better paths, so that both ends open
their NATs together; and that we close. Only to a peer whose description said that it knows (``messenger.py``).

The peer tells the same, and is believed: every message is authenticated by the credentials of the generation. New
candidates are taken as if they had been signalled. A pair to a withdrawn one is left, if there is another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from iceagent.candidate import Candidate, CandidateType
from iceagent.core.checker import Check, Checker
from iceagent.core.checklist import CheckList
from iceagent.core.context import Context
from iceagent.core.liveness import Liveness
from iceagent.core.messenger import Messenger
from iceagent.core.pair import CandidatePair
from iceagent.core.path_message import OPTION, is_goodbye
from iceagent.core.remotes import Remotes
from iceagent.core.responder import IncomingCheck
from iceagent.core.search import Searches
from iceagent.core.selection import Selection
from iceagent.net.address import TransportAddress

__all__ = ["PathTalk", "SessionPart"]

# Beside the pair in use, so many carry a message that the first way may have lost.
_MORE_WAYS = 2
# The peer may have reasons of its own not to nominate what we wish.
_ASK_AGAIN_S = 5.0
_WITHDRAWN = "the peer withdrew its address"
_WISHED = "the peer asks for it"


class SessionPart(Protocol):
    """What only the session can do."""

    def add_told_candidate(self, candidate: Candidate, now: float) -> None:
        """Take a candidate that the peer told over a path."""

    def check_again(self, pair: CandidatePair) -> None:
        """A check of this pair is to leave, whatever is known of it."""

    def end_by_peer(self, now: float) -> None:
        """The peer has closed."""


class PathTalk:
    """Both directions, for all generations of a session."""

    __slots__ = (
        "_asked_at",
        "_asked_for",
        "_checker",
        "_checklist",
        "_context",
        "_had_path",
        "_has_refused",
        "_has_restarted",
        "_is_closing",
        "_liveness",
        "_messenger",
        "_remotes",
        "_searches",
        "_selection",
        "_session",
        "_wished",
    )

    def __init__(
        self,
        context: Context,
        checker: Checker,
        selection: Selection,
        liveness: Liveness,
        searches: Searches,
        remotes: Remotes,
        session: SessionPart,
    ) -> None:
        self._context = context
        self._checker = checker
        self._selection = selection
        self._liveness = liveness
        self._searches = searches
        self._remotes = remotes
        self._session = session
        self._checklist: CheckList | None = None
        self._has_restarted = False
        self._had_path = False
        self._is_closing = self._has_refused = False
        # Most sessions never have anything to say: it is made for the first word.
        self._messenger: Messenger | None = None
        # A pair that the peer wishes, and that has to answer first; and whether the other one eats its data.
        self._wished: tuple[CandidatePair, bool] | None = None
        # What we wished last, and when.
        self._asked_for: CandidatePair | None = None
        self._asked_at = 0.0

    # --- the generation ------------------------------------------------------------------------------------------

    def use(self, checklist: CheckList) -> None:
        """A new generation begins; until its description comes, the peer knows what it knew."""
        self._has_restarted = self._checklist is not None
        self._checklist = checklist
        self._had_path = False
        self._messenger = None
        self._wished = self._asked_for = None

    def begin(self, options: Sequence[str]) -> None:
        """The peer's description came, with these ice-options."""
        config = self._context.config
        is_full = not (config.lite or self._context.remote_lite)
        self._context.remote_knows_messages = OPTION in options and config.path_messages and is_full

    @property
    def peer_knows(self) -> bool:
        """Whether the peer understands path messages."""
        return self._context.remote_knows_messages

    # --- what we tell --------------------------------------------------------------------------------------------

    def tell_candidate(self, candidate: Candidate, now: float, *, withdrawn: bool = False) -> None:
        """A candidate of ours came or went. Before the first path the application's signalling has to tell; but who
        restarts is in trouble, and what is found between its description and the next path is told by both.
        """
        had_path = self._had_path or self._has_restarted
        if not (self.peer_knows and had_path and self._context.config.late_candidates):
            return
        if self._context.config.mdns and candidate.type is CandidateType.HOST:
            # It has a name for those who are told.
            return
        self._ensure().tell_candidate(candidate, withdrawn=withdrawn, now=now)

    def on_path(self, pair: CandidatePair, now: float) -> None:
        """Data goes there from now on: what waits for a way has one."""
        if pair.keys is self._context.keys:
            self._had_path = True
            if self._messenger is not None:
                self._messenger.handle_way(now)

    def announce_search(self, pair: CandidatePair, now: float) -> float | None:
        """We are about to look for better paths than this one.

        Returns:
            When the peer looks, too; ``None``: it does not.
        """
        return self._ensure().ask_for_checks(pair, now) if self.peer_knows else None

    def say_goodbye(self, now: float) -> float:
        """We close; how long to wait until that was heard, seconds."""
        self._is_closing = True
        config = self._context.config
        if not self._ways(True, now):
            return 0.0
        if not self.peer_knows:
            return config.revocation_s
        return min(self._ensure().say_goodbye(now), config.goodbye_s)

    def refuse(self) -> bool:
        """We close, and a peer that knows no path messages checks: whether that is to be refused (RFC 7675, 5.2)."""
        if not self._is_closing or self.peer_knows:
            return False
        self._has_refused = True
        return True

    @property
    def is_heard(self) -> bool:
        """Whether everything that was told is answered, or given up."""
        if self._is_closing and not self.peer_knows:
            return self._has_refused
        return self._messenger is None or not self._messenger.is_open

    def evaluate(self, now: float) -> None:
        """Wish, where we do not nominate ourselves."""
        if not self.peer_knows or self._context.controlling:
            return
        for current in self._selection.currents():
            wished = self._selection.wished(current.component, now)
            if wished is None:
                if self._messenger is not None:
                    self._messenger.wish_no_more(current.component)
            elif not (wished is self._asked_for and now < self._asked_at + _ASK_AGAIN_S):
                self._asked_for, self._asked_at = wished, now
                self._ensure().wish(wished, now, is_eaten=self._selection.is_any_reported(current.component, now))

    # --- what happens --------------------------------------------------------------------------------------------

    def handle_check(self, check: IncomingCheck, now: float) -> None:
        """An authenticated check of the peer's, of this generation, carries a message."""
        if check.message is not None and self.peer_knows:
            self._ensure().handle_message(check.message, check.base, check.source, now)

    def handle_old_check(self, check: IncomingCheck, now: float) -> None:
        """The same, of the generation before: the peer may close while we restart."""
        if check.message is None or not self.peer_knows or not is_goodbye(check.message):
            return
        # Of a generation that carries data still: one that is over was heard, and may be replayed.
        said = check.own_ufrag, check.ufrag
        if any((p.keys.local.ufrag, p.keys.remote.ufrag) == said for p in self._selection.currents()):
            self.peer_closed(now)

    def handle_success(self, check: Check, now: float) -> None:
        """A check of ours was answered."""
        if check.message is not None and self._messenger is not None:
            self._messenger.handle_answer(check.message, now)
        if self._wished is not None and check.pair is self._wished[0]:
            (pair, is_eaten), self._wished = self._wished, None
            self._selection.oblige(pair, _WISHED, now, is_eaten=is_eaten)

    def handle_timeout(self, now: float) -> None:
        """Say again what was not answered."""
        if self._messenger is not None:
            self._messenger.handle_timeout(now)

    def poll_timeout(self) -> float | None:
        """When that is due."""
        return None if self._messenger is None else self._messenger.poll_timeout()

    # --- what the peer tells (MessageListener) -------------------------------------------------------------------

    def peer_told_candidates(self, added: Sequence[Candidate], withdrawn: Sequence[Candidate], now: float) -> None:
        """See :class:`iceagent.core.messenger.MessageListener`."""
        for candidate in added:
            self._session.add_told_candidate(candidate, now)
        for candidate in withdrawn:
            self._withdraw(candidate, now)

    def peer_checks(self, after_s: float, now: float) -> None:
        """See :class:`iceagent.core.messenger.MessageListener`."""
        self._searches.join(now + after_s, now)

    def peer_wishes(self, base: TransportAddress, source: TransportAddress, now: float, *, is_eaten: bool) -> None:
        """See :class:`iceagent.core.messenger.MessageListener`."""
        pair = self._checklist.find(base, source) if self._checklist is not None else None
        if pair is None or pair.dead or not self._context.controlling:
            return
        if not self._selection.oblige(pair, _WISHED, now, is_eaten=is_eaten) and not pair.is_valid:
            self._wished = pair, is_eaten
            self._session.check_again(pair)

    def peer_closed(self, now: float) -> None:
        """See :class:`iceagent.core.messenger.MessageListener`."""
        self._session.end_by_peer(now)

    # --- inside --------------------------------------------------------------------------------------------------

    def _ensure(self) -> Messenger:
        if self._messenger is None:
            self._messenger = Messenger(self._context, self._checker, self, self._ways)
        return self._messenger

    def _ways(self, everywhere: bool, now: float) -> list[CandidatePair]:
        ways: list[CandidatePair] = []
        for current in self._selection.currents():
            ways.append(current)
            if everywhere or self._liveness.in_doubt(current):
                ways += self._selection.alternatives(current, now)[:_MORE_WAYS]
        return ways[: 1 + _MORE_WAYS]

    def _withdraw(self, candidate: Candidate, now: float) -> None:
        checklist = self._checklist
        if checklist is None:
            return
        currents = [p for p in self._selection.currents() if p.component == candidate.component]
        in_use = [p for p in currents if p.destination == candidate.address]
        for pair in in_use:
            others = [p for p in self._selection.alternatives(pair, now) if p.destination != candidate.address]
            if not others:
                # It may be wrong, and there is nothing else.
                self._liveness.doubt(pair, _WITHDRAWN, now, is_hearsay=True)
                return
        known = self._remotes.withdraw(candidate)
        if known is None:
            return
        gone = [p for p in checklist if p.destination == candidate.address and p.component == candidate.component]
        for pair in gone:
            self._selection.on_lost(pair, _WITHDRAWN, now)
        checklist.remove_remote(known)

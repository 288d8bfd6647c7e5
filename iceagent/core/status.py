"""Is the agent connected, and if not, can it still become so?

Connected: every component has a path. Disconnected: one has none, or nothing answers on the one that it has. Failed
only when nothing can change it any more: all pairs failed, gathering is
done on both sides (RFC 8838, 8: a check list that trickles does not fail before end-of-candidates), and the PAC
timer of RFC 8863 ran out, for the peer may reach us although we cannot reach it. A candidate or a check that comes
later brings a failed agent back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from iceagent.core.context import Context
from iceagent.core.pair import CandidatePair, PairState
from iceagent.core.selection import Selection
from iceagent.events import AgentState, StateChanged
from iceagent.net.errno_words import errno_in_words

__all__ = ["TRANSITIONS", "Status"]

_S = AgentState
TRANSITIONS: dict[AgentState, frozenset[AgentState]] = {
    _S.NEW: frozenset({_S.CHECKING, _S.CONNECTED, _S.FAILED, _S.CLOSED}),
    _S.CHECKING: frozenset({_S.CONNECTED, _S.FAILED, _S.CLOSED}),
    _S.CONNECTED: frozenset({_S.DISCONNECTED, _S.FAILED, _S.CLOSED}),
    _S.DISCONNECTED: frozenset({_S.CONNECTED, _S.FAILED, _S.CLOSED}),
    # A restart, a late candidate, a check of the peer's.
    _S.FAILED: frozenset({_S.CHECKING, _S.CONNECTED, _S.CLOSED}),
    _S.CLOSED: frozenset(),
}

_OPEN = frozenset({PairState.FROZEN, PairState.WAITING, PairState.IN_PROGRESS})


class Status:
    """Keeps the state of the whole agent.

    Attributes:
        local_done: our gathering is done.
        remote_done: the peer said end-of-candidates, or does not trickle.
    """

    __slots__ = (
        "_context",
        "_last_failure",
        "_lost_at",
        "_pac_at",
        "_selection",
        "local_done",
        "reason",
        "remote_done",
        "state",
    )

    def __init__(self, context: Context, selection: Selection) -> None:
        self._context = context
        self._selection = selection
        self.state = AgentState.NEW
        self.reason = "nothing happened yet"
        self.local_done = False
        self.remote_done = False
        self._pac_at: float | None = None
        self._last_failure = "no pair was formed"
        # Since when it is disconnected.
        self._lost_at: float | None = None

    def begin(self, now: float) -> None:
        """The peer's credentials are known: the PAC timer starts (RFC 8863, 4)."""
        self._pac_at = now + self._context.config.pac_timeout_s
        self._last_failure = "no pair was formed"
        if self.state in (AgentState.NEW, AgentState.FAILED):
            self.move(AgentState.CHECKING, "the peer's description is known")

    def on_new_candidate(self, now: float) -> None:
        """Something new can be tried."""
        both_lite = self._context.config.lite and self._context.remote_lite
        if self.state is AgentState.FAILED and not both_lite:
            self.move(AgentState.CHECKING, "there is something new to try")

    def note_failure(self, pair: CandidatePair, reason: str) -> None:
        """Remember why the last pair failed, for the message."""
        error = f", last network error: {errno_in_words(pair.last_error)}" if pair.last_error else ""
        self._last_failure = f"{pair.base} → {pair.destination}: {reason}{error}"

    def update(
        self, pairs: Iterable[CandidatePair], exhausted: Callable[[CandidatePair, float], bool], now: float
    ) -> None:
        """Draw the conclusion from paths and pairs."""
        if self._pac_at is not None and now >= self._pac_at:
            self._pac_at = None
        if self.state is not AgentState.DISCONNECTED:
            self._lost_at = None
        elif self._lost_at is None:
            self._lost_at = now
        paths = self._selection.currents()
        if len(paths) == self._context.config.components:
            self._update_connected(paths)
            return
        if self.state is AgentState.CONNECTED:
            self.move(AgentState.DISCONNECTED, "a path was lost")
        if self.state in (AgentState.CHECKING, AgentState.DISCONNECTED) and self._is_hopeless(pairs, exhausted, now):
            self.move(AgentState.FAILED, self._last_failure)

    def move(self, state: AgentState, reason: str) -> None:
        """Change the state, as the table allows."""
        if state is self.state or state not in TRANSITIONS[self.state]:
            return
        old, self.state, self.reason = self.state, state, reason
        self._context.emit(StateChanged(old=old, new=state, reason=reason))

    def poll_timeout(self) -> float | None:
        """When the PAC timer ends."""
        return self._pac_at

    def _update_connected(self, paths: list[CandidatePair]) -> None:
        if self._context.config.lite:
            self.move(AgentState.CONNECTED, "every component has a nominated pair")
            return
        if any(pair.is_silent for pair in paths):
            # Which was told (``liveness.py``).
            return
        if self._lost_at is not None and all(pair.answered_at < self._lost_at for pair in paths):
            # Another one that has answered before then.
            return
        reason = (
            "the peer answers again" if self.state is AgentState.DISCONNECTED else "every component has a valid pair"
        )
        self.move(AgentState.CONNECTED, reason)

    def _is_hopeless(
        self, pairs: Iterable[CandidatePair], exhausted: Callable[[CandidatePair, float], bool], now: float
    ) -> bool:
        if not (self.local_done and self.remote_done):
            return False
        if self._pac_at is not None:
            return False
        return not any(p.state in _OPEN and not p.dead and not _is_idle(p, exhausted, now) for p in pairs)


def _is_idle(pair: CandidatePair, exhausted: Callable[[CandidatePair, float], bool], now: float) -> bool:
    return pair.state is not PairState.IN_PROGRESS and exhausted(pair, now)

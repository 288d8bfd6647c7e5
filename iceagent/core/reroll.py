"""When is a socket given up for a new one, because its flows may be spoilt?

Openers (``nat/openers.py``) keep the early-packet trap shut for the side that begins first. The side that begins late
finds the peer's check at its NAT already: its flow to that peer has another port than the one it signalled, and nothing
that either side sends on that pair will ever arrive. A new socket has a new mapping that nobody has knocked at yet. So,
once nothing outside has answered for a second since there was a pair that leads there, the side whose NAT it is
opens one, asks the STUN servers from it, sends its openers, and only *then* tells the peer, whose check finds the door
open ("re-roll"). From that socket nothing else leaves before the peer's check came in: a check of ours could spring the
same trap at the peer's NAT, if that began late as well.

Nobody knows whose NAT it is. Re-rolling the wrong side does nothing, neither good nor bad; so the controlled side goes
first, as it mostly answers, and the controlling one half a second later if it has to. Once in the life of a session.
Measured on Linux: the right side connects 20 … 120 ms after it told the peer.

The old socket stays, with its pairs: an answer that is late still counts. One that has a valid pair is not re-rolled,
nor one whose peer would not take the late candidate, nor any for pairs that can improve nothing.

Decides; ``agent.py`` and ``gather/gathering.py`` open the socket. Pure.
"""

from __future__ import annotations

from iceagent.core.checklist import CheckList
from iceagent.core.context import Context
from iceagent.core.locals import Locals
from iceagent.core.pair import CandidatePair
from iceagent.core.selection import Selection
from iceagent.events import RerollDue
from iceagent.nat import openers

__all__ = ["WAIT_CONTROLLED_S", "WAIT_CONTROLLING_S", "Reroll"]

WAIT_CONTROLLED_S = 1.0
"""A first check, its early ones (at 400 ms the last) and its repetition after 500 ms have had a round trip by then."""

WAIT_CONTROLLING_S = 1.5
"""Half a second more: the peer's re-roll takes two round trips and the signalling."""


class Reroll:
    """Says once which bases to re-roll.

    Args:
        local: our candidates, which say whether a base is known by another address than its own.
    """

    __slots__ = ("_checklist", "_context", "_is_over", "_local", "_selection", "_since")

    def __init__(self, context: Context, selection: Selection, local: Locals) -> None:
        self._context = context
        self._selection = selection
        self._local = local
        self._checklist: CheckList | None = None
        self._since: float | None = None
        config = context.config
        # Without openers a new socket is as bad as the old one; without late candidates the peer never hears of it.
        self._is_over = config.lite or not (config.reroll and config.openers and config.late_candidates)

    def use(self, checklist: CheckList) -> None:
        """A new generation begins."""
        self._checklist = checklist
        self._since = None

    def note_candidates(self, now: float) -> None:
        """Candidates came: the second begins with the first pair through our NAT."""
        if self._is_over or self._since is not None or not self._context.remote_trickles:
            return
        if any(self._may_be_spoilt(pair) for pair in self._checklist or ()):
            self._since = now

    def evaluate(self, now: float) -> None:
        """Decide when it is time, by one :class:`RerollDue` for each component that needs it."""
        at = self.poll_timeout()
        if at is None or now < at:
            return
        # Whatever the answer is: what did not need it now will not need it later, for then consent is asked.
        self._since = None
        for component in range(1, self._context.config.components + 1):
            pair = self._spoilt(component)
            if pair is not None:
                self._is_over = True
                self._context.emit(RerollDue(component=component, base=pair.base))

    def poll_timeout(self) -> float | None:
        """When it is time."""
        if self._is_over or self._since is None:
            return None
        return self._since + (WAIT_CONTROLLING_S if self._context.controlling else WAIT_CONTROLLED_S)

    def _spoilt(self, component: int) -> CandidatePair | None:
        """The best pair of a component through our NAT, if none has answered and its socket is of no use otherwise."""
        pairs = [pair for pair in self._checklist or () if pair.component == component]
        outside = [pair for pair in pairs if self._may_be_spoilt(pair)]
        if any(pair.responded_at is not None for pair in outside):
            return None
        in_use = {pair.base for pair in (*pairs, *self._selection.currents()) if pair.is_valid}
        spoilt = (pair for pair in outside if pair.base not in in_use and self._selection.wants(pair))
        return max(spoilt, key=lambda pair: pair.order, default=None)

    def _may_be_spoilt(self, pair: CandidatePair) -> bool:
        """Whether it passes a NAT of ours, and towards a peer that begins by itself."""
        return self._local.is_mapped(pair.base) and openers.is_outside(pair.remote) and not self._context.remote_lite

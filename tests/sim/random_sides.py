"""One end of a random story: an agent, its application, and what becomes of what it says."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from iceagent import Agent, AgentState, NoPath
from iceagent.events import (
    Event,
    PathDoubted,
    PathTrusted,
    RestartAdvised,
    SelectedPathChanged,
    StateChanged,
)
from iceagent.testing import MemoryHost, NatNode

__all__ = ["TRANSIT_S", "UNTOLD_S", "Home", "Side", "Teller"]

UNTOLD_S = 5.0
"""So long an application may send to nobody without being told."""

UNTOLD_ALONE_S = 7.0
"""The same where the other side has nothing to say: then only a check for consent tells, which comes after 6 s at the
latest, and has half a second and more to be answered."""

TRANSIT_S = 1.0
"""What left so long ago has arrived, or will not: four links of 150 ms, and a relay between them."""


class Teller(Protocol):
    """Who tells the story."""

    @property
    def now(self) -> float:
        """Seconds."""

    def heard(self, side: Side, event: Event) -> None:
        """Something that an agent said."""


@dataclass(eq=False)
class Home:
    """An interface of a machine, and the router it is behind."""

    name: str
    host: str
    nat: NatNode
    is_there: bool = True
    is_up: bool = True


class Side:
    """One agent, its application, and what is known of what it sends.

    Attributes:
        pending: (number, time) of what was sent and has not arrived, nor anything later.
        told_at: when the agent last said something of its path.
        is_warned: what it last said was that data may not arrive.
    """

    def __init__(self, story: Teller, name: str, machine: MemoryHost, homes: list[Home]) -> None:
        self.story = story
        self.name = name
        self.machine = machine
        self.homes = homes
        self.agent: Agent
        self.other: Side
        self.pending: deque[tuple[int, float]] = deque()
        self.told_at = 0.0
        self.is_warned = True
        self.is_closed = False
        self.idle_until = 0.0
        self.number = 0
        self.sent_at = 0.0
        self.arrived_at = -1.0
        self.restarted_at = -100.0
        self.has_failed = False
        self.packets = 0
        self.task: asyncio.Task[None] | None = None

    # --- the application -----------------------------------------------------------------------------------------

    def speak(self, now: float) -> None:
        if self.is_closed or now < self.idle_until:
            return
        try:
            self.agent.send(b"%d" % self.number)
        except NoPath:
            return
        if now > self.sent_at + 1.0:
            self.pending.clear()
        self.pending.append((self.number, now))
        self.number += 1
        self.sent_at = now

    def hear(self, data: bytes, component: int) -> None:
        """What the other one said."""
        number, pending = int(data), self.other.pending
        self.arrived_at = self.story.now
        while pending and pending[0][0] <= number:
            pending.popleft()

    def is_untold(self, now: float) -> bool:
        """Whether it sends to nobody, and has not been told for too long."""
        if self.is_warned or not self.pending:
            return False
        since = max(self.pending[0][1], self.told_at)
        # An answer may have been on its way, a round trip longer than what it answers.
        is_alone = self.other.sent_at < since + 1.0
        allowed = UNTOLD_ALONE_S if is_alone else UNTOLD_S
        return min(now - TRANSIT_S, self.pending[-1][1]) > since + allowed

    # --- events --------------------------------------------------------------------------------------------------

    async def listen(self) -> None:
        async for event in self.agent.events():
            self.take(event)

    def take(self, event: Event) -> None:
        if isinstance(event, PathDoubted):
            self._tell(is_warned=True)
        elif isinstance(event, PathTrusted):
            self._tell(is_warned=False)
        elif isinstance(event, SelectedPathChanged):
            self._tell(is_warned=event.new is None)
        elif isinstance(event, StateChanged):
            self._tell(is_warned=event.new is not AgentState.CONNECTED)
            self.has_failed |= event.new is AgentState.FAILED
        elif isinstance(event, RestartAdvised):
            self.told_at = self.story.now
        self.story.heard(self, event)

    def _tell(self, *, is_warned: bool) -> None:
        self.told_at = self.story.now
        self.is_warned = is_warned

    def restart(self) -> None:
        if not self.is_closed:
            self.restarted_at = self.story.now
            self.agent.restart()

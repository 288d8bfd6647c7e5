"""How do events reach an application that may be slow?

Each iterator has its own queue of at most 1,024 events. When it is full, the oldest of the least
important ones goes, and is counted: dropped packets, which anybody in the network can cause, before candidates, and
those before everything else. State and path events are never lost: a later one is merged into the earlier one of its
kind instead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from iceagent.errors import UsageError
from iceagent.events import (
    BaseFailed,
    Event,
    LocalCandidateFound,
    PacketDropped,
    RemoteCandidateAdded,
    RemoteCandidateRefused,
    SelectedPathChanged,
    ServerFailed,
    StateChanged,
)

__all__ = ["MAX_EVENTS", "EventStream"]

MAX_EVENTS = 1024

# What is not here stands between the candidates and what is never lost.
_IMPORTANCE: dict[type[Event], int] = {
    PacketDropped: 0,
    RemoteCandidateRefused: 1,
    BaseFailed: 1,
    LocalCandidateFound: 1,
    RemoteCandidateAdded: 1,
    ServerFailed: 1,
    SelectedPathChanged: 3,
    StateChanged: 3,
}
_ORDINARY = 2
_NEVER_LOST = 3


class EventStream(AsyncIterator[Event]):
    """Events of one agent, from now on; ends when the agent is closed.

    Attributes:
        dropped: events that this reader was too slow for.
    """

    def __init__(self, release: Callable[[EventStream], None]) -> None:
        self._release = release
        # By importance, each event with its place in the order of all.
        self._queues: tuple[deque[tuple[int, Event]], ...] = tuple(deque() for _ in range(_NEVER_LOST + 1))
        self._pushed = 0
        self._waiter: asyncio.Future[None] | None = None
        self._is_closed = False
        self.dropped = 0

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._is_closed:
                raise StopAsyncIteration
            if self._waiter is not None and not self._waiter.cancelled():
                raise UsageError("two tasks read one event stream; each needs its own from Agent.events()")
            waiter = self._waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            finally:
                if self._waiter is waiter:
                    self._waiter = None
        return min((queue for queue in self._queues if queue), key=lambda queue: queue[0][0]).popleft()[1]

    def push(self, event: Event) -> None:
        """The agent's side: one more event."""
        if self._is_closed:
            return
        importance = _IMPORTANCE.get(type(event), _ORDINARY)
        if self._waiting >= MAX_EVENTS and not self._make_room(event, importance):
            return
        self._pushed += 1
        self._queues[importance].append((self._pushed, event))
        self._wake()

    def close(self) -> None:
        """No more events; what is queued can still be read. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._release(self)
            self._wake()

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._queues))

    def _make_room(self, event: Event, importance: int) -> bool:
        """Whether ``event`` is still to be appended."""
        for queue in self._queues[: min(importance, _ORDINARY) + 1]:
            if queue:
                queue.popleft()
                self.dropped += 1
                return True
        if importance == _NEVER_LOST:
            return not self._merge(event)
        self.dropped += 1
        return False

    def _merge(self, event: Event) -> bool:
        queue = self._queues[_NEVER_LOST]
        for index in range(len(queue) - 1, -1, -1):
            place, queued = queue[index]
            merged = _merged(queued, event)
            if merged is not None:
                queue[index] = (place, merged)
                return True
        return False

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _merged(earlier: Event, later: Event) -> Event | None:
    """What two events say together, if they are of one kind."""
    if isinstance(earlier, StateChanged) and isinstance(later, StateChanged):
        return replace(later, old=earlier.old)
    if isinstance(earlier, SelectedPathChanged) and isinstance(later, SelectedPathChanged):
        return replace(later, old=earlier.old) if earlier.component == later.component else None
    return None

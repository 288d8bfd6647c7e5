"""How do events reach an application that may be slow?

Each iterator has its own queue of at most 1,024 events. When it is full, the oldest candidate, statistics or packet event goes, and is
counted; state and path events are never lost: a later one is merged into the earlier one of its kind instead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from iceagent.events import Event, SelectedPathChanged, StateChanged

__all__ = ["MAX_EVENTS", "EventStream"]

MAX_EVENTS = 1024


class EventStream(AsyncIterator[Event]):
    """Events of one agent, from now on; ends when the agent is closed.

    Attributes:
        dropped: events that this reader was too slow for.
    """

    def __init__(self, release: Callable[[EventStream], None]) -> None:
        self._release = release
        self._queue: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_closed = False
        self.dropped = 0

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            if self._is_closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._queue.popleft()

    def push(self, event: Event) -> None:
        """The agent's side: one more event."""
        if self._is_closed:
            return
        if len(self._queue) >= MAX_EVENTS and not self._make_room(event):
            return
        self._queue.append(event)
        self._wake()

    def close(self) -> None:
        """No more events; what is queued can still be read. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._release(self)
            self._wake()

    def _make_room(self, event: Event) -> bool:
        """Whether ``event`` is still to be appended."""
        for index, queued in enumerate(self._queue):
            if not isinstance(queued, (StateChanged, SelectedPathChanged)):
                del self._queue[index]
                self.dropped += 1
                return True
        if not isinstance(event, (StateChanged, SelectedPathChanged)):
            self.dropped += 1
            return False
        return not self._merge(event)

    def _merge(self, event: StateChanged | SelectedPathChanged) -> bool:
        for index in range(len(self._queue) - 1, -1, -1):
            queued = self._queue[index]
            if isinstance(event, StateChanged) and isinstance(queued, StateChanged):
                self._queue[index] = replace(event, old=queued.old)
                return True
            if (
                isinstance(event, SelectedPathChanged)
                and isinstance(queued, SelectedPathChanged)
                and queued.component == event.component
            ):
                self._queue[index] = replace(event, old=queued.old)
                return True
        return False

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

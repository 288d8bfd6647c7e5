"""Which allocation may have expired next?

A heap of the times at which each is to be looked at. One that is refreshed is not moved: what is looked at too early is
scheduled again. Entries of allocations that have ended, or were scheduled anew, go when they come up, or when they are
too many. Pure.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping

from relay.turn.server.allocation import ServedAllocation
from relay.turn.server.asked import FiveTuple

__all__ = ["Expiry"]

SPARE_ENTRIES = 8


class Expiry:
    """When allocations are to be looked at.

    Args:
        allocations: those that there are, by five-tuple.
    """

    def __init__(self, allocations: Mapping[FiveTuple, ServedAllocation]) -> None:
        self._allocations = allocations
        self._heap: list[tuple[float, int, ServedAllocation]] = []
        self._sequence = 0

    @property
    def next_at(self) -> float | None:
        """When the next one may have expired."""
        return self._heap[0][0] if self._heap else None

    def schedule(self, allocation: ServedAllocation) -> None:
        """Look at it when it may have expired."""
        if allocation.expires_at >= allocation.scheduled_at:
            return
        allocation.scheduled_at = allocation.expires_at
        self._sequence += 1
        heapq.heappush(self._heap, (allocation.expires_at, self._sequence, allocation))
        if len(self._heap) > 2 * len(self._allocations) + SPARE_ENTRIES:
            self._heap = [entry for entry in self._heap if self._is_in_force(entry)]
            heapq.heapify(self._heap)

    def due(self, now: float) -> Iterator[ServedAllocation]:
        """Those that are to be looked at now; each is to be scheduled again, or ended."""
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if self._is_in_force(entry):
                entry[2].scheduled_at = math.inf
                yield entry[2]

    def _is_in_force(self, entry: tuple[float, int, ServedAllocation]) -> bool:
        at, _, allocation = entry
        return self._allocations.get(allocation.key) is allocation and at == allocation.scheduled_at

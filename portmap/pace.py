"""May this happen once more now? A bound on what others can make us do. Pure."""

from __future__ import annotations

from collections import deque

__all__ = ["Pace"]


class Pace:
    """So often in so many seconds, at most; all at once, if it must be.

    Args:
        count: how often, 1 or more.
        per_s: seconds.
    """

    __slots__ = ("_per_s", "_taken")

    def __init__(self, count: int, per_s: float) -> None:
        self._per_s = per_s
        self._taken: deque[float] = deque(maxlen=count)

    def ready_at(self, now: float) -> float:
        """When it may happen: ``now``, or later."""
        if len(self._taken) < (self._taken.maxlen or 1):
            return now
        return max(now, self._taken[0] + self._per_s)

    def take(self, now: float) -> None:
        """It happens now."""
        self._taken.append(now)

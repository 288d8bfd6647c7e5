"""When does this process wake up anyway?

An idle agent costs what its wake-ups cost: a process that slept finds cold caches, and a radio that slept comes back
to full power. Two hundred agents that each send a consent check every five seconds wake a process forty times a second
for a few microseconds of work each. So they share: a check whose time is drawn at random moves to a moment at which
another agent of the process wakes up, where there is one within ``slack_s``; else its own time becomes such a moment.

A new moment has no other one within ``slack_s`` that could serve, so there are few (about ``1 / slack_s`` a second for
agents of one interval), and they are as random as what they were drawn from. An agent of one component that is alone
in its process moves nothing. A moment serves a limited number, so that thousands of agents do not hold up their process
all at once.

Shared by all sessions of a host, like the ceiling of ``pacing.py``. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, insort

__all__ = ["MAX_SHARED", "WakeUps"]

MAX_SHARED = 64
"""What one moment serves: some 5 ms of work."""


class WakeUps:
    """The moments to come."""

    __slots__ = ("_moments", "_shared_by")

    def __init__(self) -> None:
        self._moments: list[float] = []
        self._shared_by: dict[float, int] = {}

    def join(self, at: float, *, earliest: float, latest: float, slack_s: float, now: float) -> float:
        """Choose the moment for something that is due at ``at``, all in seconds.

        Args:
            at: when it would happen by itself, ``earliest`` … ``latest``.
            earliest: not before this time.
            latest: not after this time.
            slack_s: how far it may move; 0: not at all.

        Returns:
            the nearest known moment within all limits that is not full, else ``at``, which is known from now on.
        """
        if slack_s <= 0:
            return at
        moments = self._moments
        over = bisect_left(moments, now)
        for moment in moments[:over]:
            del self._shared_by[moment]
        del moments[:over]
        index = bisect_left(moments, at)
        near = [
            moment
            for moment in moments[max(index - 1, 0) : index + 1]
            if abs(moment - at) <= slack_s and earliest <= moment <= latest and self._shared_by[moment] < MAX_SHARED
        ]
        if near:
            at = min(near, key=lambda moment: abs(moment - at))
        elif at not in self._shared_by:
            insort(moments, at)
        self._shared_by[at] = self._shared_by.get(at, 0) + 1
        return at

    def leave(self, at: float) -> None:
        """Take back what :meth:`join` gave: nothing is due then. A time that is not known does no harm."""
        count = self._shared_by.get(at)
        if count is None:
            return
        if count > 1:
            self._shared_by[at] = count - 1
            return
        del self._shared_by[at]
        del self._moments[bisect_left(self._moments, at)]

    def __len__(self) -> int:
        return len(self._moments)

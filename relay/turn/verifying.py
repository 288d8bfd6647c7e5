"""When is a server asked whether it knows us still, because something is wrong with the network?

Times alone; ``allocation.py`` asks. At once, but not more often than every two seconds; who has said nothing for a
second is silent; over UDP, it is asked again for half a minute. Pure.
"""

from __future__ import annotations

import math
from enum import Enum

__all__ = ["VERIFY_FOR_S", "VERIFY_INTERVAL_S", "Verification", "Verified"]

# A doubt may come back every second.
VERIFY_INTERVAL_S = 2.0
# As long as consent lives (RFC 7675, 5.1): a silent server may be restarted meanwhile, and nobody else would notice
# before something is sent.
VERIFY_FOR_S = 30.0
# The longest round trip to be expected, and half a second for one that was lost.
SILENCE_S = 1.0


class Verified(Enum):
    """What :meth:`Verification.handle_timeout` wants: tell that the server is silent, or ask it again."""

    SILENT = "silent"
    AGAIN = "again"


class Verification:
    """See the module.

    Args:
        is_stream: nothing is asked twice: what was sent is still on its way.
    """

    __slots__ = ("_again_at", "_asked_at", "_is_stream", "_is_told", "_silent_at", "_until")

    def __init__(self, *, is_stream: bool) -> None:
        self._is_stream = is_stream
        self._asked_at = self._until = -math.inf
        self._silent_at = self._again_at = math.inf
        self._is_told = False

    def begin(self, now: float) -> bool:
        """Whether the server is to be asked now; the caller asks."""
        if now < self._asked_at + VERIFY_INTERVAL_S:
            return False
        self._until = now + VERIFY_FOR_S
        self._is_told = False
        self._ask(now)
        return True

    def end(self) -> None:
        """There is an answer, or nobody waits for one any more."""
        self._silent_at = self._again_at = math.inf

    def handle_timeout(self, now: float) -> Verified | None:
        """One thing that is due; to be called until there is none."""
        if now >= self._silent_at:
            self._silent_at = math.inf
            again_at = self._asked_at + VERIFY_INTERVAL_S
            if not self._is_stream and again_at < self._until:
                self._again_at = again_at
            if not self._is_told:
                self._is_told = True
                return Verified.SILENT
        if now >= self._again_at:
            self._ask(now)
            return Verified.AGAIN
        return None

    def poll_timeout(self) -> float | None:
        """When something is due."""
        at = min(self._silent_at, self._again_at)
        return None if at == math.inf else at

    def _ask(self, now: float) -> None:
        self._asked_at = now
        self._silent_at, self._again_at = now + SILENCE_S, math.inf

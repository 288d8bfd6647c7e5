"""Has a gateway forgotten its mappings? What the seconds that it counts say: PCP's rule, and NAT-PMP's.

Both protocols put into every answer how many seconds ago the gateway's table of mappings began. If that is not what
passed on our own clock, the table began anew. The rules differ: PCP's also finds a clock that jumps ahead. Pure.
"""

from __future__ import annotations

import math

__all__ = ["NatPmpEpoch", "PcpEpoch"]


class PcpEpoch:
    """RFC 6887, 8.5: "using integer arithmetic", and "recorded … for use in its next comparison" whether it is valid or
    not.
    """

    __slots__ = ("_client_time", "_server_time")

    def __init__(self) -> None:
        self._client_time: int | None = None
        self._server_time = 0

    def is_valid(self, server_time: int, now: float) -> bool:
        """Whether the gateway still knows its mappings, as far as this answer shows.

        Args:
            server_time: the Epoch Time of an answer, 0 … 2³² - 1 seconds.
            now: when the answer came, in seconds of a clock that never goes backwards.
        """
        client_time = math.floor(now)
        before, server_before = self._client_time, self._server_time
        self._client_time, self._server_time = client_time, server_time
        if before is None:
            return True
        if server_time < server_before - 1:
            return False
        client_delta = client_time - before
        # One second back is no anomaly, and the RFC's deltas are unsigned.
        server_delta = max(server_time - server_before, 0)
        is_ahead = client_delta + 2 < server_delta - server_delta // 16
        is_behind = server_delta + 2 < client_delta - client_delta // 16
        return not is_ahead and not is_behind


class NatPmpEpoch:
    """RFC 6886, 3.6: no less than the last value and 7/8 of the time since, but for 2 seconds."""

    __slots__ = ("_client_time", "_server_time")

    def __init__(self) -> None:
        self._client_time: float | None = None
        self._server_time = 0

    def is_valid(self, server_time: int, now: float) -> bool:
        """Whether the gateway still knows its mappings, as far as this packet shows.

        Args:
            server_time: the Seconds Since Start of Epoch of a packet, 0 … 2³² - 1.
            now: when it came, in seconds of a clock that never goes backwards.
        """
        before, server_before = self._client_time, self._server_time
        self._client_time, self._server_time = now, server_time
        if before is None:
            return True
        expected = server_before + (now - before) * 7 / 8
        return server_time >= expected - 2

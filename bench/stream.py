"""A stream of datagrams from one process to another, as fast as the receiver says that they come.

Datagrams leave in bursts. The last one of a burst asks for an answer, which says how many have come so far; so many
bursts may be unanswered at a time, no more: what is on its way fits into every buffer, and what was measured is what
arrived, not what was thrown away. An answer that does not come is asked for again. The first byte of each datagram says
what it is. Nothing here knows how datagrams are sent.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence

__all__ = ["BURST", "WINDOW", "Inflow", "Outflow"]

# The narrowest buffer on the way is that of coturn's socket of a relayed address: 128 KiB, of which a datagram of 1,200
# bytes takes 2,304, so 56 fit. With 64 on their way up to 7 % were lost, with 128 a tenth and more.
BURST = 24
# Bursts without an answer.
WINDOW = 2
# After so long without an answer while one is due, it is asked for again.
PATIENCE_S = 0.1

# Application data to both agents, whether or not there is a channel (RFC 7983, 7).
_DATA, _LAST, _AGAIN, _ANSWER = 0xD0, 0xD1, 0xD2, 0xD3
_HEAD = struct.Struct(">BII")

Send = Callable[[Sequence[bytes]], Awaitable[None]]


class Inflow:
    """The receiving end.

    Attributes:
        received: datagrams of bursts.
    """

    def __init__(self) -> None:
        self.received = 0

    def take(self, data: bytes) -> bytes | None:
        """Take what came; returns what is to be sent back, if anything."""
        kind = data[0]
        if kind == _DATA:
            self.received += 1
            return None
        if kind == _LAST:
            self.received += 1
        elif kind != _AGAIN:
            return None
        _, number, _ = _HEAD.unpack_from(data)
        return _HEAD.pack(_ANSWER, number, self.received)


class Outflow:
    """The sending end.

    Args:
        send: sends these, in order.

    Attributes:
        received: datagrams that the other end has, as far as it is known here.
    """

    def __init__(self, send: Send) -> None:
        self.received = 0
        self._send = send
        self._sent = self._answered = 0
        self._is_answered = asyncio.Event()

    def take(self, data: bytes) -> None:
        """Take what came back."""
        if data[0] != _ANSWER:
            return
        _, number, self.received = _HEAD.unpack(data)
        self._answered = max(self._answered, number)
        self._is_answered.set()

    async def run(self, size: int, bursts: int, patience_s: float = PATIENCE_S) -> None:
        """Send so many bursts of datagrams of this size (bytes, 9 or more), and wait for the last answer."""
        datagrams = [bytes([_DATA]) + bytes(size - 1)] * (BURST - 1)
        padding = bytes(size - _HEAD.size)
        watching = asyncio.ensure_future(self._ask_again(patience_s))
        try:
            for _ in range(bursts):
                await self._until_unanswered(WINDOW - 1)
                self._sent += 1
                await self._send([*datagrams, _HEAD.pack(_LAST, self._sent, 0) + padding])
            await self._until_unanswered(0)
        finally:
            watching.cancel()

    async def _until_unanswered(self, bursts: int) -> None:
        """Until no more than these wait for an answer."""
        while self._sent - self._answered > bursts:
            self._is_answered.clear()
            await self._is_answered.wait()

    async def _ask_again(self, patience_s: float) -> None:
        before = -1
        while True:
            await asyncio.sleep(patience_s)
            if before == self._answered < self._sent:
                await self._send([_HEAD.pack(_AGAIN, self._sent, 0)])
            before = self._answered

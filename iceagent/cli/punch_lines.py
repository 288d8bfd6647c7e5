"""How do lines become datagrams, and datagrams lines?

A line of stdin is a datagram, without its newline; a datagram is a line of stdout. Where the results of the command are
JSON, so is what is received; else stdout has nothing but lines, and the results go to stderr.

The end of stdin is no end of the conversation: it ends when nothing has come for some seconds.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import sys
from contextlib import suppress

from iceagent.cli.output import Output
from iceagent.punch.punch import Punch
from iceagent.rendezvous.lines import lines

__all__ = ["MAX_LINE", "QUIET_S", "Pipe"]

MAX_LINE = 65_507
"""Bytes of a datagram over IPv4, at most; what a line has more is lost."""

QUIET_S = 3.0
"""After the end of stdin, seconds without a datagram to the end."""

# A socket that is full: how long until the next try, and how often.
_FULL_S, _FULL_TRIES = 0.002, 500


class Pipe:
    """Between stdin, stdout and a path.

    Args:
        output: the command's.
        is_data_shown: received data is a result.

    Attributes:
        results: where everything but data is told.
        sent: datagrams.
        count: received ones.
    """

    def __init__(self, output: Output, *, is_data_shown: bool) -> None:
        self._output = output
        self._is_data_shown = is_data_shown
        is_apart = is_data_shown and not output.as_json
        self.results = Output(stream=sys.stderr, logs_as_json=output.logs_as_json) if is_apart else output
        self.sent = self.count = 0
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._reader: asyncio.Task[None] | None = None
        self._heard = asyncio.Event()

    def start(self, *, is_needed: bool) -> None:
        """Begin to read stdin; until a line is taken, no more is read."""
        if is_needed:
            self._reader = asyncio.create_task(self._read())

    async def read(self) -> bytes | None:
        """The next line; ``None``: there are no more."""
        return await self._lines.get()

    async def run(self, punch: Punch) -> None:
        """Send lines until there are no more, and the other end has nothing more to say."""
        while (line := await self.read()) is not None:
            await self._send(punch, line)
        with suppress(TimeoutError):
            while True:
                self._heard.clear()
                async with asyncio.timeout(QUIET_S):
                    await self._heard.wait()

    def received(self, data: bytes) -> None:
        """A datagram came."""
        self.count += 1
        self._heard.set()
        if not self._is_data_shown:
            return
        if self._output.as_json:
            self._output.event("punch.received", data=data.decode(errors="replace"), size=len(data))
        elif self._output.is_terminal:
            # It may have what a terminal obeys.
            self._output.text(data.decode(errors="replace"))
        else:
            try:
                sys.stdout.buffer.write(data + b"\n")
                sys.stdout.buffer.flush()
            except OSError:
                # Nobody reads it any more: as Ctrl-C.
                self._is_data_shown = False
                signal.raise_signal(signal.SIGINT)

    async def _read(self) -> None:
        async for line in lines(0, MAX_LINE):
            await self._lines.put(line)
        await self._lines.put(None)

    async def _send(self, punch: Punch, line: bytes) -> None:
        for _ in range(_FULL_TRIES):
            number = punch.send(line)
            if number != errno.EAGAIN:
                break
            await asyncio.sleep(_FULL_S)
        if number:
            why = errno.errorcode.get(number, str(number))
            self._output.notice("punch.unsent", f"A line of {len(line)} bytes could not be sent: {why}.")
        else:
            self.sent += 1

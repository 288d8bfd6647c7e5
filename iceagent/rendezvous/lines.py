"""How are lines read from a file descriptor that may be a terminal, a pipe or a regular file?

By a thread: a regular file cannot be waited for otherwise.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator

__all__ = ["lines"]


async def lines(fd: int, limit: int) -> AsyncIterator[bytes]:
    """Lines as they come, without their newline; the last one may lack it.

    Args:
        fd: 0 is stdin. The next part is read when this one was taken.
        limit: bytes of a line that are kept; one that is longer loses its end.
    """
    line = bytearray()
    async for chunk in _chunks(fd):
        *heads, tail = chunk.split(b"\n")
        for head in heads:
            line += head[: limit - len(line)]
            yield bytes(line)
            line.clear()
        line += tail[: limit - len(line)]
    if line:
        yield bytes(line)


async def _chunks(fd: int) -> AsyncIterator[bytes]:
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    # One chunk at a time: the thread reads the next one when this was taken.
    slot = threading.Semaphore()
    loop = asyncio.get_running_loop()
    # A daemon, because nothing ends a read of a terminal; os.read, because a reader that is stuck in a buffered stream
    # holds a lock that the interpreter wants at its end.
    threading.Thread(target=_read, args=(fd, loop, chunks, slot), name="lines", daemon=True).start()
    while chunk := await chunks.get():
        slot.release()
        yield chunk


def _read(fd: int, loop: asyncio.AbstractEventLoop, chunks: asyncio.Queue[bytes], slot: threading.Semaphore) -> None:
    chunk = b"-"
    while chunk:
        slot.acquire()
        try:
            chunk = os.read(fd, 1 << 16)
        except OSError:
            # A closed stdin, or one that another process took away: the end of input.
            chunk = b""
        try:
            loop.call_soon_threadsafe(chunks.put_nowait, chunk)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            return

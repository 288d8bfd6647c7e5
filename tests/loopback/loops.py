"""Runs a coroutine on asyncio's loop and on uvloop's; collects what sockets and streams tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
import uvloop

from iceagent.net.address import TransportAddress
from iceagent.net.host import DatagramSocket, Stream

T = TypeVar("T")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

# The longest a test waits for something that should happen at once, in seconds.
PATIENCE_S = 10.0

on_both_loops = pytest.mark.parametrize(
    "loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


def run(loop_factory: LoopFactory, main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` to its end on a new loop; an exception that reached the loop's handler fails the test."""
    problems: list[dict[str, Any]] = []

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        return await main

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        result = runner.run(watched())
    assert problems == []
    return result


class News:
    """Wakes whoever waits for something to become true."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def tell(self) -> None:
        """Something happened."""
        self._changed.set()

    async def until(self, fact: Callable[[], bool]) -> None:
        """Wait until ``fact()``; TimeoutError after 10 s."""
        async with asyncio.timeout(PATIENCE_S):
            while not fact():
                self._changed.clear()
                await self._changed.wait()


class Inbox(News):
    """Keeps what a UDP socket receives."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[tuple[bytes, tuple[str, int]]] = []
        self.errors: list[tuple[TransportAddress | None, int]] = []

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        self.received.append((data, source))
        self.tell()

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        self.errors.append((destination, errno))
        self.tell()


class Ear(News):
    """Keeps what a stream receives."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""
        self.lost: list[int] = []

    def data_received(self, stream: Stream, data: bytes) -> None:
        self.data += data
        self.tell()

    def connection_lost(self, stream: Stream, errno: int) -> None:
        self.lost.append(errno)
        self.tell()

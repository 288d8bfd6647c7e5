"""Does a stream keep to its window, and does it count what arrived and nothing else?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from bench.stream import BURST, WINDOW, Inflow, Outflow

SIZE = 100


class Way:
    """Both ends and what is between them: whatever ``is_lost`` is true for, given its number from 0, does not arrive.

    Attributes:
        sent: sizes of all that was sent, in order.
        unanswered: the most datagrams of bursts that were on their way at once.
    """

    def __init__(self, is_lost: Callable[[int], bool] = lambda number: False) -> None:
        self.sent: list[int] = []
        self.unanswered = 0
        self.inflow = Inflow()
        self.outflow = Outflow(self._send)
        self._is_lost = is_lost
        self._on_way = 0

    async def _send(self, datagrams: Sequence[bytes]) -> None:
        for data in datagrams:
            self._on_way += 1
            self.unanswered = max(self.unanswered, self._on_way)
            if not self._is_lost(len(self.sent)):
                asyncio.get_running_loop().call_soon(self._arrive, data)
            self.sent.append(len(data))

    def _arrive(self, data: bytes) -> None:
        answer = self.inflow.take(data)
        if answer is not None:
            self._on_way = 0
            self.outflow.take(answer)


async def test_everything_arrives_and_is_counted() -> None:
    way = Way()
    await way.outflow.run(SIZE, bursts=10)
    assert way.sent == [SIZE] * 10 * BURST
    assert way.inflow.received == way.outflow.received == 10 * BURST


async def test_no_more_than_the_window_is_on_its_way() -> None:
    way = Way()
    await way.outflow.run(SIZE, bursts=10)
    assert BURST < way.unanswered <= WINDOW * BURST


@pytest.mark.parametrize("number", [0, BURST - 2])
async def test_what_is_lost_is_not_counted(number: int) -> None:
    way = Way(lambda sent: sent == number)
    await way.outflow.run(SIZE, bursts=10)
    assert way.outflow.received == 10 * BURST - 1


async def test_an_answer_that_does_not_come_is_asked_for_again() -> None:
    """The last datagrams of both bursts are lost, so nobody would answer."""
    way = Way(lambda sent: sent in (BURST - 1, 2 * BURST - 1))
    await way.outflow.run(SIZE, bursts=WINDOW, patience_s=0)
    assert way.outflow.received == WINDOW * (BURST - 1)
    # What asks again is no datagram of a burst.
    assert len(way.sent) > WINDOW * BURST


async def test_a_second_run_goes_on_counting() -> None:
    way = Way()
    await way.outflow.run(SIZE, bursts=2)
    await way.outflow.run(SIZE, bursts=3)
    assert way.outflow.received == 5 * BURST


def test_what_is_no_part_of_a_stream_is_left_alone() -> None:
    """``Side.exchange`` proved the path by datagrams of its own, and one of them may come late."""
    inflow = Inflow()
    assert inflow.take(b"\xc0 data") is None and inflow.received == 0

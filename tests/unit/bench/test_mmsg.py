"""Does a load keep to its window, and does it count what arrived and what was lost?"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.mmsg import PATIENCE_S, load

STEP_S = 0.001
CALL = 4


class Way:
    """Sender, counter and clock: whatever ``is_lost`` is true for, given its number from 0, does not arrive.

    Everything that is on its way arrives at once, a millisecond later.

    Attributes:
        sent: datagrams.
        on_way: the most at once, lost ones among them until the load gives them up.
    """

    count = CALL

    def __init__(self, is_lost: Callable[[int], bool] = lambda number: False) -> None:
        self.sent = 0
        self.on_way = 0
        self._is_lost = is_lost
        self._coming = self._unanswered = 0
        self._now = 0.0

    def send(self) -> int:
        self._coming += sum(not self._is_lost(self.sent + i) for i in range(CALL))
        self.sent += CALL
        self._unanswered += CALL
        self.on_way = max(self.on_way, self._unanswered)
        return CALL

    def take(self) -> int:
        came, self._coming = self._coming, 0
        self._unanswered -= came
        return came

    def clock(self) -> float:
        self._now += STEP_S
        return self._now


@pytest.mark.parametrize("window", [CALL, 10, 3 * CALL])
def test_what_is_on_its_way_fits_into_the_window(window: int) -> None:
    way = Way()
    count = load(way, way, window, 0.1, way.clock)
    assert way.on_way <= window
    assert count.sent == count.received == way.sent > 0


def test_the_time_is_that_until_the_last_one_arrived() -> None:
    """What is waited for afterwards is not part of it."""
    way = Way()
    count = load(way, way, CALL, 0.1, way.clock)
    assert count.seconds == pytest.approx(0.1, abs=2 * STEP_S)


def test_lost_ones_are_counted_and_stop_nothing() -> None:
    way = Way(lambda number: number % 100 == 7)
    count = load(way, way, 2 * CALL, 1.0, way.clock)
    lost = (way.sent - 8) // 100 + 1
    assert (count.sent, count.received) == (way.sent, way.sent - lost)
    assert lost >= 3


def test_where_nothing_arrives_it_ends_all_the_same() -> None:
    way = Way(lambda number: True)
    count = load(way, way, CALL, 10 * PATIENCE_S, way.clock)
    assert count.received == 0
    assert 2 * CALL <= count.sent <= 11 * CALL

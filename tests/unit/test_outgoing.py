"""When does a datagram leave, and together with which others?"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from iceagent.core.pair import Traffic
from iceagent.errors import UsageError
from iceagent.net.address import TransportAddress
from iceagent.net.trains import MAX_SEGMENT, MAX_TRAIN
from iceagent.outgoing import Outgoing

OURS, THEIRS = TransportAddress("192.0.2.1", 1), TransportAddress("192.0.2.2", 2)
WINDOW_S = 0.0001


class Socket:
    """Writes down each call; ``refuse`` says from which datagram on, and why."""

    address = OURS

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []
        self.refuse: tuple[int, int] | None = None
        self.forbidden: bytes | None = None
        self.count = 0

    def send(self, data: bytes, destination: tuple[str, int], ttl: int | None = None) -> int:
        assert destination == THEIRS
        self.calls.append([data])
        return self._take(1)[1]

    def send_many(self, datagrams: Sequence[bytes], destination: tuple[str, int]) -> tuple[int, int]:
        assert destination == THEIRS
        self.calls.append(list(datagrams))
        if self.forbidden in datagrams:
            return datagrams.index(self.forbidden), errno.EPERM
        return self._take(len(datagrams))

    def close(self) -> None:
        """Nothing is open."""

    def _take(self, number: int) -> tuple[int, int]:
        left = number if self.refuse is None else max(0, min(number, self.refuse[0] - self.count))
        self.count += left
        return left, (self.refuse[1] if self.refuse is not None and left < number else 0)


class Loop:
    """Runs nothing by itself."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []
        self.is_refusing = False

    def call_soon(self, callback: Callable[[], None]) -> None:
        if self.is_refusing:
            raise RuntimeError("non-thread-safe operation")
        self.due.append(callback)

    def come_round(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()


class Bench:
    """An :class:`Outgoing` with all around it."""

    def __init__(self, coalesce_s: float = WINDOW_S) -> None:
        self.now = 100.0
        self.socket = Socket()
        self.loop = Loop()
        self.failures: list[tuple[int, int]] = []
        self.beginnings: list[float] = []
        self.traffic = Traffic(component=1)
        self.out = Outgoing(
            self.socket,
            THEIRS,
            self.traffic,
            self.loop,  # type: ignore[arg-type]
            lambda: self.now,
            coalesce_s,
            self,
        )

    def sending_failed(self, out: Outgoing, lost: int, number: int) -> None:
        self.failures.append((lost, number))

    def sending_began(self, out: Outgoing) -> None:
        self.beginnings.append(self.now)

    def send(self, *datagrams: bytes) -> None:
        for data in datagrams:
            self.out.send(data)

    @property
    def counted(self) -> tuple[int, int]:
        return self.traffic.packets_sent, self.traffic.bytes_sent


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_first_leaves_at_once_and_the_rest_of_its_burst_together(bench: Bench) -> None:
    bench.send(b"1", b"2", b"3")
    assert bench.socket.calls == [[b"1"]]
    bench.loop.come_round()
    assert bench.socket.calls == [[b"1"], [b"2", b"3"]]
    assert bench.counted == (3, 3)
    bench.loop.come_round()
    assert len(bench.socket.calls) == 2


def test_one_datagram_at_a_time_asks_nothing_of_the_loop(bench: Bench) -> None:
    for number in range(5):
        bench.send(b"%d" % number)
        bench.now += WINDOW_S
    assert bench.socket.calls == [[b"0"], [b"1"], [b"2"], [b"3"], [b"4"]]
    assert bench.loop.due == []


def test_who_waits_in_vain_waits_ever_more_rarely(bench: Bench) -> None:
    """Two at a time: nothing is gained by holding the second one up."""
    waited = []
    for number in range(1, 100):
        bench.send(b"1", b"2")
        if bench.loop.due:
            waited.append(number)
        bench.loop.come_round()
        bench.now += WINDOW_S
    assert waited == [1, 3, 6, 11, 20, 37, 54, 71, 88]
    assert bench.counted == (198, 198)


def test_a_real_burst_ends_the_reluctance(bench: Bench) -> None:
    for _ in range(50):
        bench.send(b"1", b"2")
        bench.loop.come_round()
        bench.now += WINDOW_S
    bench.send(*[b"x"] * 30)
    bench.loop.come_round()
    bench.now += WINDOW_S
    before = len(bench.socket.calls)
    bench.send(*[b"x"] * 30)
    bench.loop.come_round()
    assert [len(call) for call in bench.socket.calls[before:]] == [1, 29]


def test_a_burst_that_goes_on_waits_again(bench: Bench) -> None:
    """What follows a departure within the time belongs to the same stream of bursts."""
    bench.send(b"1", b"2", b"3")
    bench.loop.come_round()
    bench.send(b"4")
    assert len(bench.socket.calls) == 2
    bench.loop.come_round()
    bench.now += WINDOW_S
    bench.send(b"5")
    assert bench.socket.calls == [[b"1"], [b"2", b"3"], [b"4"], [b"5"]]


def test_what_fills_a_train_does_not_wait(bench: Bench) -> None:
    bench.send(*[b"x"] * (1 + 2 * MAX_TRAIN + 3))
    assert [len(call) for call in bench.socket.calls] == [1, MAX_TRAIN, MAX_TRAIN]
    assert len(bench.loop.due) == 1
    bench.loop.come_round()
    assert [len(call) for call in bench.socket.calls] == [1, MAX_TRAIN, MAX_TRAIN, 3]


def test_without_a_window_every_datagram_leaves_at_once() -> None:
    bench = Bench(coalesce_s=0.0)
    bench.send(b"1", b"2", b"3")
    assert bench.socket.calls == [[b"1"], [b"2"], [b"3"]]
    assert bench.loop.due == []


def test_what_can_change_or_is_long_does_not_wait_and_overtakes_nothing(bench: Bench) -> None:
    changing, long = bytearray(b"3"), bytes(MAX_SEGMENT + 1)
    bench.send(b"1", b"2")
    bench.out.send(changing)  # type: ignore[arg-type]
    bench.send(b"4", long, b"5")
    assert bench.socket.calls == [[b"1"], [b"2"], [changing], [b"4"], [long]]
    bench.loop.come_round()
    assert bench.socket.calls[-1] == [b"5"]
    assert bench.counted == (6, 5 + MAX_SEGMENT + 1)


def test_what_does_not_wait_is_followed_by_a_burst_all_the_same(bench: Bench) -> None:
    bench.send(b"1")
    bench.now += 0.9 * WINDOW_S
    bench.send(bytearray(b"2"))  # type: ignore[arg-type]
    bench.now += 0.9 * WINDOW_S
    bench.send(b"3", b"4")
    assert bench.socket.calls == [[b"1"], [b"2"]]
    bench.loop.come_round()
    assert bench.socket.calls == [[b"1"], [b"2"], [b"3", b"4"]]


def test_a_loop_that_refuses_another_thread_leaves_nothing_waiting(bench: Bench) -> None:
    bench.send(b"1")
    bench.loop.is_refusing = True
    with pytest.raises(RuntimeError):
        bench.send(b"2")
    bench.loop.is_refusing = False
    bench.send(b"3")
    bench.loop.come_round()
    assert bench.socket.calls == [[b"1"], [b"3"]]


@pytest.mark.parametrize("before", [0, 2])
def test_too_long_is_told_at_once(bench: Bench, before: int) -> None:
    bench.send(*[b"x"] * before)
    bench.socket.refuse = (before, errno.EMSGSIZE)
    with pytest.raises(UsageError, match=r"65508 bytes, at most 65507"):
        bench.send(bytes(65_508))
    assert bench.failures == []


def test_what_the_socket_refuses_is_told_with_its_number(bench: Bench) -> None:
    bench.socket.refuse = (3, errno.EAGAIN)
    bench.send(b"1", b"2", b"3", b"4", b"5")
    assert bench.failures == []
    bench.loop.come_round()
    assert bench.failures == [(2, errno.EAGAIN)]
    assert bench.counted == (3, 3)
    bench.now += 1
    bench.send(b"6")
    assert bench.failures == [(2, errno.EAGAIN), (1, errno.EAGAIN)]


def test_who_computes_between_sends_holds_them_up_for_a_millisecond_at_most(bench: Bench) -> None:
    bench.send(b"1", b"2")
    bench.now += 0.0011
    bench.send(b"3")
    assert bench.socket.calls == [[b"1"], [b"2", b"3"]]


def test_after_a_loop_that_was_held_up_timers_come_first(bench: Bench) -> None:
    """asyncio puts due timers behind what was scheduled before: here the end of consent takes away what waits."""
    bench.send(b"1", b"2", b"3")
    bench.now += 1.0
    bench.loop.call_soon(lambda: taken.extend(bench.out.take()))
    taken: list[bytes] = []
    bench.loop.come_round()
    bench.loop.come_round()
    assert taken == [b"2", b"3"]
    assert bench.socket.calls == [[b"1"]]
    bench.send(b"4", b"5", b"6")
    bench.now += 1.0
    bench.loop.come_round()
    bench.loop.come_round()
    assert bench.socket.calls == [[b"1"], [b"4"], [b"5", b"6"]]


def test_a_refusal_of_one_datagram_costs_that_one_alone(bench: Bench) -> None:
    """A packet filter on this machine, say."""
    bench.socket.forbidden = b"no"
    bench.send(b"1", b"2", b"no", b"3", b"no", b"4")
    bench.loop.come_round()
    assert bench.failures == [(1, errno.EPERM), (1, errno.EPERM)]
    assert bench.counted == (4, 4)
    assert bench.socket.calls == [[b"1"], [b"2", b"no", b"3", b"no", b"4"], [b"3", b"no", b"4"], [b"4"]]


def test_what_waits_can_be_taken_away(bench: Bench) -> None:
    bench.send(b"1", b"2", b"3")
    assert bench.out.take() == [b"2", b"3"]
    assert bench.out.take() == []
    bench.loop.come_round()
    assert bench.socket.calls == [[b"1"]]
    assert bench.counted == (1, 1)


def test_what_is_taken_over_leaves_first_and_in_order(bench: Bench) -> None:
    bench.out.adopt([])
    assert bench.loop.due == []
    bench.out.adopt([b"1", b"2"])
    bench.send(b"3")
    assert bench.socket.calls == []
    bench.loop.come_round()
    assert bench.socket.calls == [[b"1", b"2", b"3"]]

"""The data path of the TURN server: what leaves together, and in which order."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence

from iceagent.net.address import TransportAddress
from iceagent.net.trains import MAX_TRAIN
from relay.relays import Batches, send_all

HERE, THERE = TransportAddress("192.0.2.1", 1), TransportAddress("192.0.2.2", 2)


async def test_what_comes_in_one_turn_leaves_together_in_order() -> None:
    left: list[tuple[str, list[bytes]]] = []
    batches = Batches(lambda way, datagrams: left.append((way, datagrams)))
    batches.add("a", [b"1"])
    batches.add("b", [b"2"])
    batches.add("a", [b"3", b"4"])
    assert left == []
    await asyncio.sleep(0)
    assert left == [("a", [b"1", b"3", b"4"]), ("b", [b"2"])]
    batches.add("a", [b"5"])
    await asyncio.sleep(0)
    assert left[2:] == [("a", [b"5"])]


async def test_many_do_not_wait() -> None:
    left: list[int] = []
    batches = Batches(lambda way, datagrams: left.append(len(datagrams)))
    for number in range(MAX_TRAIN + 1):
        batches.add("a", [b"%d" % number])
    assert left == [MAX_TRAIN]
    await asyncio.sleep(0)
    assert left == [MAX_TRAIN, 1]


class Kernel:
    """Refuses what it is told to, each with an errno."""

    address = HERE

    def __init__(self, refusals: dict[bytes, int]) -> None:
        self.taken: list[bytes] = []
        self._refusals = refusals

    def send(self, data: bytes, destination: tuple[str, int], ttl: int | None = None) -> int:
        number = self._refusals.get(data, 0)
        if not number:
            self.taken.append(data)
        return number

    def send_many(self, datagrams: Sequence[bytes], destination: tuple[str, int]) -> tuple[int, int]:
        for count, data in enumerate(datagrams):
            number = self.send(data, destination)
            if number:
                return count, number
        return len(datagrams), 0

    def close(self) -> None:
        raise AssertionError("nobody closes it")


def test_one_that_is_refused_costs_no_other() -> None:
    kernel = Kernel({b"2": errno.EMSGSIZE, b"4": errno.EPERM})
    send_all(kernel, [b"1", b"2", b"3", b"4", b"5"], THERE)
    assert kernel.taken == [b"1", b"3", b"5"]


def test_a_full_socket_takes_none_of_the_others_either() -> None:
    kernel = Kernel({b"2": errno.EAGAIN})
    send_all(kernel, [b"1", b"2", b"3"], THERE)
    assert kernel.taken == [b"1"]

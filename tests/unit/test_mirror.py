"""What leaves twice while a path is in doubt, and what ends that?"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence

import pytest

from iceagent.candidate import Candidate
from iceagent.core.context import Keys
from iceagent.core.pair import CandidatePair
from iceagent.errors import UsageError
from iceagent.mirror import MAX_BYTES, MAX_DATAGRAMS, MAX_S
from iceagent.outgoing import Outgoing
from tests.sim.world import host_candidate
from tests.unit.core.kit import OURS, THEIRS, remote_candidate
from tests.unit.gather.kit import base_on
from tests.unit.test_datapath import Path, Recorder


class Clock:
    """A machine whose time passes when a test says so."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time


class Narrow(Recorder):
    """Refuses, from the moment that ``number`` is set."""

    number = 0

    def send(self, data: bytes, destination: tuple[str, int], ttl: int | None = None) -> int:
        if self.number:
            return self.number
        return super().send(data, destination, ttl)

    def send_many(self, datagrams: Sequence[bytes], destination: tuple[str, int]) -> tuple[int, int]:
        if self.number:
            return 0, self.number
        return super().send_many(datagrams, destination)


class Doubtful(Path):
    """A data path with a second pair beside the one in use.

    Attributes:
        standby: the other pair; ``None``: there is none (any more).
        errors: what the agent is told of the network.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self._host = self.clock  # type: ignore[assignment]
        self.main, self.main_socket = self._pair("192.0.2.1")
        self._set_path(1, self.main, self.bases)
        self.other, self.other_socket = self._pair("192.0.2.2")
        self.standby: CandidatePair | None = self.other
        self.errors: list[int] = []

    def doubt(self) -> None:
        self._begin_mirroring(1, lambda component, now: self.standby, self.bases)

    def trust(self) -> None:
        self._end_mirroring(1)

    @property
    def count(self) -> int:
        return self._mirrored

    @property
    def is_ordinary(self) -> bool:
        """Whether nothing stands between ``send`` and the path's way out."""
        return type(self._outgoing[1]) is Outgoing

    @property
    def sent(self) -> tuple[list[bytes], list[bytes]]:
        """On the path, and on the other pair."""
        return self.main_socket.sent, self.other_socket.sent

    def _on_network_error(self, base: object, destination: object, number: int) -> None:
        self.errors.append(number)

    def _pair(self, host: str) -> tuple[CandidatePair, Narrow]:
        base = base_on(host, 5000)
        base.now = self.clock.now
        base.socket = socket = Narrow(base.address)
        self.bases[base.address] = base
        local = Candidate.parse(host_candidate(base.address).to_sdp())
        return CandidatePair(number=1, local=local, remote=remote_candidate(), keys=Keys.of(OURS, THEIRS)), socket


async def test_in_doubt_each_datagram_leaves_twice_and_is_counted() -> None:
    path = Doubtful()
    path.send(b"before")
    path.doubt()
    path.send(b"1")
    path.send(b"22")
    path.trust()
    path.send(b"after")
    await asyncio.sleep(0)
    assert path.sent == ([b"before", b"1", b"22", b"after"], [b"1", b"22"])
    assert (path.other.traffic.packets_sent, path.other.traffic.bytes_sent, path.count) == (2, 3, 2)
    assert path.main.traffic.packets_sent == 4
    assert path.is_ordinary


async def test_mirroring_makes_nobody_wait_for_an_answer_on_the_other_pair() -> None:
    path = Doubtful()
    path.doubt()
    path.send(b"1")
    traffic = path.other.traffic
    assert (traffic.sent_at, traffic.unanswered_at, traffic.is_asleep) == (0.0, 0.0, True)


async def test_what_waited_for_its_burst_leaves_first_and_once() -> None:
    path = Doubtful()
    for data in (b"1", b"2", b"3"):
        path.send(data)
    path.doubt()
    assert path.sent == ([b"1"], [])
    path.send(b"4")
    assert path.sent == ([b"1", b"2", b"3", b"4"], [b"4"])


@pytest.mark.parametrize("size", [1, 1200])
async def test_an_episode_has_an_end(size: int) -> None:
    """64 datagrams or 64 kB; what comes then leaves on the path alone, in bursts as ever."""
    path = Doubtful()
    path.doubt()
    for _ in range(100):
        path.send(bytes(size))
        path.clock.time += 0.001
    assert len(path.other_socket.sent) == min(MAX_DATAGRAMS, MAX_BYTES // size)
    assert sum(map(len, path.other_socket.sent)) <= MAX_BYTES
    assert len(path.main_socket.sent) == 100 and path.is_ordinary


async def test_it_ends_after_a_second_and_a_half() -> None:
    path = Doubtful()
    path.doubt()
    for _ in range(20):
        path.send(b"x")
        path.clock.time += 0.125
    assert len(path.other_socket.sent) == MAX_S / 0.125 and path.is_ordinary


async def test_the_next_doubt_is_another_episode() -> None:
    path = Doubtful()
    for _ in range(2):
        path.doubt()
        for _ in range(100):
            path.send(b"x")
        path.trust()
    assert path.count == 2 * MAX_DATAGRAMS


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENETUNREACH])
async def test_it_ends_when_the_other_socket_refuses(number: int) -> None:
    path = Doubtful()
    path.other_socket.number = number
    path.doubt()
    path.send(b"1")
    path.other_socket.number = 0
    path.send(b"2")
    await asyncio.sleep(0)
    assert path.sent == ([b"1", b"2"], []) and path.is_ordinary
    assert (path.count, path.other.traffic.packets_sent, path.send_dropped, path.errors) == (0, 0, 0, [])


async def test_where_the_socket_is_full_nothing_is_mirrored() -> None:
    """Of the path: that datagram is lost, and the next one that has room leaves twice."""
    path = Doubtful()
    path.doubt()
    path.main_socket.number = errno.EAGAIN
    path.send(b"1")
    path.main_socket.number = 0
    path.send(b"2")
    assert path.sent == ([b"2"], [b"2"]) and path.send_dropped == 1


async def test_where_the_network_of_the_path_is_gone_the_other_pair_has_it() -> None:
    path = Doubtful()
    path.doubt()
    path.main_socket.number = errno.ENETUNREACH
    path.send(b"1")
    assert path.sent == ([], [b"1"]) and path.errors == [errno.ENETUNREACH]


async def test_without_consent_nothing_leaves_there() -> None:
    """RFC 7675, 5.1; it may end amid an episode."""
    path = Doubtful()
    path.doubt()
    path.send(b"1")
    path.standby = None
    path.send(b"2")
    path.standby = path.other
    path.send(b"3")
    await asyncio.sleep(0)
    assert path.sent == ([b"1", b"2", b"3"], [b"1"])


async def test_a_socket_that_is_closed_is_not_used() -> None:
    path = Doubtful()
    path.doubt()
    del path.bases[path.other.base]
    path.send(b"1")
    assert path.sent == ([b"1"], []) and path.is_ordinary


async def test_the_next_path_begins_without() -> None:
    path = Doubtful()
    path.send(b"0")
    path.send(b"1")
    path.doubt()
    path._set_path(1, path.other, path.bases)
    path.send(b"2")
    await asyncio.sleep(0)
    assert path.sent == ([b"0"], [b"1", b"2"])
    assert path.count == 0 and path.is_ordinary


async def test_too_long_is_told_and_mirrored_nowhere() -> None:
    path = Doubtful()
    path.doubt()
    path.main_socket.number = errno.EMSGSIZE
    with pytest.raises(UsageError, match="65508 bytes"):
        path.send(bytes(65_508))
    assert path.other_socket.sent == []


async def test_without_a_path_there_is_nothing_to_doubt() -> None:
    path = Doubtful()
    path.use_none()
    path.doubt()
    path.trust()
    assert path._outgoing == {}

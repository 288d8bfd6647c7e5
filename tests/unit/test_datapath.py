"""What becomes of a burst whose path changes while it waits?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from iceagent.candidate import Candidate
from iceagent.core.context import Keys
from iceagent.core.pair import CandidatePair
from iceagent.datapath import DataPath
from iceagent.errors import NoPath
from iceagent.events import AgentState
from iceagent.gather.bases import Base
from iceagent.net.address import TransportAddress
from iceagent.outgoing import Outgoing
from tests.sim.world import host_candidate
from tests.unit.core.kit import OURS, REMOTE, THEIRS, remote_candidate
from tests.unit.gather.kit import Socket, base_on


class Recorder(Socket):
    """Keeps what is sent."""

    def __init__(self, address: TransportAddress) -> None:
        super().__init__(address)
        self.sent: list[bytes] = []

    def send(self, data: bytes, destination: tuple[str, int], ttl: int | None = None) -> int:
        self.sent.append(data)
        return 0

    def send_many(self, datagrams: Sequence[bytes], destination: tuple[str, int]) -> tuple[int, int]:
        self.sent.extend(datagrams)
        return len(datagrams), 0


class Machine:
    """A clock that stands still."""

    def now(self) -> float:
        return 100.0


class Path(DataPath):
    """A data path with no agent around it; ``due``: what its agent has to do by now."""

    due: Callable[[], None] | None = None

    def __init__(self) -> None:
        super().__init__(Machine(), 1, 0.0001)  # type: ignore[arg-type]
        self.bases: dict[TransportAddress, Base] = {}

    @property
    def state(self) -> AgentState:
        return AgentState.CONNECTED

    def sending_began(self, out: Outgoing) -> None:
        pass

    @property
    def send_dropped(self) -> int:
        return self._send_dropped

    def use(self, host: str) -> tuple[CandidatePair, Recorder]:
        """Send from this address from now on."""
        base = base_on(host, 5000)
        base.socket = recorder = Recorder(base.address)
        self.bases[base.address] = base
        local = Candidate.parse(host_candidate(base.address).to_sdp())
        pair = CandidatePair(number=1, local=local, remote=remote_candidate(), keys=Keys.of(OURS, THEIRS))
        self._set_path(1, pair, self.bases)
        return pair, recorder

    def use_none(self) -> None:
        self._set_path(1, None, self.bases)

    def _check(self) -> None:
        """It is open."""

    def _end(self) -> Exception | None:
        return None

    def _catch_up(self) -> None:
        if self.due is not None:
            self.due()

    def flush(self) -> None:
        self._flush()

    def _set_sink(self, sink: Callable[[bytes, int], None]) -> None:
        """Nothing is received."""

    def _on_network_error(self, base: TransportAddress, destination: TransportAddress, number: int) -> None:
        raise AssertionError(f"{base} {destination} {number}")


async def test_it_leaves_on_the_next_path_and_in_order() -> None:
    path = Path()
    before, old = path.use("192.0.2.1")
    for number in range(4):
        path.send(b"%d" % number)
    after, new = path.use("192.0.2.2")
    path.send(b"4")
    await asyncio.sleep(0)
    assert (old.sent, new.sent) == ([b"0"], [b"1", b"2", b"3", b"4"])
    assert (before.traffic.packets_sent, after.traffic.packets_sent) == (1, 4)
    assert path.send_dropped == 0


async def test_without_a_next_path_it_is_not_sent_but_counted() -> None:
    """RFC 7675, 5.1: nothing leaves on a five-tuple without consent."""
    path = Path()
    pair, socket = path.use("192.0.2.1")
    for number in range(4):
        path.send(b"%d" % number)
    path.use_none()
    with pytest.raises(NoPath):
        path.send(b"4")
    await asyncio.sleep(0)
    assert socket.sent == [b"0"]
    assert (pair.traffic.packets_sent, pair.traffic.packets_discarded, path.send_dropped) == (1, 3, 3)
    assert pair.destination == REMOTE


async def test_what_is_due_comes_before_what_waits() -> None:
    """RFC 7675, 5.1, again: in a loop that was held up, consent may have ended when somebody asks for statistics."""
    path = Path()
    _, socket = path.use("192.0.2.1")
    for number in range(4):
        path.send(b"%d" % number)
    path.flush()
    for number in range(4):
        path.send(b"%d" % number)
    path.due = path.use_none
    path.flush()
    assert (socket.sent, path.send_dropped) == ([b"0", b"1", b"2", b"3"], 4)

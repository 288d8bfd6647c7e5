"""Whatever happens to signalling and to the network, in any order: what was said arrives in the end, once and in order.

A story is a list of happenings, drawn by hypothesis; afterwards the network is whole, one side restarts ICE, and the
same channel has to deliver all that both ends ever said. It is told in one network, where a path that works may be
left from before, and behind two NATs, where nothing but what was signalled leads to the other one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import hypothesis.strategies as st
from aiortc import RTCConfiguration, RTCIceServer
from hypothesis import example, given, settings

from iceagent.rtc import PeerConnection
from iceagent.testing import NatNode
from tests.shell.world import in_virtual_time
from tests.unit.rtc.calls import Call
from tests.unit.rtc.kit import Line, negotiate, states_of, trickle

# SCTP gives up after ten repetitions, which come ever later; a story is over long before.
RECOVERY_LIMIT_S = 300.0
STUN = "20.9.0.1"


class Happening(NamedTuple):
    name: str
    side: int = 0
    amount: int = 1


NAMES = ["say", "wish", "negotiate", "offer is lost", "answer is lost", "cut", "restore", "roam", "wait", "wait long"]
HAPPENINGS = st.lists(st.builds(Happening, st.sampled_from(NAMES), st.integers(0, 1), st.integers(1, 5)), max_size=14)


class Story:
    """What has happened so far, to two on one network."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.line = Line(call.a, call.b)
        # Whose offer waits for an answer that was lost: aiortc cannot take it back, so the same side offers again.
        self.offered: int | None = None
        self.moves = 10

    def _ordered(self, side: int) -> tuple[PeerConnection, PeerConnection]:
        side = side if self.offered is None else self.offered
        return (self.call.a, self.call.b) if side == 0 else (self.call.b, self.call.a)

    async def begin(self) -> None:
        await negotiate(self.call.a, self.call.b)
        await self.line.opened()
        await self.call.completed()

    async def happen(self, name: str, side: int, amount: int) -> None:
        machine = self.call.machines[side]
        offerer, answerer = self._ordered(side)
        if name == "say":
            self.line.say(amount)
        elif name == "wish":
            self.call.both[side].restartIce()
        elif name == "negotiate":
            await negotiate(offerer, answerer)
            self.offered = None
        elif name == "offer is lost":
            await offerer.setLocalDescription()
            self.offered = side if self.offered is None else self.offered
        elif name == "answer is lost":
            # The answerer believes that all is well; the offerer offers again.
            await offerer.setLocalDescription()
            await answerer.setRemoteDescription(offerer.localDescription)
            await answerer.setLocalDescription()
            self.offered = side if self.offered is None else self.offered
        elif name == "cut":
            machine.link().cut()
        elif name == "restore":
            machine.link().restore()
        elif name == "roam":
            self.moves += 1
            machine.remove_interface("eth0")
            machine.add_interface("eth0", [self.new_host(side)], self.new_router(side))
        else:
            await asyncio.sleep(amount * (0.05 if name == "wait" else 4.0))

    async def recover(self) -> None:
        """The network is whole again, and the application notices that something is wrong."""
        for machine in self.call.machines:
            machine.link().restore()
        offerer, answerer = self._ordered(0)
        offerer.restartIce()
        await negotiate(offerer, answerer)

    def new_host(self, side: int) -> str:
        return f"20.0.{side}.{self.moves}"

    def new_router(self, side: int) -> NatNode | None:
        return None

    def __str__(self) -> str:
        return "\n".join(
            f"{name} {connection.iceConnectionState}: {connection.path()}\n"
            + "\n".join(f"    {each}" for agent in connection.agents for each in (*agent.history(), *agent.pairs()))
            for name, connection in (("a", self.call.a), ("b", self.call.b))
        )


class StoryBehindNats(Story):
    """The same, to two behind a port-restricted NAT each, who tell each other of candidates as they find them."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        trickle(call.a, call.b)
        trickle(call.b, call.a)

    def new_host(self, side: int) -> str:
        return f"192.168.{side}.{self.moves}"

    def new_router(self, side: int) -> NatNode | None:
        return self.call.world.nat(f"nat{side}-{self.moves}", "port-restricted", f"20.{side + 1}.0.{self.moves}")


def behind_nats() -> Story:
    call = Call(RTCConfiguration(iceServers=[RTCIceServer(urls=f"stun:{STUN}")]))
    call.world.stun("stun", STUN)
    story = StoryBehindNats(call)
    for side, machine in enumerate(call.machines):
        machine.remove_interface("eth0")
        machine.add_interface("eth0", [story.new_host(side)], story.new_router(side))
    return story


def tell(begin: Callable[[], Story], happenings: list[Happening]) -> None:
    @in_virtual_time
    async def told() -> None:
        story = begin()
        call = story.call
        try:
            await story.begin()
            overall = states_of(call.a, "connectionState"), states_of(call.b, "connectionState")
            for happening in happenings:
                await story.happen(*happening)
            await story.recover()
            story.line.say()
            try:
                await story.line.all_heard(RECOVERY_LIMIT_S)
                await call.completed()
            except TimeoutError:
                raise AssertionError(str(story)) from None
            assert all(connection.path() is not None for connection in call.both)
            assert "closed" not in (*overall[0], *overall[1])
            assert len(call.a.agents) == len(call.b.agents) == 1
        finally:
            await asyncio.gather(call.a.close(), call.b.close())
        assert not any(machine._sockets for machine in call.machines)

    told()


@given(HAPPENINGS)
@example([Happening("wish"), Happening("wish", 1), Happening("negotiate"), Happening("negotiate", 1)])
@example([Happening("wish"), Happening("answer is lost"), Happening("wait long", 0, 5)])
@example([Happening("cut"), Happening("wait long", 0, 5), Happening("wait long", 0, 5), Happening("roam")])
@settings(max_examples=40)
def test_what_was_said_arrives_in_one_network(happenings: list[Happening]) -> None:
    tell(lambda: Story(Call()), happenings)


@given(HAPPENINGS)
@example([Happening("roam", 1)])
@example([Happening("roam"), Happening("roam", 1)])
@example([Happening("wish", 1), Happening("negotiate", 1), Happening("offer is lost", 1), Happening("roam")])
@settings(max_examples=40)
def test_what_was_said_arrives_behind_nats(happenings: list[Happening]) -> None:
    tell(behind_nats, happenings)

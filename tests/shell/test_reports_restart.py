"""Report 7: a restart in mid-gathering wedged the state of pion (pion#942). Here: a restart at every stage, by either
side and by both at once, of whole agents that gather, trickle and answer; ``tests/sim/test_restart.py`` has the same of
the session alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from iceagent import Agent, AgentState, CandidateType
from iceagent.events import IceRestarted
from iceagent.testing import NatNode
from tests.shell.world import Diary, World, in_virtual_time, talk, trickling

STUN = "198.51.100.1"
SIGNALLING_S = 0.020
"""From one application to the other."""


@dataclass
class Scene:
    """Two agents behind routers; the STUN server is 10 ms away from its network, as everybody is."""

    world: World
    a: Agent
    b: Agent
    routers: tuple[NatNode, NatNode]

    def cut(self, is_cut: bool) -> None:
        """Nothing passes from router to router, or to the server."""
        for router in self.routers:
            if is_cut:
                router.link.cut()
            else:
                router.link.restore()

    def states(self) -> set[AgentState]:
        return {self.a.state, self.b.state}


async def before_gathering(scene: Scene) -> None:
    """Both know of each other, neither has a socket."""
    await asyncio.sleep(2 * SIGNALLING_S)
    assert not scene.a.local_candidates and not scene.b.local_candidates


async def amid_gathering(scene: Scene) -> None:
    """Sockets are open, the STUN server has not answered."""
    start(scene)
    await asyncio.sleep(0.030)
    for agent in (scene.a, scene.b):
        assert [c.type for c in agent.local_candidates] == [CandidateType.HOST]
        assert not agent.local_description.complete


async def after_gathering(scene: Scene) -> None:
    """All candidates are found, and the last of them is still being signalled."""
    start(scene)
    await asyncio.gather(scene.a.gather(), scene.b.gather())
    assert AgentState.CONNECTED not in scene.states()


async def while_checking(scene: Scene) -> None:
    """All is signalled, and nothing is answered."""
    start(scene)
    await asyncio.gather(scene.a.gather(), scene.b.gather())
    scene.cut(True)
    await asyncio.sleep(1.0)
    assert scene.states() == {AgentState.CHECKING}
    scene.cut(False)


async def connected(scene: Scene) -> None:
    await asyncio.gather(scene.a.connect(), scene.b.connect())
    await asyncio.sleep(20.0)


async def disconnected(scene: Scene) -> None:
    await connected(scene)
    scene.cut(True)
    await asyncio.sleep(15.0)
    assert scene.states() == {AgentState.DISCONNECTED}
    scene.cut(False)


async def failed(scene: Scene) -> None:
    await connected(scene)
    scene.cut(True)
    await asyncio.sleep(120.0)
    assert scene.states() == {AgentState.FAILED}
    scene.cut(False)


def start(scene: Scene) -> None:
    scene.a.start_gathering()
    scene.b.start_gathering()


STAGES: list[Callable[[Scene], Awaitable[None]]] = [
    before_gathering,
    amid_gathering,
    after_gathering,
    while_checking,
    connected,
    disconnected,
    failed,
]


@pytest.mark.parametrize("by", ["a", "b", "both"])
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
@in_virtual_time
async def test_report_07_a_restart_of_an_agent_at_every_stage_connects(
    stage: Callable[[Scene], Awaitable[None]], by: str
) -> None:
    """Three seconds later the new generation carries data, both ends agree, and it stays so."""
    world = World()
    world.stun("stun", STUN)
    routers = tuple(world.nat(f"router {n}", "port-restricted", f"203.0.113.{n}") for n in (1, 2))
    machines = [world.host(f"machine {n}", f"192.168.{n}.2", routers[n - 1]) for n in (1, 2)]
    a, b = world.agent(machines[0], STUN), world.agent(machines[1], STUN, controlling=False)
    scene = Scene(world, a, b, (routers[0], routers[1]))
    async with trickling(a, b, SIGNALLING_S):
        told = [(Diary(world, agent), agent) for agent in (a, b)]
        await stage(scene)
        before = [agent.local_description.credentials for agent in (a, b)]
        restarting = {"a": (a,), "b": (b,), "both": (a, b)}[by]
        for agent in restarting:
            agent.restart()
        start(scene)
        await asyncio.sleep(3.0)
        assert all(diary.of(IceRestarted) and agent.local_description.complete for diary, agent in told)
        for moment in range(2):
            await talk(a, b)
            mine, theirs = a.path(), b.path()
            assert mine is not None and theirs is not None
            assert (mine.local.address, mine.remote.address) == (theirs.remote.address, theirs.local.address)
            assert mine.nominated and theirs.nominated
            assert scene.states() == {AgentState.CONNECTED}, moment
            await asyncio.sleep(60.0)
        # Answered once, and no restart of its own for the answer.
        assert all(len(diary.of(IceRestarted)) == 1 for diary, _ in told)
        after = [agent.local_description.credentials for agent in (a, b)]
        assert all(new != old for new, old in zip(after, before, strict=True))
        assert [a._session.remote_credentials, b._session.remote_credentials] == after[::-1]

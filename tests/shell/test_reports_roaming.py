"""Report 22: a machine roams, and the path is left at once instead of after a timeout.

str0m#405, #485, #496 and #498: who lost its address went on with it until consent ended, although another path was
there. Here a datagram leaves every 10 ms each way, and what is measured is when the first one arrives at either side
that was sent after the address had gone. The round trip is 40 ms, Ta is 50 ms. Losses of addresses are told without a
debounce (``iceagent/net/tables.py`` has one for additions, which a machine in memory has not).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from iceagent import Agent, AgentState
from iceagent.events import RestartAdvised, StateChanged
from iceagent.testing import MemoryHost
from tests.shell.world import Diary, World, exchange, in_virtual_time

RTT_S = 0.040
TA_S = 0.050
INTERVAL_S = 0.010


class Talk:
    """Both speak all the time; datagrams carry the time at which they left.

    Attributes:
        heard: by side, (when it left, when it arrived).
    """

    def __init__(self, world: World, roamer: Agent, peer: Agent) -> None:
        self.world = world
        self.agents = {"roamer": roamer, "peer": peer}
        self.heard: dict[str, list[tuple[float, float]]] = {"roamer": [], "peer": []}
        self.diaries = [Diary(world, agent) for agent in self.agents.values()]
        for name, agent in self.agents.items():
            agent.set_data_handler(self._ear(name))
        self._tasks = [asyncio.ensure_future(self._speak(agent)) for agent in self.agents.values()]

    def _ear(self, name: str):  # type: ignore[no-untyped-def]
        return lambda data, component: self.heard[name].append((float(data), self.world.now))

    async def _speak(self, agent: Agent) -> None:
        while True:
            agent.send(repr(self.world.now).encode())
            await asyncio.sleep(INTERVAL_S)

    def first_after(self, name: str, since: float) -> float:
        """When the first datagram arrived at a side that had left after ``since``, in seconds from then."""
        return next(arrived for left, arrived in self.heard[name] if left >= since) - since

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def talking(*, controlling: bool, hosts: tuple[str, ...]) -> AsyncIterator[tuple[Talk, MemoryHost]]:
    """``roamer`` has an interface for each of its addresses. Nobody signals any more."""
    world = World()
    machine = world.host("roamer")
    for number, host in enumerate(hosts):
        machine.add_interface(f"eth{number}", [host])
    roamer = world.agent(machine, controlling=controlling)
    peer = world.agent(world.host("peer", "198.51.100.1"), controlling=not controlling)
    async with roamer, peer:
        await exchange(roamer, peer)
        await asyncio.gather(roamer.connect(), peer.connect())
        talk = Talk(world, roamer, peer)
        try:
            await asyncio.sleep(3.0)
            yield talk, machine
        finally:
            await talk.stop()


def interface_in_use(agent: Agent) -> str:
    path = agent.path()
    assert path is not None
    return {"192.0.2.1": "eth0", "192.0.2.2": "eth1"}[path.base.host]


@pytest.mark.parametrize("controlling", [True, False])
@pytest.mark.parametrize("way", ["interface", "address"])
@in_virtual_time
async def test_report_22_data_takes_another_path_within_a_round_trip_and_ta_when_an_address_goes(
    way: str, controlling: bool
) -> None:
    """What the one who roams says arrives after half a round trip, over the other interface; what the peer says after
    one round trip and Ta at most, for it has to be told first.
    """
    async with talking(controlling=controlling, hosts=("192.0.2.1", "192.0.2.2")) as (talk, machine):
        roamer = talk.agents["roamer"]
        gone = interface_in_use(roamer)
        began = talk.world.now
        if way == "interface":
            machine.remove_interface(gone)
        else:
            machine.remove_address(gone, {"eth0": "192.0.2.1", "eth1": "192.0.2.2"}[gone])
        await asyncio.sleep(2.0)
        assert interface_in_use(roamer) != gone
        assert talk.first_after("peer", began) <= RTT_S / 2 + INTERVAL_S + 0.001
        assert talk.first_after("roamer", began) <= RTT_S + TA_S + INTERVAL_S + 0.001
        for diary in talk.diaries:
            assert not diary.of(StateChanged) and not diary.of(RestartAdvised)


@pytest.mark.parametrize("controlling", [True, False])
@in_virtual_time
async def test_report_22_the_only_address_is_replaced_by_another_one(controlling: bool) -> None:
    """The new one is checked at once, without signalling: at most Ta until the check may leave, one round trip, and
    half a round trip for the data.
    """
    async with talking(controlling=controlling, hosts=("192.0.2.1",)) as (talk, machine):
        began = talk.world.now
        machine.add_address("eth0", "192.0.2.2")
        machine.remove_address("eth0", "192.0.2.1")
        await asyncio.sleep(2.0)
        path = talk.agents["roamer"].path()
        assert path is not None and path.base.host == "192.0.2.2"
        assert talk.first_after("peer", began) <= RTT_S + TA_S + RTT_S / 2 + INTERVAL_S + 0.001
        assert talk.first_after("roamer", began) <= RTT_S + TA_S + RTT_S + INTERVAL_S + 0.001
        assert all(agent.state is AgentState.CONNECTED for agent in talk.agents.values())

"""A path dies while data flows: who notices, how soon, where data goes, and what is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import pytest

from iceagent import Agent, AgentState
from iceagent.events import MachineSlept, PathDoubted, PathTrusted, RestartAdvised, SelectedPathChanged, StateChanged
from iceagent.testing import MemoryHost
from tests.shell.world import Diary, World, connected, in_virtual_time

INTERVAL_S = 0.1
"""Ten datagrams a second, each way."""


@dataclass
class Ear:
    """When datagrams came in at one side."""

    world: World
    times: list[float] = field(default_factory=list)

    def __call__(self, data: bytes, component: int) -> None:
        self.times.append(self.world.now)

    def longest_gap(self, since: float) -> float:
        """Between two arrivals, or the last one and now."""
        before = max((at for at in self.times if at <= since), default=since)
        times = [before, *(at for at in self.times if at > since), self.world.now]
        return max(later - sooner for sooner, later in pairwise(times))


class Call:
    """Two agents that talk all the time.

    Attributes:
        machines: theirs, with two ways into the Internet each: ``eth0`` and ``eth1``.
    """

    def __init__(self, world: World, a: Agent, b: Agent, machines: tuple[MemoryHost, MemoryHost]) -> None:
        self.world = world
        self.a, self.b = a, b
        self.machines = machines
        self.ear_a, self.ear_b = Ear(world), Ear(world)
        self.diary_a, self.diary_b = Diary(world, a), Diary(world, b)
        a.set_data_handler(self.ear_a)
        b.set_data_handler(self.ear_b)

    async def speak(self, agent: Agent, interval_s: float = INTERVAL_S) -> None:
        while True:
            agent.send(b"words")
            await asyncio.sleep(interval_s)

    def interface_of(self, machine: MemoryHost, agent: Agent) -> str:
        """Over which the agent sends now."""
        path = agent.path()
        assert path is not None
        return "eth0" if path.base.host.endswith(".1") else "eth1"

    def is_mirrored(self) -> bool:
        mine, theirs = self.a.path(), self.b.path()
        assert mine is not None and theirs is not None
        return (mine.local.address, mine.remote.address) == (theirs.remote.address, theirs.local.address)

    def gaps(self, since: float) -> tuple[float, float]:
        return self.ear_a.longest_gap(since), self.ear_b.longest_gap(since)


@asynccontextmanager
async def calling(
    world: World, *, controlling: bool = True, ways: int = 2, other: Mapping[str, Any] = MappingProxyType({})
) -> AsyncIterator[Call]:
    """``a`` and ``b`` have been talking for three seconds, over one of several ways; ``other``: options of ``b``."""
    machines = world.host("a", "192.0.2.1"), world.host("b", "198.51.100.1")
    if ways == 2:
        machines[0].add_interface("eth1", ["192.0.2.2"])
        machines[1].add_interface("eth1", ["198.51.100.2"])
    a = world.agent(machines[0], controlling=controlling)
    b = world.agent(machines[1], controlling=not controlling, **other)
    async with connected(a, b):
        call = Call(world, a, b, machines)
        tasks = [asyncio.ensure_future(call.speak(agent)) for agent in (a, b)]
        try:
            await asyncio.sleep(3.0)
            yield call
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("controlling", [True, False])
@pytest.mark.parametrize("direction", ["both", "up", "down"])
@in_virtual_time
async def test_a_path_that_falls_silent_is_left_for_the_one_that_stands_by(direction: str, controlling: bool) -> None:
    """Nobody is told that the network of ``a`` eats everything, or what goes in one direction."""
    world = World()
    async with calling(world, controlling=controlling) as call:
        began = world.now
        link = call.machines[0].link(call.interface_of(call.machines[0], call.a))
        if direction in ("both", "up"):
            link.up.is_cut = True
        if direction in ("both", "down"):
            link.down.is_cut = True
        await asyncio.sleep(5.0)
        assert max(call.gaps(began)) <= 1.5
        moves = [
            [at for at, e in d.entries if isinstance(e, SelectedPathChanged) and at > began]
            for d in (call.diary_a, call.diary_b)
        ]
        assert moves[0] and moves[1] and abs(moves[0][-1] - moves[1][-1]) <= 1.0
        assert call.is_mirrored()
        for diary in (call.diary_a, call.diary_b):
            assert not diary.of(StateChanged) and not diary.of(RestartAdvised)


@pytest.mark.parametrize("controlling", [True, False])
@in_virtual_time
async def test_a_blackhole_of_everything_is_told_at_once_and_survived(controlling: bool) -> None:
    world = World()
    async with calling(world, controlling=controlling) as call:
        began = world.now
        for name in ("eth0", "eth1"):
            call.machines[0].link(name).cut()
        await asyncio.sleep(2.0)
        for agent, diary in ((call.a, call.diary_a), (call.b, call.diary_b)):
            assert agent.state is AgentState.DISCONNECTED
            assert len(diary.of(RestartAdvised)) == 1
            assert agent.path() is not None
        await asyncio.sleep(8.0)
        ended = world.now
        for name in ("eth0", "eth1"):
            call.machines[0].link(name).restore()
        await asyncio.sleep(1.0)
        for agent, diary, ear in ((call.a, call.diary_a, call.ear_a), (call.b, call.diary_b, call.ear_b)):
            assert agent.state is AgentState.CONNECTED
            assert next(at for at in ear.times if at > ended) <= ended + 0.5
            assert [e.new for e in diary.of(StateChanged)] == [AgentState.DISCONNECTED, AgentState.CONNECTED]
        await asyncio.sleep(10.0)
        assert call.is_mirrored() and began < ended


@in_virtual_time
async def test_a_path_that_comes_back_is_returned_to_after_a_while() -> None:
    """It is the better one, but shunned for five seconds; so is what shares a socket with it."""
    world = World()
    async with calling(world) as call:
        name = call.interface_of(call.machines[0], call.a)
        call.machines[0].link(name).cut()
        await asyncio.sleep(2.0)
        assert call.interface_of(call.machines[0], call.a) != name
        call.machines[0].link(name).restore()
        await asyncio.sleep(2.0)
        assert call.interface_of(call.machines[0], call.a) != name
        began = world.now
        await asyncio.sleep(4.0)
        assert call.interface_of(call.machines[0], call.a) == name
        assert call.is_mirrored() and max(call.gaps(began)) <= 0.2


@pytest.mark.parametrize("controlling", [True, False])
@in_virtual_time
async def test_what_the_application_reports_counts_more_than_what_is_answered(controlling: bool) -> None:
    world = World()
    async with calling(world, controlling=controlling) as call:
        name = call.interface_of(call.machines[0], call.a)
        call.a.report_loss()
        moved = await call.diary_a.until(SelectedPathChanged)
        assert moved.reason == "the application reports loss; another path answers"
        assert call.interface_of(call.machines[0], call.a) != name
        await asyncio.sleep(4.0)
        assert call.interface_of(call.machines[0], call.a) != name


@pytest.mark.parametrize("controlling", [True, False])
@in_virtual_time
async def test_what_was_reported_is_not_gone_back_to_when_the_next_one_is_reported_as_well(controlling: bool) -> None:
    """Every path eats data: which it is that answers says nothing."""
    world = World()
    async with calling(world, controlling=controlling) as call:
        # Four pairs, of which two share a socket.
        before = len(call.diary_a.of(SelectedPathChanged))
        for _ in range(4):
            call.a.report_loss()
            await asyncio.sleep(6.0)
        moves = [event.new for event in call.diary_a.of(SelectedPathChanged)[before:]]
        bases = [path.base for path in moves if path is not None]
        assert len(bases) == len(moves) in (1, 2) and len(set(bases)) == 1
        advice = call.diary_a.of(RestartAdvised)
        assert {each.reason for each in advice} == {"the application reports loss; no other path answers"}


@in_virtual_time
async def test_a_reported_loss_with_one_way_only_asks_for_a_restart_and_stays() -> None:
    world = World()
    async with calling(world, ways=1) as call:
        call.a.report_loss()
        advice = await call.diary_a.until(RestartAdvised)
        assert advice.reason == "the application reports loss; no other path answers"
        await asyncio.sleep(1.0)
        assert call.a.state is AgentState.CONNECTED and call.a.path() is not None


@in_virtual_time
async def test_data_in_one_direction_only_costs_few_checks() -> None:
    """Its sender hears nothing back, and cannot know that this is in order until it has asked."""
    world = World()
    machines = world.host("a", "192.0.2.1"), world.host("b", "198.51.100.1")
    a, b = world.agent(machines[0]), world.agent(machines[1], controlling=False)
    async with connected(a, b):
        call = Call(world, a, b, machines)
        speaking = asyncio.ensure_future(call.speak(a, 0.02))
        await asyncio.sleep(120.0)
        speaking.cancel()
        assert len(call.diary_a.of(PathDoubted)) <= 2
        assert len(call.diary_a.of(PathTrusted)) == len(call.diary_a.of(PathDoubted))
        (pair,) = [pair for pair in a.pairs() if pair.selected]
        # A check for consent every 5 s, and what was doubted.
        assert pair.requests_sent <= 120 / 4 + 10
        await asyncio.gather(speaking, return_exceptions=True)


@in_virtual_time
async def test_an_application_that_says_nothing_costs_nothing() -> None:
    """Two seconds after the last datagram, only consent is looked at."""
    world = World()
    machines = world.host("a", "192.0.2.1"), world.host("b", "198.51.100.1")
    a, b = world.agent(machines[0]), world.agent(machines[1], controlling=False)
    async with connected(a, b):
        call = Call(world, a, b, machines)
        a.send(b"x")
        await asyncio.sleep(60.0)
        assert call.diary_a.of(PathDoubted) in ([], call.diary_a.of(PathDoubted)[:1])
        before = [pair.requests_sent for pair in a.pairs()]
        await asyncio.sleep(60.0)
        assert sum(pair.requests_sent for pair in a.pairs()) - sum(before) <= 16


@in_virtual_time
async def test_the_one_who_closes_is_not_asked_for_ever() -> None:
    """It says nothing; its port is closed, which ICMP says; consent ends after thirty seconds."""
    world = World(icmp_errors=True)
    machines = world.host("a", "192.0.2.1"), world.host("b", "198.51.100.1")
    a, b = world.agent(machines[0]), world.agent(machines[1], controlling=False, path_messages=False)
    async with connected(a, b):
        diary = Diary(world, a)
        speaking = asyncio.ensure_future(Call(world, a, b, machines).speak(a))
        await asyncio.sleep(1.0)
        await b.aclose()
        assert (await diary.until(StateChanged)).new is AgentState.DISCONNECTED
        await asyncio.sleep(45.0)
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
        assert a.state is AgentState.FAILED


@in_virtual_time
async def test_who_answers_and_does_not_follow_is_told_of() -> None:
    """As libnice, which stays on a dead pair whatever is nominated: all that it sends is lost."""
    world = World()
    # It nominates, once, and looks after consent only.
    other = {"liveness": False, "path_messages": False, "renomination": False}
    async with calling(world, controlling=False, other=other) as call:
        began = world.now
        link = call.machines[0].link(call.interface_of(call.machines[0], call.a))
        link.up.loss = link.down.loss = 1.0
        await asyncio.sleep(5.0)
        assert call.a.state is AgentState.CONNECTED
        (advice,) = call.diary_a.of(RestartAdvised)
        assert advice.reason == "the peer answers, and its data does not come"
        (at,) = [at for at, event in call.diary_a.entries if isinstance(event, RestartAdvised)]
        assert at - began <= 3.5


@in_virtual_time
async def test_without_liveness_a_restart_is_advised_when_consent_has_ended() -> None:
    world = World()
    a = world.agent(world.host("a", "192.0.2.1"), liveness=False)
    b = world.agent(world.host("b", "192.0.2.2"), controlling=False)
    async with connected(a, b):
        diary, cut_at = Diary(world, a), world.now
        a._host.link().cut()  # type: ignore[attr-defined]
        advice = await diary.until(RestartAdvised)
        assert advice.reason == "no path is left" and 25.0 <= world.now - cut_at <= 32.0


@in_virtual_time
async def test_who_only_answers_doubts_nothing_and_finds_no_gap_in_time() -> None:
    """Each of its datagrams is followed by another question; and its last look at the path may be long ago."""
    world = World()
    asking, answering = world.host("a", "192.0.2.1"), world.host("b", "192.0.2.2")
    a, b = world.agent(asking), world.agent(answering, controlling=False)
    async with connected(a, b):
        diaries = [Diary(world, a), Diary(world, b)]
        b.set_data_handler(lambda data, component: b.send(data))
        for _ in range(1200):
            a.send(b"ping")
            await asyncio.sleep(0.05)
    assert not [event for diary in diaries for event in (*diary.of(MachineSlept), *diary.of(PathDoubted))]


@in_virtual_time
async def test_a_path_has_one_name_from_its_selection_to_its_end() -> None:
    """Its local candidate is the one that the peer sees, also when it is told of for the last time."""
    world = World()
    world.stun("stun", "198.51.100.9")
    home = world.host("a", "192.168.1.2", world.nat("nat", "port-restricted", "203.0.113.1"))
    a = world.agent(home, "198.51.100.9")
    b = world.agent(world.host("b", "192.0.2.2"), controlling=False)
    async with connected(a, b):
        diary, b_link = Diary(world, a), b._host.link()  # type: ignore[attr-defined]
        path = a.path()
        assert path is not None and path.local.address.host == "203.0.113.1"
        b_link.cut()
        (lost,) = [await diary.until(SelectedPathChanged)]
        assert lost.new is None and lost.old is not None and lost.old.local.address == path.local.address

"""Data before and after connecting, failing, closing at every stage, misuse."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from iceagent import (
    Agent,
    AgentClosed,
    AgentState,
    CandidateType,
    ConnectFailed,
    ConsentLost,
    Description,
    NoPath,
    UsageError,
)
from iceagent.core.held import MAX_HELD_DATAGRAMS
from iceagent.datapath import MAX_RECEIVE_QUEUE
from iceagent.events import LocalCandidateFound, PacketDropped, RemoteCandidateRefused, StateChanged
from iceagent.net.core import Transmit
from tests.shell.test_gathering import HostWithHabits, never
from tests.shell.world import Diary, World, connected, exchange, in_virtual_time, talk, trickling

STUN = "198.51.100.1"


def pair_of_agents(world: World, **options: Any) -> tuple[Agent, Agent]:
    """On two machines of the Internet; the first is controlling."""
    first, second = world.host("a", "192.0.2.1"), world.host("b", "192.0.2.2")
    return world.agent(first, **options), world.agent(second, controlling=False, **options)


class TestData:
    @in_virtual_time
    async def test_data_is_delivered_when_the_peer_connects_first(self) -> None:
        """A lost first DTLS flight costs a second. Here our side hears of the peer half a second after it sent."""
        world = World()
        a, b = pair_of_agents(world)
        async with a, b:
            await asyncio.gather(a.gather(), b.gather())
            b.set_remote_description(a.local_description)
            await b.connect()
            assert a.state is AgentState.NEW
            for number in range(MAX_HELD_DATAGRAMS):
                b.send(b"%d" % number)
            await asyncio.sleep(0.5)
            a.set_remote_description(b.local_description)
            await a.connect()
            received = [await a.recv() for _ in range(MAX_HELD_DATAGRAMS)]
            assert received == [b"%d" % number for number in range(MAX_HELD_DATAGRAMS)]

    @in_virtual_time
    async def test_sixteen_datagrams_of_a_stranger_wait_for_a_second(self) -> None:
        """What is beyond, and what nobody claims, is dropped, told and counted."""
        world = World()
        a, b = pair_of_agents(world)
        async with a, b:
            diary = Diary(world, a)
            await asyncio.gather(a.gather(), b.gather())
            (target,), (source,) = a.local_candidates, b.local_candidates
            for number in range(MAX_HELD_DATAGRAMS + 4):
                datagram = Transmit(source.address, target.address, b"held %d" % number)
                world.network.send(world.network.nodes["b"], datagram, world.now)  # type: ignore[arg-type]
            world.internet.wake()
            await asyncio.sleep(0.9)
            assert len(diary.of(PacketDropped)) == 4
            # It authenticates itself within the second.
            await exchange(a, b)
            await asyncio.gather(a.connect(), b.connect())
            assert [await a.recv() for _ in range(MAX_HELD_DATAGRAMS)] == [
                b"held %d" % number for number in range(MAX_HELD_DATAGRAMS)
            ]
            assert a.statistics().counters["dropped: data from an address that never authenticated"] == 4

    @in_virtual_time
    async def test_a_stranger_is_never_heard(self) -> None:
        world = World()
        a, b = pair_of_agents(world)
        stranger = world.network.add_node("stranger", ["203.0.113.66"])
        async with connected(a, b):
            diary = Diary(world, a)
            for number in range(100):
                base = b.local_candidates[0].address._replace(host="203.0.113.66")
                world.network.send(stranger, Transmit(base, a.local_candidates[0].address, b"%d" % number), world.now)
            world.internet.wake()
            await asyncio.sleep(2)
            assert len(diary.of(PacketDropped)) == 100
            await talk(a, b)

    @in_virtual_time
    async def test_the_receive_queue_is_bounded(self) -> None:
        world = World()
        a, b = pair_of_agents(world)
        async with connected(a, b):
            for number in range(MAX_RECEIVE_QUEUE + 7):
                b.send(b"%d" % number)
            await asyncio.sleep(1)
            assert a.statistics().receive_queue_dropped == 7
            assert [await a.recv() for _ in range(MAX_RECEIVE_QUEUE)][-1] == b"%d" % (MAX_RECEIVE_QUEUE - 1)

    @in_virtual_time
    async def test_a_receiver_hears_that_a_handler_takes_over(self) -> None:
        """Else it would wait for ever."""
        world = World()
        a, b = pair_of_agents(world)
        async with connected(a, b):
            waiting = asyncio.ensure_future(a.recv())
            await asyncio.sleep(0)
            got: list[bytes] = []
            a.set_data_handler(lambda data, component: got.append(data))
            with pytest.raises(UsageError, match="data handler"):
                await waiting
            b.send(b"x")
            await asyncio.sleep(1)
            assert got == [b"x"]

    @in_virtual_time
    async def test_what_waits_for_its_burst_is_counted_by_who_asks_and_leaves_before_the_end(self) -> None:
        world = World()
        a, b = pair_of_agents(world)
        async with connected(a, b):
            for number in range(5):
                a.send(b"%d" % number)
            assert a.statistics().packets_sent == 5
            for number in range(5, 10):
                a.send(b"%d" % number)
            closing = asyncio.ensure_future(a.aclose())
            assert [await b.recv() for _ in range(10)] == [b"%d" % number for number in range(10)]
            await closing

    @in_virtual_time
    async def test_a_handler_that_raises_does_not_stop_the_agent(self) -> None:
        world = World()
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        a, b = pair_of_agents(world)
        async with connected(a, b):
            a.set_data_handler(lambda data, component: 1 / 0)  # type: ignore[arg-type]
            b.send(b"x")
            await asyncio.sleep(60)
            assert a.state is b.state is AgentState.CONNECTED
            a.set_data_handler(None)
            await talk(a, b)
        assert [type(context["exception"]) for context in problems] == [ZeroDivisionError]


class TestFailing:
    @in_virtual_time
    async def test_a_peer_that_vanishes(self) -> None:
        """RFC 7675, 5.1: consent expires after 30 s; who receives is told, who sends too."""
        world = World()
        a, b = pair_of_agents(world)
        async with trickling(a, b):
            await asyncio.gather(a.connect(), b.connect())
            diary = Diary(world, a)
            waiting = asyncio.ensure_future(a.recv())
            start = world.now
            world.network.nodes["b"].link.cut()
            with pytest.raises(ConsentLost, match="consent expired"):
                await waiting
            # Consent ran out within 30 s of the last answer; what was left was tried again after that.
            assert diary.of(StateChanged)[0].new is AgentState.DISCONNECTED
            assert a.state is AgentState.FAILED and world.now - start >= 24
            with pytest.raises(ConsentLost):
                await a.recv()
            with pytest.raises(NoPath, match="in the state failed"):
                a.send(b"x")
            with pytest.raises(ConnectFailed):
                await a.connect()

    @in_virtual_time
    async def test_a_restart_brings_it_back(self) -> None:
        world = World()
        a, b = pair_of_agents(world)
        async with connected(a, b):
            link = world.network.nodes["b"].link
            link.cut()
            with pytest.raises(ConsentLost):
                await a.recv()
            link.restore()
            theirs = Diary(world, b)
            a.restart()
            await a.connect()
            await theirs.until(StateChanged, lambda event: event.new is AgentState.CONNECTED)
            await talk(a, b)

    @in_virtual_time
    async def test_there_never_was_a_path(self) -> None:
        world = World()
        a, b = pair_of_agents(world)
        world.network.nodes["b"].link.cut()
        async with a, b:
            await exchange(a, b)
            receiving = asyncio.ensure_future(a.recv())
            with pytest.raises(ConnectFailed, match="no response"):
                await a.connect()
            with pytest.raises(ConnectFailed):
                await receiving
            assert 39.5 <= world.now < 60


async def closing_with_server(world: World, delay_s: float) -> None:
    """Close an agent that has been gathering for so long; nothing may be left of it."""
    world.stun("slow", STUN, delay_s=1.0)
    world.stun("dead", "198.51.100.2").core.is_dead = True
    home = world.host("a", "192.168.1.2", world.nat("nat", "port-restricted", "203.0.113.1"))
    deaf = HostWithHabits(home, resolve=never, resolve_srv=never)
    agent = world.agent(deaf, STUN, "198.51.100.2", "name.example", "other.example:1")
    gathering = asyncio.ensure_future(agent.gather())
    connecting = asyncio.ensure_future(agent.connect())
    await asyncio.sleep(delay_s)
    before, waiting = world.now, [task for task in (gathering, connecting) if not task.done()]
    await agent.aclose()
    assert world.now == before
    assert connecting in waiting and (gathering in waiting) == (delay_s < 5)
    for task in waiting:
        with pytest.raises(AgentClosed):
            await task
    assert not home.node.ports
    sent = len(world.network.log)
    await asyncio.sleep(60)
    later = [entry for entry in list(world.network.log)[sent:] if entry.packet.origin is home.node]
    assert {entry.fate.value for entry in later} <= {"delivered", "port closed", "filtered"}


class TestClosing:
    @pytest.mark.parametrize("delay_s", [0, 1e-9, 0.02, 0.041, 0.6, 1.03, 2.0, 4.999, 5.0, 5.001, 16.0])
    @in_virtual_time
    async def test_at_every_stage_of_gathering(self, delay_s: float) -> None:
        await closing_with_server(World(), delay_s)

    @pytest.mark.parametrize("turns", range(8))
    @in_virtual_time
    async def test_after_every_turn_of_the_loop(self, turns: int) -> None:
        world = World()
        host = world.host("a", "192.0.2.1")
        agent = world.agent(host, "name.example")
        agent.start_gathering()
        for _ in range(turns):
            await asyncio.sleep(0)
        await agent.aclose()
        assert not host.node.ports

    @in_virtual_time
    async def test_while_the_interfaces_are_being_read(self) -> None:
        world = World()
        host = HostWithHabits(world.host("a", "192.0.2.1"), interfaces=never)
        agent = world.agent(host)
        agent.start_gathering()
        await asyncio.sleep(1)
        await agent.aclose()

    @in_virtual_time
    async def test_before_anything(self) -> None:
        world = World()
        agent = world.agent(world.host("a", "192.0.2.1"), STUN)
        await agent.aclose()
        with pytest.raises(AgentClosed):
            agent.start_gathering()

    @in_virtual_time
    async def test_from_a_data_handler(self) -> None:
        world = World()
        a, b = pair_of_agents(world)
        closing: list[asyncio.Future[None]] = []
        async with connected(a, b):
            a.set_data_handler(lambda data, component: closing.append(asyncio.ensure_future(a.aclose())))
            b.send(b"1")
            b.send(b"2")
            await asyncio.sleep(1)
            assert closing
            await asyncio.gather(*closing)
            assert a.state is AgentState.CLOSED

    @in_virtual_time
    async def test_cancelling_who_closes_does_not_stop_the_closing(self) -> None:
        world = World()
        host = world.host("a", "192.0.2.1")
        agent = world.agent(host)
        await agent.gather()
        closing = asyncio.ensure_future(agent.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await agent.aclose()
        assert not host.node.ports

    @in_virtual_time
    async def test_a_closed_agent_is_forgotten(self) -> None:
        world = World()
        a, b = pair_of_agents(world)
        async with connected(a, b):
            await talk(a, b)
        del a, b
        await asyncio.sleep(1)
        gc.collect()
        assert [thing for thing in gc.get_objects() if type(thing) is Agent] == []


class TestEventStreams:
    @in_virtual_time
    async def test_a_loop_that_is_left_leaves_no_queue_behind(self) -> None:
        world = World()
        host = world.host("a", "192.0.2.1")
        async with world.agent(host) as agent:
            agent.start_gathering()
            async for event in agent.events():
                if isinstance(event, LocalCandidateFound):
                    break
            del event
            gc.collect()
            assert agent._streams is not None and len(agent._streams) == 0

    @in_virtual_time
    async def test_they_end_with_the_agent(self) -> None:
        world = World()
        agent = world.agent(world.host("a", "192.0.2.1"))
        before = agent.events()
        await agent.gather()
        await agent.aclose()
        kinds = [type(event).__name__ async for event in before]
        assert kinds == ["LocalCandidateFound", "GatheringDone", "StateChanged"]
        assert [event async for event in agent.events()] == []


class TestNames:
    """Remote candidates that name a host (draft-ietf-mmusic-mdns-ice-candidates)."""

    LINE = "candidate:1 1 udp 2130706431 {} 9 typ host"

    @pytest.mark.parametrize("name", ["1f4712db-ea17-4bcf-a596-105139dfd8bf.local", "peer.example"])
    @in_virtual_time
    async def test_without_resolving_they_are_refused(self, name: str) -> None:
        world = World()
        a, b = pair_of_agents(world)
        async with a, b:
            diary = Diary(world, a)
            a.set_remote_description(Description(credentials=b.local_description.credentials))
            a.add_remote_candidate(self.LINE.format(name))
            refused = await diary.until(RemoteCandidateRefused)
            assert refused.reason == "its name was not resolved"
            assert refused.candidate.address.host == name
            assert a.remote_candidates == []

    @in_virtual_time
    async def test_what_is_no_local_name_is_never_looked_up(self) -> None:
        """Not on the network, and not by the resolver: the peer could make us ask anybody anything."""
        world = World()
        a, b = pair_of_agents(world, resolve_mdns=True)
        async with a, b:
            diary = Diary(world, a)
            a.set_remote_description(Description(credentials=b.local_description.credentials))
            for name in ("peer.example", "a.b.local", "local"):
                a.add_remote_candidate(self.LINE.format(name))
            await asyncio.sleep(1)
            assert {event.reason for event in diary.of(RemoteCandidateRefused)} == {"its name was not resolved"}
            assert len(diary.of(RemoteCandidateRefused)) == 3


class TestThreads:
    """In asyncio's debug mode, calls from another thread are refused."""

    @pytest.mark.parametrize(
        "call",
        [
            lambda agent: agent.start_gathering(),
            lambda agent: agent.restart(),
            lambda agent: agent.end_remote_candidates(),
            lambda agent: agent.set_data_handler(None),
            lambda agent: agent.add_remote_candidate("candidate:1 1 udp 1 192.0.2.9 9 typ host"),
            lambda agent: agent.set_remote_description(agent.local_description),
            lambda agent: agent.send(b"x"),
        ],
        ids=["gather", "restart", "end", "handler", "candidate", "description", "send"],
    )
    @in_virtual_time
    async def test_debug_mode(self, call: Callable[[Agent], object]) -> None:
        asyncio.get_running_loop().set_debug(True)
        world = World()
        async with world.agent(world.host("a", "192.0.2.1")) as agent:
            caught: list[BaseException] = []

            def work() -> None:
                try:
                    call(agent)
                except UsageError as error:
                    caught.append(error)

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            assert [str(error) for error in caught] == ["an Agent belongs to the thread of its loop"]


@in_virtual_time
async def test_components_fail_and_connect_together() -> None:
    world = World()
    a, b = pair_of_agents(world, components=2)
    async with connected(a, b):
        paths = [a.path(number) for number in (1, 2)]
        assert all(path is not None and path.local.type is CandidateType.HOST for path in paths)
        assert len({path.base for path in paths if path is not None}) == 2
        a.send(b"rtcp", component=2)
        assert await b.recv(component=2) == b"rtcp"

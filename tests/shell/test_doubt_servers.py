"""While a path is in doubt, after a sleep and over a relay: which servers are asked what, and what is told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from iceagent import Agent, CandidateType, Config, IceServer
from iceagent.events import (
    Cause,
    LocalCandidateFound,
    MachineSlept,
    PathDiagnosed,
    PathDoubted,
    RelayLost,
    RelayMoved,
    ServerFailed,
)
from iceagent.gather.gathering import REFRESH_S
from iceagent.net.host import DatagramSocket
from iceagent.testing import MemoryHost, NatNode
from relay.stun import Method, is_stun, parse
from tests.fakes.turn_server import Options
from tests.shell.world import Diary, World, connected, in_virtual_time
from tests.unit.probe.test_relays import USER, TurnMachine

STUN, SECOND_STUN, TURN = "198.51.100.1", "198.51.100.2", "20.0.1.1"
OUTSIDE, INSIDE, PEER = "203.0.113.1", "192.168.1.2", "192.0.2.9"
RTT_S = 0.04


class Listener(TurnMachine):
    """A TURN server that notes the requests it gets.

    Attributes:
        requests: (virtual seconds, the method).
    """

    def __init__(self, world: World, host: MemoryHost, **options: Any) -> None:
        super().__init__(host, TURN, Options(users=USER, **options))
        self.world = world
        self.requests: list[tuple[float, int]] = []

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        if is_stun(data) and parse(data).is_request:
            self.requests.append((self.world.now, parse(data).method))
        super().datagram_received(socket, data, source)

    def refreshes(self, since: float = 0.0) -> list[float]:
        return [at - since for at, method in self.requests if method == Method.REFRESH and at >= since]


class Call:
    """``a`` behind a NAT, ``b`` on the Internet; both have been talking for three seconds, ten times a second."""

    def __init__(self, world: World, nat: NatNode, a: Agent, b: Agent, home: MemoryHost, peer: MemoryHost) -> None:
        self.world, self.nat, self.a, self.b, self.home, self.peer = world, nat, a, b, home, peer
        self.diary, self.theirs = Diary(world, a), Diary(world, b)

    async def speak(self, agent: Agent) -> None:
        while True:
            agent.send(b"words")
            await asyncio.sleep(0.1)

    def causes(self, since: float = 0.0, diary: Diary | None = None) -> list[tuple[float, Cause]]:
        entries = (diary or self.diary).entries
        return [(at - since, e.cause) for at, e in entries if isinstance(e, PathDiagnosed) and at >= since]


@asynccontextmanager
async def calling(world: World, *, stun: tuple[str, ...] = (STUN,), turn: str = "") -> AsyncIterator[Call]:
    """Args as for a world's agents; ``turn``: the transport to the TURN server."""
    nat = world.nat("nat", "port-restricted", OUTSIDE)
    home, peer = world.host("a", INSIDE, nat), world.host("b", PEER)
    servers = [IceServer(urls=(f"stun:{each}",)) for each in stun]
    if turn:
        servers.append(IceServer(urls=(f"turn:{TURN}?transport={turn}",), username="user", credential="secret"))
    config = Config(servers=tuple(servers), portmap=False, ipv6=False)
    a = Agent(config, controlling=True, host=home, rng=world.rng)
    b = world.agent(peer, *stun, controlling=False)
    async with connected(a, b):
        call = Call(world, nat, a, b, home, peer)
        tasks = [asyncio.ensure_future(call.speak(agent)) for agent in (a, b)]
        try:
            await asyncio.sleep(3.0)
            yield call
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


# --- what broke ------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_dead_peer_and_a_dead_network_are_told_apart() -> None:
    """ICE has completed long ago, and nobody is asked for reflexive addresses any more."""
    world = World()
    server = world.stun("stun", STUN)
    async with calling(world) as call:
        await asyncio.sleep(60.0)
        asked = len(server.core.requests)
        began = world.now
        call.peer.link().cut()
        await asyncio.sleep(1.9)
        ((at, cause),) = call.causes(began)
        assert cause is Cause.PATH and at == pytest.approx(0.3 + RTT_S, abs=0.2)
        ((at, cause),) = call.causes(began, call.theirs)
        assert cause is Cause.UPLINK and at == pytest.approx(0.3 + 1.0, abs=0.2)
        assert len(server.core.requests) == asked + 1
        told, path = call.diary.of(PathDiagnosed)[0], call.diary.of(PathDoubted)[0].path
        assert path is not None and (told.base, told.component) == (path.base, 1)


@in_virtual_time
async def test_a_nat_that_has_another_address_is_told_and_its_candidate_found() -> None:
    world = World()
    for name, host in (("one", STUN), ("other", SECOND_STUN)):
        world.stun(name, host)
    async with calling(world, stun=(STUN, SECOND_STUN)) as call:
        began = world.now
        world.network.readdress(call.nat, ["203.0.113.9"])
        await asyncio.sleep(2.0)
        assert call.causes(began)[0][1] is Cause.NAT
        assert call.causes(began)[0][0] == pytest.approx(0.3 + RTT_S, abs=0.2)
        reflexive = [c.address.host for c in call.a.local_candidates if c.type is CandidateType.SERVER_REFLEXIVE]
        # The old one is withdrawn: no server sees it any more.
        assert set(reflexive) == {"203.0.113.9"}


@in_virtual_time
async def test_without_a_server_nothing_is_told() -> None:
    world = World()
    async with calling(world, stun=()) as call:
        call.peer.link().cut()
        await asyncio.sleep(3.0)
        assert call.diary.of(PathDoubted) and not call.diary.of(PathDiagnosed)


@in_virtual_time
async def test_a_dead_stun_server_is_no_dead_network_where_a_turn_server_answers() -> None:
    world = World()
    server = world.stun("stun", STUN)
    turn = Listener(world, world.host("turn", TURN))
    await turn.listen()
    async with calling(world, turn="tcp") as call:
        server.core.is_dead = True
        call.peer.link().cut()
        await asyncio.sleep(1.6)
        (told,) = call.diary.of(PathDiagnosed)
        assert told.cause is Cause.PATH and told.reason.endswith("but another server does")


# --- relays ----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_while_a_direct_path_is_in_doubt_its_relay_is_verified_once_in_two_seconds() -> None:
    world = World()
    world.stun("stun", STUN)
    turn = Listener(world, world.host("turn", TURN))
    async with calling(world, turn="udp") as call:
        began = world.now
        call.peer.link().cut()
        await asyncio.sleep(1.0)
        (at,) = turn.refreshes(began)
        assert at == pytest.approx(0.3, abs=0.2)
        await asyncio.sleep(9.0)
        times = turn.refreshes(began)
        assert all(later - sooner >= 2.0 for sooner, later in pairwise(times))
    assert turn.by_udp.violations == []


@pytest.mark.parametrize("mobility", [True, False])
@in_virtual_time
async def test_another_outside_address_moves_the_relay_or_makes_another_one_at_once(mobility: bool) -> None:
    world = World()
    world.stun("stun", STUN)
    turn = Listener(world, world.host("turn", TURN), mobility=mobility)
    async with calling(world, turn="udp") as call:
        await asyncio.sleep(10.0)
        (old,) = [c for c in call.a.local_candidates if c.type is CandidateType.RELAYED]
        began = world.now
        world.network.readdress(call.nat, ["203.0.113.9"])
        await asyncio.sleep(0.3 + 0.2 + 4 * RTT_S)
        (new,) = [c for c in call.a.local_candidates if c.type is CandidateType.RELAYED]
        if mobility:
            assert new.address == old.address
            assert call.diary.at(RelayMoved)[0] - began == pytest.approx(0.3 + 2 * RTT_S, abs=0.2)
        else:
            assert new.address != old.address
            assert call.diary.at(RelayLost)[0] - began == pytest.approx(0.3 + RTT_S, abs=0.2)
            (found,) = [at for at in call.diary.at(LocalCandidateFound) if at > began + 0.35][-1:]
            assert found - began <= 0.3 + 0.2 + 4 * RTT_S
    assert turn.by_udp.violations == []


@pytest.mark.parametrize(
    ("event", "cause", "words"),
    [
        ("none", Cause.PATH, "knows us as before"),
        ("nat", Cause.NAT, "sees us elsewhere, and has taken the relay along"),
        ("restart", Cause.NAT, "does not know us any more"),
        ("deaf", Cause.UPLINK, "does not answer"),
    ],
)
@in_virtual_time
async def test_of_a_relayed_address_its_server_tells(event: str, cause: Cause, words: str) -> None:
    world = World()
    turn = Listener(world, world.host("turn", TURN), mobility=True)
    nat = world.nat("nat", "port-restricted", OUTSIDE)
    server = IceServer(urls=(f"turn:{TURN}?transport=udp",), username="user", credential="secret")
    config = Config(servers=(server,), relay_only=True, ipv6=False)
    async with Agent(config, controlling=True, host=world.host("a", INSIDE, nat), rng=random.Random(1)) as agent:
        diary = Diary(world, agent)
        (relayed,) = (await agent.gather()).candidates
        if event == "nat":
            world.network.readdress(nat, ["203.0.113.9"])
        elif event == "restart":
            turn.by_udp.restart()
        turn.is_deaf = event == "deaf"
        began = world.now
        assert relayed.base is not None
        agent._gathering.doubt(relayed.base)
        told = await diary.until(PathDiagnosed)
        assert (told.cause, told.base, told.component) == (cause, relayed.base, 1)
        assert told.reason == f"the TURN server {TURN}:3478 {words}"
        assert world.now - began <= (1.01 if event == "deaf" else 3 * RTT_S + 0.01)
        # One answer each.
        await asyncio.sleep(1.5)
        assert len(diary.of(PathDiagnosed)) == 1


@in_virtual_time
async def test_one_dead_turn_server_of_two_is_not_our_network() -> None:
    world = World()
    dying, living = (
        TurnMachine(world.host(f"turn {host}", host), host, Options(users=USER)) for host in (TURN, "20.0.1.2")
    )
    # Two models draw the same relayed addresses from the same seed.
    living.by_udp = living.by_tcp
    servers = tuple(
        IceServer(urls=(f"turn:{host}?transport=udp",), username="user", credential="secret")
        for host in (TURN, "20.0.1.2")
    )
    config = Config(servers=servers, relay_only=True, ipv6=False)
    host = world.host("a", INSIDE, world.nat("nat", "port-restricted", OUTSIDE))
    async with Agent(config, controlling=True, host=host, rng=random.Random(1)) as agent:
        diary = Diary(world, agent)
        await agent.gather()
        dying.is_deaf = True
        links = {each.address: each.socket.link for each in agent._gathering.bases.values()}  # type: ignore[attr-defined]
        (base,) = [address for address, link in links.items() if link.target.address.host == TURN]
        agent._gathering.doubt(base)
        told = await diary.until(PathDiagnosed)
        assert told.cause is Cause.PATH
        assert told.reason == f"the TURN server {TURN}:3478 does not answer, but another server does"
    assert living.by_udp.violations == []


@in_virtual_time
async def test_of_a_dead_turn_server_a_stun_server_says_that_our_network_lives() -> None:
    """It is asked from another socket on the same address, of which nothing is told."""
    world = World()
    world.stun("stun", STUN)
    turn = Listener(world, world.host("turn", TURN))
    servers = (
        IceServer(urls=(f"stun:{STUN}",)),
        IceServer(urls=(f"turn:{TURN}?transport=udp",), username="user", credential="secret"),
    )
    config = Config(servers=servers, portmap=False, ipv6=False)
    host = world.host("a", INSIDE, world.nat("nat", "port-restricted", OUTSIDE))
    async with Agent(config, controlling=True, host=host, rng=random.Random(1)) as agent:
        diary = Diary(world, agent)
        await agent.gather()
        (relayed,) = [c.base for c in agent.local_candidates if c.type is CandidateType.RELAYED]
        turn.is_deaf = True
        assert relayed is not None
        agent._gathering.doubt(relayed)
        await asyncio.sleep(1.9)
        (told,) = diary.of(PathDiagnosed)
        assert (told.cause, told.base) == (Cause.PATH, relayed)
        assert told.reason == f"the TURN server {TURN}:3478 does not answer, but another server does"
        # A path from that other socket is asked about as ever.
        await asyncio.sleep(0.2)
        own = next(address for address, base in agent._gathering.bases.items() if not base.is_relayed)
        agent._gathering.doubt(relayed)
        agent._gathering.doubt(own)
        await asyncio.sleep(0.1)
        assert [event.base for event in diary.of(PathDiagnosed)][1:] == [own]


@in_virtual_time
async def test_a_turn_server_that_is_away_for_a_while_is_found_within_seconds_of_its_return() -> None:
    """Whatever the time; and one complaint is enough."""
    for away_s in (7.0, 9.0, 11.0, 13.0, 40.0):
        world = World()
        turn = Listener(world, world.host(f"turn {away_s}", TURN))
        server = IceServer(urls=(f"turn:{TURN}?transport=udp",), username="user", credential="secret")
        config = Config(servers=(server,), relay_only=True, ipv6=False)
        host = world.host("a", INSIDE, world.nat("nat", "port-restricted", OUTSIDE))
        async with Agent(config, controlling=True, host=host, rng=random.Random(1)) as agent:
            diary = Diary(world, agent)
            (old,) = (await agent.gather()).candidates
            await asyncio.sleep(20.0)
            turn.by_udp.restart()
            agent._gathering.doubt(old.base)  # type: ignore[arg-type]  # it has one
            await diary.until(RelayLost)
            turn.is_deaf = True
            await asyncio.sleep(away_s)
            turn.is_deaf = False
            back = world.now
            await diary.until(LocalCandidateFound, lambda event, old=old: event.candidate.address != old.address)  # type: ignore[misc]
            assert world.now - back <= 3.5
            assert len(diary.of(ServerFailed)) == 1


# --- sleep -----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_after_a_sleep_servers_are_asked_and_the_path_has_to_prove_itself() -> None:
    world = World()
    server = world.stun("stun", STUN)
    turn = Listener(world, world.host("turn", TURN))
    async with calling(world, turn="udp") as call:
        asked, began = len(server.core.requests), world.now
        call.home.suspend(20.0)
        await asyncio.sleep(1.0)
        assert [event.seconds for event in call.diary.of(MachineSlept)] == [20.0]
        doubted = call.diary.of(PathDoubted)
        assert [event.reason for event in doubted] == ["this machine slept for 20 s"]
        assert len(server.core.requests) > asked
        assert len(turn.refreshes(began)) == 1
        # It is told once.
        await asyncio.sleep(10.0)
        assert len(call.diary.of(MachineSlept)) == 1


@in_virtual_time
async def test_a_nod_is_no_sleep() -> None:
    world = World()
    async with calling(world, stun=()) as call:
        call.home.suspend(1.9)
        await asyncio.sleep(5.0)
        assert not call.diary.of(MachineSlept) and not call.diary.of(PathDoubted)


@in_virtual_time
async def test_after_a_sleep_an_allocation_that_has_ended_is_made_anew() -> None:
    world = World()
    turn = Listener(world, world.host("turn", TURN))
    async with calling(world, stun=(), turn="udp") as call:
        # The server's clock went on.
        turn.by_udp.restart()
        call.home.suspend(3600.0)
        await call.diary.until(RelayLost)
        lost = world.now
        await call.diary.until(LocalCandidateFound, lambda event: event.candidate.type is CandidateType.RELAYED)
        assert world.now - lost <= 3 * RTT_S


@in_virtual_time
async def test_a_process_that_was_held_up_doubts_what_is_in_use() -> None:
    """SIGSTOP, or a loop that was blocked: time went on, and timers come late."""
    world = World()
    async with calling(world, stun=()) as call:
        loop = asyncio.get_running_loop()
        loop.clock.advance(20.0)  # type: ignore[attr-defined]
        await asyncio.sleep(0.2)
        reasons = [event.reason for event in call.diary.of(PathDoubted)]
        assert reasons and reasons[0].startswith("this process was held up for 20 s")
        await asyncio.sleep(2.0)
        assert not call.diary.of(MachineSlept)


# --- asking again ----------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_servers_are_asked_again_from_every_base_at_most_every_ten_seconds() -> None:
    world = World()
    server = world.stun("stun", STUN)
    dead = world.stun("dead", SECOND_STUN)
    dead.core.is_dead = True
    async with calling(world, stun=(STUN, SECOND_STUN)) as call:
        await asyncio.sleep(60.0)
        failures = len(call.diary.of(ServerFailed))
        asked = len(server.core.requests)
        for _ in range(int(10 * REFRESH_S)):
            call.a._gathering.refresh()
            await asyncio.sleep(0.1)
        assert len(server.core.requests) == asked + 1
        # Who never answered is asked too, and not complained about again.
        assert len(call.diary.of(ServerFailed)) == failures
        dead.core.is_dead = False
        call.a._gathering.refresh()
        await asyncio.sleep(8.0)
        assert len(dead.core.requests) >= 1


@in_virtual_time
async def test_a_router_that_was_changed_meanwhile_is_found_out_by_asking_again() -> None:
    world = World()
    world.stun("stun", STUN)
    nat = world.nat("nat", "port-restricted", OUTSIDE)
    config = Config(servers=(IceServer(urls=(f"stun:{STUN}",)),), portmap=False, ipv6=False)
    async with Agent(config, controlling=True, host=world.host("a", INSIDE, nat), rng=world.rng) as agent:
        await agent.gather()
        agent._gathering.conclude()
        world.network.readdress(nat, ["203.0.113.9"])
        await asyncio.sleep(60.0)
        assert [c.address.host for c in agent.local_candidates] == [INSIDE, OUTSIDE]
        agent._gathering.refresh()
        await asyncio.sleep(0.1)
        assert [c.address.host for c in agent.local_candidates] == [INSIDE, "203.0.113.9"]

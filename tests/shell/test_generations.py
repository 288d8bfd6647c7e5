"""What belongs to one generation: kept bindings, user name fragments, ends of candidates, and the shared ceiling."""

from __future__ import annotations

import asyncio

import pytest

from iceagent import Agent, AgentState, Candidate, CandidateType, Description
from iceagent.events import (
    GatheringDone,
    IceRestarted,
    LocalCandidateFound,
    RemoteCandidateRefused,
    ServerFailed,
    StateChanged,
)
from tests.shell.world import Diary, World, connected, exchange, in_virtual_time, talk, trickling

REFLEXIVE = CandidateType.SERVER_REFLEXIVE
STUN_1, STUN_2 = "198.51.100.1", "198.51.100.2"


def reflexive_hosts(candidates: list[Candidate]) -> list[str]:
    return [candidate.address.host for candidate in candidates if candidate.type is REFLEXIVE]


def state_of(agent: Agent) -> AgentState:
    """Now: it changes between two lines of a test."""
    return agent.state


class TestBindings:
    """RFC 8445, 5.1.1.4: kept alive until ICE processing has completed, not until the first valid pair."""

    @in_virtual_time
    async def test_they_are_kept_until_a_pair_is_nominated(self) -> None:
        world = World()
        server = world.stun("stun", STUN_1)
        home = world.host("a", "192.168.1.2", world.nat("nat", "port-restricted", "203.0.113.1"))
        patient = dict.fromkeys(CandidateType, 60.0)
        a = world.agent(home, STUN_1, controlling=False)
        b = world.agent(world.host("b", "192.0.2.9"), nomination_wait_s=patient)
        async with trickling(a, b):
            diary = Diary(world, a)
            # A better pair may come as long as nobody has said that it will not: the peer waits for it.
            b.add_remote_candidate("candidate:9 1 udp 2130706431 192.0.2.200 9 typ host")
            await asyncio.gather(a.connect(), b.connect())
            assert world.now < 1
            await asyncio.sleep(35)
            assert [pair.nominated for pair in a.pairs() if pair.selected] == [False]
            assert len(server.core.requests) == 3
            await asyncio.sleep(40)
            assert [pair.nominated for pair in a.pairs() if pair.selected] == [True]
            sent = len(server.core.requests)
            await asyncio.sleep(3600)
            assert len(server.core.requests) == sent <= 6
            assert [event.new for event in diary.of(StateChanged)] == [AgentState.CHECKING, AgentState.CONNECTED]

    @pytest.mark.parametrize("by_peer", [False, True])
    @in_virtual_time
    async def test_a_restart_asks_again_and_a_changed_mapping_is_a_candidate(self, by_peer: bool) -> None:
        world = World()
        server = world.stun("stun", STUN_1)
        nat = world.nat("nat", "port-restricted", "203.0.113.1")
        home, peer = world.host("a", "192.168.1.2", nat), world.host("b", "192.0.2.9")
        async with world.agent(home, STUN_1) as a, world.agent(peer, controlling=False) as b, connected(a, b):
            diary = Diary(world, a)
            await asyncio.sleep(100)
            assert len(server.core.requests) == 1
            world.network.readdress(nat, ["203.0.113.9"])
            (b if by_peer else a).restart()
            found = await diary.until(LocalCandidateFound)
            assert world.now - 100 < 1 and found.candidate.address.host == "203.0.113.9"
            assert found.candidate.ufrag == a.local_description.credentials.ufrag
            # The former one is not signalled any more.
            assert reflexive_hosts(a.local_candidates) == ["203.0.113.9"]
            assert len({candidate.priority for candidate in a.local_candidates}) == 2
            await asyncio.sleep(5)
            await talk(a, b)
            assert diary.of(GatheringDone) == [] and a.local_description.complete
            await asyncio.sleep(3600)
            assert len(server.core.requests) == 2

    @in_virtual_time
    async def test_a_restart_asks_also_who_did_not_answer(self) -> None:
        world = World()
        server = world.stun("stun", STUN_1)
        server.core.is_dead = True
        home = world.host("a", "192.168.1.2", world.nat("nat", "port-restricted", "203.0.113.1"))
        async with world.agent(home, STUN_1) as agent:
            diary = Diary(world, agent)
            await agent.gather()
            assert reflexive_hosts(agent.local_candidates) == []
            server.core.is_dead = False
            agent.restart()
            await diary.until(LocalCandidateFound, lambda event: event.candidate.type is REFLEXIVE)
            assert len(diary.of(ServerFailed)) == 1

    @in_virtual_time
    async def test_a_restart_before_gathering_asks_nobody(self) -> None:
        world = World()
        server = world.stun("stun", STUN_1)
        async with world.agent(world.host("a", "192.0.2.1"), STUN_1) as agent:
            agent.restart()
            await asyncio.sleep(10)
            assert not server.core.requests


class TestFragments:
    """RFC 8838, 9: what is trickled names its generation."""

    @in_virtual_time
    async def test_every_signalled_candidate_has_the_present_one(self) -> None:
        world = World()
        world.stun("stun", STUN_1)
        host = world.host("a", "192.168.1.2", world.nat("nat", "port-restricted", "203.0.113.1"))
        async with world.agent(host, STUN_1) as agent:
            diary = Diary(world, agent)
            description = await agent.gather()
            ufrag = description.credentials.ufrag
            assert [candidate.extensions for candidate in description.candidates] == [(("ufrag", ufrag),)] * 2
            assert [event.candidate for event in diary.of(LocalCandidateFound)] == list(description.candidates)
            again = agent.restart()
            assert again.credentials.ufrag != ufrag
            assert {candidate.ufrag for candidate in again.candidates} == {again.credentials.ufrag}
            host.add_interface("eth1", ["192.0.2.7"])
            late = await diary.until(LocalCandidateFound, lambda event: event.candidate.address.host == "192.0.2.7")
            assert late.candidate.ufrag == again.credentials.ufrag
            assert Description.parse(again.to_sdp()).to_sdp() == again.to_sdp()

    @in_virtual_time
    async def test_a_delayed_candidate_of_the_generation_before_is_refused(self) -> None:
        world = World()
        first, second = world.host("a", "192.0.2.1"), world.host("b", "192.0.2.9")
        async with world.agent(first) as a, world.agent(second, controlling=False) as b, connected(a, b):
            diary, theirs = Diary(world, a), Diary(world, b)
            (old,) = a.local_candidates
            a.restart()
            await diary.until(IceRestarted)
            await asyncio.sleep(1)
            b.add_remote_candidate(old.to_sdp())
            refused = await theirs.until(RemoteCandidateRefused)
            assert refused.reason == "it belongs to an earlier generation"


class TestEndOfCandidates:
    """RFC 8838, 13: "the indication MUST specify the generation"."""

    @in_virtual_time
    async def test_one_of_another_generation_says_nothing(self) -> None:
        world = World()
        a = world.agent(world.host("a", "192.0.2.1"), pac_timeout_s=1.0)
        b = world.agent(world.host("b", "192.0.2.9"), controlling=False)
        async with a, b:
            await a.gather()
            ufrag = b.local_description.credentials.ufrag
            a.set_remote_description(b.local_description)
            a.end_remote_candidates("other" + ufrag)
            await asyncio.sleep(100)
            assert state_of(a) is AgentState.CHECKING
            a.end_remote_candidates(ufrag)
            assert state_of(a) is AgentState.FAILED

    @in_virtual_time
    async def test_one_that_overtakes_its_description_counts_when_that_comes(self) -> None:
        world = World()
        a = world.agent(world.host("a", "192.0.2.1"), pac_timeout_s=1.0)
        b = world.agent(world.host("b", "192.0.2.9"), controlling=False)
        async with a, b:
            await a.gather()
            a.end_remote_candidates(b.local_description.credentials.ufrag)
            await asyncio.sleep(100)
            assert state_of(a) is AgentState.NEW
            a.set_remote_description(b.local_description)
            await asyncio.sleep(10)
            assert state_of(a) is AgentState.FAILED

    @in_virtual_time
    async def test_without_a_generation_it_is_said_of_the_present_one(self) -> None:
        world = World()
        a = world.agent(world.host("a", "192.0.2.1"), pac_timeout_s=1.0)
        b = world.agent(world.host("b", "192.0.2.9"), controlling=False)
        async with a, b:
            await a.gather()
            a.set_remote_description(b.local_description)
            a.end_remote_candidates()
            await asyncio.sleep(10)
            assert state_of(a) is AgentState.FAILED


@in_virtual_time
async def test_gathering_counts_under_the_ceiling_of_all_agents_of_a_host() -> None:
    """RFC 8445, 14.2; the first agent's value is the one that counts."""
    world = World()
    server = world.stun("stun", STUN_1)
    host = world.host("a", "192.0.2.1")
    first = world.agent(host, STUN_1, ceiling=(1.0, 2))
    others = [world.agent(host, STUN_1) for _ in range(4)]
    for agent in (first, *others):
        agent.start_gathering()
    await asyncio.sleep(0.5)
    assert len(server.core.requests) == 2
    await asyncio.sleep(2.0)
    assert len(server.core.requests) == 4
    await asyncio.gather(*(agent.aclose() for agent in (first, *others)))


@in_virtual_time
async def test_checks_wait_for_what_gathering_took() -> None:
    world = World()
    server = world.stun("stun", STUN_1)
    host = world.host("a", "192.168.1.2", world.nat("nat", "symmetric", "203.0.113.1"))
    a = world.agent(host, STUN_1, ceiling=(1.0, 1))
    b = world.agent(world.host("b", "192.0.2.9"), controlling=False)
    async with a, b:
        await exchange(a, b)
        await asyncio.sleep(0.9)
        assert len(server.core.requests) == 1
        assert sum(pair.requests_sent for pair in a.pairs()) == 0
        await asyncio.sleep(0.2)
        assert sum(pair.requests_sent for pair in a.pairs()) == 1

"""Does a new socket get out of the early-packet trap, when one side heard of the other too late for an opener?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from iceagent import Agent, AgentState, CandidateType, Description
from iceagent.events import BaseFailed, LocalCandidateFound, NetworkChanged, RerollDue, StateChanged
from iceagent.net.address import TransportAddress
from iceagent.testing import MemoryHost
from iceagent.testing.links import Fate
from iceagent.testing.network import DEFAULT_TTL
from relay.stun import is_stun, parse
from tests.shell.world import Diary, World, in_virtual_time, signal, talk

STUN = "198.51.100.1"
NAIVE, CAREFUL = "port-restricted-naive", "port-restricted"
LIMIT_S = 2.5


class End(NamedTuple):
    """An agent behind a NAT of its own, and all that happened to it."""

    host: MemoryHost
    agent: Agent
    diary: Diary
    inside: str
    outside: str

    @property
    def socket(self) -> TransportAddress:
        """The first one."""
        return self.agent.local_candidates[0].address


@asynccontextmanager
async def two_homes(
    kinds: tuple[str, str] = (NAIVE, CAREFUL), *, first_controls: bool = False, **options: Any
) -> AsyncIterator[tuple[World, End, End]]:
    """Two agents that have gathered, each in a home of its own."""
    world = World(icmp_errors=True)
    world.stun("stun", STUN)
    ends = []
    for number, kind in enumerate(kinds, start=1):
        inside, outside = f"192.168.{number}.2", f"20.0.{number}.1"
        host = world.host(f"host-{number}", inside, world.nat(f"nat-{number}", kind, outside))
        agent = world.agent(host, STUN, controlling=(number == 1) == first_controls, **options)
        ends.append(End(host, agent, Diary(world, agent), inside, outside))
    first, second = ends
    async with first.agent, second.agent:
        await asyncio.gather(first.agent.gather(), second.agent.gather())
        yield world, first, second


@asynccontextmanager
async def signalling(late: End, early: End, late_s: float, back_s: float = 0.0) -> AsyncIterator[None]:
    """What the early side signals takes ``late_s`` to the late one, and what that signals ``back_s``."""
    ways = signal(late.agent, early.agent, back_s), signal(early.agent, late.agent, late_s)
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def rerolled(end: End) -> list[float]:
    """When."""
    return end.diary.at(RerollDue)


class Sent(NamedTuple):
    """A datagram of one home, as it left."""

    at: float
    port: int
    destination: TransportAddress
    ttl: int
    is_opener: bool


def sent(world: World, end: End) -> list[Sent]:
    """In order."""
    packets = [
        (entry.at, entry.packet)
        for entry in world.network.log
        if entry.fate is Fate.SENT and entry.packet.source.host == end.inside and is_stun(entry.packet.data)
    ]
    return [
        Sent(at, packet.source.port, packet.destination, packet.ttl, parse(packet.data).is_indication)
        for at, packet in packets
    ]


# --- connecting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_controls", [True, False], ids=["controlling", "controlled"])
@pytest.mark.parametrize("is_first_late", [True, False], ids=["naive-late", "naive-early"])
@pytest.mark.parametrize("late_s", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("kind", [CAREFUL, NAIVE])
@in_virtual_time
async def test_whoever_is_late_connects(kind: str, late_s: float, is_first_late: bool, first_controls: bool) -> None:
    """Within 2.5 s of the first description; where nobody is trapped, as soon as the late side has heard."""
    async with two_homes((NAIVE, kind), first_controls=first_controls) as (world, first, second):
        start = world.now
        late, early = (first, second) if is_first_late else (second, first)
        async with signalling(late, early, late_s):
            await asyncio.wait_for(asyncio.gather(late.agent.connect(), early.agent.connect()), LIMIT_S)
            is_trapped = late_s > 0 and (is_first_late or kind == NAIVE)
            assert (world.now - start > 1.0) is is_trapped
            assert bool(rerolled(late)) is is_trapped
            await asyncio.sleep(1.0)
            await talk(late.agent, early.agent)


@pytest.mark.parametrize("back_s", [0.1, 0.25])
@pytest.mark.parametrize("kind", [CAREFUL, NAIVE])
@in_virtual_time
async def test_slow_signalling_makes_it_late_and_stops_nothing(kind: str, back_s: float) -> None:
    """The openers of a new socket must not knock at the NAT of a peer that has not heard of it yet."""
    async with two_homes((NAIVE, kind)) as (_, late, early), signalling(late, early, 0.4, back_s):
        await asyncio.wait_for(asyncio.gather(late.agent.connect(), early.agent.connect()), LIMIT_S)


@pytest.mark.parametrize("options", [{"reroll": False}, {"openers": False}, {"late_candidates": False}], ids=str)
@in_virtual_time
async def test_the_switches_turn_it_off(options: dict[str, Any]) -> None:
    """So the trap stays shut behind who is late: that is what the re-roll is for."""
    async with two_homes(**options) as (_, late, early), signalling(late, early, 0.1):
        await asyncio.sleep(10.0)
        assert rerolled(late) == rerolled(early) == []
        assert late.agent.state is early.agent.state is AgentState.CHECKING


# --- how ---------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_first_the_server_then_the_opener_then_the_peer() -> None:
    """And nothing but openers leaves from the new socket before the peer's check arrives there."""
    async with two_homes() as (world, late, early), signalling(late, early, 0.1):
        start = world.now + 0.1
        await asyncio.gather(late.agent.connect(), early.agent.connect())
        await asyncio.sleep(1.0)
        (due,) = late.diary.of(RerollDue)
        assert (due.component, due.base) == (1, late.socket)
        assert rerolled(late) == pytest.approx([start + 1.0])
        told = late.diary.of(LocalCandidateFound)[-1].candidate
        assert told.type is CandidateType.SERVER_REFLEXIVE and told.address.host == late.outside
        assert late.diary.at(LocalCandidateFound)[-1] == pytest.approx(start + 1.0 + 0.040)
        peer = early.agent.local_candidates[-1].address
        question, opener, answer = [each for each in sent(world, late) if each.port != late.socket.port][:3]
        # The peer's check comes 10 ms of lead and 20 ms of way after our opener; our answer is the first that goes all
        # the way.
        assert [each.at - start for each in (question, opener, answer)] == pytest.approx([1.0, 1.040, 1.070])
        assert question.destination.host == STUN
        assert opener[1:] == (question.port, peer, 2, True)
        assert answer[1:] == (question.port, peer, DEFAULT_TTL, False)
        path = late.agent.path()
        assert path is not None and path.base.port == question.port


@in_virtual_time
async def test_a_rerolled_base_has_a_foundation_of_its_own() -> None:
    """DEVIATION from RFC 8445, 5.1.1.3: else its pairs would be Frozen behind the one that does not work (6.1.2.6)."""
    async with two_homes() as (_, late, early), signalling(late, early, 0.1):
        await asyncio.gather(late.agent.connect(), early.agent.connect())
        _, first, second = late.agent.local_candidates
        assert (first.type, second.type) == (CandidateType.SERVER_REFLEXIVE,) * 2
        assert first.foundation != second.foundation
        assert second.related_address is not None and second.related_address.host == late.inside


@in_virtual_time
async def test_the_controlled_side_goes_first_and_each_only_once() -> None:
    """Nobody behind these two can be reached: the sockets stay two."""
    async with two_homes(("symmetric", "symmetric"), pac_timeout_s=5.0) as (world, first, second):
        start = world.now
        async with signalling(first, second, 0.0):
            await first.diary.until(StateChanged, lambda event: event.new is AgentState.FAILED)
            await second.diary.until(StateChanged, lambda event: event.new is AgentState.FAILED)
            assert not first.agent.controlling and second.agent.controlling
            assert rerolled(first) == pytest.approx([start + 1.0])
            assert rerolled(second) == pytest.approx([start + 1.5])
            for end in (first, second):
                assert len({pair.base for pair in end.agent.pairs()}) == 2


@pytest.mark.parametrize("kinds", [(CAREFUL, CAREFUL), ("full-cone", NAIVE), ("addr-restricted", "symmetric")], ids=str)
@in_virtual_time
async def test_who_connects_has_the_sockets_it_had(kinds: tuple[str, str]) -> None:
    async with two_homes(kinds) as (_, first, second), signalling(first, second, 0.3):
        await asyncio.gather(first.agent.connect(), second.agent.connect())
        await asyncio.sleep(5.0)
        for end in (first, second):
            assert rerolled(end) == []
            assert {pair.base for pair in end.agent.pairs()} == {end.socket}


@in_virtual_time
async def test_a_peer_that_does_not_trickle_is_not_told_of_late_candidates() -> None:
    async with two_homes() as (_, late, early):
        theirs = early.agent.local_description
        early.agent.set_remote_description(late.agent.local_description)
        await asyncio.sleep(0.1)
        plain = Description(credentials=theirs.credentials, candidates=theirs.candidates, complete=True)
        late.agent.set_remote_description(plain)
        await asyncio.sleep(5.0)
        assert rerolled(late) == []


@in_virtual_time
async def test_without_a_free_port_the_first_socket_goes_on() -> None:
    async with two_homes(port_range=(40000, 40000)) as (_, late, early), signalling(late, early, 0.1):
        failed = await late.diary.until(BaseFailed)
        assert failed.host == late.inside and "in use" in failed.reason
        assert late.agent.state is AgentState.CHECKING


@in_virtual_time
async def test_an_agent_that_is_closed_meanwhile_leaves_nothing_behind() -> None:
    """Between the new socket and the server's answer."""
    async with two_homes() as (_, late, early), signalling(late, early, 0.1):
        await late.diary.until(RerollDue)
        await late.agent.aclose()
        await asyncio.sleep(5.0)
        assert late.agent.state is AgentState.CLOSED


@in_virtual_time
async def test_an_address_that_goes_takes_both_sockets() -> None:
    async with two_homes() as (_, late, early), signalling(late, early, 0.1):
        await late.agent.connect()
        assert len({pair.base for pair in late.agent.pairs()}) == 2
        late.host.remove_interface("eth0")
        await late.diary.until(NetworkChanged)
        assert late.agent.pairs() == []
        assert late.agent.local_candidates == []

"""Two of ours tell each other over the paths that work, while signalling is dead: what, when, and what not?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from iceagent import Agent, AgentState, ConsentLost
from iceagent.events import (
    PeerClosed,
    RemoteCandidateAdded,
    RestartAdvised,
    RoleChanged,
    SelectedPathChanged,
    StateChanged,
)
from iceagent.testing import MemoryHost
from tests.shell.test_failover import calling
from tests.shell.world import Diary, World, connected, exchange, in_virtual_time


@asynccontextmanager
async def pair_of(world: World, **options: Any) -> AsyncIterator[tuple[Agent, Agent, MemoryHost, MemoryHost]]:
    """``a``, controlling, and ``b``, connected, without a word of the application; signalling is over."""
    machines = world.host("a", "192.0.2.1"), world.host("b", "198.51.100.1")
    a = world.agent(machines[0], **options)
    b = world.agent(machines[1], controlling=False)
    async with a, b:
        await exchange(a, b)
        await asyncio.gather(a.connect(), b.connect())
        await asyncio.sleep(1.0)
        yield a, b, *machines


@in_virtual_time
async def test_a_new_candidate_is_told_over_the_path_that_works() -> None:
    """It comes as if it had been signalled, with type and priority, within a round trip of its being found."""
    world = World()
    async with pair_of(world) as (_a, b, host, _):
        diary = Diary(world, b)
        host.add_interface("eth1", ["192.0.2.2"])
        (added,) = [await diary.until(RemoteCandidateAdded)]
        assert (added.via, added.candidate.address.host) == ("path message", "192.0.2.2")
        assert added.candidate.type.value == "host"


@in_virtual_time
async def test_a_candidate_that_goes_is_withdrawn() -> None:
    world = World()
    async with pair_of(world) as (a, b, host, _):
        host.add_interface("eth1", ["192.0.2.2"])
        await asyncio.sleep(2.0)
        assert {"192.0.2.1", "192.0.2.2"} == {c.address.host for c in b.remote_candidates}
        host.remove_interface("eth1")
        await asyncio.sleep(1.0)
        assert {"192.0.2.1"} == {c.address.host for c in b.remote_candidates}
        assert a.state is b.state is AgentState.CONNECTED


@in_virtual_time
async def test_what_is_lost_is_said_again() -> None:
    world = World()
    async with pair_of(world) as (a, b, host, other):
        link = other.link("eth0")
        host.add_interface("eth1", ["192.0.2.2"])
        link.down.loss = 1.0
        await asyncio.sleep(0.5)
        assert len(b.remote_candidates) == 1
        link.down.loss = 0.0
        await asyncio.sleep(1.5)
        assert len(b.remote_candidates) == 2
        counters = a.statistics().counters
        assert 2 <= counters["path messages sent"] <= 8


@pytest.mark.parametrize("option", ["a", "b"])
@in_virtual_time
async def test_nothing_is_told_to_who_has_not_shown_that_it_knows(option: str) -> None:
    world = World()
    machines = world.host("a", "192.0.2.1"), world.host("b", "198.51.100.1")
    a = world.agent(machines[0], path_messages=option != "a")
    b = world.agent(machines[1], controlling=False, path_messages=option != "b")
    async with connected(a, b):
        machines[0].add_interface("eth1", ["192.0.2.2"])
        machines[1].add_interface("eth1", ["198.51.100.2"])
        await asyncio.sleep(3.0)
        for agent in (a, b):
            counters = agent.statistics().counters
            assert not counters["path messages sent"] and not counters["path messages received"]
            assert ("pathmessages" in agent.local_description.options) == (agent is not (a if option == "a" else b))


@in_virtual_time
async def test_a_flood_of_news_is_told_at_five_requests_a_second() -> None:
    world = World()
    async with pair_of(world) as (a, b, host, _):
        for number in range(2, 42):
            host.add_interface(f"eth{number}", [f"192.0.2.{number}"])
        await asyncio.sleep(1.0)
        assert a.statistics().counters["path messages sent"] <= 5 + 5
        await asyncio.sleep(10.0)
        assert len(b.remote_candidates) == 41
        assert a.statistics().counters["path messages sent"] <= 5 + 55


@pytest.mark.parametrize("controlling", [True, False])
@in_virtual_time
async def test_who_loses_an_interface_takes_the_peer_along_at_once(controlling: bool) -> None:
    """In one round trip and a half, whoever nominates: nobody waits until something is missing."""
    world = World()
    async with calling(world, controlling=controlling) as call:
        began = world.now
        call.machines[0].remove_interface(call.interface_of(call.machines[0], call.a))
        await asyncio.sleep(2.0)
        assert call.is_mirrored()
        for agent in (call.a, call.b):
            path = agent.path()
            assert path is not None and path.nominated
        for diary in (call.diary_a, call.diary_b):
            first = min(at for at, event in diary.entries if isinstance(event, SelectedPathChanged) and at >= began)
            assert first - began <= 0.100, diary.entries
        assert max(call.gaps(began)) <= 0.3
        assert not call.diary_a.of(StateChanged) and not call.diary_b.of(RoleChanged)


@pytest.mark.parametrize("side", ["a", "b"])
@in_virtual_time
async def test_the_peer_is_told_that_we_close(side: str) -> None:
    world = World()
    async with pair_of(world) as (a, b, *_):
        leaves, stays = (a, b) if side == "a" else (b, a)
        diary = Diary(world, stays)
        receiving = asyncio.ensure_future(stays.recv())
        began = world.now
        await leaves.aclose()
        assert world.now - began <= 0.100
        await diary.until(PeerClosed)
        with pytest.raises(ConsentLost, match="the peer has closed"):
            await receiving
        assert stays.state is AgentState.FAILED and stays.path() is None
        sent = sum(pair.requests_sent for pair in stays.pairs())
        # What comes late makes no pair of it again.
        stays.add_remote_candidate("candidate:1 1 udp 2113937151 192.0.2.99 5000 typ host")
        await asyncio.sleep(60.0)
        assert sum(pair.requests_sent for pair in stays.pairs()) == sent
        assert not diary.of(RestartAdvised)


@in_virtual_time
async def test_a_goodbye_to_nobody_takes_a_tenth_of_a_second_each_time() -> None:
    world = World()
    async with pair_of(world) as (a, _b, host, _):
        host.link("eth0").up.loss = 1.0
        began = world.now
        await a.aclose()
        assert world.now - began <= 0.301


@in_virtual_time
async def test_a_goodbye_that_is_lost_is_said_again() -> None:
    world = World()
    async with pair_of(world) as (a, b, host, _):
        diary = Diary(world, b)
        link = host.link("eth0")
        link.up.loss = 1.0
        closing = asyncio.ensure_future(a.aclose())
        await asyncio.sleep(0.05)
        link.up.loss = 0.0
        await closing
        if not diary.of(PeerClosed):
            await diary.until(PeerClosed)


@in_virtual_time
async def test_after_a_goodbye_a_new_description_begins_anew() -> None:
    world = World()
    machines = world.host("a", "192.0.2.1"), world.host("b", "198.51.100.1")
    a, b = world.agent(machines[0]), world.agent(machines[1], controlling=False)
    async with connected(a, b):
        await a.aclose()
        await asyncio.sleep(1.0)
        assert b.path() is None
        async with world.agent(machines[0]) as again:
            await again.gather()
            b.set_remote_description(again.local_description)
            again.set_remote_description(b.local_description)
            await again.connect()
            await asyncio.sleep(1.0)
            assert b.state is AgentState.CONNECTED and b.path() is not None


@in_virtual_time
async def test_a_peer_that_knows_no_messages_is_refused_where_we_stay_for_it() -> None:
    """RFC 7675, 5.2: by a 403 to its next check."""
    world = World()
    async with pair_of(world, path_messages=False, revocation_s=6.5) as (a, b, *_):
        diary = Diary(world, b)
        began = world.now
        await a.aclose()
        assert world.now - began <= 6.1
        await asyncio.sleep(0.1)
        assert b.path() is None
        assert [event.reason for event in diary.of(SelectedPathChanged)] == ["the peer revoked consent"]


@in_virtual_time
async def test_where_both_report_losses_of_different_paths_who_nominates_has_the_last_word() -> None:
    world = World()
    async with calling(world, controlling=False) as call:
        call.b.report_loss()
        await asyncio.sleep(2.0)
        chosen = call.b.path()
        assert call.is_mirrored() and chosen is not None
        began = world.now
        call.a.report_loss()
        await asyncio.sleep(2.0)
        assert call.is_mirrored()
        path = call.b.path()
        assert path is not None and path.base == chosen.base
        assert max(call.gaps(began)) <= 1.0

"""Data on two paths while one is in doubt, and what an agent remembers of that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from iceagent.events import PathDoubted, PathTrusted, SelectedPathChanged
from tests.shell.test_failover import Call
from tests.shell.world import World, connected, in_virtual_time


class Speech(Call):
    """Two agents, of whom each may fall silent.

    Attributes:
        speakers: who speaks, ``a`` first.
    """

    speakers: list[asyncio.Task[None]]


@asynccontextmanager
async def calling(world: World, *, controlling: bool = True, **options: Any) -> AsyncIterator[Speech]:
    """Two agents with two ways each have been talking for three seconds."""
    machines = world.host("a", "192.0.2.1"), world.host("b", "198.51.100.1")
    machines[0].add_interface("eth1", ["192.0.2.2"])
    machines[1].add_interface("eth1", ["198.51.100.2"])
    a = world.agent(machines[0], controlling=controlling, **options)
    b = world.agent(machines[1], controlling=not controlling, **options)
    async with connected(a, b):
        call = Speech(world, a, b, machines)
        call.speakers = [asyncio.ensure_future(call.speak(agent)) for agent in (a, b)]
        try:
            await asyncio.sleep(3.0)
            yield call
        finally:
            for task in call.speakers:
                task.cancel()
            await asyncio.gather(*call.speakers, return_exceptions=True)


def counted(call: Speech) -> tuple[int, int]:
    """How many datagrams each side sent twice."""
    return call.a.statistics().counters.get("mirrored", 0), call.b.statistics().counters.get("mirrored", 0)


@pytest.mark.parametrize("controlling", [True, False])
@in_virtual_time
async def test_while_in_doubt_data_arrives_over_the_pair_that_stands_by(controlling: bool) -> None:
    """Nothing is lost but what was sent before anybody could doubt: the path dies in silence."""
    world = World()
    async with calling(world, controlling=controlling) as call:
        began = world.now
        call.machines[0].link(call.interface_of(call.machines[0], call.a)).cut()
        await asyncio.sleep(3.0)
        (doubted, *_), (moved, *_) = (
            [at for at in call.diary_a.at(kind) if at > began] for kind in (PathDoubted, SelectedPathChanged)
        )
        assert moved - doubted > 0.3
        # A datagram each 0.1 s from the doubt on.
        assert call.ear_b.longest_gap(began) <= doubted - began + 0.15
        assert max(call.gaps(began)) <= 1.5
        assert counted(call)[0] >= 3
        before = counted(call)
        await asyncio.sleep(3.0)
        assert counted(call) == before


@in_virtual_time
async def test_who_does_not_want_it_sends_nothing_twice() -> None:
    world = World()
    async with calling(world, mirror=False) as call:
        began = world.now
        call.machines[0].link(call.interface_of(call.machines[0], call.a)).cut()
        await asyncio.sleep(3.0)
        assert [at for at in call.diary_a.at(SelectedPathChanged) if at > began]
        assert counted(call) == (0, 0)


@in_virtual_time
async def test_a_peer_that_knows_no_path_messages_gets_nothing_twice() -> None:
    """A stranger's application may not expect it."""
    world = World()
    async with calling(world, path_messages=False) as call:
        call.machines[0].link(call.interface_of(call.machines[0], call.a)).cut()
        await asyncio.sleep(3.0)
        assert counted(call) == (0, 0)


@in_virtual_time
async def test_a_path_that_answers_ends_it() -> None:
    """The peer stops speaking, and is there all the same."""
    world = World()
    async with calling(world) as call:
        call.speakers[1].cancel()
        await call.diary_a.until(PathDoubted)
        trusted = await call.diary_a.until(PathTrusted)
        assert trusted.reason == "the path answers"
        before = counted(call)[0]
        sent = call.ear_b.times[-1]
        await asyncio.sleep(0.25)
        assert counted(call)[0] == before <= 1 and call.ear_b.times[-1] > sent


@in_virtual_time
async def test_an_agent_remembers_what_became_of_its_paths() -> None:
    world = World()
    async with calling(world) as call:
        began = world.now
        call.machines[0].link(call.interface_of(call.machines[0], call.a)).cut()
        await asyncio.sleep(3.0)
        told = [(entry.event, entry.reason) for entry in call.a.history() if entry.at > began]
        assert [name for name, _ in told[:2]] == ["path.doubted", "path.selected"]
        assert told[1][1].endswith("; another path answers")
        first = call.a.history()[0]
        assert (first.event, first.reason) == ("state.changed", "checking: the peer's description is known")
        assert len(call.a.history()) <= 12
    assert call.a.history()[-1].reason == "closed: closed by the application"

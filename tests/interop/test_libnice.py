"""Our agent and libnice: both roles, both controlling, both nominations, data both ways, a later better pair."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from iceagent import Agent, Candidate, Config, Description, SelectedPathChanged
from iceagent.net.address import TransportAddress
from iceagent.net.local import local_host
from relay.server import Server
from tests.interop.libnice import LibnicePeer

PATIENCE_S = 15.0


def config(*hosts: str, **options: object) -> Config:
    return Config(loopback=True, bind_hosts=hosts or ("127.0.0.1",), **options)  # type: ignore[arg-type]


async def introduce(agent: Agent, peer: LibnicePeer) -> None:
    """Signal both ways, everything at once."""
    theirs = Description.parse("\n".join(await peer.local_lines()))
    agent.set_remote_description(theirs)
    await peer.add_remote(agent.local_description.to_sdp().splitlines())


async def both_ways(agent: Agent, peer: LibnicePeer) -> None:
    for data in (b"\x80 to libnice", b"\x17 again"):
        agent.send(data)
        assert await peer.recv() == data
    for data in (b"\x80 from libnice", b"\x40 once more"):
        await peer.send(data)
        assert await agent.recv() == data


@pytest.mark.parametrize("nomination", ["regular", "aggressive"])
@pytest.mark.parametrize(("ours", "theirs"), [(True, False), (False, True), (True, True), (False, False)])
async def test_both_roles_and_role_conflicts(libnice_program: Path, ours: bool, theirs: bool, nomination: str) -> None:
    async with (
        asyncio.timeout(PATIENCE_S),
        Agent(config(), controlling=ours) as agent,
        await LibnicePeer.start(libnice_program, controlling=theirs, nomination=nomination) as peer,  # type: ignore[arg-type]
    ):
        await agent.gather()
        await introduce(agent, peer)
        await agent.connect()
        await peer.wait_state("ready")
        await both_ways(agent, peer)


@pytest.mark.parametrize("ours", [True, False])
async def test_several_addresses_end_mirrored(libnice_program: Path, ours: bool) -> None:
    """Report 1: both ends use the same pair."""
    hosts = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    async with (
        asyncio.timeout(PATIENCE_S),
        Agent(config(*hosts), controlling=ours) as agent,
        await LibnicePeer.start(libnice_program, controlling=not ours, addresses=hosts) as peer,
    ):
        await agent.gather()
        await introduce(agent, peer)
        await agent.connect()
        await peer.wait_state("ready")
        for _ in range(10):
            await both_ways(agent, peer)
        path = agent.path()
        assert path is not None
        await peer.wait_selected(local=path.remote.address, remote=path.base)


async def test_libnice_follows_a_later_better_pair(libnice_program: Path) -> None:
    """It follows a nomination of a higher-priority pair; a later candidate of its own makes one."""
    async with (
        asyncio.timeout(PATIENCE_S),
        Agent(config("127.0.0.1"), controlling=True) as agent,
        await LibnicePeer.start(
            libnice_program, controlling=False, addresses=("127.0.0.1", "127.0.0.2"), renomination=True
        ) as peer,
    ):
        await agent.gather()
        theirs = Description.parse("\n".join(await peer.local_lines()))
        worse, better = sorted(theirs.candidates, key=lambda candidate: candidate.priority)
        stream = agent.events()
        agent.set_remote_description(
            Description(credentials=theirs.credentials, options=("trickle",), candidates=(worse,))
        )
        await peer.add_remote(agent.local_description.to_sdp().splitlines())
        first = await agent.connect()
        assert first.remote.address == worse.address
        await peer.wait_state("ready")
        await both_ways(agent, peer)
        agent.add_remote_candidate(Candidate.parse(better.to_sdp()))
        async for event in stream:
            if isinstance(event, SelectedPathChanged) and event.new and event.new.remote.address == better.address:
                break
        await peer.wait_selected(local=better.address, remote=first.base)
        await both_ways(agent, peer)


async def test_trickling_to_libnice(libnice_program: Path) -> None:
    """RFC 8838: its candidates one by one, ours before and after its description."""
    async with (
        asyncio.timeout(PATIENCE_S),
        Agent(config(), controlling=True) as agent,
        await LibnicePeer.start(libnice_program, controlling=False, trickle=True) as peer,
    ):
        await agent.gather()
        lines = await peer.local_lines()
        for line in lines:
            if line.startswith("a=candidate:"):
                agent.add_remote_candidate(line)
        bare = [line for line in lines if not line.startswith("a=candidate:")]
        agent.set_remote_description("\n".join(bare))
        await peer.add_remote(agent.local_description.to_sdp().splitlines())
        await agent.connect()
        await peer.wait_state("ready")
        await both_ways(agent, peer)


async def test_consent_from_libnice_is_answered(libnice_program: Path) -> None:
    """RFC 7675, with libnice's consent freshness switched on."""
    async with (
        asyncio.timeout(PATIENCE_S),
        Agent(config(), controlling=False) as agent,
        await LibnicePeer.start(libnice_program, controlling=True, consent=True) as peer,
    ):
        await agent.gather()
        await introduce(agent, peer)
        await agent.connect()
        await peer.wait_state("ready")
        before = agent.pairs()[0].requests_received
        async with asyncio.timeout(8):
            while agent.pairs()[0].requests_received < before + 1:  # noqa: ASYNC110 (statistics are read, not told)
                await asyncio.sleep(0.1)
        await both_ways(agent, peer)
        assert "failed" not in peer.states


async def test_libnice_learns_its_reflexive_address_from_our_server(libnice_program: Path) -> None:
    """It asks as RFC 3489 clients do, without a magic cookie; unanswered it gathers for two seconds and learns
    nothing.
    """
    wildcard = TransportAddress("127.0.0.1", 0)
    async with (
        asyncio.timeout(PATIENCE_S),
        Server(local_host(), [wildcard]) as server,
    ):
        stun = next(listening.address for listening in server.listeners if listening.transport == "udp")
        async with await LibnicePeer.start(libnice_program, controlling=False, stun=stun) as peer:
            await peer.local_lines(timeout_s=1.5)
        assert server.counters["requests"] >= 1

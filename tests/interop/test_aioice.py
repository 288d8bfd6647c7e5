"""Our agent and the real ``aioice.Connection``: both roles, both controlling, data both ways, a later better pair."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aioice
import pytest

from iceagent import Agent, CandidateType, Config, Description, Path, SelectedPathChanged
from iceagent.credentials import Credentials

# The longest anything here may take, in seconds; aioice paces by 20 ms and its RTO is 500 ms.
PATIENCE_S = 10.0


def config(*hosts: str) -> Config:
    return Config(loopback=True, bind_hosts=hosts or ("127.0.0.1",))


@asynccontextmanager
async def foreign(
    monkeypatch: pytest.MonkeyPatch, *, controlling: bool, hosts: list[str]
) -> AsyncIterator[aioice.Connection]:
    """An aioice connection on loopback addresses, gathered."""
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: hosts)
    connection = aioice.Connection(ice_controlling=controlling)
    await connection.gather_candidates()
    try:
        yield connection
    finally:
        await connection.close()


def describe(connection: aioice.Connection) -> Description:
    """What its application would signal."""
    lines = [
        f"a=ice-ufrag:{connection.local_username}",
        f"a=ice-pwd:{connection.local_password}",
        *(f"a=candidate:{candidate.to_sdp()}" for candidate in connection.local_candidates),
        "a=end-of-candidates",
    ]
    return Description.parse("\n".join(lines))


async def introduce(agent: Agent, connection: aioice.Connection, *, end: bool = True) -> None:
    """Signal both ways."""
    agent.set_remote_description(describe(connection))
    description = agent.local_description
    connection.remote_username = description.credentials.ufrag
    connection.remote_password = description.credentials.password
    for candidate in description.candidates:
        line = candidate.to_sdp().removeprefix("candidate:")
        await connection.add_remote_candidate(aioice.Candidate.from_sdp(line))
    if end:
        await connection.add_remote_candidate(None)


async def both_ways(agent: Agent, connection: aioice.Connection) -> None:
    for data in (b"\x80 to aioice", b"\x17 again"):
        agent.send(data)
        assert await connection.recv() == data
    for data in (b"\x80 from aioice", b"\x40 once more"):
        await connection.send(data)
        assert await agent.recv() == data


@pytest.mark.parametrize(("ours", "theirs"), [(True, False), (False, True), (True, True), (False, False)])
async def test_both_roles_and_role_conflicts(monkeypatch: pytest.MonkeyPatch, ours: bool, theirs: bool) -> None:
    async with (
        asyncio.timeout(PATIENCE_S),
        Agent(config(), controlling=ours) as agent,
        foreign(monkeypatch, controlling=theirs, hosts=["127.0.0.1"]) as connection,
    ):
        await agent.gather()
        await introduce(agent, connection)
        await asyncio.gather(agent.connect(), connection.connect())
        await both_ways(agent, connection)
        assert agent.controlling is not connection.ice_controlling


@pytest.mark.parametrize("ours", [True, False])
async def test_several_addresses_end_mirrored(monkeypatch: pytest.MonkeyPatch, ours: bool) -> None:
    """Report 1: both ends use the same pair, also with aioice's aggressive nomination."""
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    async with (
        asyncio.timeout(PATIENCE_S),
        Agent(config(*hosts), controlling=ours) as agent,
        foreign(monkeypatch, controlling=not ours, hosts=hosts) as connection,
    ):
        await agent.gather()
        await introduce(agent, connection)
        await asyncio.gather(agent.connect(), connection.connect())
        for _ in range(20):
            await both_ways(agent, connection)
        path = agent.path()
        nominated = connection._nominated[1]
        assert path is not None
        assert path.remote.address == nominated.local_addr
        assert path.base == nominated.remote_addr


async def test_aioice_follows_a_later_better_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Controlling, we move to a better pair when a candidate comes late: an ordinary check first, then
    USE-CANDIDATE.
    """
    async with (
        asyncio.timeout(PATIENCE_S),
        Agent(config("127.0.0.1"), controlling=True) as agent,
        foreign(monkeypatch, controlling=False, hosts=["127.0.0.1", "127.0.0.2"]) as connection,
    ):
        await agent.gather()
        theirs = describe(connection)
        # aioice gives all its host candidates one priority.
        first_one, better = theirs.candidates
        worse = replace(first_one, priority=first_one.priority - 256)
        stream = agent.events()
        agent.set_remote_description(
            Description(credentials=theirs.credentials, options=("trickle",), candidates=(worse,))
        )
        description = agent.local_description
        connection.remote_username = description.credentials.ufrag
        connection.remote_password = description.credentials.password
        line = description.candidates[0].to_sdp().removeprefix("candidate:")
        await connection.add_remote_candidate(aioice.Candidate.from_sdp(line))
        await connection.add_remote_candidate(None)
        first, _ = await asyncio.gather(agent.connect(), connection.connect())
        assert first.remote.address == worse.address
        await both_ways(agent, connection)
        agent.add_remote_candidate(better)
        path = await chosen(stream, better.address)
        assert path.nominated
        await both_ways(agent, connection)
        assert connection._nominated[1].local_addr == better.address


async def test_a_peer_that_was_never_signalled_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checks alone make it a peer-reflexive candidate (RFC 8445, 7.3.1.3)."""
    async with (
        asyncio.timeout(PATIENCE_S),
        Agent(config(), controlling=False) as agent,
        foreign(monkeypatch, controlling=True, hosts=["127.0.0.1"]) as connection,
    ):
        await agent.gather()
        await introduce(agent, connection)
        unknown = Description(
            credentials=Credentials(ufrag=connection.local_username, password=connection.local_password)
        )
        async with Agent(config(), controlling=False) as stranger:
            await stranger.gather()
            stranger.set_remote_description(unknown)
            other = aioice.Connection(
                ice_controlling=True,
                local_username=connection.local_username,
                local_password=connection.local_password,
            )
            await other.gather_candidates()
            description = stranger.local_description
            other.remote_username = description.credentials.ufrag
            other.remote_password = description.credentials.password
            line = description.candidates[0].to_sdp().removeprefix("candidate:")
            await other.add_remote_candidate(aioice.Candidate.from_sdp(line))
            await other.add_remote_candidate(None)
            # aioice needs a candidate of the peer; we know none of its.
            path, _ = await asyncio.gather(stranger.connect(), other.connect())
            assert path.remote.type is CandidateType.PEER_REFLEXIVE
            await both_ways(stranger, other)
            await other.close()


async def test_consent_keeps_both_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """aioice checks consent every 4 to 6 s and dies after six failures; we answer, and it answers us."""
    async with (
        asyncio.timeout(PATIENCE_S),
        Agent(config(), controlling=True) as agent,
        foreign(monkeypatch, controlling=False, hosts=["127.0.0.1"]) as connection,
    ):
        await agent.gather()
        await introduce(agent, connection)
        await asyncio.gather(agent.connect(), connection.connect())
        answered = agent.pairs()[0].responses_received
        async with asyncio.timeout(7):
            while agent.pairs()[0].responses_received == answered:  # noqa: ASYNC110 (statistics are read, not told)
                await asyncio.sleep(0.1)
        await both_ways(agent, connection)


async def chosen(stream: object, remote: tuple[str, int]) -> Path:
    """The path event that moves data to this remote address."""
    async for event in stream:  # type: ignore[attr-defined]
        if isinstance(event, SelectedPathChanged) and event.new is not None and event.new.remote.address == remote:
            return event.new
    raise AssertionError("the agent ended")

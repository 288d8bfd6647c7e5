"""``iceagent.serve`` inside an application, on loopback."""

from __future__ import annotations

import asyncio

import pytest

from iceagent import Agent, Config, IceServer, RelayRefused, TransportAddress, serve

LOOPBACK = TransportAddress("127.0.0.1", 0)


async def test_two_agents_over_a_server_of_the_same_process() -> None:
    async with serve([LOOPBACK], users={"me": "secret"}, allow_peers=["127.0.0.0/8"]) as server:
        port = server.listeners[0].address.port
        ice = IceServer(urls=(f"turn:127.0.0.1:{port}?transport=udp",), username="me", credential="secret")
        config = Config(servers=(ice,), relay_only=True, loopback=True, ipv6=False)
        async with Agent(config, controlling=True) as a, Agent(config, controlling=False) as b:
            mine, theirs = await asyncio.gather(a.gather(), b.gather())
            a.set_remote_description(theirs)
            b.set_remote_description(mine)
            paths = await asyncio.wait_for(asyncio.gather(a.connect(), b.connect()), 10.0)
            assert [path.kind for path in paths] == ["relay", "relay"]
            a.send(b"hello")
            assert await asyncio.wait_for(b.recv(), 5.0) == b"hello"
            assert server.allocations == 2
        await asyncio.wait_for(server.drain(), 5.0)


async def test_loopback_is_no_peer_unless_it_is_allowed() -> None:
    async with serve([LOOPBACK], users={"me": "secret"}) as server:
        port = server.listeners[0].address.port
        ice = IceServer(urls=(f"turn:127.0.0.1:{port}?transport=udp",), username="me", credential="secret")
        config = Config(servers=(ice,), relay_only=True, loopback=True, ipv6=False)
        async with Agent(config, controlling=True) as agent:
            (candidate,) = (await agent.gather()).candidates
            agent.set_remote_description(
                f"a=ice-ufrag:abcd\na=ice-pwd:{'p' * 22}\na=candidate:1 1 udp 1 127.0.0.2 9 typ host\n"
            )
            events = agent.events()
            refused = await asyncio.wait_for(anext(e async for e in events if isinstance(e, RelayRefused)), 5.0)
            assert (refused.host, refused.reason) == ("127.0.0.2", "403 Forbidden")
            assert candidate.address.host == "127.0.0.1"


async def test_without_users_it_is_a_stun_server() -> None:
    async with serve([LOOPBACK]) as server:
        assert [each.transport for each in server.listeners] == ["udp", "tcp"]
        await server.drain()


@pytest.mark.parametrize("options", [{"users": {"": "x"}}, {"users": {"a": "b"}, "allow_peers": ["nowhere"]}])
async def test_values_that_cannot_be(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        async with serve([LOOPBACK], **options):  # type: ignore[arg-type]
            raise AssertionError("it runs")

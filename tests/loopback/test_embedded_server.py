"""``iceagent.serve`` inside an application, on loopback."""

from __future__ import annotations

import asyncio
import os

import pytest

from iceagent import Agent, Config, IceServer, RelayRefused, TransportAddress, serve
from iceagent.net.host import SocketOptions
from iceagent.net.local import local_host
from relay.stun import (
    DATA,
    ICMP,
    NONCE,
    REALM,
    REQUESTED_TRANSPORT,
    USERNAME,
    XOR_PEER_ADDRESS,
    Icmp,
    Message,
    MessageClass,
    Method,
    build,
    long_term_key,
    parse,
)
from relay.turn.credentials import Pair
from tests.loopback.loops import Inbox

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


async def test_a_client_is_told_that_a_port_of_its_peer_is_closed() -> None:
    """RFC 8656, 11.5: the ICMP error that came back for what was relayed, with its type and code."""
    async with serve([LOOPBACK], users={"me": "secret"}, allow_peers=["127.0.0.0/8"]) as server:
        to = server.listeners[0].address
        inbox = Inbox()
        client = local_host().socket(LOOPBACK, inbox, SocketOptions())

        async def ask(method: int, *pairs: Pair) -> Message:
            nonce = ""
            while True:
                who: list[Pair] = [(USERNAME, "me"), (REALM, "iceagent"), (NONCE, nonce)]
                inbox.received.clear()
                message = build(method, MessageClass.REQUEST, os.urandom(12), *pairs, *who)
                client.send(message.encode(long_term_key("me", "iceagent", "secret")), to)
                await inbox.until(lambda: bool(inbox.received))
                answer = parse(inbox.received.pop()[0])
                if answer.error is None:
                    return answer
                assert answer.error.code == 438
                nonce = answer.get(NONCE) or ""

        await ask(Method.ALLOCATE, (REQUESTED_TRANSPORT, 17))
        peer = TransportAddress("127.0.0.2", 9)
        await ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, peer))
        send = build(Method.SEND, MessageClass.INDICATION, os.urandom(12), (XOR_PEER_ADDRESS, peer), (DATA, b"x"))
        client.send(send.encode(fingerprint=False), to)
        await inbox.until(lambda: bool(inbox.received))
        told = parse(inbox.received[0][0])
        assert (told.method, told.get(XOR_PEER_ADDRESS), told.get(ICMP)) == (Method.DATA, peer, Icmp(3, 3, 0))
        client.close()

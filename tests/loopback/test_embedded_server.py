"""``iceagent.serve`` inside an application, on loopback."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import Any

import pytest

from iceagent import Agent, Config, IceServer, RelayRefused, TransportAddress, serve
from iceagent.net.host import SocketOptions
from iceagent.net.local import local_host
from relay.server import ServerOptions
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


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"users": {"": "x"}}, "users: an empty string"),
        ({"users": {"a": 5}}, "users, 'a' has something of type int"),
        ({"secrets": "north"}, "secrets is one text, several are expected"),
        ({"users": {"a": "b"}, "allow_peers": ["nowhere"]}, "allow_peers: 'nowhere' is no network"),
        ({"allow_peers": ["x"]}, "allow_peers: 'x' is no network"),
        ({"allow_peers": ["10.0.0.0/8"]}, "allow_peers is about relaying, and nobody may relay"),
        ({"users": {}, "max_bps": 9_000}, "max_bps is about relaying"),
        ({"users": {"a": "b"}, "deny_peers": "10.0.0.0/8"}, "deny_peers is one text"),
        ({"users": {"a": "b"}, "relay_hosts": "127.0.0.1"}, "relay_hosts is one text"),
        ({"users": {"a": "b"}, "relay_hosts": ["x"]}, "relay_hosts: 'x' is not an IP address"),
        ({"users": {"a": "b"}, "relay_ports": (5, 1)}, r"relay_ports is \(5, 1\)"),
        ({"users": {"a": "b"}, "relay_ports": (0, 70000)}, "allowed are ports from 1 to 65535"),
        ({"users": {"a": "b"}, "max_allocations": 0}, "max_allocations is 0, allowed is at least 1"),
        ({"users": {"a": "b"}, "user_quota": 0}, "user_quota is 0, allowed is at least 1"),
        ({"users": {"a": "b"}, "max_bps": -5}, "max_bps is -5, allowed is at least 1000"),
        ({"users": {"a": "b"}, "external_addresses": "198.41.0.4"}, "external_addresses is of type str"),
        (
            {"listen": [("127.0.0.1", 0)]},
            r"something of type tuple in it, expected is TransportAddress\('127.0.0.1', 0\)",
        ),
        ({"listen": LOOPBACK}, "listen is one address, several are expected"),
        ({"listen": "127.0.0.1"}, "listen is a text"),
        ({"listen": 5}, "listen is of type int"),
        ({"listen": []}, "a server needs an address to listen on"),
        ({"listen": [TransportAddress("localhost", 1)]}, "'localhost' is not an IP address; a name is to be resolved"),
        ({"listen": [TransportAddress("224.0.0.1", 1)]}, "multicast or broadcast"),
        ({"listen": [TransportAddress("127.0.0.1", 65536)]}, "65536 is not a port"),
        ({"options": {"tls": None}}, "options is of type dict"),
    ],
)
async def test_values_that_cannot_be_are_told(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        serve(**{"listen": [LOOPBACK], **options})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tls": "cert.pem"}, r"tls is of type str; server_ssl_context\(certificate, key\) makes one"),
        ({"tls_port": 70_000}, "tls_port is 70000, allowed is 0 to 65535"),
        ({"max_streams": 0}, "max_streams is 0"),
        ({"stream_idle_s": 0}, "stream_idle_s is 0"),
    ],
)
def test_options_that_cannot_be_are_told(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ServerOptions(**options)


async def test_a_server_is_open_once_at_a_time() -> None:
    server = serve([LOOPBACK], users={"me": "secret"})
    async with server:
        with pytest.raises(ValueError, match="this server is open already"):
            await server.__aenter__()
        assert len(server.listeners) == 2 and server.relay_hosts == ("127.0.0.1",)
    async with server:
        assert len(server.listeners) == 2
    with pytest.raises(ValueError, match="this server answers STUN alone"):
        serve([LOOPBACK]).change_accounts(users={"me": "secret"})


async def test_sixty_agents_of_one_address_begin_at_once() -> None:
    """Each asks without a name first, as RFC 8489, 9.2.3 has it: that is no error to be limited like one."""
    async with serve([LOOPBACK], users={"me": "secret"}) as server:
        port = server.listeners[0].address.port
        ice = IceServer(urls=(f"turn:127.0.0.1:{port}?transport=udp",), username="me", credential="secret")
        config = Config(servers=(ice,), relay_only=True, loopback=True, ipv6=False)
        async with AsyncExitStack() as stack:
            agents = [await stack.enter_async_context(Agent(config, controlling=True)) for _ in range(60)]
            found = await asyncio.wait_for(asyncio.gather(*(agent.gather() for agent in agents)), 10.0)
            assert [len(each.candidates) for each in found] == [1] * 60
            assert server.allocations == 60
            assert not {name for name in server.turn_counters if name.startswith("dropped")}


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

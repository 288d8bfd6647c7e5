"""A server behind a 1:1 NAT, as clouds have them: it tells public addresses, and is where it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.host import DatagramSocket, SocketOptions
from iceagent.testing import MemoryHost, MemoryInternet
from relay.listening import NoAddressOfOurs
from relay.places import Relaying
from relay.server import Server, ServerOptions
from relay.stun import (
    CHANNEL_NUMBER,
    DATA,
    NONCE,
    REALM,
    REQUESTED_TRANSPORT,
    USERNAME,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    Message,
    MessageClass,
    Method,
    build,
    long_term_key,
    parse,
)
from relay.turn.credentials import Pair
from relay.turn.server import Accounts, TurnOptions
from tests.unit.relay.turn.server_kit import REALM_NAME, code

Run = Callable[[Coroutine[Any, Any, Any]], Any]

LOCAL = TransportAddress("10.0.0.5", 3478)
PUBLIC = "198.41.0.4"
TURN = TurnOptions(accounts=Accounts(realm=REALM_NAME, users={"user": "secret"}))


class Asker:
    """A client that keeps everything that it hears."""

    def __init__(self, machine: MemoryHost, host: str) -> None:
        self._socket = machine.socket(TransportAddress(host, 5000), self, SocketOptions())
        self._key = long_term_key("user", REALM_NAME, "secret")
        self._count = 0
        self.heard: list[bytes] = []
        self.nonce = ""

    async def ask(self, method: int, *pairs: Pair) -> Message:
        self._count += 1
        identity = self._count.to_bytes(12, "big")
        who: list[Pair] = [(USERNAME, "user"), (REALM, REALM_NAME), (NONCE, self.nonce)]
        self._socket.send(build(method, MessageClass.REQUEST, identity, *pairs, *who).encode(self._key), LOCAL)
        await asyncio.sleep(1.0)
        answer = parse(self.heard.pop())
        assert answer.transaction_id == identity
        if code(answer) == 438:
            self.nonce = answer.get(NONCE) or ""
            return await self.ask(method, *pairs)
        return answer

    async def allocate(self) -> TransportAddress:
        relayed = (await self.ask(Method.ALLOCATE, (REQUESTED_TRANSPORT, 17))).get(XOR_RELAYED_ADDRESS)
        assert relayed is not None
        return relayed

    async def send(self, data: bytes) -> None:
        self._socket.send(data, LOCAL)
        await asyncio.sleep(1.0)

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        self.heard.append(data)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        raise AssertionError(f"{destination}: {errno}")


def play(
    internet: MemoryInternet,
    run: Run,
    story: Callable[[Server, Asker, Asker], Coroutine[Any, Any, None]],
    **options: Any,
) -> None:
    """The clients are in the same network as the server, inside its NAT."""
    machine = internet.host("server", [LOCAL.host])
    clients = [internet.host(f"client {number}", [f"10.0.0.{number}"]) for number in (1, 2)]
    relaying = Relaying(turn=TURN, external={PUBLIC: LOCAL.host}, **options)

    async def main() -> None:
        async with Server(machine, [LOCAL], options=ServerOptions(relaying=relaying)) as server:
            await story(server, *(Asker(client, f"10.0.0.{number}") for number, client in enumerate(clients, 1)))

    run(main())


def channel(number: int, peer: TransportAddress) -> tuple[Pair, Pair]:
    return (CHANNEL_NUMBER, number), (XOR_PEER_ADDRESS, peer)


def test_the_public_address_is_told(iceagent_internet: MemoryInternet, iceagent_run: Run) -> None:
    async def story(server: Server, a: Asker, b: Asker) -> None:
        relayed = await a.allocate()
        assert relayed.host == PUBLIC and 49152 <= relayed.port <= 65535
        assert server.relay_hosts == (PUBLIC,)

    play(iceagent_internet, iceagent_run, story)


def test_two_clients_meet_inside(iceagent_internet: MemoryInternet, iceagent_run: Run) -> None:
    """By channel and by indication; nothing leaves the host, where nobody has the public address."""

    async def story(server: Server, a: Asker, b: Asker) -> None:
        relayed_a, relayed_b = await a.allocate(), await b.allocate()
        assert code(await a.ask(Method.CHANNEL_BIND, *channel(0x4001, relayed_b))) == 0
        assert code(await b.ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, relayed_a))) == 0
        await a.send(b"\x40\x01\x00\x05hello")
        (heard,) = b.heard
        told = parse(heard)
        assert (told.get(XOR_PEER_ADDRESS), told.get(DATA)) == (relayed_a, b"hello")
        answer: list[Pair] = [(XOR_PEER_ADDRESS, relayed_a), (DATA, b"welcome!")]
        await b.send(build(Method.SEND, MessageClass.INDICATION, bytes(12), *answer).encode(fingerprint=False))
        assert a.heard == [b"\x40\x01\x00\x08welcome!"]
        assert server.relayed() == ((2, 13), (2, 13))

    play(iceagent_internet, iceagent_run, story)


def test_the_policy_judges_both_addresses(iceagent_internet: MemoryInternet, iceagent_run: Run) -> None:
    async def story(server: Server, a: Asker, b: Asker) -> None:
        relayed = await b.allocate()
        await a.allocate()
        elsewhere = relayed._replace(port=relayed.port - 1 if relayed.port > 50_000 else relayed.port + 1)
        refused = [elsewhere, TransportAddress(PUBLIC, 22), LOCAL, LOCAL._replace(host=PUBLIC)]
        # A client has no way to know where the relay is, and a port of this host is none of its business.
        refused += [relayed._replace(host=LOCAL.host), LOCAL._replace(port=22)]
        for number, peer in enumerate(refused):
            assert code(await a.ask(Method.CHANNEL_BIND, *channel(0x4001 + number, peer))) == 403, peer
        assert code(await a.ask(Method.CHANNEL_BIND, *channel(0x4100, relayed))) == 0
        assert code(await b.ask(Method.REFRESH, (XOR_PEER_ADDRESS, relayed))) == 0

    play(iceagent_internet, iceagent_run, story)


def test_what_the_server_listens_on_is_protected_at_either_address(
    iceagent_internet: MemoryInternet, iceagent_run: Run
) -> None:
    async def story(server: Server, a: Asker, b: Asker) -> None:
        await a.allocate()
        server.protect(TransportAddress("0.0.0.0", 9641))
        for host in (LOCAL.host, PUBLIC):
            for port, expected in ((LOCAL.port, 403), (9641, 403), (22, 0)):
                peer = TransportAddress(host, port)
                number = 0x4001 + port + (host == PUBLIC)
                assert code(await a.ask(Method.CHANNEL_BIND, *channel(number, peer))) == expected, peer

    play(iceagent_internet, iceagent_run, story, allow=("0.0.0.0/0",))


@pytest.mark.parametrize(
    "options", [{"hosts": ("10.0.0.9",)}, {"external": {PUBLIC: "10.0.0.9"}}], ids=["relay host", "external"]
)
def test_an_address_of_another_host_is_told_at_the_start(
    iceagent_internet: MemoryInternet, iceagent_run: Run, options: dict[str, Any]
) -> None:
    machine = iceagent_internet.host("server", [LOCAL.host])

    async def main() -> None:
        server = Server(machine, [LOCAL], options=ServerOptions(relaying=Relaying(turn=TURN, **options)))
        with pytest.raises(NoAddressOfOurs, match=r"10\.0\.0\.9: it is no address of this host") as caught:
            await server.__aenter__()
        assert caught.value.filename == "10.0.0.9" and server.listeners == ()

    iceagent_run(main())


def test_other_accounts_while_it_runs(iceagent_internet: MemoryInternet, iceagent_run: Run) -> None:
    """What they have stays; who may not any more cannot keep it."""

    async def story(server: Server, a: Asker, b: Asker) -> None:
        await a.allocate()
        server.change_accounts(users={"somebody": "else"})
        assert server.allocations == 1
        assert code(await a.ask(Method.REFRESH)) == code(await b.ask(Method.ALLOCATE, (REQUESTED_TRANSPORT, 17))) == 401
        await asyncio.sleep(700.0)
        assert server.allocations == 0
        server.change_accounts(users={"user": "secret"})
        assert (await b.allocate()).host == PUBLIC
        nobodies: list[dict[str, Any]] = [{}, {"users": {}}, {"users": "x:y"}, {"secrets": "north"}]
        for nobody in nobodies:
            with pytest.raises(ValueError, match=r"users|secrets"):
                server.change_accounts(**nobody)

    play(iceagent_internet, iceagent_run, story)

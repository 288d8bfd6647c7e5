"""TCP allocations (RFC 6062) on real sockets: what passes, what waits, and what ends, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.local import LocalHost
from iceagent.net.streams import connect_tcp, listen_tcp
from relay.places import Relaying
from relay.server import Server, ServerOptions, server_ssl_context
from relay.stun import (
    CONNECTION_ID,
    LIFETIME,
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
from tests.certificates import make_certificate
from tests.loopback.loops import PATIENCE_S, Ear, LoopFactory, on_both_loops, run

# The server's host, and the peers': only the latter's may be connected with.
HOST, PEER_HOST = "127.0.0.1", "127.0.0.2"
KEY = long_term_key("me", "lab", "secret")
TCP: Pair = (REQUESTED_TRANSPORT, 6)


@dataclass
class Wire:
    """A stream of a test's."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    nonce: str = ""
    heard: list[Message] = field(default_factory=list)

    @property
    def address(self) -> TransportAddress:
        return TransportAddress(*self.writer.get_extra_info("sockname")[:2])

    async def read(self, size: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(size), PATIENCE_S)

    async def read_all(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(-1), PATIENCE_S)

    async def hear(self) -> Message:
        """The next message."""
        head = await self.read(20)
        return parse(head + await self.read(int.from_bytes(head[2:4], "big")))

    def request(self, method: int, *pairs: Pair) -> bytes:
        who: list[Pair] = [(USERNAME, "me"), (REALM, "lab"), (NONCE, self.nonce)]
        return build(method, MessageClass.REQUEST, os.urandom(12), *pairs, *who).encode(KEY)

    async def ask(self, method: int, *pairs: Pair) -> Message:
        """The answer to a signed request; indications before it are kept."""
        while True:
            self.writer.write(self.request(method, *pairs))
            while (answer := await self.hear()).is_indication:
                self.heard.append(answer)
            if code(answer) not in (401, 438):
                return answer
            self.nonce = answer.get(NONCE) or ""

    async def attempt(self) -> int:
        """The number of a peer's attempt."""
        found = self.heard.pop(0) if self.heard else await self.hear()
        assert found.method == Method.CONNECTION_ATTEMPT
        return found.get(CONNECTION_ID) or 0

    def close(self) -> None:
        self.writer.close()


def code(answer: Message) -> int:
    return 0 if answer.error is None else answer.error.code


class Peer:
    """Listens, and keeps who connects."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[Wire] = asyncio.Queue()
        self._servers: list[asyncio.Server] = []

    async def listen(self) -> TransportAddress:
        """Where it listens from now on, too."""
        # The buffers are small, so that what is held back is seen soon.
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        listening.bind((PEER_HOST, 0))
        self._servers.append(await asyncio.start_server(self._accept, sock=listening))
        return TransportAddress(*listening.getsockname())

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.arrived.put_nowait(Wire(reader, writer))

    async def one(self) -> Wire:
        return await asyncio.wait_for(self.arrived.get(), PATIENCE_S)

    def close(self) -> None:
        for server in self._servers:
            server.close()


@dataclass
class Scene:
    """A server, a client's control connection with an allocation, and somebody to connect with."""

    server: Server
    control: Wire
    peer: Peer
    peer_address: TransportAddress
    relayed: TransportAddress
    tls: ssl.SSLContext | None
    wires: list[Wire] = field(default_factory=list)

    @property
    def links(self) -> int:
        """Connections that the server's shell holds."""
        assert self.server._tcp_relays is not None
        return len(self.server._tcp_relays._links)

    async def wire(self, address: TransportAddress, tls: ssl.SSLContext | None = None) -> Wire:
        made = Wire(*await asyncio.open_connection(address.host, address.port, ssl=tls))
        self.wires.append(made)
        return made

    async def data_wire(self) -> Wire:
        """A new stream to the server, like the first."""
        where = TransportAddress(*self.control.writer.get_extra_info("peername")[:2])
        made = await self.wire(where, self.tls)
        made.nonce = self.control.nonce
        return made

    async def connected(self) -> tuple[Wire, Wire]:
        """The client's end and the peer's of a connection that the client asked for."""
        answer = await self.control.ask(Method.CONNECT, (XOR_PEER_ADDRESS, self.peer_address))
        number = answer.get(CONNECTION_ID)
        assert number is not None
        theirs = await self.peer.one()
        self.wires.append(theirs)
        mine = await self.data_wire()
        assert code(await mine.ask(Method.CONNECTION_BIND, (CONNECTION_ID, number))) == 0
        return mine, theirs

    async def connected_elsewhere(self) -> tuple[Wire, Wire]:
        """The same, with another peer."""
        self.peer_address = await self.peer.listen()
        return await self.connected()

    async def gone(self) -> None:
        """Wait until the server holds no connection."""
        async with asyncio.timeout(PATIENCE_S):
            while self.links:  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def scene(
    *, tls: tuple[Path, Path] | None = None, external: dict[str, str | None] | None = None, **options: Any
) -> AsyncIterator[Scene]:
    turn = TurnOptions(accounts=Accounts(realm="lab", users={"me": "secret"}), **options)
    server_options = ServerOptions(
        relaying=Relaying(turn=turn, allow=("127.0.0.0/8",), external=external or {}),
        tls=None if tls is None else server_ssl_context(str(tls[0]), str(tls[1])),
        tls_port=0,
    )
    peer = Peer()
    peer_address = await peer.listen()
    async with Server(LocalHost(), [TransportAddress(HOST, 0)], options=server_options) as server:
        kind = "tcp" if tls is None else "tls"
        (address,) = [each.address for each in server.listeners if each.transport == kind]
        context = None
        if tls is not None:
            context = ssl.create_default_context(cafile=str(tls[0]))
            context.check_hostname = False
        control = Wire(*await asyncio.open_connection(address.host, address.port, ssl=context))
        answer = await control.ask(Method.ALLOCATE, TCP)
        relayed = answer.get(XOR_RELAYED_ADDRESS)
        assert relayed is not None
        made = Scene(server, control, peer, peer_address, relayed, context)
        try:
            yield made
        finally:
            for wire in (control, *made.wires):
                wire.close()
            peer.close()
    assert made.links == 0


def play(loop_factory: LoopFactory, story: Callable[[Scene], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with scene(**options) as made:
            await story(made)

    run(loop_factory, main())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"), "turn.example")


@on_both_loops
def test_bytes_pass_both_ways_as_they_are(loop_factory: LoopFactory) -> None:
    async def story(made: Scene) -> None:
        mine, theirs = await made.connected()
        # The server listens there as well.
        assert TransportAddress(*theirs.writer.get_extra_info("peername")) == made.relayed
        # None of this is a message any more.
        looks_like_some = mine.request(Method.REFRESH) + b"\x40\x01\0\x04data" + b"GET / HTTP/1.1"
        sent = os.urandom(3_000_000)
        for source, sink in ((mine, theirs), (theirs, mine)):
            source.writer.write(looks_like_some)
            assert await sink.read(len(looks_like_some)) == looks_like_some
            source.writer.write(sent)
            assert await sink.read(len(sent)) == sent
        (to_packets, to_peers), (from_packets, from_peers) = made.server.relayed()
        assert to_peers == from_peers == len(sent) + len(looks_like_some) and to_packets > 1 < from_packets

    play(loop_factory, story)


@on_both_loops
def test_a_peer_that_connects_is_bound_and_what_it_said_before_is_not_lost(loop_factory: LoopFactory) -> None:
    """RFC 6062, 5.4: "This includes data that was received after … and before this ConnectionBind request"."""

    async def story(made: Scene) -> None:
        # Without a permission: "MUST close the connection with the peer immediately".
        stranger = Wire(*await asyncio.open_connection(*made.relayed, local_addr=(PEER_HOST, 0)))
        assert await stranger.read_all() == b""
        stranger.close()
        await made.control.ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, made.peer_address))
        theirs = Wire(*await asyncio.open_connection(*made.relayed, local_addr=(PEER_HOST, 0)))
        made.wires.append(theirs)
        early = os.urandom(2_000_000)
        theirs.writer.write(early)
        number = await made.control.attempt()
        await asyncio.sleep(0.05)
        mine = await made.data_wire()
        assert code(await mine.ask(Method.CONNECTION_BIND, (CONNECTION_ID, number))) == 0
        assert await mine.read(len(early)) == early
        mine.writer.write(b"hello")
        assert await theirs.read(5) == b"hello"

    play(loop_factory, story)


@on_both_loops
def test_what_follows_a_bind_at_once_is_data(loop_factory: LoopFactory) -> None:
    """A client that does not wait for the answer loses nothing."""

    async def story(made: Scene) -> None:
        answer = await made.control.ask(Method.CONNECT, (XOR_PEER_ADDRESS, made.peer_address))
        theirs = await made.peer.one()
        made.wires.append(theirs)
        mine = await made.data_wire()
        sent = b"\xff\0 no message " + os.urandom(100_000)
        mine.writer.write(mine.request(Method.CONNECTION_BIND, (CONNECTION_ID, answer.get(CONNECTION_ID))) + sent)
        assert code(await mine.hear()) == 0
        assert await theirs.read(len(sent)) == sent

    play(loop_factory, story)


@on_both_loops
@pytest.mark.parametrize("is_outward", [True, False])
def test_who_does_not_read_holds_up_who_sends(loop_factory: LoopFactory, is_outward: bool) -> None:
    """RFC 6062, 3: "if the relay process is no longer able to write data …, the relay process stops reading"."""

    async def story(made: Scene) -> None:
        mine, theirs = await made.connected()
        source, sink = (mine, theirs) if is_outward else (theirs, mine)
        block, sent = os.urandom(1 << 16), 0
        before = made.server.relayed()[0 if is_outward else 1][1]
        # A reader of asyncio's stops at 128 KiB; the kernel has a few MiB more; then it stands still.
        with pytest.raises(TimeoutError):
            while sent < 1 << 28:
                source.writer.write(block)
                sent += len(block)
                await asyncio.wait_for(source.writer.drain(), 1.0)
        passed = made.server.relayed()[0 if is_outward else 1][1] - before
        # Longer than TCP_USER_TIMEOUT, after which a server of ours would be given up.
        await asyncio.sleep(4.0)
        assert made.server.relayed()[0 if is_outward else 1][1] - before == passed < sent
        # Nothing is lost, and the other way is free.
        sink.writer.write(b"still here")
        assert await source.read(10) == b"still here"
        received = await sink.read(sent)
        assert received == block * (sent // len(block))

    play(loop_factory, story)


@on_both_loops
@pytest.mark.parametrize("is_outward", [True, False])
def test_half_a_connection_goes_on(loop_factory: LoopFactory, is_outward: bool) -> None:
    """Who has said all may still be answered."""

    async def story(made: Scene) -> None:
        mine, theirs = await made.connected()
        source, sink = (mine, theirs) if is_outward else (theirs, mine)
        question, answer = os.urandom(1_000_000), os.urandom(1_000_000)
        source.writer.write(question)
        source.writer.write_eof()
        assert await sink.read_all() == question
        sink.writer.write(answer)
        sink.writer.close()
        assert await source.read_all() == answer
        await made.gone()

    play(loop_factory, story)


@on_both_loops
@pytest.mark.parametrize("is_outward", [True, False])
def test_what_one_end_closes_is_closed_to_the_other(loop_factory: LoopFactory, is_outward: bool) -> None:
    """RFC 6062, 5.5."""

    async def story(made: Scene) -> None:
        mine, theirs = await made.connected()
        closing, other = (mine, theirs) if is_outward else (theirs, mine)
        closing.writer.write(b"last words")
        closing.close()
        assert await other.read_all() == b"last words"
        other.close()
        await made.gone()
        # The peer can be connected with again, and by a reset as well.
        mine, theirs = await made.connected()
        closing, other = (mine, theirs) if is_outward else (theirs, mine)
        closing.writer.transport.abort()
        with contextlib.suppress(ConnectionResetError):
            assert await other.read_all() == b""
        other.close()
        await made.gone()
        assert code(await made.control.ask(Method.REFRESH)) == 0

    play(loop_factory, story)


@on_both_loops
@pytest.mark.parametrize("is_outward", [True, False])
def test_over_tls(loop_factory: LoopFactory, certificate: tuple[Path, Path], is_outward: bool) -> None:
    """There are no halves there: the other end is closed when all is out, also to who is slow."""

    async def story(made: Scene) -> None:
        mine, theirs = await made.connected()
        source, sink = (mine, theirs) if is_outward else (theirs, mine)
        sent = os.urandom(4_000_000)
        sink.writer.write(b"hello")
        assert await source.read(5) == b"hello"
        source.writer.write(sent)
        source.close()
        await asyncio.sleep(1.5)
        assert await sink.read_all() == sent
        sink.close()
        await made.gone()

    play(loop_factory, story, tls=certificate)


@on_both_loops
@pytest.mark.parametrize("is_deleted", [True, False])
def test_everything_ends_with_the_allocation(loop_factory: LoopFactory, is_deleted: bool) -> None:
    """RFC 6062, 5.5, and the listener with it."""

    async def story(made: Scene) -> None:
        pairs = [await made.connected()]
        await made.control.ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, made.peer_address))
        waiting = Wire(*await asyncio.open_connection(*made.relayed, local_addr=(PEER_HOST, 0)))
        await made.control.attempt()
        assert made.links == 2
        if is_deleted:
            assert code(await made.control.ask(Method.REFRESH, (LIFETIME, 0))) == 0
        else:
            made.control.close()
        for wire in (*pairs[0], waiting):
            assert await wire.read_all() == b""
        waiting.close()
        await made.gone()
        await asyncio.wait_for(made.server.drain(), PATIENCE_S)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*made.relayed)

    play(loop_factory, story)


@on_both_loops
def test_the_server_ends_while_much_goes_on(loop_factory: LoopFactory) -> None:
    async def story(made: Scene) -> None:
        mine, theirs = await made.connected()
        theirs.writer.write(bytes(1 << 22))
        await mine.read(1 << 16)
        await made.server.aclose()
        await mine.read_all()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*made.relayed)

    play(loop_factory, story)


@on_both_loops
def test_who_is_not_there_is_447_and_who_is_here_403(loop_factory: LoopFactory) -> None:
    async def story(made: Scene) -> None:
        nobody = made.peer_address
        made.peer.close()
        await asyncio.sleep(0)
        assert code(await made.control.ask(Method.CONNECT, (XOR_PEER_ADDRESS, nobody))) == 447
        # The server itself, over the loopback: not even where that is allowed. What else is on this host may be.
        control_at = TransportAddress(*made.control.writer.get_extra_info("peername")[:2])
        for peer, expected in ((control_at, 403), (made.relayed, 403), (TransportAddress(HOST, 1), 447)):
            assert code(await made.control.ask(Method.CONNECT, (XOR_PEER_ADDRESS, peer))) == expected

    play(loop_factory, story)


@on_both_loops
def test_clients_meet_at_each_others_relayed_addresses(loop_factory: LoopFactory) -> None:
    async def story(made: Scene) -> None:
        other = await made.data_wire()
        there = (await other.ask(Method.ALLOCATE, TCP)).get(XOR_RELAYED_ADDRESS)
        assert there is not None
        await other.ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, made.relayed))
        answer = await made.control.ask(Method.CONNECT, (XOR_PEER_ADDRESS, there))
        number = await other.attempt()
        mine, theirs = await made.data_wire(), await made.data_wire()
        assert code(await mine.ask(Method.CONNECTION_BIND, (CONNECTION_ID, answer.get(CONNECTION_ID)))) == 0
        assert code(await theirs.ask(Method.CONNECTION_BIND, (CONNECTION_ID, number))) == 0
        mine.writer.write(b"over two relays")
        assert await theirs.read(15) == b"over two relays"

    play(loop_factory, story)


@on_both_loops
def test_bandwidth_is_kept_by_waiting(loop_factory: LoopFactory) -> None:
    """A megabyte a second, with a second's burst; both connections of the allocation share it."""

    async def story(made: Scene) -> None:
        pairs = [await made.connected(), await made.connected_elsewhere()]
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        for mine, _ in pairs:
            mine.writer.write(bytes(1_500_000))
        for _, theirs in pairs:
            assert len(await theirs.read(1_500_000)) == 1_500_000
        # The last one read is not waited for: one read may be 256 KiB.
        assert 1.4 < loop.time() - began_at < 4.0

    play(loop_factory, story, max_bytes_per_s=1_000_000.0)


@on_both_loops
def test_connections_leave_from_where_a_listener_is_if_it_says_so(loop_factory: LoopFactory) -> None:
    """RFC 6062, 5.2: "The local endpoint is the relayed transport address". Nobody else can listen there."""

    async def main() -> None:
        ear, anywhere = Ear(), TransportAddress(HOST, 0)
        there = await listen_tcp(TransportAddress(PEER_HOST, 0), lambda stream: ear)
        here = await listen_tcp(anywhere, lambda stream: ear)
        with pytest.raises(OSError, match="in use"):
            await connect_tcp(there.address, Ear(), local=here.address)
        here.share_address()
        stream = await connect_tcp(there.address, Ear(), local=here.address)
        assert stream.local_address == here.address
        with pytest.raises(OSError, match="in use"):
            await listen_tcp(here.address, lambda stream: ear)
        # It still accepts.
        other = await connect_tcp(here.address, Ear())
        other.write(b"hello")
        await ear.until(lambda: ear.data == b"hello")
        for each in (stream, other, there, here):
            each.close()

    run(loop_factory, main())


@on_both_loops
def test_two_clients_behind_a_nat_of_the_servers_meet_inside(loop_factory: LoopFactory) -> None:
    """Each knows the other's relay by its public address, which nobody here has."""
    public = "198.41.0.4"

    async def story(made: Scene) -> None:
        other = await made.data_wire()
        theirs = (await other.ask(Method.ALLOCATE, TCP)).get(XOR_RELAYED_ADDRESS)
        assert theirs is not None and theirs.host == made.relayed.host == public
        assert code(await other.ask(Method.CREATE_PERMISSION, (XOR_PEER_ADDRESS, made.relayed))) == 0
        answer = await made.control.ask(Method.CONNECT, (XOR_PEER_ADDRESS, theirs))
        ends = [await made.data_wire(), await made.data_wire()]
        attempt = await other.hear()
        assert attempt.get(XOR_PEER_ADDRESS) == made.relayed
        for end, told in zip(ends, (answer, attempt), strict=True):
            assert code(await end.ask(Method.CONNECTION_BIND, (CONNECTION_ID, told.get(CONNECTION_ID) or 0))) == 0
        ends[0].writer.write(b"hello")
        assert await ends[1].read(5) == b"hello"

    play(loop_factory, story, external={public: HOST})

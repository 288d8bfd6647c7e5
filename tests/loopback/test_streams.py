"""TCP and TLS streams on loopback, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iceagent.net import streams
from iceagent.net.address import TransportAddress
from iceagent.net.host import Stream, StreamListener
from iceagent.net.streams import MAX_HANDSHAKES, MAX_WRITE_QUEUE, TcpListener, TcpStream, connect_tcp, listen_tcp
from tests.certificates import make_certificate
from tests.loopback.loops import Ear, LoopFactory, on_both_loops, run

ANY_PORT = TransportAddress("127.0.0.1", 0)


class Server(Ear):
    """Accepts streams; hears all of them with one ear."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[Stream] = []

    def accept(self, stream: Stream) -> StreamListener:
        self.streams.append(stream)
        self.tell()
        return self


@contextlib.asynccontextmanager
async def listening(
    accept: Callable[[Stream], StreamListener], ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[TcpListener]:
    listener = await listen_tcp(ANY_PORT, accept, ssl_context=ssl_context)
    try:
        yield listener
    finally:
        listener.close()


@contextlib.asynccontextmanager
async def joined(server: Server, ear: Ear) -> AsyncIterator[TcpStream]:
    """A client's stream to ``server``."""
    async with listening(server.accept) as listener:
        stream = await connect_tcp(listener.address, ear)
        await server.until(lambda: bool(server.streams))
        try:
            yield stream
        finally:
            stream.close()
            for accepted in server.streams:
                accepted.close()
            await settle()


async def settle() -> None:
    """Let transports finish closing."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for turn.example, and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "turn.example")


def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.set_alpn_protocols(["stun.turn"])
    return context


def client_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate[0]))
    context.set_alpn_protocols(["stun.turn"])
    return context


@on_both_loops
def test_bytes_go_both_ways_and_addresses_agree(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        server, ear = Server(), Ear()
        async with joined(server, ear) as stream:
            (accepted,) = server.streams
            assert stream.remote_address == accepted.local_address
            assert stream.local_address == accepted.remote_address
            stream.write(b"ping")
            await server.until(lambda: server.data == b"ping")
            accepted.write(b"pong")
            await ear.until(lambda: ear.data == b"pong")
            assert stream.alpn_protocol is None

    run(loop_factory, main())


@on_both_loops
def test_closing_flushes_and_the_other_side_hears_errno_0(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        server, ear = Server(), Ear()
        async with joined(server, ear) as stream:
            stream.write(b"last words")
            stream.close()
            stream.close()
            stream.write(b"too late")
            await server.until(lambda: bool(server.lost))
            assert (server.data, server.lost) == (b"last words", [0])
            await settle()
            assert ear.lost == [], "who closes hears nothing afterwards"

    run(loop_factory, main())


@on_both_loops
def test_a_reset_is_told_with_its_errno(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        server = Server()
        async with listening(server.accept) as listener:
            with socket.create_connection(listener.address) as client:
                await server.until(lambda: bool(server.streams))
                # Lingering for no time at all: close() sends RST.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            await server.until(lambda: bool(server.lost))
            assert server.lost == [errno.ECONNRESET]

    run(loop_factory, main())


@on_both_loops
def test_a_peer_that_does_not_read_is_cut_off_at_one_mebibyte(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        server, ear = Server(), Ear()
        async with joined(server, ear) as stream:
            accepted = server.streams[0]
            assert isinstance(accepted, TcpStream)
            accepted._transport.pause_reading()
            written = 0
            # What the kernel buffers on both ends comes on top of our limit; 64 MiB is far beyond both.
            while not stream._transport.is_closing():
                stream.write(bytes(1 << 16))
                written += 1 << 16
                assert stream._transport.get_write_buffer_size() <= MAX_WRITE_QUEUE
                assert written < 64 << 20
                await asyncio.sleep(0)
            await ear.until(lambda: bool(ear.lost))
            assert ear.lost == [errno.ENOBUFS]

    run(loop_factory, main())


@on_both_loops
def test_a_refused_connection_raises(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        listener = await listen_tcp(ANY_PORT, Server().accept)
        listener.close()
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            await connect_tcp(listener.address, Ear())

    run(loop_factory, main())


@on_both_loops
def test_who_is_gone_before_it_is_accepted_does_no_harm(loop_factory: LoopFactory) -> None:
    """A client that connects and resets has no name any more when it is asked."""

    async def main() -> None:
        server = Server()
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with listening(server.accept) as listener:
            for _ in range(20):
                client = socket.create_connection(listener.address)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            stream = await connect_tcp(listener.address, Ear())
            await server.until(lambda: len(server.streams) == 1)
            stream.close()
            await settle()
        assert not complaints

    run(loop_factory, main())


@on_both_loops
def test_a_stream_leaves_from_the_address_asked_for(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        server = Server()
        async with listening(server.accept) as listener:
            stream = await connect_tcp(listener.address, Ear(), local=TransportAddress("127.0.0.9", 0))
            await server.until(lambda: bool(server.streams))
            assert server.streams[0].remote_address.host == "127.0.0.9"
            stream.close()
            await server.until(lambda: server.lost == [0])

    run(loop_factory, main())


@on_both_loops
def test_an_accept_may_close_at_once_and_one_that_raises_aborts(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        reported = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

        def refuse(stream: Stream) -> StreamListener:
            stream.close()
            return Ear()

        def fail(stream: Stream) -> StreamListener:
            raise ValueError("a bug")

        for accept in (refuse, fail):
            ear = Ear()
            async with listening(accept) as listener:
                await connect_tcp(listener.address, ear)
                await ear.until(lambda ear=ear: bool(ear.lost))  # type: ignore[misc]
        assert [str(error) for error in reported] == ["a bug"]

    run(loop_factory, main())


@on_both_loops
def test_tls_verifies_the_name_and_agrees_on_a_protocol(
    loop_factory: LoopFactory, certificate: tuple[Path, Path]
) -> None:
    async def main() -> None:
        server, ear = Server(), Ear()
        async with listening(server.accept, server_context(certificate)) as listener:
            stream = await connect_tcp(
                listener.address, ear, tls_server_name="turn.example", ssl_context=client_context(certificate)
            )
            assert stream.alpn_protocol == "stun.turn"
            stream.write(b"secret")
            await server.until(lambda: server.data == b"secret")
            server.streams[0].write(b"answer")
            await ear.until(lambda: ear.data == b"answer")
            stream.close()
            await server.until(lambda: server.lost == [0])

    run(loop_factory, main())


@on_both_loops
@pytest.mark.parametrize("trusts", [True, False], ids=["wrong name", "unknown authority"])
def test_tls_refuses_a_certificate_that_is_not_valid(
    loop_factory: LoopFactory, certificate: tuple[Path, Path], trusts: bool
) -> None:
    """``ssl.SSLCertVerificationError`` is an OSError, as the contract promises."""

    async def main() -> None:
        server = Server()
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # The server's side complains, rightly.
        async with listening(server.accept, server_context(certificate)) as listener:
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect_tcp(
                    listener.address,
                    Ear(),
                    tls_server_name="other.example" if trusts else "turn.example",
                    ssl_context=client_context(certificate) if trusts else None,
                    alpn=() if trusts else ("stun.turn",),
                )
            await settle()
        assert server.streams == []

    run(loop_factory, main())


def silent(listener: TcpListener, number: int) -> list[socket.socket]:
    """Connections that say nothing."""
    return [socket.create_connection(listener.address) for _ in range(number)]


class Knock(asyncio.Protocol):
    """A client that says nothing, and waits for the end."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()


@on_both_loops
def test_handshakes_under_way_are_bounded_and_the_newest_has_the_best_chance(
    loop_factory: LoopFactory, certificate: tuple[Path, Path]
) -> None:
    """Each connection that never shakes hands would hold a descriptor for seconds, before anybody has counted it."""

    async def main() -> None:
        server = Server()
        async with listening(server.accept, server_context(certificate)) as listener:
            # In groups that fit the backlog.
            clients = []
            for count in (100, 200):
                clients += silent(listener, 100)
                await soon(lambda count=count: listener.counters["accepted"] == count)  # type: ignore[misc]
            assert len(listener._arriving) == MAX_HANDSHAKES
            stream = await connect_tcp(
                listener.address, Ear(), tls_server_name="turn.example", ssl_context=client_context(certificate)
            )
            await server.until(lambda: bool(server.streams))
            assert listener.counters == {"accepted": 201, "given up": 201 - MAX_HANDSHAKES, **failed(listener)}
            assert failed(listener)["handshakes failed"] <= 201 - MAX_HANDSHAKES
            stream.close()
            await server.until(lambda: bool(server.lost))
        for client in clients:
            client.close()
        await gone(listener)
        assert server.streams[1:] == []

    run(loop_factory, main())


def failed(listener: TcpListener) -> dict[str, int]:
    """What was given up is counted when its transport is closed, a few turns later."""
    return {"handshakes failed": listener.counters["handshakes failed"]}


async def soon(fact: Callable[[], bool]) -> None:
    """Wait for something that nobody tells; at most some seconds."""
    for _ in range(5_000):
        if fact():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


async def gone(listener: TcpListener) -> None:
    """Wait until nothing is under way."""
    await soon(lambda: not listener._tasks)


@on_both_loops
def test_a_handshake_that_does_not_go_on_ends(
    loop_factory: LoopFactory, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert streams.HANDSHAKE_TIMEOUT_S == 3.0
    monkeypatch.setattr(streams, "HANDSHAKE_TIMEOUT_S", 0.05)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with listening(Server().accept, server_context(certificate)) as listener:
            _, knock = await loop.create_connection(Knock, *listener.address)
            async with asyncio.timeout(10):
                await knock.ended.wait()
            await gone(listener)
            assert listener.counters == {"accepted": 1, "handshakes failed": 1}

    run(loop_factory, main())


@on_both_loops
def test_closing_a_listener_gives_up_handshakes_under_way(
    loop_factory: LoopFactory, certificate: tuple[Path, Path]
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with listening(Server().accept, server_context(certificate)) as listener:
            _, knock = await loop.create_connection(Knock, *listener.address)
            await soon(lambda: bool(listener._arriving))
        async with asyncio.timeout(1):
            await knock.ended.wait()
        await gone(listener)

    run(loop_factory, main())


@contextlib.contextmanager
def descriptors(number: int) -> Iterator[None]:
    """Let this process open at most ``number`` more descriptors meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull, "rb") as probe:
        lowest = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@on_both_loops
def test_without_descriptors_accepting_pauses_and_the_log_stays_empty(loop_factory: LoopFactory) -> None:
    """asyncio's server would have reported a traceback for each place in the backlog; ``run`` fails at the first."""

    async def main() -> None:
        server = Server()
        async with listening(server.accept) as listener:
            client = socket.socket()
            client.setblocking(False)
            with descriptors(0):
                with contextlib.suppress(BlockingIOError):
                    client.connect(listener.address)
                await soon(lambda: bool(listener.counters["pauses"]))
            assert server.streams == []
            await server.until(lambda: bool(server.streams))
            assert listener.counters["accepted"] == 1
            client.close()
            await server.until(lambda: bool(server.lost))

    run(loop_factory, main())


@on_both_loops
def test_closing_while_accepting_pauses(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with listening(Server().accept) as listener:
            with socket.socket() as client:
                client.setblocking(False)
                with descriptors(0):
                    with contextlib.suppress(BlockingIOError):
                        client.connect(listener.address)
                    await soon(lambda: bool(listener.counters["pauses"]))
                listener.close()
        await asyncio.sleep(streams.ACCEPT_PAUSE_S)

    run(loop_factory, main())


@on_both_loops
def test_connections_leave_descriptors_for_the_rest(loop_factory: LoopFactory) -> None:
    """The last ones are free, but not for connections."""

    async def main() -> None:
        server, ear = Server(), Ear()
        async with listening(server.accept) as listener:
            with socket.socket() as client:
                client.setblocking(False)
                with descriptors(1):
                    with contextlib.suppress(BlockingIOError):
                        client.connect(listener.address)
                    await soon(lambda: bool(listener.counters["no descriptor"]))
                assert listener.counters == {"accepted": 1, "no descriptor": 1}
                assert client.recv(1) == b"", "it was closed"
            assert server.streams == []
            stream = await connect_tcp(listener.address, ear)
            await server.until(lambda: bool(server.streams))
            stream.close()
            await server.until(lambda: bool(server.lost))

    run(loop_factory, main())


@on_both_loops
def test_a_paused_stream_hears_nothing_until_it_goes_on(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        server, ear = Server(), Ear()
        async with joined(server, ear) as stream:
            accepted = server.streams[0]
            assert isinstance(accepted, TcpStream)
            accepted.pause_reading()
            accepted.pause_reading()
            stream.write(b"waits")
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert server.data == b""
            accepted.resume_reading()
            await server.until(lambda: server.data == b"waits")
            accepted.close()
            accepted.pause_reading()
            accepted.resume_reading()

    run(loop_factory, main())

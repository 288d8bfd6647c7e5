"""TCP and TLS streams on loopback, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from iceagent.net.address import TransportAddress
from iceagent.net.host import Stream, StreamListener
from iceagent.net.streams import MAX_WRITE_QUEUE, TcpListener, TcpStream, connect_tcp, listen_tcp
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
    openssl = shutil.which("openssl")
    assert openssl is not None, "these tests make a certificate with openssl(1)"
    folder = tmp_path_factory.mktemp("tls")
    pem, key = folder / "cert.pem", folder / "key.pem"
    request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=turn.example", "-addext", "subjectAltName=DNS:turn.example"]
    command = [openssl, *request, *name, "-out", str(pem), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return pem, key


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

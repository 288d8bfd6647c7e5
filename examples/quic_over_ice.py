"""QUIC over ICE: aioquic, unchanged, on a path that an iceagent.Agent found.

Both ends live in this one process and talk over loopback, so that it runs anywhere:

    pip install iceagent aioquic
    python examples/quic_over_ice.py

Between two machines, each runs one of the two halves. What ``agent.gather()`` returns travels to the other side as text
(``to_sdp()``), over whatever there is: a web socket, a chat, a file.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import os
import time

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import iceagent

SIZE = 1_000_000
ALPN = ["iceagent-example"]
SERVER_NAME = "peer.example"

# Loopback only, for this demonstration. Between machines: iceagent.Config(servers=(iceagent.IceServer(urls=(...,)),)).
CONFIG = iceagent.Config(loopback=True, bind_hosts=("127.0.0.1",))


async def serve(agent: iceagent.Agent, configuration: QuicConfiguration) -> None:
    """Answer every stream with the SHA-256 of what came in."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hashlib.sha256(await reader.read()).digest())
        writer.write_eof()

    tasks: set[asyncio.Task[None]] = set()

    def on_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(answer(reader, writer)))

    # A QUIC server is an asyncio.DatagramProtocol like any other: here its "UDP socket" is the agent's path.
    await iceagent.create_datagram_endpoint(
        lambda: QuicServer(configuration=configuration, stream_handler=on_stream), agent=agent
    )


async def send(agent: iceagent.Agent, configuration: QuicConfiguration, data: bytes) -> bytes:
    """Send ``data`` on a stream, and return the answer."""
    transport, client = await iceagent.create_datagram_endpoint(
        lambda: QuicConnectionProtocol(QuicConnection(configuration=configuration)), agent=agent
    )
    # QUIC wants to know whom it talks to. The path may change, so the transport has one name for the peer.
    client.connect(transport.get_extra_info("peername"))
    await client.wait_connected()
    reader, writer = await client.create_stream()
    writer.write(data)
    writer.write_eof()
    answer = await reader.read()
    client.close()
    await client.wait_closed()
    return answer


async def main() -> None:
    server_configuration, client_configuration = configurations()
    async with (
        iceagent.Agent(CONFIG, controlling=True) as here,
        iceagent.Agent(CONFIG, controlling=False) as there,
    ):
        # Signalling: each side's description goes to the other one.
        mine, theirs = await asyncio.gather(here.gather(), there.gather())
        here.set_remote_description(theirs.to_sdp())
        there.set_remote_description(mine.to_sdp())
        path, _ = await asyncio.gather(here.connect(), there.connect())
        print(f"ICE connected: {path.local.address} → {path.remote.address} ({path.kind}, {path.rtt_ms:.1f} ms)")

        await serve(there, server_configuration)
        data = os.urandom(SIZE)
        start = time.monotonic()
        digest = await send(here, client_configuration, data)
        seconds = time.monotonic() - start
        if digest != hashlib.sha256(data).digest():
            raise SystemExit("the other side received something else")
        count = here.statistics().packets_sent
        print(f"QUIC delivered {len(data):,} bytes in {count:,} datagrams and {seconds:.1f} s; the digest is right")


def configurations() -> tuple[QuicConfiguration, QuicConfiguration]:
    """For the server, and for a client that trusts this very server: its certificate signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    server = QuicConfiguration(is_client=False, alpn_protocols=ALPN, certificate=certificate, private_key=key)
    trusted = certificate.public_bytes(serialization.Encoding.PEM)
    client = QuicConfiguration(is_client=True, alpn_protocols=ALPN, server_name=SERVER_NAME, cadata=trusted)
    return server, client


if __name__ == "__main__":
    asyncio.run(main())

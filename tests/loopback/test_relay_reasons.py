"""Why there is no relay, in words: a port that speaks TLS and one that does not, nobody, a server that hangs up."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from iceagent import Agent, Config, IceServer, ServerFailed, TransportAddress, serve
from iceagent.net.local import local_host
from iceagent.probe.measure import ProbeOptions, measure
from iceagent.probe.report import RelayRow
from relay.server import ServerOptions
from tests.certificates import make_certificate

LOOPBACK = TransportAddress("127.0.0.1", 0)
PATIENCE_S = 10.0

IS_TLS = "is this a TLS port? turns: is the scheme for that"
IS_PLAIN = "it closed the connection during the TLS handshake: is this a port for plain TCP?"


def account(url: str) -> IceServer:
    return IceServer(urls=(url,), username="me", credential="secret")


async def why(url: str, **options: Any) -> str:
    """What an agent is told of this server, without the address in front; the probe has to say the same."""
    config = Config(servers=(account(url),), relay_only=True, loopback=True, ipv6=False, **options)
    async with Agent(config, controlling=True) as agent:
        events = agent.events()
        agent.start_gathering()
        event = await asyncio.wait_for(anext(e async for e in events if isinstance(e, ServerFailed)), PATIENCE_S)
    probed = Config(loopback=True, ipv6=False, portmap=False)
    report = await measure(ProbeOptions(servers=(account(url),), config=probed), local_host())
    assert isinstance(report.relays, tuple)
    rows: tuple[RelayRow, ...] = report.relays
    (row,) = rows
    reason = event.reason.split(": ", 1)[1]
    assert row.reason == reason
    return reason


@asynccontextmanager
async def hanging_up(first: bytes = b"", *, at_once: bool = False) -> AsyncIterator[int]:
    """A server that says this and closes the connection; its port."""

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not at_once:
            await reader.read(1)
        writer.write(first)
        writer.close()

    async with await asyncio.start_server(serve_one, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(tmp_path, "server.test"))
    return context


async def test_plain_tcp_to_a_tls_port(certificate: ssl.SSLContext) -> None:
    options = ServerOptions(tls=certificate, tls_port=0)
    async with serve([LOOPBACK], users={"me": "secret"}, options=options) as server:
        (port,) = [each.address.port for each in server.listeners if each.transport == "tls"]
        assert IS_TLS in await why(f"turn:127.0.0.1:{port}?transport=tcp")


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_server_that_hangs_up(at_once: bool) -> None:
    async with hanging_up(at_once=at_once) as port:
        reason = await why(f"turn:127.0.0.1:{port}?transport=tcp")
        assert reason == f"it closed the connection at once: {IS_TLS}"


async def test_an_alert_of_tls_is_known() -> None:
    """RFC 8446, 5.1 and 6: record type 21, version 3.x."""
    async with hanging_up(b"\x15\x03\x03\x00\x02\x02\x46") as port:
        reason = await why(f"turn:127.0.0.1:{port}?transport=tcp")
        assert reason == "it speaks TLS: turns: is the scheme for that"


async def test_tls_to_a_plain_port() -> None:
    async with serve([LOOPBACK], users={"me": "secret"}) as server:
        (port,) = [each.address.port for each in server.listeners if each.transport == "tcp"]
        assert await why(f"turns:127.0.0.1:{port}") == IS_PLAIN


async def test_tls_to_a_server_that_answers_something_else() -> None:
    async with hanging_up(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        reason = await why(f"turns:127.0.0.1:{port}")
        assert reason.startswith("there is no TLS (") and reason.endswith("): is this a port for plain TCP?")


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_where_nobody_listens_the_words_are_the_same_over_everything(transport: str) -> None:
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
    assert await why(f"turn:127.0.0.1:{port}?transport={transport}") == "Connection refused"
    assert await why(f"turns:127.0.0.1:{port}") == "Connection refused"

"""TCP streams in memory."""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from iceagent.net.address import TransportAddress as Address
from iceagent.net.host import Proxy, Stream
from iceagent.testing.firewall import FirewallModel
from iceagent.testing.host import MemoryHost
from iceagent.testing.internet import MemoryInternet
from iceagent.testing.nat import NatModel
from iceagent.testing.network import NatNode, Network
from iceagent.testing.streams import MAX_WRITE_QUEUE, STALL_LIMIT_S, MemoryStream

Run = Callable[[Coroutine[Any, Any, Any]], Any]
SERVER = Address("198.51.100.1", 443)


class Ears:
    """Keeps what a stream hears; a server's answers what it hears."""

    def __init__(self, host: MemoryHost, *, echo: bool = False) -> None:
        self.host = host
        self.echo = echo
        self.streams: list[Stream] = []
        self.heard: list[tuple[float, bytes | int]] = []

    def accept(self, stream: Stream) -> Ears:
        self.streams.append(stream)
        return self

    def data_received(self, stream: Stream, data: bytes) -> None:
        self.heard.append((self.host.now(), data))
        if self.echo:
            stream.write(data)

    def connection_lost(self, stream: Stream, errno: int) -> None:
        self.heard.append((self.host.now(), errno))


@pytest.fixture
def server(iceagent_internet: MemoryInternet) -> MemoryHost:
    return iceagent_internet.host("server", [SERVER.host], latency_s=0.25)


@pytest.fixture
def nat(iceagent_network: Network) -> NatNode:
    return iceagent_network.add_nat("nat", NatModel(["203.0.113.1"], iceagent_network.rng))


@pytest.fixture
def client(iceagent_internet: MemoryInternet, nat: NatNode) -> MemoryHost:
    return iceagent_internet.host("client", ["192.168.1.2"], nat, latency_s=0.25)


def test_bytes_go_both_ways_in_order_and_the_server_sees_the_nat(
    client: MemoryHost, server: MemoryHost, iceagent_run: Run
) -> None:
    ours, theirs = Ears(client), Ears(server, echo=True)

    async def main() -> None:
        await server.listen_tcp(SERVER, theirs.accept)
        stream = await client.connect_tcp(SERVER, ours)
        assert client.now() == 1.0
        assert (stream.local_address.host, stream.remote_address) == ("192.168.1.2", SERVER)
        for number in range(5):
            stream.write(bytes([number]))
        await asyncio.sleep(2)
        stream.close()
        stream.close()
        stream.write(b"too late")
        await asyncio.sleep(2)

    iceagent_run(main())
    assert theirs.streams[0].remote_address.host == "203.0.113.1"
    assert theirs.heard == [*((1.5, bytes([number])) for number in range(5)), (3.5, 0)]
    assert ours.heard == [(2.0, bytes([number])) for number in range(5)]


def test_a_shorter_latency_does_not_reorder(client: MemoryHost, server: MemoryHost, iceagent_run: Run) -> None:
    theirs = Ears(server)

    async def main() -> None:
        await server.listen_tcp(SERVER, theirs.accept)
        stream = await client.connect_tcp(SERVER, Ears(client))
        stream.write(b"one")
        client.link().up.latency_s = 0.0
        stream.write(b"two")
        await asyncio.sleep(1)

    iceagent_run(main())
    assert theirs.heard == [(1.5, b"one"), (1.5, b"two")]


def test_a_cut_delays_and_a_long_one_breaks(client: MemoryHost, server: MemoryHost, iceagent_run: Run) -> None:
    ours, theirs = Ears(client), Ears(server)

    async def main() -> None:
        await server.listen_tcp(SERVER, theirs.accept)
        stream = await client.connect_tcp(SERVER, ours)
        client.link().cut()
        stream.write(b"waits")
        await asyncio.sleep(5)
        assert theirs.heard == []
        client.link().restore()
        await asyncio.sleep(1)
        assert [what for _, what in theirs.heard] == [b"waits"]
        client.link().cut()
        stream.write(b"never")
        await asyncio.sleep(STALL_LIMIT_S + 1)

    iceagent_run(main())
    ((at, code),) = ours.heard
    assert code == errno.ETIMEDOUT
    assert at == pytest.approx(7.0 + STALL_LIMIT_S, abs=0.2)
    assert len(theirs.heard) == 1


def test_what_waits_is_bounded(client: MemoryHost, server: MemoryHost, iceagent_run: Run) -> None:
    ours, theirs = Ears(client), Ears(server)

    async def main() -> None:
        await server.listen_tcp(SERVER, theirs.accept)
        stream = await client.connect_tcp(SERVER, ours)
        client.link().cut()
        stream.write(bytes(MAX_WRITE_QUEUE))
        assert ours.heard == []
        stream.write(b"x")
        assert ours.heard == [(1.0, errno.ENOBUFS)]
        client.link().restore()
        await asyncio.sleep(2)

    iceagent_run(main())
    assert [what for _, what in theirs.heard] == [errno.ECONNRESET]


def test_nobody_listens(client: MemoryHost, server: MemoryHost, iceagent_run: Run) -> None:
    async def main() -> None:
        listener = await server.listen_tcp(SERVER, Ears(server).accept)
        assert listener.address == SERVER
        listener.close()
        listener.close()
        with pytest.raises(ConnectionRefusedError, match=r"nothing accepts streams at 198\.51\.100\.1:443"):
            await client.connect_tcp(SERVER, Ears(client))
        assert client.now() == 1.0

    iceagent_run(main())


@pytest.mark.parametrize("obstacle", ["cut", "port", "host"])
def test_what_is_dropped_times_out(
    obstacle: str, client: MemoryHost, server: MemoryHost, nat: NatNode, iceagent_run: Run
) -> None:
    async def main() -> None:
        await server.listen_tcp(SERVER, Ears(server).accept)
        if obstacle == "cut":
            server.link().down.is_cut = True
        elif obstacle == "port":
            nat.tcp_ports = frozenset({80})
        else:
            nat.blocked_hosts.add(SERVER.host)
        with pytest.raises(TimeoutError):
            await client.connect_tcp(SERVER, Ears(client))
        assert client.now() == 10.0

    iceagent_run(main())


def test_no_stream_goes_in_through_a_nat_or_a_firewall_and_one_does_through_a_router(
    iceagent_internet: MemoryInternet,
    iceagent_network: Network,
    client: MemoryHost,
    server: MemoryHost,
    iceagent_run: Run,
) -> None:
    wall = iceagent_network.add_nat("wall", FirewallModel())
    router = iceagent_network.add_nat("router", FirewallModel(is_open=True))
    hidden = iceagent_internet.host("hidden", ["192.0.2.10"], wall)
    public = iceagent_internet.host("public", ["192.0.2.20"], router)

    async def main() -> None:
        for host in (hidden, public):
            await host.listen_tcp(Address(host.node.hosts[0], 80), Ears(host).accept)
        for blocked in (Address("203.0.113.1", 80), Address("192.0.2.10", 80)):
            with pytest.raises(TimeoutError):
                await server.connect_tcp(blocked, Ears(server))
        stream = await server.connect_tcp(Address("192.0.2.20", 80), Ears(server))
        assert isinstance(stream, MemoryStream)

    iceagent_run(main())


def test_no_route(client: MemoryHost, iceagent_run: Run) -> None:
    async def main() -> None:
        with pytest.raises(OSError, match=f"Errno {errno.EHOSTUNREACH}"):
            await client.connect_tcp(Address("198.51.100.99", 1), Ears(client))
        with pytest.raises(OSError, match=f"Errno {errno.ENETUNREACH}"):
            await client.connect_tcp(Address("2001:db8::1", 1), Ears(client))
        with pytest.raises(OSError, match=f"Errno {errno.EADDRNOTAVAIL}"):
            await client.connect_tcp(SERVER, Ears(client), local=Address("192.168.1.77", 0))

    iceagent_run(main())


def test_tls_is_agreed_on(client: MemoryHost, server: MemoryHost, iceagent_run: Run) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    async def main() -> None:
        await server.listen_tcp(SERVER, Ears(server).accept, ssl_context=context)
        await server.listen_tcp(Address(SERVER.host, 80), Ears(server).accept)
        before = client.now()
        await client.connect_tcp(SERVER, Ears(client), tls_server_name="turn.example")
        assert client.now() - before == 2.0
        with pytest.raises(ssl.SSLError, match="only one side"):
            await client.connect_tcp(Address(SERVER.host, 80), Ears(client), tls_server_name="turn.example")
        with pytest.raises(OSError, match=f"Errno {errno.EADDRINUSE}"):
            await server.listen_tcp(SERVER, Ears(server).accept)

    iceagent_run(main())


def test_there_are_no_proxies(client: MemoryHost, iceagent_run: Run) -> None:
    async def main() -> None:
        with pytest.raises(OSError, match=f"Errno {errno.ENOTSUP}"):
            await client.connect_tcp(SERVER, Ears(client), proxy=Proxy(host="198.51.100.1", port=3128))

    iceagent_run(main())


def test_a_server_on_the_same_machine(server: MemoryHost, iceagent_run: Run) -> None:
    theirs = Ears(server)
    local = Address("127.0.0.1", 8080)

    async def main() -> None:
        await server.listen_tcp(local, theirs.accept)
        stream = await server.connect_tcp(local, Ears(server))
        stream.write(b"me")
        await asyncio.sleep(0.001)

    iceagent_run(main())
    assert theirs.heard == [(0.0, b"me")]

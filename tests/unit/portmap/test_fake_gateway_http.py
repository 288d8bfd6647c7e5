"""The fake gateway over the wire: HTTP byte for byte, as a core of the simulated network, and on a host in memory."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from iceagent.net.address import TransportAddress as Address
from iceagent.net.core import Datagram, Transmit
from iceagent.net.host import DatagramSocket, SocketOptions, Stream
from iceagent.testing import Network
from iceagent.testing.host import MemoryHost
from iceagent.testing.internet import MemoryInternet
from tests.fakes.gateway import Delivery, FakeGateway, GatewayShell, HttpReply, Options, gateway_peer
from tests.fakes.gateway import http as fake_http

CLIENT = Address("192.168.1.2", 40000)
SERVER = Address("192.168.1.1", 5351)
REPLY = HttpReply(status=200, body=b"0123456789" * 200)


def wire(delivery: Delivery, limit: int = 100) -> bytes:
    reply = HttpReply(status=200, body=REPLY.body, delivery=delivery)
    return b"".join(itertools.islice(fake_http.pieces(reply), limit))


def test_answers_come_as_they_should() -> None:
    end = b"\r\n\r\n" + REPLY.body
    assert wire(Delivery.PLAIN) == b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2000" + end
    assert wire(Delivery.UNTIL_CLOSE) == b"HTTP/1.0 200 OK\r\nConnection: close" + end
    assert wire(Delivery.INTERIM).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    chunks = b"3e8;a=b\r\n" + REPLY.body[:1000] + b"\r\n3e8;a=b\r\n" + REPLY.body[1000:] + b"\r\n0\r\n\r\n"
    assert wire(Delivery.CHUNKED).endswith(b"Transfer-Encoding: chunked\r\n\r\n" + chunks)


def test_answers_come_as_they_should_not() -> None:
    assert wire(Delivery.RESET) == wire(Delivery.HANG) == b""
    assert not wire(Delivery.BANNER).startswith(b"HTTP")
    assert b"\r\n\r\n" not in wire(Delivery.ENDLESS_HEADER)
    assert len(wire(Delivery.ENDLESS_HEADER)) > 90_000
    assert b"Content-Length: 300000000\r\n" in wire(Delivery.ENDLESS_BODY)
    assert sum(map(len, fake_http.pieces(HttpReply(status=200, delivery=Delivery.ENDLESS_BODY)))) > 300_000_000
    assert len(wire(Delivery.ENDLESS_CHUNKS)) > 6_000_000
    assert b"\r\nmany\r\n" in wire(Delivery.BAD_CHUNK)
    assert wire(Delivery.CUT).endswith(REPLY.body[:1000])
    assert b"Content-Length: 1000\r\n" in wire(Delivery.LENGTH_SHORT)
    assert b"Content-Length: 2100\r\n" in wire(Delivery.LENGTH_LONG)
    assert b"Content-Length: many\r\n" in wire(Delivery.LENGTH_TEXT)
    assert b"Content-Length: -2000\r\n" in wire(Delivery.LENGTH_NEGATIVE)
    assert wire(Delivery.LENGTH_TWICE).count(b"Content-Length") == 2
    assert {len(piece) for piece in fake_http.pieces(HttpReply(status=200, delivery=Delivery.DRIP))} == {1}


def test_every_way_an_answer_comes_is_told_from_the_others() -> None:
    assert len({wire(delivery) for delivery in Delivery if delivery is not Delivery.HANG}) == len(Delivery) - 1
    assert wire(Delivery.DRIP, 10_000) == wire(Delivery.PLAIN)


# --- in the network --------------------------------------------------------------------------------------------------


def test_the_gateway_is_a_core_of_the_simulated_network() -> None:
    network = Network.seeded(1, icmp_errors=True)
    gateway = FakeGateway(Options(protocols=frozenset({"nat-pmp"})))
    gateway.faults.natpmp.delay_s = 0.5
    peer = gateway_peer(network, gateway)
    client = network.add_node("client", [CLIENT.host])
    peer.handle_datagram(Datagram(SERVER, CLIENT, b"\x00\x00"), network, 1.0)
    assert peer.core.poll_timeout() == 1.5
    peer.handle_timeout(network, 1.5)
    peer.core.send(gateway.announce(1.5, destinations=[Address(CLIENT.host, 5350)]), 1.5)
    peer.drain(network, 1.5)
    got = [(node, datagram.base, datagram.data[:2]) for node, datagram in network.deliver(2.0)]
    assert got == [(client, CLIENT, b"\x00\x80"), (client, Address(CLIENT.host, 5350), b"\x00\x80")]
    network.send(client, Transmit(CLIENT, Address("192.168.1.1", 1900), b"M-SEARCH"), 2.0)
    network.deliver(3.0)
    error = network.poll_error()
    assert error is not None
    assert error.destination == Address("192.168.1.1", 1900)


Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Listener:
    """Keeps what arrives on a stream or a socket."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.datagrams: list[tuple[tuple[str, int], bytes]] = []
        self.lost: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def data_received(self, stream: Stream, data: bytes) -> None:
        self.received += data

    def connection_lost(self, stream: Stream, errno: int) -> None:
        self.lost.set_result(errno)

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        self.datagrams.append((source, data))

    def error_received(self, socket: DatagramSocket, destination: Address | None, errno: int) -> None:
        raise AssertionError(errno)


async def fetch(host: MemoryHost, request: bytes) -> tuple[Listener, Stream]:
    listener = Listener()
    stream = await host.connect_tcp(Address("192.168.1.1", 5000), listener)
    stream.write(request)
    return listener, stream


GET = b"GET /rootDesc.xml HTTP/1.1\r\nHost: 192.168.1.1:5000\r\nConnection: close\r\n\r\n"


def test_the_gateway_stands_on_a_host_in_memory(iceagent_internet: MemoryInternet, iceagent_run: Run) -> None:
    async def play() -> None:
        client = iceagent_internet.host("client", [CLIENT.host])
        gateway = FakeGateway()
        async with GatewayShell(gateway, iceagent_internet.host("gateway", ["192.168.1.1"])) as shell:
            listener = Listener()
            sock = client.socket(CLIENT, listener, SocketOptions())
            gateway.faults.natpmp.delays_s = [1.0]
            gateway.faults.natpmp.from_port = 5999
            sock.send(b"\x00\x00", SERVER)
            await asyncio.sleep(0.9)
            assert listener.datagrams == []
            await asyncio.sleep(0.2)
            assert [(source, len(data)) for source, data in listener.datagrams] == [(("192.168.1.1", 5999), 12)]
            fetched, _ = await fetch(client, GET)
            assert await fetched.lost == 0
            assert fetched.received.startswith(b"HTTP/1.1 200 OK\r\n")
            assert fetched.received.endswith(b"</root>\n")
            gateway.faults.closed_ports = {5000}
            await shell.apply()
            with pytest.raises(ConnectionRefusedError):
                await fetch(client, GET)
        assert gateway.kinds() == ["external address", "GET"]
        assert gateway.violations == []

    iceagent_run(play())


def test_a_drip_an_endless_answer_and_none_at_all(iceagent_internet: MemoryInternet, iceagent_run: Run) -> None:
    async def play() -> None:
        client = iceagent_internet.host("client", [CLIENT.host])
        gateway = FakeGateway()
        async with GatewayShell(gateway, iceagent_internet.host("gateway", ["192.168.1.1"])):
            got = {}
            for delivery in (Delivery.HANG, Delivery.DRIP, Delivery.ENDLESS_BODY, Delivery.ENDLESS_HEADER):
                gateway.faults.http.description = delivery
                fetched, stream = await fetch(client, GET)
                await asyncio.sleep(3.5)
                assert not fetched.lost.done()
                got[delivery] = len(fetched.received)
                stream.close()
            assert (got[Delivery.HANG], got[Delivery.DRIP]) == (0, 4)
            assert got[Delivery.ENDLESS_BODY] > 20_000_000
            assert got[Delivery.ENDLESS_HEADER] > 500_000
        assert gateway.violations == []

    iceagent_run(play())


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (GET.replace(b"192", b"193"), "upnp: Host is '193.168.1.1:5000'"),
        (GET.replace(b"Connection: close\r\n", b""), "upnp: Connection is None"),
        (GET.replace(b"1.1\r\n", b"1.0\r\n"), "upnp: HTTP/1.0"),
        (GET + b"x", "upnp: 1 bytes after the body"),
        (b"\x16\x03\x01\r\n\r\n", "upnp: HTTP: the request line is"),
        (b"GET http://a/ HTTP/1.1\r\n\r\n", "upnp: HTTP: the request line is"),
        (GET.replace(b"Host: ", b"Host : "), "upnp: HTTP: 'Host : "),
        (b"a" * 9000, "upnp: HTTP: more than 8 KiB of header"),
    ],
)
def test_a_bad_http_request_is_a_violation(
    iceagent_internet: MemoryInternet, iceagent_run: Run, request_: bytes, sentence: str
) -> None:
    async def play() -> None:
        client = iceagent_internet.host("client", [CLIENT.host])
        gateway = FakeGateway()
        async with GatewayShell(gateway, iceagent_internet.host("gateway", ["192.168.1.1"])):
            fetched, _ = await fetch(client, request_)
            await fetched.lost
        assert gateway.violations[0].startswith(sentence)

    iceagent_run(play())

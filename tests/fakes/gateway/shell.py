"""How does the gateway stand on a host?

A :class:`GatewayShell` opens UDP 5351 and 1900 and the TCP port of UPnP on the gateway's addresses there, in memory or
in a laboratory. What comes over HTTP comes byte for byte as the faults say: late, endlessly, in pieces, or never.

Multicast: on a host that is this machine (``LocalHost``, ``LabHost``), searches to 239.255.255.250 and ff02::c are
heard, and announcements go to their groups. A host in memory has none: give :meth:`send` unicast destinations. There is
no HTTP at link-local addresses of this machine: streams know no zones.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence

from iceagent.net.address import TransportAddress, canonical_host, ip_address
from iceagent.net.host import DatagramSocket, Host, Listener, SocketOptions, Stream, StreamListener
from iceagent.net.local import LocalHost
from tests.fakes.gateway.faults import Delivery
from tests.fakes.gateway.gateway import FakeGateway
from tests.fakes.gateway.http import BadRequest, HttpReply, HttpRequest, parse_request, pause_s, pieces
from tests.fakes.gateway.journal import Outgoing, PortClosed
from tests.fakes.gateway.ssdp import GROUPS
from tests.fakes.gateway.state import PCP_PORT, SSDP_PORT

__all__ = ["MAX_CONNECTIONS", "GatewayShell"]

MAX_CONNECTIONS = 64
"""HTTP connections at once; one more costs the oldest."""

MAX_SCHEDULED = 10_000
"""Datagrams that wait for their time; further ones are dropped."""

HIGH_WATER = 1 << 18
"""Bytes that may wait to be sent on a connection: an endless answer then waits for the client (back pressure)."""

BACK_PRESSURE_S = 0.005
"""After that it is looked again; in memory, where a stream does not tell, each piece waits so long."""


class GatewayShell:
    """A gateway on a host.

    Args:
        gateway: answers.
        host: where; must have the gateway's addresses.
        hosts: those of the gateway's addresses that are to be used; ``None``: its IPv4 address.
        index: of the interface inside, for link-local addresses and multicast over IPv6.

    Attributes:
        gateway: as given.
    """

    def __init__(self, gateway: FakeGateway, host: Host, *, hosts: Sequence[str] | None = None, index: int = 0) -> None:
        self.gateway = gateway
        self._host = host
        self._hosts = (gateway.options.host,) if hosts is None else tuple(hosts)
        self._index = index
        self._sockets: dict[TransportAddress, DatagramSocket] = {}
        self._groups: dict[str, _Group] = {}
        self._listeners: dict[TransportAddress, Listener] = {}
        self._connections: dict[_Connection, None] = {}
        self._timers: set[asyncio.TimerHandle] = set()

    async def __aenter__(self) -> GatewayShell:
        try:
            await self.apply()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def apply(self) -> None:
        """Open what is to listen and close what is not: at the start, and when ``closed_ports`` changed.

        Raises:
            OSError: an address cannot be bound.
        """
        http_port = self.gateway.options.http_port
        is_real = isinstance(self._host, LocalHost)
        for host in self._hosts:
            for port in (PCP_PORT, SSDP_PORT):
                address = TransportAddress(host, port)
                if self.gateway.is_closed(port):
                    if address in self._sockets:
                        self._sockets.pop(address).close()
                elif address not in self._sockets:
                    options = SocketOptions(scope_id=self._index)
                    self._sockets[address] = self._host.socket(address, self, options)
            address = TransportAddress(host, http_port)
            if self.gateway.is_closed(http_port):
                if address in self._listeners:
                    self._listeners.pop(address).close()
            elif address not in self._listeners and not (is_real and address.ip.is_link_local):
                self._listeners[address] = await self._host.listen_tcp(address, self._accept)
            if isinstance(self._host, LocalHost) and host not in self._groups:
                self._groups[host] = _Group(self, self._host, host, self._index)

    def close(self) -> None:
        """Listen no more, and end all connections; idempotent."""
        for opened in self._sockets.values():
            opened.close()
        for listener in self._listeners.values():
            listener.close()
        for group in self._groups.values():
            group.close()
        for timer in self._timers:
            timer.cancel()
        for connection in tuple(self._connections):
            connection.close()
        self._sockets.clear()
        self._listeners.clear()
        self._groups.clear()
        self._timers.clear()

    def send(self, outgoing: Iterable[Outgoing]) -> None:
        """Send what nobody asked for."""
        for each in outgoing:
            self._later(each.delay_s, each.source, each.destination, each.data)

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """Called by a socket of ours."""
        self.heard(data, TransportAddress._make(source), socket.address)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """A client is gone."""
        self.gateway.counters["send failed"] += 1

    def heard(self, data: bytes, source: TransportAddress, destination: TransportAddress) -> None:
        """A datagram arrived."""
        try:
            replies = self.gateway.answer_udp(data, source, self._host.now(), destination=destination)
        except PortClosed:
            return  # It was closed between this datagram and apply().
        for reply in replies:
            self._later(reply.delay_s, reply.source, source, reply.data)

    def now(self) -> float:
        """Seconds of the host's clock."""
        return self._host.now()

    def forget(self, connection: _Connection) -> None:
        """An HTTP connection has ended."""
        self._connections.pop(connection, None)

    def _later(self, delay_s: float, source: TransportAddress, destination: TransportAddress, data: bytes) -> None:
        if delay_s <= 0:
            self._send(source, destination, data)
        elif len(self._timers) >= MAX_SCHEDULED:
            self.gateway.counters["dropped"] += 1
        else:
            loop = asyncio.get_running_loop()

            def leave() -> None:
                self._timers.discard(timer)
                self._send(source, destination, data)

            timer = loop.call_later(delay_s, leave)
            self._timers.add(timer)

    def _send(self, source: TransportAddress, destination: TransportAddress, data: bytes) -> None:
        sender = self._sockets.get(source)
        is_passing = sender is None
        if sender is None:
            # From another port or host, which this host must have.
            try:
                sender = self._host.socket(source, self, SocketOptions(scope_id=self._index))
            except OSError:
                self.gateway.counters["send failed"] += 1
                return
        if sender.send(data, destination):
            self.gateway.counters["send failed"] += 1
        if is_passing:
            sender.close()

    def _accept(self, stream: Stream) -> StreamListener:
        if len(self._connections) >= MAX_CONNECTIONS:
            next(iter(self._connections)).close()
        connection = _Connection(self, stream)
        self._connections[connection] = None
        return connection


class _Connection:
    """One HTTP connection: a request in, an answer out, and the end."""

    def __init__(self, shell: GatewayShell, stream: Stream) -> None:
        self._shell = shell
        self._stream = stream
        self._received = b""
        self._reply: HttpReply | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._timer: asyncio.TimerHandle | None = None

    def data_received(self, stream: Stream, data: bytes) -> None:
        """Called by the stream."""
        gateway = self._shell.gateway
        if self._reply is not None:
            gateway.journal.blame("upnp", f"{len(data)} bytes after the request")
            return
        self._received += data
        try:
            request = parse_request(
                self._received, str(stream.local_address), lambda what: gateway.journal.blame("upnp", what)
            )
        except BadRequest as error:
            gateway.journal.blame("upnp", f"HTTP: {error}")
            self._begin(HttpReply(status=400))
            return
        if request is not None:
            self._answer(request)

    def connection_lost(self, stream: Stream, errno: int) -> None:
        """Called by the stream: the client has what it wanted, or enough of it."""
        self._end()

    def close(self) -> None:
        """End it."""
        self._stream.close()
        self._end()

    def _answer(self, request: HttpRequest) -> None:
        now = self._shell.now()
        source = self._stream.remote_address
        try:
            reply = self._shell.gateway.answer_http(
                request.method, request.target, request.headers, request.body, now, source=source
            )
        except PortClosed:
            self.close()
            return
        self._begin(reply)

    def _begin(self, reply: HttpReply) -> None:
        self._reply = reply
        self._pieces = pieces(reply)
        if reply.delivery is not Delivery.HANG:
            self._go_on()

    def _go_on(self) -> None:
        assert self._reply is not None
        pause = pause_s(self._reply)
        waiting = _waiting(self._stream)
        while waiting is None or waiting < HIGH_WATER:
            piece = next(self._pieces, None)
            if piece is None:
                self.close()
                return
            self._stream.write(piece)
            waiting = _waiting(self._stream)
            if pause or waiting is None:
                break
        self._timer = asyncio.get_running_loop().call_later(pause or BACK_PRESSURE_S, self._go_on)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._pieces = iter(())
        self._shell.forget(self)


def _waiting(stream: Stream) -> int | None:
    """Bytes that wait to be sent; ``None``: the stream does not tell."""
    transport = getattr(stream, "_transport", None)
    return None if transport is None else int(transport.get_write_buffer_size())


class _Group:
    """Hears multicast searches on one interface of this machine."""

    def __init__(self, shell: GatewayShell, host: LocalHost, local: str, index: int) -> None:
        version = ip_address(local).version
        self._shell = shell
        self._loop = asyncio.get_running_loop()
        self._address = TransportAddress(GROUPS[version], SSDP_PORT)
        # A host's sockets are of one address each; this one belongs to a group.
        self._socket = host._open_socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._join(local, version, index)
        except BaseException:
            self._socket.close()
            raise
        self._loop.add_reader(self._socket.fileno(), self._on_readable)

    def close(self) -> None:
        """Leave; idempotent."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _join(self, local: str, version: int, index: int) -> None:
        group = ip_address(self._address.host).packed
        if version == 6:
            self._socket.bind((self._address.host, SSDP_PORT, 0, index))
            membership = group + struct.pack("@i", index)
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
        else:
            self._socket.bind((self._address.host, SSDP_PORT))
            membership = group + ip_address(local).packed
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)

    def _on_readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data, source = self._socket.recvfrom(65_536)
            self._shell.heard(data, TransportAddress(canonical_host(source[0]), source[1]), self._address)

"""How does a STUN and TURN server run on a host?

The shell around ``relay/stun_server.py`` and ``relay/turn/server``: UDP sockets here, streams in
``relay/connections.py``, relayed addresses in ``relay/relays.py``. Every listen address gets UDP and TCP, and TLS where
a certificate is given. What is bounded, and how: the streams at once and their idle time (by the core), what waits to
be read of one stream (one read, and in :class:`relay.stun.StreamFramer` one message) and what waits to be written to it
(:class:`iceagent.net.host.Stream`, 1 MiB; then it is aborted).

Over UDP, "the source IP address and port of the response are equal to the destination IP address and port of the
received request message" (RFC 8489, 6.3.1.2). A socket on a wildcard address cannot keep that on a host with several
addresses: the routes choose. So a wildcard stands for one socket on each address of the host, now and whenever the
addresses change.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import SystemRandom
from types import TracebackType
from typing import Literal, NamedTuple

from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.core import Event, Transmit
from iceagent.net.driver import Driver
from iceagent.net.host import (
    AddressFlag,
    DatagramSocket,
    Host,
    Interface,
    Listener,
    SocketOptions,
    Stream,
    StreamListener,
    Subscription,
)
from relay.connections import MESSAGES_PER_TURN, Connection, Turns
from relay.relays import Batches, Relaying, RelaySockets, send_all
from relay.stun_server import (
    STREAM_IDLE_S,
    STREAM_LIMIT,
    CloseStream,
    ErrorLimiter,
    StreamServer,
    StunServer,
    discovery_table,
)
from relay.turn.server import AllocationEnded, AllocationMade, PeerPolicy, ServedAllocation, TurnServer, TurnService

__all__ = ["STUN_PORT", "TLS_PORT", "Listening", "Server", "ServerOptions", "server_ssl_context"]

STUN_PORT = 3478
TLS_PORT = 5349
"""RFC 8489, 18.6."""

PORT_ATTEMPTS = 8
"""How often a free port is looked for where port 0 is asked for: one found for UDP may be taken for TCP."""

_system_rng = SystemRandom()

_UNUSABLE = frozenset({AddressFlag.TENTATIVE, AddressFlag.DADFAILED})
_FAMILY_MISSING = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})

Transport = Literal["udp", "tcp", "tls"]


class Listening(NamedTuple):
    """One thing that a server listens on."""

    transport: Transport
    address: TransportAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How a server behaves.

    Attributes:
        behaviour_discovery: RFC 5780, over UDP. Needs two listen addresses of each IP version in use, no wildcards.
            Where both have the same port, the alternate port is the next one.
        tls: a server's context, see :func:`server_ssl_context`; ``None``: no TLS.
        tls_port: where TLS listens on each listen address; 0 takes a free one.
        max_streams: TCP and TLS streams at once, at least 1.
        stream_idle_s: seconds without a message after which a stream is closed.
        relaying: TURN; ``None``: STUN only.
    """

    behaviour_discovery: bool = False
    tls: ssl.SSLContext | None = None
    tls_port: int = TLS_PORT
    max_streams: int = STREAM_LIMIT
    stream_idle_s: float = STREAM_IDLE_S
    relaying: Relaying | None = None


def server_ssl_context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS 1.2 and later with a certificate, and the protocol name of RFC 7443.

    Args:
        certificate: a PEM file, with the chain.
        key: a PEM file, not encrypted.

    Raises:
        OSError: a file cannot be read, or does not fit (ssl.SSLError).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # An empty password: an encrypted key is refused instead of asked about on the terminal.
    context.load_cert_chain(certificate, key, password="")
    context.set_alpn_protocols(["stun.turn", "stun.nat-discovery"])
    return context


class Server:
    """A STUN server on a host, and a TURN server where ``ServerOptions.relaying`` says so.

    An async context manager that answers while it is open.

    Args:
        host: whose sockets it uses.
        listen: addresses, each for UDP and TCP; port 0 takes a free one, the same for both.
        options: see :class:`ServerOptions`.
        on_event: is told every event of the cores, dropped packets for instance.

    Attributes:
        counters: of the answers over UDP; those over streams are in ``stream_counters``. See ``relay/stun_server.py``.

    Raises:
        ValueError: nothing to listen on, or addresses that behaviour discovery cannot use.
    """

    def __init__(
        self,
        host: Host,
        listen: Sequence[TransportAddress],
        *,
        options: ServerOptions | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self._host = host
        self._options = ServerOptions() if options is None else options
        self._tell = on_event
        self._asked = tuple(dict.fromkeys(listen))
        if not self._asked:
            raise ValueError("a server needs an address to listen on")
        if self._options.behaviour_discovery:
            _discovery_pairs(self._asked)
        self._listeners: list[Listening] = []
        self._tcp: list[Listener] = []
        self._sockets: dict[TransportAddress, DatagramSocket] = {}
        self._wildcards: list[TransportAddress] = []
        self._streams: dict[tuple[TransportAddress, TransportAddress], Connection] = {}
        self._subscription = Subscription()
        self._datagrams = StunServer()
        self._on_streams = StunServer(is_stream=True)
        self._udp_driver: Driver | None = None
        self._stream_driver: Driver | None = None
        self._drained: asyncio.Event | None = None
        self._batches: Batches | None = None
        self._service: TurnService | None = None
        self._relays: RelaySockets | None = None
        self._turn_on_datagrams: TurnServer | None = None
        self._turn_on_streams: TurnServer | None = None

    @property
    def listeners(self) -> tuple[Listening, ...]:
        """What it listens on; a wildcard is told as such. Empty while it is closed."""
        return tuple(self._listeners)

    @property
    def counters(self) -> Counter[str]:
        return self._datagrams.counters

    @property
    def stream_counters(self) -> Counter[str]:
        return self._on_streams.counters

    @property
    def allocations(self) -> int:
        """How many there are now."""
        return 0 if self._service is None else self._service.allocations

    @property
    def turn_counters(self) -> Counter[str]:
        """Requests of TURN's, errors and drops; see ``relay/turn/server/core.py``."""
        parts = (self._turn_on_datagrams, self._turn_on_streams, self._relays)
        return sum((part.counters for part in parts if part is not None), Counter())

    def relayed(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Packets and payload bytes that were relayed to peers, and from them."""
        totals = [[0, 0], [0, 0]] if self._service is None else [list(each) for each in self._service.relayed]
        for turn in (self._turn_on_datagrams, self._turn_on_streams):
            for allocation in [] if turn is None else list(turn.allocations.values()):
                for direction in (0, 1):
                    totals[direction][0] += allocation.packets[direction]
                    totals[direction][1] += allocation.octets[direction]
        (sent, sent_bytes), (received, received_bytes) = totals
        return (sent, sent_bytes), (received, received_bytes)

    async def drain(self) -> None:
        """Make no new allocations, and wait until those that there are have ended."""
        if self._service is not None:
            self._service.is_draining = True
        while self.allocations:
            self._drained = asyncio.Event()
            await self._drained.wait()

    async def __aenter__(self) -> Server:
        """Open everything.

        Raises:
            OSError: an address cannot be used; the text says which one, and for what.
        """
        for attempt in range(1, PORT_ATTEMPTS + 1):
            try:
                await self._open()
            except BaseException as error:
                await self.aclose()
                is_clash = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
                if not is_clash or attempt == PORT_ATTEMPTS or all(address.port for address in self._asked):
                    raise
            else:
                break
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close everything; idempotent. What is queued on a stream may still leave for a second."""
        self._subscription.close()
        for listener in self._tcp:
            listener.close()
        # While the drivers are open: the allocations of streams end with them.
        for connection in tuple(self._streams.values()):
            connection.close()
        for driver in (self._udp_driver, self._stream_driver):
            if driver is not None:
                driver.close()
        for socket in self._sockets.values():
            socket.close()
        if self._relays is not None:
            self._relays.close_all()
        self._service = None
        self._udp_driver = self._stream_driver = None
        self._listeners.clear()
        self._tcp.clear()
        self._sockets.clear()
        self._wildcards.clear()
        self._streams.clear()

    async def _open(self) -> None:
        addresses = self._plan(self._asked)
        options, limiter = self._options, ErrorLimiter()
        table = discovery_table(_discovery_pairs(addresses)) if options.behaviour_discovery else None
        if table is not None:
            addresses = tuple(table)
        self._make_turn(limiter)
        self._datagrams = StunServer(alternatives=table, limiter=limiter, turn=self._turn_on_datagrams)
        # No answer on a stream can come from elsewhere. DEVIATION: RFC 5780, 6, wants a second address there too;
        # without one there is no OTHER-ADDRESS, and 420 for a CHANGE-REQUEST. Pinned by
        # test_behaviour_discovery_is_for_datagrams_only.
        self._on_streams = StunServer(is_stream=True, limiter=limiter, turn=self._turn_on_streams)
        streams = StreamServer(
            self._on_streams, limit=options.max_streams, idle_s=options.stream_idle_s, is_busy=self._is_relaying
        )
        self._udp_driver = Driver(self._datagrams, self._host, self._send_datagram, self._on_event)
        self._stream_driver = driver = Driver(streams, self._host, self._write, self._on_event)
        turns = Turns(MESSAGES_PER_TURN)

        def accept(stream: Stream) -> StreamListener:
            return self._accept(stream, streams, driver, turns)

        for address in addresses:
            await self._listen(address, accept, is_only=len(addresses) == 1)
        if options.tls is not None:
            for host in dict.fromkeys(each.address.host for each in self._listeners):
                await self._listen_tls(TransportAddress(host, options.tls_port), accept, options.tls)
        if self._wildcards:
            # Watched first, read then: no change falls between the two.
            self._subscription = self._host.watch_interfaces(self._follow)
            self._open_wildcards(await self._host.interfaces(), is_start=True)
        if not self._listeners:
            raise OSError(errno.EADDRNOTAVAIL, "no address of this host can be listened on")

    def _make_turn(self, limiter: ErrorLimiter) -> None:
        relaying = self._options.relaying
        if relaying is None:
            return
        policy = PeerPolicy(relaying.allow, relaying.deny)
        policy.own.update(relaying.hosts)
        self._relays = RelaySockets(self._host, relaying, self._own_hosts, _system_rng, self._to_client)
        self._service = TurnService(relaying.turn, policy, self._relays, _system_rng, time.time, limiter)
        self._batches = Batches(self._leave)
        self._turn_on_datagrams = TurnServer(self._service)
        self._turn_on_streams = TurnServer(self._service, is_stream=True)

    def _own_hosts(self) -> list[str]:
        return list(dict.fromkeys(address.host for address in self._sockets))

    def _is_relaying(self, stream: tuple[TransportAddress, TransportAddress]) -> bool:
        return self._turn_on_streams is not None and stream in self._turn_on_streams.allocations

    def _plan(self, asked: Sequence[TransportAddress]) -> tuple[TransportAddress, ...]:
        """The addresses with ports: a free one in place of each 0; one for all where there is behaviour discovery."""
        if all(address.port for address in asked):
            return tuple(asked)
        if not self._options.behaviour_discovery:
            return tuple(address if address.port else self._with_free_port(address) for address in asked)
        port = self._with_free_port(asked[0]).port
        return tuple(address if address.port else address._replace(port=port) for address in asked)

    def _with_free_port(self, address: TransportAddress) -> TransportAddress:
        try:
            socket = self._host.socket(address, _Deaf(), SocketOptions())
        except OSError as error:
            raise _explained(error, "udp", address) from error
        try:
            return address._replace(port=socket.address.port)
        finally:
            socket.close()

    async def _listen(
        self, address: TransportAddress, accept: Callable[[Stream], StreamListener], *, is_only: bool
    ) -> None:
        """UDP and TCP on one address. A wildcard of an IP version that this host does not have is left out."""
        is_wildcard = ip_address(address.host).is_unspecified
        try:
            listener = await self._host.listen_tcp(address, accept)
        except OSError as error:
            if is_wildcard and not is_only and error.errno in _FAMILY_MISSING:
                return
            raise _explained(error, "tcp", address) from error
        self._tcp.append(listener)
        if is_wildcard:
            self._wildcards.append(address)
        else:
            self._open_socket(address, SocketOptions())
        self._listeners += [Listening("udp", address), Listening("tcp", address)]

    async def _listen_tls(
        self, address: TransportAddress, accept: Callable[[Stream], StreamListener], context: ssl.SSLContext
    ) -> None:
        try:
            listener = await self._host.listen_tcp(address, accept, ssl_context=context)
        except OSError as error:
            raise _explained(error, "tls", address) from error
        self._tcp.append(listener)
        self._listeners.append(Listening("tls", listener.address))

    def _open_socket(self, address: TransportAddress, options: SocketOptions) -> None:
        assert self._udp_driver is not None
        try:
            inbox = _Inbox(self._udp_driver)
            if self._service is not None:
                inbox = _RelayingInbox(self._udp_driver, self._on_channel_data, self._on_channel_data_train)
            socket = self._host.socket(address, inbox, options)
        except OSError as error:
            raise _explained(error, "udp", address) from error
        self._sockets[socket.address] = socket
        self._datagrams.bases.add(socket.address)
        if self._service is not None:
            self._service.policy.own.add(socket.address.host)

    def _follow(self, interfaces: Sequence[Interface]) -> None:
        self._open_wildcards(interfaces, is_start=False)

    def _open_wildcards(self, interfaces: Sequence[Interface], *, is_start: bool) -> None:
        """Have a socket on each address that a wildcard stands for, and on no other."""
        wanted = dict(_each_address(interfaces, self._wildcards))
        kept = {each.address for each in self._listeners}
        for address in [each for each in self._sockets if each not in wanted and each not in kept]:
            self._sockets.pop(address).close()
            self._datagrams.bases.discard(address)
        for address, options in wanted.items():
            if address in self._sockets:
                continue
            try:
                self._open_socket(address, options)
            except OSError as error:
                # An address that has just gone is no failure; later on, neither is a port that somebody else took.
                if is_start and error.errno != errno.EADDRNOTAVAIL:
                    raise
                self._datagrams.counters["addresses not opened"] += 1

    def _accept(self, stream: Stream, core: StreamServer, driver: Driver, turns: Turns) -> StreamListener:
        connection = Connection(
            stream, core, driver, turns, self._streams, self._on_stream_channel_data, self._on_stream_closed
        )
        if driver is self._stream_driver:
            driver.command(core.open, stream.local_address, stream.remote_address)
        else:
            # It was on its way in when the server closed.
            connection.close()
        return connection

    # --- the data path of TURN -----------------------------------------------------------------------------------

    def _on_channel_data(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """From a client over UDP."""
        turn, relays = self._turn_on_datagrams, self._relays
        allocation = None if turn is None else turn.allocations.get((socket.address, source))  # type: ignore[arg-type]
        if allocation is not None and relays is not None and turn is not None:
            if allocation.moving is not None:
                turn.confirm(allocation, (socket.address, source))
            found = allocation.to_peer(data, self._host.now())
            if found is not None:
                relays.send(*found)

    def _on_channel_data_train(
        self, socket: DatagramSocket, datagrams: Sequence[bytes], source: tuple[str, int]
    ) -> bool:
        """Several messages of a client that came together; false: they are to be taken one by one."""
        turn, relays = self._turn_on_datagrams, self._relays
        allocation = None if turn is None else turn.allocations.get((socket.address, source))  # type: ignore[arg-type]
        if allocation is None or relays is None or allocation.moving is not None:
            return False
        whole = datagrams if len(datagrams[-1]) == len(datagrams[0]) else datagrams[:-1]
        found = allocation.train_to_peer(whole, self._host.now())
        if found is None:
            return False
        relays.send_many(*found)
        for data in datagrams[len(whole) :]:
            self._on_channel_data(socket, data, source)
        return True

    def _on_stream_channel_data(self, stream: tuple[TransportAddress, TransportAddress], message: bytes) -> bool:
        """From a client over a stream; false: nothing is relayed here, and it has no business to send such."""
        turn = self._turn_on_streams
        if turn is None or self._relays is None:
            return False
        # RFC 8656, 5: without an allocation it is "silently ignored"; it may have been under way when that ended.
        allocation = turn.allocations.get(stream)
        if allocation is not None:
            if allocation.moving is not None:
                turn.confirm(allocation, stream)
            found = allocation.to_peer(message, self._host.now())
            if found is not None:
                self._relays.send(*found)
        return True

    def _on_stream_closed(self, stream: tuple[TransportAddress, TransportAddress]) -> None:
        if self._turn_on_streams is not None and self._stream_driver is not None:
            self._stream_driver.command(self._turn_on_streams.forget_stream, *stream)

    def _leave(self, way: tuple[TransportAddress, TransportAddress], messages: list[bytes]) -> None:
        base, client = way
        socket = self._sockets.get(base)
        if socket is not None:
            send_all(socket, messages, client)

    def _to_client(self, allocation: ServedAllocation, messages: Sequence[bytes]) -> None:
        if self._turn_on_streams is not None and self._turn_on_streams.allocations.get(allocation.key) is allocation:
            connection = self._streams.get(allocation.key)
            if connection is not None:
                connection.stream.write(b"".join(messages))
        elif self._batches is not None:
            self._batches.add(allocation.key, messages)

    def _send_datagram(self, transmit: Transmit) -> int:
        socket = self._sockets.get(transmit.base)
        if socket is None and self._relays is not None:
            # A Send indication's.
            self._relays.send(transmit.base, transmit.destination, transmit.data)
            return 0
        return errno.EADDRNOTAVAIL if socket is None else socket.send(transmit.data, transmit.destination)

    def _write(self, transmit: Transmit) -> int:
        connection = self._streams.get((transmit.base, transmit.destination))
        if connection is not None:
            connection.stream.write(transmit.data)
        elif self._relays is not None:
            self._relays.send(transmit.base, transmit.destination, transmit.data)
        return 0

    def _on_event(self, event: Event) -> None:
        if isinstance(event, CloseStream):
            connection = self._streams.get((event.base, event.remote))
            if connection is not None:
                connection.close()
        elif isinstance(event, AllocationMade) and self._relays is not None:
            server = self._turn_on_datagrams
            if server is None or server.allocations.get(event.allocation.key) is not event.allocation:
                server = self._turn_on_streams
            if server is not None:
                self._relays.own(server, event.allocation)
        elif isinstance(event, AllocationEnded) and self._drained is not None and not self.allocations:
            self._drained.set()
        if self._tell is not None:
            self._tell(event)


class _Inbox:
    """Hands what UDP sockets receive to the core."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        self._driver.datagram(socket.address, source, data)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        if destination is not None:
            self._driver.error(socket.address, destination, errno)


class _RelayingInbox(_Inbox):
    """The same, and ChannelData past the core."""

    def __init__(
        self,
        driver: Driver,
        on_channel_data: Callable[[DatagramSocket, bytes, tuple[str, int]], None],
        on_train: Callable[[DatagramSocket, Sequence[bytes], tuple[str, int]], bool],
    ) -> None:
        super().__init__(driver)
        self._on_channel_data = on_channel_data
        self._on_train = on_train

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        if data and 0x40 <= data[0] < 0x80:
            self._on_channel_data(socket, data, source)
        else:
            self._driver.datagram(socket.address, source, data)

    def train_received(self, socket: DatagramSocket, datagrams: Sequence[bytes], source: tuple[str, int]) -> None:
        if not self._on_train(socket, datagrams, source):
            for data in datagrams:
                self.datagram_received(socket, data, source)


class _Deaf:
    """For a socket that only finds a free port."""

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """Nobody was told of this port."""

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """It sends nothing."""


def _discovery_pairs(addresses: Sequence[TransportAddress]) -> list[tuple[TransportAddress, TransportAddress]]:
    """Primary and alternate address of each IP version in use.

    Raises:
        ValueError: there are not exactly two concrete ones, or they do not go together.
    """
    pairs = []
    for version in sorted({address.version for address in addresses}):
        same = [address for address in addresses if address.version == version]
        if len(same) != 2 or any(ip_address(address.host).is_unspecified for address in same):
            raise ValueError(
                f"behaviour discovery needs exactly two concrete IPv{version} addresses to listen on "
                f"(RFC 5780, 6), not {', '.join(address.host for address in same)}"
            )
        primary, alternate = same
        if alternate.port == primary.port:
            alternate = alternate._replace(port=primary.port % 65535 + 1)
        discovery_table([(primary, alternate)])
        pairs.append((primary, alternate))
    return pairs


def _each_address(
    interfaces: Iterable[Interface], wildcards: Sequence[TransportAddress]
) -> Iterable[tuple[TransportAddress, SocketOptions]]:
    """What the wildcards stand for: every usable address of their IP version, with their port."""
    for interface in interfaces:
        for address in interface.addresses:
            if address.flags & _UNUSABLE:
                continue
            ip = ip_address(address.host)
            scope_id = interface.index if ip.version == 6 and ip.is_link_local else 0
            for wildcard in wildcards:
                if wildcard.version == ip.version:
                    yield TransportAddress(address.host, wildcard.port), SocketOptions(scope_id=scope_id)


def _explained(error: OSError, transport: Transport, address: TransportAddress) -> OSError:
    number = error.errno or errno.EIO
    reason = "the port is in use" if number == errno.EADDRINUSE else error.strerror or str(error)
    return OSError(number, f"cannot listen on {address} ({transport}): {reason}")

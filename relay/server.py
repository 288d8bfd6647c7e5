"""How does a STUN and TURN server run on a host?

The shell around ``relay/stun_server.py`` and ``relay/turn/server``. What it listens on is in ``relay/listening.py``,
streams are in ``relay/connections.py``, relayed addresses in ``relay/relays.py``, over TCP in ``relay/tcp_relays.py``;
where they are is decided in ``relay/places.py``, and the way of a datagram past the cores is in
``relay/client_path.py``. What is bounded, and how: the streams at once and their idle time (by the core), what waits to
be read of one stream (one read, and in :class:`relay.stun.StreamFramer` one message) and what waits to be written to it
(:class:`iceagent.net.host.Stream`, 1 MiB; then it is aborted).
"""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import SystemRandom
from types import TracebackType
from typing import Any

from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from iceagent.net.driver import Driver
from iceagent.net.host import Host, Stream, StreamListener, Subscription
from relay.client_path import ClientPath
from relay.connections import MESSAGES_PER_TURN, Connection, Turns
from relay.error_limits import ErrorLimiter
from relay.listening import Hooks, Listening, Sockets, check_own, discovery_pairs, plan, wanted_addresses
from relay.places import Relaying
from relay.relays import RelaySockets
from relay.stun_server import (
    STREAM_IDLE_S,
    STREAM_LIMIT,
    CloseStream,
    StreamServer,
    StunServer,
    discovery_table,
)
from relay.tcp_relays import TcpRelays
from relay.turn.server import (
    Accounts,
    AllocationEnded,
    AllocationMade,
    PeerPolicy,
    ServedAllocation,
    TurnServer,
    TurnService,
)
from relay.turn.server.asked import FiveTuple
from relay.turn.server.checks import check_number, type_name

__all__ = ["STUN_PORT", "TLS_PORT", "Listening", "Server", "ServerOptions", "server_ssl_context"]

STUN_PORT = 3478
TLS_PORT = 5349
"""RFC 8489, 18.6."""

PORT_ATTEMPTS = 8
"""How often a free port is looked for where port 0 is asked for: one found for UDP may be taken for TCP."""

_system_rng = SystemRandom()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How a server behaves.

    Attributes:
        behaviour_discovery: RFC 5780, over UDP. Needs two listen addresses of each IP version in use, no wildcards.
            Where both have the same port, the alternate port is the next one.
        tls: a server's context, see :func:`server_ssl_context`; ``None``: no TLS.
        tls_port: where TLS listens on each listen address; 0 takes a free one.
        max_streams: TCP and TLS streams at once, at least 1; those that became data connections of TCP relays, which
            have a limit of their own (``TurnOptions.max_connections``), do not count.
        stream_idle_s: seconds without a message after which a stream is closed, above 0.
        relaying: TURN; ``None``: STUN only.

    Raises:
        ValueError: a value is out of its range, or of another type.
    """

    behaviour_discovery: bool = False
    tls: ssl.SSLContext | None = None
    tls_port: int = TLS_PORT
    max_streams: int = STREAM_LIMIT
    stream_idle_s: float = STREAM_IDLE_S
    relaying: Relaying | None = None

    def __post_init__(self) -> None:
        if self.tls is not None and not isinstance(self.tls, ssl.SSLContext):
            raise ValueError(f"tls is of type {type_name(self.tls)}; server_ssl_context(certificate, key) makes one")
        check_number("tls_port", self.tls_port, 0, 65535)
        check_number("max_streams", self.max_streams, 1)
        check_number("stream_idle_s", self.stream_idle_s, 0.001)


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
        listen: addresses, each for UDP and TCP; port 0 takes a free one, the same for both. A wildcard (0.0.0.0, ::)
            stands for every address of the host, now and later.
        options: see :class:`ServerOptions`.
        on_event: is told every event of the cores, dropped packets for instance.

    Attributes:
        counters: of the answers over UDP; those over streams are in ``stream_counters``. See ``relay/stun_server.py``.

    Raises:
        ValueError: nothing to listen on, something that is no :class:`TransportAddress`, or addresses that behaviour
            discovery cannot use.
    """

    def __init__(
        self,
        host: Host,
        listen: Iterable[TransportAddress],
        *,
        options: ServerOptions | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self._host = host
        self._options = ServerOptions() if options is None else options
        self._tell = on_event
        self._asked = wanted_addresses(listen)
        if self._options.behaviour_discovery:
            discovery_pairs(self._asked)
        self._sockets = Sockets(host)
        self._streams: dict[FiveTuple, Connection] = {}
        self._path = ClientPath(host, self._sockets.udp, self._streams)
        self._datagrams = StunServer()
        self._on_streams = StunServer(is_stream=True)
        self._udp_driver: Driver | None = None
        self._stream_driver: Driver | None = None
        self._drained: asyncio.Event | None = None
        self._service: TurnService | None = None
        self._tcp_relays: TcpRelays | None = None
        self._interfaces = Subscription()
        self._is_open = False

    @property
    def listeners(self) -> tuple[Listening, ...]:
        """What it listens on; a wildcard is told as such. Empty while it is closed."""
        return tuple(self._sockets.listening)

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
    def relay_hosts(self) -> tuple[str, ...]:
        """The hosts of relayed addresses, as clients are told them; which of them a client gets depends on the address
        that it speaks to. Empty where nothing is relayed.
        """
        return () if self._path.relays is None else self._path.relays.places.told()

    @property
    def turn_counters(self) -> Counter[str]:
        """Requests of TURN's, errors and drops; see ``relay/turn/server/core.py``."""
        parts = (*self._turns, self._path.relays, self._tcp_relays)
        # Copies, made at once: whoever exports them may do so from another thread.
        return sum((Counter(part.counters) for part in parts if part is not None), Counter())

    def relayed(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Packets and payload bytes that were relayed to peers, and from them; over TCP, a packet is what was read at
        once.
        """
        totals = [[0, 0], [0, 0]] if self._service is None else [list(each) for each in self._service.relayed]
        for turn in self._turns:
            # One that is about to move has two five-tuples.
            for allocation in dict.fromkeys(list(turn.allocations.values())):
                for direction in (0, 1):
                    totals[direction][0] += allocation.packets[direction]
                    totals[direction][1] += allocation.octets[direction]
        (sent, sent_bytes), (received, received_bytes) = totals
        return (sent, sent_bytes), (received, received_bytes)

    async def drain(self) -> None:
        """Make no new allocations, and wait until those that there are have ended: for as long as their clients refresh
        them, so with a limit of yours (``asyncio.timeout``).
        """
        if self._service is not None:
            self._service.is_draining = True
        while self.allocations:
            self._drained = asyncio.Event()
            await self._drained.wait()

    def change_accounts(self, *, users: Mapping[str, str] | None = None, secrets: Sequence[str] = ()) -> None:
        """From now on these may relay, in the same realm. Allocations stay, and end in their time where their user may
        not refresh them any more.

        Raises:
            ValueError: nothing is relayed here; there is nobody; or something is no name, password or secret.
        """
        relaying = self._options.relaying
        if relaying is None:
            raise ValueError("this server answers STUN alone: it was made without users and secrets")
        if not users and not secrets:
            raise ValueError("users or secrets are needed: nobody could relay")
        accounts = Accounts(realm=relaying.turn.accounts.realm, users=users or {}, secrets=secrets)
        turn = replace(relaying.turn, accounts=accounts)
        self._options = replace(self._options, relaying=replace(relaying, turn=turn))
        if self._service is not None:
            self._service.gate.change(accounts)

    def protect(self, address: TransportAddress) -> None:
        """Never relay to this address, whatever is allowed, as long as this is open: something of yours listens there.
        A wildcard stands for its port on every address of the host. What the server itself listens on is protected.
        """
        if self._service is not None and self._path.relays is not None:
            self._service.policy.protect(address)
            told = self._path.relays.places.told_of(address.host)
            self._service.policy.protect(address._replace(host=told))

    async def __aenter__(self) -> Server:
        """Open everything.

        Raises:
            OSError: an address cannot be used, because its port is in use or it is no address of this host; the text
                says which one, and for what.
            ValueError: this is open already.
        """
        if self._is_open:
            raise ValueError("this server is open already; another one is made by another call")
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self._is_open = True
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
        self._is_open = False
        self._interfaces.close()
        self._sockets.stop_accepting()
        # While the drivers are open: the allocations of streams end with them.
        for connection in tuple(self._streams.values()):
            connection.close()
        for driver in (self._udp_driver, self._stream_driver):
            if driver is not None:
                driver.close()
        self._sockets.close()
        for relays in (self._path.relays, self._tcp_relays):
            if relays is not None:
                relays.close_all()
        self._service = None
        self._udp_driver = self._stream_driver = None
        self._streams.clear()

    async def _open(self) -> None:
        options, limiter, path = self._options, ErrorLimiter(), self._path
        addresses = plan(self._host, self._asked, behaviour_discovery=options.behaviour_discovery)
        table = discovery_table(discovery_pairs(addresses)) if options.behaviour_discovery else None
        if table is not None:
            addresses = tuple(table)
        if options.relaying is not None:
            check_own(self._host, options.relaying.local_hosts)
            await self._make_turn(options.relaying, limiter)
        self._datagrams = StunServer(alternatives=table, limiter=limiter, turn=path.on_datagrams)
        # No answer on a stream can come from elsewhere. DEVIATION: RFC 5780, 6, wants a second address there too;
        # without one there is no OTHER-ADDRESS, and 420 for a CHANGE-REQUEST. Pinned by
        # test_behaviour_discovery_is_for_datagrams_only.
        self._on_streams = StunServer(is_stream=True, limiter=limiter, turn=path.on_streams)
        streams = StreamServer(
            self._on_streams, limit=options.max_streams, idle_s=options.stream_idle_s, is_busy=self._is_relaying
        )
        self._udp_driver = udp_driver = Driver(self._datagrams, self._host, path.send_datagram, self._on_event)
        self._stream_driver = stream_driver = Driver(streams, self._host, path.write, self._on_event)
        turns = Turns(MESSAGES_PER_TURN)

        def accept(stream: Stream) -> StreamListener:
            return self._accept(stream, streams, stream_driver, turns)

        hooks = Hooks(
            inbox=lambda: path.inbox(udp_driver),
            accept=accept,
            opened=self._on_opened,
            closed=self._on_closed,
            not_opened=self._on_not_opened,
        )
        await self._sockets.open(addresses, hooks, tls=options.tls, tls_port=options.tls_port)
        for listening in self.listeners:
            self.protect(listening.address)

    async def _make_turn(self, relaying: Relaying, limiter: ErrorLimiter) -> None:
        path = self._path
        policy = PeerPolicy(relaying.allow, relaying.deny)
        policy.own.update((*relaying.local_hosts, *relaying.external))
        relays = path.relays = RelaySockets(self._host, relaying, self._own_hosts, _system_rng, path.to_client)
        self._service = TurnService(relaying.turn, policy, relays, _system_rng, time.time, limiter)
        if not relaying.hosts:
            # Watched first, read then: no change falls between the two.
            self._interfaces = self._host.watch_interfaces(relays.places.follow)
            relays.places.follow(await self._host.interfaces())
        path.on_datagrams = TurnServer(self._service)
        path.on_streams = TurnServer(self._service, is_stream=True)
        self._tcp_relays = TcpRelays(
            self._host, relays.places, _system_rng, path.on_streams, self._command_streams, self._streams.get
        )

    @property
    def _turns(self) -> list[TurnServer]:
        return [turn for turn in (self._path.on_datagrams, self._path.on_streams) if turn is not None]

    def _own_hosts(self) -> list[str]:
        return list(dict.fromkeys(address.host for address in self._sockets.udp))

    def _on_opened(self, address: TransportAddress) -> None:
        self._datagrams.bases.add(address)
        if self._service is not None:
            self._service.policy.own.add(address.host)

    def _on_closed(self, address: TransportAddress) -> None:
        self._datagrams.bases.discard(address)
        relaying = self._options.relaying
        if self._service is None or relaying is None or address.host in (*relaying.local_hosts, *relaying.external):
            return
        if address.host not in self._own_hosts():
            # Somebody else may have it from now on.
            self._service.policy.own.discard(address.host)

    def _on_not_opened(self) -> None:
        self._datagrams.counters["addresses not opened"] += 1

    # --- streams -------------------------------------------------------------------------------------------------

    def _accept(self, stream: Stream, core: StreamServer, driver: Driver, turns: Turns) -> StreamListener:
        connection = Connection(
            stream, core, driver, turns, self._streams, self._path.stream_channel_data, self._on_stream_closed
        )
        if driver is self._stream_driver:
            driver.command(core.open, stream.local_address, stream.remote_address)
        else:
            # It was on its way in when the server closed.
            connection.close()
        return connection

    def _is_relaying(self, stream: FiveTuple) -> bool:
        return self._path.on_streams is not None and stream in self._path.on_streams.allocations

    def _on_stream_closed(self, stream: FiveTuple) -> None:
        if self._path.on_streams is not None:
            self._command_streams(self._path.on_streams.forget_stream, *stream)

    def _command_streams(self, method: Callable[..., Any], *args: object) -> Any:
        """See :class:`iceagent.net.driver.Driver`; ``None`` where the server is closed."""
        if self._stream_driver is None:
            return None
        result = self._stream_driver.command(method, *args)
        # An allocation that could not be made ends without an event.
        self._note_drained()
        return result

    # --- events --------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if isinstance(event, CloseStream):
            connection = self._streams.get((event.base, event.remote))
            if connection is not None:
                connection.close()
        elif isinstance(event, AllocationMade):
            self._own(event.allocation)
        elif isinstance(event, AllocationEnded):
            self._note_drained()
        elif self._tcp_relays is not None and self._tcp_relays.obey(event):
            return
        if self._tell is not None:
            self._tell(event)

    def _own(self, allocation: ServedAllocation) -> None:
        """Of UDP: another's, over TCP, may have the same address."""
        relays = self._path.relays
        for turn in self._turns:
            if relays is not None and not allocation.is_tcp and turn.allocations.get(allocation.key) is allocation:
                relays.own(turn, allocation)

    def _note_drained(self) -> None:
        if self._drained is not None and not self.allocations:
            self._drained.set()

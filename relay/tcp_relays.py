"""How do bytes get between a TURN server's clients and their peers over TCP?

The data path of RFC 6062; ``relay/turn/server/tcp.py`` decides, and is not woken up for data. A :class:`Link` is one
connection with a peer. At first it has the peer's stream alone, which is not read: the kernel tells the peer to wait.
Once the client has bound a stream of its own to it, what comes from one goes to the other. A stream is not read while
much of it waits to be written to the other, nor while the allocation has used up its bandwidth, so that nothing grows:
what is held is at most what was read at once, beyond 64 KiB. What one end has finished is finished to the other, and
what comes back is still passed on; over TLS, which cannot do that here, both are closed when all is out.

:class:`TcpRelays` listens, connects and binds as the core's events say.
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from random import Random
from typing import Any, Protocol, runtime_checkable

from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from iceagent.net.host import Host, Listener, Stream, StreamListener
from relay.connections import Connection, Pausable
from relay.places import Names, Places
from relay.relays import MAX_TRIES
from relay.turn.server import (
    BindStreams,
    ClosePeer,
    ConnectPeer,
    Opening,
    OpenListeners,
    PeerConnection,
    Refused,
    StopListening,
    TurnServer,
)
from relay.turn.server.asked import FiveTuple

__all__ = ["Link", "TcpRelays"]

# What was read of a peer before it was paused, at most: one read, of 256 KiB on either loop, and some.
MAX_EARLY = 1 << 19

# How often it is looked whether the queue below TLS, which tells nobody, is empty; the core has an end to it.
FLUSH_CHECK_S = 0.1

Command = Callable[..., Any]


@runtime_checkable
class _Steerable(Pausable, Protocol):
    """A stream that can do what those of this machine can."""

    @property
    def is_flushed(self) -> bool: ...

    def write_eof(self) -> bool: ...

    def tell_when_empty(self) -> None: ...

    def be_patient(self) -> None: ...


@runtime_checkable
class _Shareable(Protocol):
    """A listener whose address connections may leave from."""

    def share_address(self) -> None: ...


class TcpRelays:
    """Listeners and connections of all TCP allocations.

    Args:
        host: whose.
        places: where relayed addresses are.
        system_rng: draws ports.
        turn: the core.
        command: calls one of its methods with arguments, and puts out what that caused; returns its result. ``None``
            where the server is closed.
        client_at: the connection of a client, by five-tuple.

    Attributes:
        counters: ``network errors``.
    """

    def __init__(
        self,
        host: Host,
        places: Places,
        system_rng: Random,
        turn: TurnServer,
        command: Command,
        client_at: Callable[[FiveTuple], Connection | None],
    ) -> None:
        self._host = host
        self._places = places
        self._rng = system_rng
        self._turn = turn
        self._command = command
        self._client_at = client_at
        # By what is told of them.
        self._listeners: dict[TransportAddress, Listener] = {}
        self._names = Names()
        self._links: dict[PeerConnection, Link] = {}
        self._connecting: dict[PeerConnection, asyncio.Task[None]] = {}
        # The loop itself remembers no task.
        self._tasks: set[asyncio.Task[None]] = set()
        self.counters: Counter[str] = Counter()

    def obey(self, event: Event) -> bool:
        """Do what the core says; false: it says nothing of this kind."""
        match event:
            case OpenListeners():
                self._spawn(self._open(event.opening))
            case StopListening():
                listener = self._listeners.pop(event.address, None)
                self._names.discard(event.address)
                if listener is not None:
                    listener.close()
            case ConnectPeer():
                self._connecting[event.connection] = self._spawn(self._connect(event.connection))
            case BindStreams():
                self._bind(event.connection, event.stream)
            case ClosePeer():
                self._close(event.connection)
            case _:
                return False
        return True

    def close_all(self) -> None:
        """The server ends."""
        for task in tuple(self._tasks):
            task.cancel()
        for listener in self._listeners.values():
            listener.close()
        for link in tuple(self._links.values()):
            link.close()
        self._listeners.clear()
        self._links.clear()
        self._connecting.clear()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- listening -----------------------------------------------------------------------------------------------

    async def _open(self, opening: Opening) -> None:
        found: dict[int, TransportAddress | Refused] = {}
        for version in opening.versions:
            try:
                found[version] = await self._listen(version, opening.asked.base.host)
            except LookupError:
                found[version] = Refused(440, "Address Family not Supported")
            except OSError:
                found[version] = Refused(508, "Insufficient Capacity")
        self._command(self._turn.opened, opening, found)

    async def _listen(self, version: int, near: str) -> TransportAddress:
        """Listen on a port that is free, and that nobody can guess."""
        host = self._places.host_of(version, near)
        public = self._places.told_of(host)
        low, high = self._places.ports
        for _ in range(MAX_TRIES):
            address = TransportAddress(host, self._rng.randint(low, high))
            told = TransportAddress(public, address.port)
            if told in self._listeners:
                continue
            try:
                listener = await self._host.listen_tcp(address, partial(self._accept, told))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            if isinstance(listener, _Shareable):
                listener.share_address()
            self._listeners[told] = listener
            self._names.add(address, told)
            return told
        raise OSError(errno.EADDRINUSE, f"no free port of {low} to {high} on {host} was found")

    def _accept(self, relayed: TransportAddress, stream: Stream) -> StreamListener:
        """A peer has connected."""
        peer = self._names.told.get(stream.remote_address, stream.remote_address)
        connection = self._command(self._turn.tcp.accepted, relayed, peer)
        link = Link(self._host, connection, self._on_half_closed, self._on_closed)
        if connection is None:
            stream.close()
        else:
            self._links[connection] = link
            link.from_peer.attach(stream)
        return link.from_peer

    # --- connecting ----------------------------------------------------------------------------------------------

    async def _connect(self, connection: PeerConnection) -> None:
        """Try for as long as the core lets us: RFC 6062, 5.2, "at least 30 seconds", and one attempt takes less."""
        link = Link(self._host, connection, self._on_half_closed, self._on_closed)
        places = self._names.places
        peer, relayed = (places.get(each, each) for each in (connection.peer, connection.relayed))
        while True:
            try:
                stream = await self._host.connect_tcp(peer, link.from_peer, local=relayed)
            except TimeoutError:
                # Nobody has said no.
                await asyncio.sleep(0)
                continue
            except OSError:
                self.counters["network errors"] += 1
                self._connecting.pop(connection, None)
                self._command(self._turn.tcp.failed, connection)
                return
            break
        self._connecting.pop(connection, None)
        if link.from_peer.is_gone:
            self._command(self._turn.tcp.failed, connection)
        elif self._command(self._turn.tcp.connected, connection):
            self._links[connection] = link
            link.from_peer.attach(stream)
        else:
            stream.close()

    def _bind(self, connection: PeerConnection, five_tuple: FiveTuple) -> None:
        link, client = self._links.get(connection), self._client_at(five_tuple)
        if link is None or client is None:
            # One of them has just ended.
            if client is not None:
                client.close()
            self._close(connection)
            self._command(self._turn.tcp.closed, connection)
            return
        client.become(link.from_client)
        link.bind(client.stream)

    def _close(self, connection: PeerConnection) -> None:
        task = self._connecting.pop(connection, None)
        if task is not None:
            task.cancel()
        link = self._links.pop(connection, None)
        if link is not None:
            link.close()

    def _on_half_closed(self, connection: PeerConnection) -> None:
        self._command(self._turn.tcp.half_closed, connection)

    def _on_closed(self, connection: PeerConnection) -> None:
        self._links.pop(connection, None)
        self._command(self._turn.tcp.closed, connection)


class Link:
    """One connection with a peer, and the client's stream that is bound to it.

    Args:
        clock: tells the time.
        connection: counts; ``None``: nobody wants it, and what it brings is not heard.
        half_closed: called when the first end has finished.
        closed: called once both are closed, unless :meth:`close` did it.
    """

    def __init__(
        self,
        clock: Host,
        connection: PeerConnection | None,
        half_closed: Callable[[PeerConnection], None],
        closed: Callable[[PeerConnection], None],
    ) -> None:
        self.clock = clock
        self.connection = connection
        self.is_bound = False
        self.is_closed = connection is None
        self._check: asyncio.TimerHandle | None = None
        self._half_closed = half_closed
        self._closed = closed
        self.from_client, self.from_peer = End(self, 0), End(self, 1)

    def bind(self, client: Stream) -> None:
        """From now on it is passed on what comes, also what came before."""
        self.is_bound = True
        self.from_client.attach(client)
        self.from_client.go_on()
        self.from_peer.go_on()

    def other(self, end: End) -> End:
        """The one that what comes from this one goes to."""
        return self.from_peer if end is self.from_client else self.from_client

    def on_finished(self, end: End) -> None:
        """Nothing more comes from this end."""
        other = self.other(end)
        if self.is_bound and not self.is_closed:
            if not other.finish_writing():
                # Over TLS: as soon as all is out.
                other.has_finished = True
            if not self.end_if_done() and self.connection is not None:
                self._half_closed(self.connection)

    def end_if_done(self) -> bool:
        """Close both ends if nothing more comes, and everything is out."""
        ends = (self.from_client, self.from_peer)
        if not self.is_bound or self.is_closed or not all(end.has_finished and not end.is_full for end in ends):
            return False
        if all(end.is_flushed for end in ends):
            self.end()
        elif self._check is None:
            self._check = asyncio.get_running_loop().call_later(FLUSH_CHECK_S, self._check_again)
        return self.is_closed

    def _check_again(self) -> None:
        self._check = None
        self.end_if_done()

    def end(self) -> None:
        """Close both ends, and tell."""
        if not self.is_closed:
            self.close()
            if self.connection is not None:
                self._closed(self.connection)

    def close(self) -> None:
        """Close both ends; idempotent."""
        self.is_closed = True
        if self._check is not None:
            self._check.cancel()
            self._check = None
        for end in (self.from_client, self.from_peer):
            end.close()


class End:
    """One of the two streams of a link: hears what comes from it.

    Args:
        link: both.
        direction: 0 from the client, 1 from the peer.

    Attributes:
        is_full: much waits to be written to it; anything at all, once nothing more will be.
        has_finished: nothing more comes from it.
        is_gone: nothing can be written to it either.
    """

    def __init__(self, link: Link, direction: int) -> None:
        self._link = link
        self._direction = direction
        self._stream: Stream | None = None
        self._steerable: _Steerable | None = None
        self._early = b""
        self._held: asyncio.TimerHandle | None = None
        self._is_writing = True
        self.is_full = False
        self.has_finished = False
        self.is_gone = False

    @property
    def is_flushed(self) -> bool:
        """The kernel has all that was written to it."""
        return self.is_gone or self._steerable is None or self._steerable.is_flushed

    def attach(self, stream: Stream) -> None:
        """It is there."""
        if self._stream is None and not self._link.is_closed:
            self._stream = stream
            if isinstance(stream, _Steerable):
                self._steerable = stream
                stream.be_patient()
            self._steer()

    def go_on(self) -> None:
        """The other end is there as well: pass on what came too early, and read on."""
        early, self._early = self._early, b""
        if early:
            self._pass_on(early)
        if self.has_finished:
            self._link.on_finished(self)
        self._steer()

    def finish_writing(self) -> bool:
        """Nothing more will be written; false: that cannot be said to the other side."""
        if self._is_writing and self._steerable is not None:
            self._is_writing = False
            # So that ``is_full`` says whether anything waits.
            self._steerable.tell_when_empty()
            return self._steerable.write_eof()
        return False

    def close(self) -> None:
        """Close it; idempotent."""
        self._early = b""
        if self._held is not None:
            self._held.cancel()
            self._held = None
        if self._stream is not None:
            self._stream.close()

    # --- StreamListener, and what it hears more ------------------------------------------------------------------

    def data_received(self, stream: Stream, data: bytes) -> None:
        """Pass it on; before there is where to, keep what was on its way."""
        link = self._link
        if link.is_closed:
            return
        if link.is_bound:
            self._pass_on(data)
            self._steer()
            return
        self.attach(stream)
        # Once more: uvloop forgets it of a stream that is new.
        self._steer()
        self._early += data
        if len(self._early) > MAX_EARLY:
            link.end()

    def eof_received(self, stream: Stream) -> bool:
        """Nothing more comes from it; what goes to it still does."""
        if not self.has_finished:
            self.has_finished = True
            self._link.on_finished(self)
        return True

    def connection_lost(self, stream: Stream, errno: int) -> None:
        """It was closed: in order, what came from it is still to be written to the other."""
        link = self._link
        self.is_gone = True
        was_finished, self.has_finished = self.has_finished, True
        self.is_full = False
        if errno or not link.is_bound or was_finished:
            link.end()
        else:
            link.on_finished(self)

    def writing_paused(self, stream: Stream) -> None:
        """Much waits to be written to it: the other end is not read meanwhile."""
        self.is_full = True
        self._link.other(self)._steer()

    def writing_resumed(self, stream: Stream) -> None:
        """Little does."""
        self.is_full = False
        self._link.other(self)._steer()
        # Not from here: the stream may have something to do behind this call.
        asyncio.get_running_loop().call_soon(self._link.end_if_done)

    # --- inside --------------------------------------------------------------------------------------------------

    def _pass_on(self, data: bytes) -> None:
        link = self._link
        other = link.other(self)
        if other.is_gone or other._stream is None:
            # As TCP does when nobody is there any more.
            link.end()
            return
        assert link.connection is not None
        wait_s = link.connection.count(self._direction, len(data), link.clock.now())
        if other._is_writing:
            other._stream.write(data)
        if wait_s > 0.0 and self._held is None:
            self._held = asyncio.get_running_loop().call_later(wait_s, self._release)

    def _release(self) -> None:
        self._held = None
        self._steer()

    def _steer(self) -> None:
        """Read it, or do not."""
        link = self._link
        if self._steerable is None or self.has_finished or link.is_closed:
            return
        if not link.is_bound or link.other(self).is_full or self._held is not None:
            self._steerable.pause_reading()
        else:
            self._steerable.resume_reading()

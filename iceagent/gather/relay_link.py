"""How do datagrams get to a TURN server and back?

A :class:`RelayLink` is one attempt at one server: a socket (of its own: what comes from there is TURN's, whatever its
first byte) or a stream, the :class:`relay.turn.Allocation` that it may become, and the pump between them. Each relayed
address is a :class:`RelayedSocket`: to the rest of the agent a socket like any other.

The data path does not wake the core: ChannelData is unwrapped on its way from the socket to the base, and wrapped on
its way out. Over a stream the bytes are cut into messages first.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Protocol, cast

from iceagent.gather.relay_race import Target, Transport
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event, Transmit
from iceagent.net.driver import Driver
from iceagent.net.errno_words import errno_in_words
from iceagent.net.host import DatagramReceiver, DatagramSocket, Host, Stream
from relay.account import TurnCredentials
from relay.stun import BadMessage, StreamFramer
from relay.turn import CHANNEL_HEAD, Allocation, AllocationOptions, AllocationRefused, is_channel_data

__all__ = ["NO_ANSWER", "RelayLink", "RelayedBase", "RelayedSocket"]

NO_ANSWER = "no answer"
"""The reason where a server was silent to the end: 39.5 s over UDP (RFC 8489, 6.2.1), 10 s to connect."""

# RFC 8446, 5.1: the first byte of a TLS record is its type, 20 … 23, the next one 3.
_TLS_TYPES = range(20, 24)
_TLS_MAJOR = 3


class RelayedBase(Protocol):
    """Who gets what peers send to a relayed address: :class:`iceagent.gather.bases.Base`."""

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """As from a socket."""


class RelayLink:
    """One attempt, and the allocation that it becomes.

    Args:
        number: what the race calls it.
        target: the server.
        host: whose clock and streams.
        open_socket: opens a UDP socket for a receiver.
        connect: opens a stream for a listener.
        credentials: ``None``: there are none.
        system_rng: draws transaction ids.
        options: of the allocation.
        on_event: called with (this, event) for every event of the allocation.
        on_heard: called with this at the first message of the server's.

    Attributes:
        bases: relayed address → who gets what is sent to it.
        allocation: ``None`` while a stream is being connected.
        is_heard: something came from the server.
        doubted: the relayed address of ours whose path is in doubt, while the server is asked about it.
    """

    def __init__(
        self,
        number: int,
        target: Target,
        *,
        host: Host,
        open_socket: Callable[[DatagramReceiver], DatagramSocket],
        connect: Callable[[RelayLink], Awaitable[Stream]],
        credentials: TurnCredentials | None,
        system_rng: Random,
        options: AllocationOptions,
        on_event: Callable[[RelayLink, Event], None],
        on_heard: Callable[[RelayLink], None],
    ) -> None:
        self.number = number
        self.target = target
        self.bases: dict[TransportAddress, RelayedBase] = {}
        self.allocation: Allocation | None = None
        self._host = host
        self._open_socket = open_socket
        self._credentials = credentials
        self._system_rng = system_rng
        self._options = options
        self._on_event = on_event
        self._on_heard = on_heard
        self.is_heard = False
        self.doubted: TransportAddress | None = None
        self._is_closed = False
        self._driver: Driver | None = None
        self._socket: DatagramSocket | None = None
        self._stream: Stream | None = None
        self._framer = StreamFramer()
        # The first two bytes that came over the stream, and what the end of the connection may mean.
        self._first = b""
        self._hint = ""
        self._task: asyncio.Task[None] | None = None
        self._connect_stream = connect

    def start(self) -> None:
        """Ask; returns at once.

        Raises:
            OSError: no socket can be opened.
            ValueError: the credentials cannot be sent.
        """
        if self.is_stream:
            self._task = asyncio.get_running_loop().create_task(self._connect())
        else:
            self._socket = self._open_socket(self)
            self._begin(self._socket.address)

    @property
    def base(self) -> TransportAddress | None:
        """Our end; ``None`` while a stream is being connected."""
        return None if self.allocation is None else self.allocation.base

    @property
    def is_stream(self) -> bool:
        """Whether it is TCP or TLS."""
        return self.target.transport is not Transport.UDP

    def command(self, method: Callable[..., object], *args: object) -> object:
        """Call a method of the allocation, and put out what it caused."""
        return None if self._driver is None else self._driver.command(method, *args)

    def move(self) -> None:
        """Our local address is gone: go on from another one (UDP only).

        Raises:
            OSError: no socket can be opened.
        """
        assert self.allocation is not None
        old, self._socket = self._socket, self._open_socket(self)
        if old is not None:
            old.close()
        self.command(self.allocation.move, self._socket.address)

    def close_bases(self) -> list[TransportAddress]:
        """Nothing is received any more; gives the relayed addresses."""
        closed, self.bases = list(self.bases), {}
        for channel in () if self.allocation is None else self.allocation.channels.values():
            channel.receive = None
        return closed

    def close(self) -> None:
        """At once, without giving anything back; idempotent."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
        if self._driver is not None:
            self._driver.close()
        if self._socket is not None:
            self._socket.close()
        if self._stream is not None:
            self._stream.close()

    # --- the data path -------------------------------------------------------------------------------------------

    def send(self, data: bytes, peer: tuple[str, int]) -> int:
        """Send a datagram of ours to a peer; 0, or an errno."""
        allocation = self.allocation
        if allocation is None or self._is_closed:
            return errno.ENOTCONN
        message = allocation.wrap(peer, data)  # type: ignore[arg-type]
        if message is None:
            number = self.command(allocation.send, TransportAddress._make(peer), data)
            assert isinstance(number, int)
        else:
            number = self._put(message)
        if not allocation.is_watched:
            self.command(allocation.watch)
        return number

    def send_many(self, datagrams: Sequence[bytes], peer: tuple[str, int]) -> tuple[int, int]:
        """:meth:`DatagramSocket.send_many`: where there is a channel, in as few calls."""
        allocation = self.allocation
        socket = self._socket
        if allocation is not None and socket is not None and not self._is_closed:
            messages = [allocation.wrap(peer, data) for data in datagrams]  # type: ignore[arg-type]
            if None not in messages:
                if not allocation.is_watched:
                    self.command(allocation.watch)
                return socket.send_many(messages, allocation.server)  # type: ignore[arg-type]
        for count, data in enumerate(datagrams):
            number = self.send(data, peer)
            if number:
                return count, number
        return len(datagrams), 0

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """From the UDP socket."""
        if socket is not self._socket:
            return
        if data and 0x40 <= data[0] <= 0x4F and source == self.target.address:
            self._on_channel_data(data)
            return
        self._note(source)
        if self._driver is not None:
            self._driver.datagram(socket.address, source, data)

    def train_received(self, socket: DatagramSocket, datagrams: Sequence[bytes], source: tuple[str, int]) -> None:
        """The same, several that came together."""
        allocation = self.allocation
        if allocation is None or socket is not self._socket or source != self.target.address:
            return
        channels, head, unpack = allocation.channels, CHANNEL_HEAD.size, CHANNEL_HEAD.unpack_from
        for message in datagrams:
            number, length = unpack(message) if len(message) >= head else (0, 0)
            channel = channels.get(number)
            if channel is None or channel.receive is None or len(message) < head + length:
                self.datagram_received(socket, message, source)
                continue
            channel.used += 1
            allocation.heard += 1
            channel.receive(self, message[head : head + length], channel.peer)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """From the UDP socket: ICMP."""
        if destination is not None and self._driver is not None and socket is self._socket:
            self._driver.error(socket.address, destination, errno)

    def data_received(self, stream: Stream, data: bytes) -> None:
        """From the stream."""
        self._note(self.target.address)
        self._first += data[: 2 - len(self._first)]
        allocation, driver = self.allocation, self._driver
        if allocation is None or driver is None:
            return
        try:
            messages = self._framer.feed(data)
        except BadMessage:
            self.connection_lost(stream, errno.EPROTO)
            stream.close()
            return
        for message in messages:
            if self._is_closed:
                return
            if is_channel_data(message):
                self._on_channel_data(message)
            else:
                driver.datagram(allocation.base, self.target.address, message)

    def connection_lost(self, stream: Stream, errno: int) -> None:
        """From the stream: it is over."""
        self._hint = self._what_it_may_mean(errno)
        if self.allocation is not None and self._driver is not None:
            self._driver.error(self.allocation.base, self.target.address, errno)

    # --- inside --------------------------------------------------------------------------------------------------

    def _begin(self, base: TransportAddress) -> None:
        self.allocation = Allocation(
            base,
            self.target.address,
            self._credentials,
            self._system_rng,
            self._options,
            is_stream=self.is_stream,
        )
        self._driver = Driver(self.allocation, self._host, self._transmit, self._tell)
        self._driver.command(self.allocation.allocate)

    async def _connect(self) -> None:
        try:
            self._stream = await self._connect_stream(self)
        except (OSError, ValueError) as error:
            self._on_event(self, AllocationRefused(code=None, reason=_in_words(error, self.target.transport)))
            return
        if self._is_closed:
            self._stream.close()
            return
        try:
            self._begin(self._stream.local_address)
        except ValueError as error:
            self._on_event(self, AllocationRefused(code=None, reason=str(error), wait_s=None))

    def _on_channel_data(self, message: bytes) -> None:
        """The data path: from the socket to the base, by the number of the channel."""
        allocation = self.allocation
        if allocation is None or len(message) < CHANNEL_HEAD.size:
            return
        number, length = CHANNEL_HEAD.unpack_from(message)
        channel = allocation.channels.get(number)
        if channel is None or channel.receive is None or len(message) < 4 + length:
            self._on_first_channel_data(allocation, message)
            return
        channel.used += 1
        allocation.heard += 1
        channel.receive(self, message[4 : 4 + length], channel.peer)

    def _on_first_channel_data(self, allocation: Allocation, message: bytes) -> None:
        found = allocation.unwrap(message)
        if found is None:
            return
        peer, data = found
        relayed = allocation.relayed_for(peer)
        base = None if relayed is None else self.bases.get(relayed)
        if base is None:
            return
        allocation.channels[CHANNEL_HEAD.unpack_from(message)[0]].receive = base.datagram_received
        base.datagram_received(cast(DatagramSocket, self), data, peer)

    def _note(self, source: tuple[str, int]) -> None:
        if not self.is_heard and source == self.target.address:
            self.is_heard = True
            self._on_heard(self)

    def _transmit(self, transmit: Transmit) -> int:
        return self._put(transmit.data)

    def _put(self, message: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(message, self.target.address)
        if self._stream is not None:
            self._stream.write(message)
            return 0
        return errno.ENOTCONN

    def _tell(self, event: Event) -> None:
        if self._hint and isinstance(event, AllocationRefused) and event.code is None:
            event = replace(event, reason=self._hint)
        self._on_event(self, event)

    def _what_it_may_mean(self, number: int) -> str:
        """Of the end of a stream over which no message came; empty: what it says."""
        if self.target.transport is not Transport.TCP:
            return ""
        if len(self._first) == 2 and self._first[0] in _TLS_TYPES and self._first[1] == _TLS_MAJOR:
            return "it speaks TLS: turns: is the scheme for that"
        if not self._first and number in (0, errno.ECONNRESET, errno.EPIPE):
            return "it closed the connection at once: is this a TLS port? turns: is the scheme for that"
        return ""


class RelayedSocket:
    """A relayed address, as a socket; implements :class:`iceagent.net.host.DatagramSocket`.

    Args:
        link: what it goes over.
        address: the relayed address.
    """

    def __init__(self, link: RelayLink, address: TransportAddress) -> None:
        self.link = link
        self._address = address
        self.send_many = link.send_many

    @property
    def address(self) -> TransportAddress:
        """The relayed one."""
        return self._address

    def send(self, data: bytes, destination: tuple[str, int], ttl: int | None = None) -> int:
        """Send at once, or not at all; what is to die on its way is not sent at all: there is no NAT in front of it."""
        return 0 if ttl is not None else self.link.send(data, destination)

    def close(self) -> None:
        """The allocation is given back by who made it."""


def _in_words(error: Exception, transport: Transport) -> str:
    """Why there is no stream."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not valid: {error.verify_message}"
    if isinstance(error, TimeoutError) and not error.errno:
        return NO_ANSWER
    if transport is Transport.TLS and isinstance(error, ConnectionResetError):
        # asyncio raises it without a word where the other end closes during the handshake.
        return "it closed the connection during the TLS handshake: is this a port for plain TCP?"
    if isinstance(error, ssl.SSLError):
        words = (error.reason or str(error)).replace("_", " ").lower()
        return f"there is no TLS ({words}): is this a port for plain TCP?"
    text = (error.strerror or "") if isinstance(error, OSError) else ""
    if isinstance(error, OSError) and error.errno and error.errno > 0 and not text.startswith("the proxy"):
        # The text may be asyncio's: "Connect call failed ('192.0.2.1', 3478)".
        return errno_in_words(error.errno)
    return text or str(error) or type(error).__name__

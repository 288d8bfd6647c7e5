"""How do datagrams get between a server's clients and its relays?

The client's half of the data path, past the cores: ChannelData from a client's datagram or stream goes to the relayed
address (``relay/relays.py``), and what comes from there to the client. And everything that the cores send.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence

from iceagent.net.address import TransportAddress
from iceagent.net.core import Transmit
from iceagent.net.driver import Clock, Driver
from iceagent.net.host import DatagramReceiver, DatagramSocket
from relay.connections import Connection
from relay.relays import Batches, RelaySockets, send_all
from relay.turn.server import ServedAllocation, TurnServer
from relay.turn.server.asked import FiveTuple

__all__ = ["ClientPath", "Inbox"]


class ClientPath:
    """The sockets and streams of clients.

    Args:
        clock: tells the time.
        sockets: of UDP, by address.
        streams: by their two ends.

    Attributes:
        relays: relayed addresses; ``None``: nothing is relayed.
        on_datagrams, on_streams: the cores of TURN.
    """

    def __init__(
        self,
        clock: Clock,
        sockets: Mapping[TransportAddress, DatagramSocket],
        streams: Mapping[FiveTuple, Connection],
    ) -> None:
        self._clock = clock
        self._sockets = sockets
        self._streams = streams
        self._batches = Batches(self._leave)
        self.relays: RelaySockets | None = None
        self.on_datagrams: TurnServer | None = None
        self.on_streams: TurnServer | None = None

    def inbox(self, driver: Driver) -> DatagramReceiver:
        """Who is told what a socket of clients receives."""
        return Inbox(driver) if self.relays is None else _RelayingInbox(driver, self)

    # --- from clients --------------------------------------------------------------------------------------------

    def channel_data(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """From a client over UDP."""
        turn, relays = self.on_datagrams, self.relays
        allocation = None if turn is None else turn.allocations.get((socket.address, source))  # type: ignore[arg-type]
        if allocation is not None and relays is not None and turn is not None:
            if allocation.moving is not None:
                turn.confirm(allocation, (socket.address, source))
            found = allocation.to_peer(data, self._clock.now())
            if found is not None:
                relays.send(*found)
            else:
                turn.note_dropped(allocation, data, self._clock.now())

    def channel_data_train(self, socket: DatagramSocket, datagrams: Sequence[bytes], source: tuple[str, int]) -> bool:
        """Several messages of a client that came together; false: they are to be taken one by one."""
        turn, relays = self.on_datagrams, self.relays
        allocation = None if turn is None else turn.allocations.get((socket.address, source))  # type: ignore[arg-type]
        if allocation is None or relays is None or allocation.moving is not None:
            return False
        whole = datagrams if len(datagrams[-1]) == len(datagrams[0]) else datagrams[:-1]
        found = allocation.train_to_peer(whole, self._clock.now())
        if found is None:
            return False
        relays.send_many(*found)
        for data in datagrams[len(whole) :]:
            self.channel_data(socket, data, source)
        return True

    def stream_channel_data(self, stream: FiveTuple, message: bytes) -> bool:
        """From a client over a stream; false: nothing is relayed here, and it has no business to send such."""
        turn = self.on_streams
        if turn is None or self.relays is None:
            return False
        # RFC 8656, 5: without an allocation it is "silently ignored"; it may have been under way when that ended.
        allocation = turn.allocations.get(stream)
        if allocation is not None:
            if allocation.moving is not None:
                turn.confirm(allocation, stream)
            found = allocation.to_peer(message, self._clock.now())
            if found is not None:
                self.relays.send(*found)
            else:
                turn.note_dropped(allocation, message, self._clock.now())
        return True

    # --- to clients ----------------------------------------------------------------------------------------------

    def to_client(self, allocation: ServedAllocation, messages: Sequence[bytes]) -> None:
        """What a peer sent."""
        if self.on_streams is not None and self.on_streams.allocations.get(allocation.key) is allocation:
            connection = self._streams.get(allocation.key)
            if connection is not None:
                connection.stream.write(b"".join(messages))
        else:
            self._batches.add(allocation.key, messages)

    def send_datagram(self, transmit: Transmit) -> int:
        """What the core on datagrams says: to a client, or of a Send indication to a peer."""
        socket = self._sockets.get(transmit.base)
        if socket is None and self.relays is not None:
            self.relays.send(transmit.base, transmit.destination, transmit.data)
            return 0
        return errno.EADDRNOTAVAIL if socket is None else socket.send(transmit.data, transmit.destination)

    def write(self, transmit: Transmit) -> int:
        """The same, of the core on streams."""
        connection = self._streams.get((transmit.base, transmit.destination))
        if connection is not None:
            connection.stream.write(transmit.data)
        elif self.relays is not None:
            self.relays.send(transmit.base, transmit.destination, transmit.data)
        return 0

    def _leave(self, way: FiveTuple, messages: list[bytes]) -> None:
        base, client = way
        socket = self._sockets.get(base)
        if socket is not None:
            send_all(socket, messages, client)


class Inbox:
    """Hands what UDP sockets receive to the core."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        self._driver.datagram(socket.address, source, data)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        if destination is not None:
            self._driver.error(socket.address, destination, errno)


class _RelayingInbox(Inbox):
    """The same, and ChannelData past the core."""

    def __init__(self, driver: Driver, path: ClientPath) -> None:
        super().__init__(driver)
        self._channel_data = path.channel_data
        self._channel_data_train = path.channel_data_train

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        if data and 0x40 <= data[0] < 0x80:
            self._channel_data(socket, data, source)
        else:
            self._driver.datagram(socket.address, source, data)

    def train_received(self, socket: DatagramSocket, datagrams: Sequence[bytes], source: tuple[str, int]) -> None:
        if not self._channel_data_train(socket, datagrams, source):
            for data in datagrams:
                self.datagram_received(socket, data, source)

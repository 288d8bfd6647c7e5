"""How do datagrams get between a TURN server's clients and their peers?

The data path of the server: a relayed address is a UDP socket with a drain loop (``iceagent/net/sockets.py``). What a
peer sends goes from its socket to the client's socket or stream; what a client sends as ChannelData, the other way. The
core (``relay/turn/server``) is not woken up for either: its allocation says whether, where to and with what in front.
Where the addresses are, and what is told of them, is in ``relay/places.py``.

What is read in one turn of the loop leaves in its next one, together (:class:`Batches`): a call of the system for each
datagram costs more than everything else that is done with it.
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from random import Random
from typing import Any

from iceagent.net.address import TransportAddress
from iceagent.net.host import DatagramSocket, Host, SocketOptions
from iceagent.net.trains import MAX_TRAIN
from relay.places import Names, Places, Relaying
from relay.stun import Icmp
from relay.turn.server import ServedAllocation, TurnServer

__all__ = ["Batches", "RelaySockets", "send_all"]

# Ports that are tried for one relayed address.
MAX_TRIES = 64
# Datagrams that wait in the kernel for one relayed address.
RECEIVE_BUFFER = 1 << 20


class Batches:
    """Datagrams that leave together when the loop comes round, in order for each way they go.

    Args:
        leave: called with a way and its datagrams.
    """

    def __init__(self, leave: Callable[[Any, list[bytes]], None]) -> None:
        self._leave = leave
        self._waiting: dict[Any, list[bytes]] = {}
        self._is_due = False

    def add(self, way: Hashable, datagrams: Sequence[bytes]) -> None:
        """They leave soon; at once, with all that wait before them, when there are many."""
        waiting = self._waiting.get(way)
        if waiting is None:
            self._waiting[way] = list(datagrams)
            if not self._is_due:
                self._is_due = True
                asyncio.get_running_loop().call_soon(self.flush)
            return
        waiting += datagrams
        if len(waiting) >= MAX_TRAIN:
            del self._waiting[way]
            self._leave(way, waiting)

    def flush(self) -> None:
        """All leave now."""
        self._is_due = False
        waiting, self._waiting = self._waiting, {}
        for way, datagrams in waiting.items():
            self._leave(way, datagrams)


class RelaySockets:
    """The sockets of all relayed addresses; implements :class:`relay.turn.server.RelayPorts`.

    Args:
        host: whose.
        relaying: where.
        listened: hosts of the server itself, where ``relaying`` names none.
        system_rng: draws ports.
        to_client: called with (allocation, messages): what a peer sent.

    Attributes:
        places: where they are.
        counters: ``network errors``, ``dropped: <reason>``.
    """

    def __init__(
        self,
        host: Host,
        relaying: Relaying,
        listened: Callable[[], Sequence[str]],
        system_rng: Random,
        to_client: Callable[[ServedAllocation, Sequence[bytes]], None],
    ) -> None:
        self._host = host
        self.places = Places(relaying, listened)
        self._rng = system_rng
        self._to_client = to_client
        self._batches = Batches(self._leave)
        # By what is told of them; the owners by where they are.
        self._sockets: dict[TransportAddress, DatagramSocket] = {}
        self._names = Names()
        self._owners: dict[TransportAddress, tuple[TurnServer, ServedAllocation]] = {}
        self.counters: Counter[str] = Counter()

    # --- RelayPorts ----------------------------------------------------------------------------------------------

    def open(self, version: int, near: str, *, even: bool = False, pair: bool = False) -> list[TransportAddress]:
        """See :class:`relay.turn.server.RelayPorts`."""
        host = self.places.host_of(version, near)
        public = self.places.told_of(host)
        low, high = self.places.ports
        for _ in range(MAX_TRIES):
            port = self._rng.randint(low, high)
            if even or pair:
                port -= port & 1
            wanted = [TransportAddress(host, port + offset) for offset in range(2 if pair else 1)]
            told = [TransportAddress(public, address.port) for address in wanted]
            if wanted[0].port < low or wanted[-1].port > high or any(address in self._sockets for address in told):
                continue
            if self._try(wanted, told):
                return told
        raise OSError(errno.EADDRINUSE, f"no free port of {low} to {high} on {host} was found")

    def close(self, address: TransportAddress) -> None:
        """See :class:`relay.turn.server.RelayPorts`."""
        self._names.discard(address)
        socket = self._sockets.pop(address, None)
        if socket is not None:
            self._owners.pop(socket.address, None)
            socket.close()

    # --- for the server ------------------------------------------------------------------------------------------

    def own(self, server: TurnServer, allocation: ServedAllocation) -> None:
        """What peers send to its addresses is this allocation's."""
        for address in allocation.relayed.values():
            self._owners[self._sockets[address].address] = (server, allocation)

    def send(self, relayed: TransportAddress, peer: TransportAddress, data: bytes) -> None:
        """From a relayed address to a peer, soon."""
        self._batches.add((relayed, peer), (data,))

    def send_many(self, relayed: TransportAddress, peer: TransportAddress, datagrams: Sequence[bytes]) -> None:
        """The same, of several."""
        self._batches.add((relayed, peer), datagrams)

    def close_all(self) -> None:
        """The server ends."""
        for address in list(self._sockets):
            self.close(address)

    # --- DatagramReceiver ----------------------------------------------------------------------------------------

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """From a peer."""
        owner = self._owners.get(socket.address)
        if owner is None:
            # Reserved, and not claimed yet.
            self.counters["dropped: no allocation"] += 1
            return
        server, allocation = owner
        message = server.from_peer(allocation, source, data, self._host.now())
        if message is not None:
            self._to_client(allocation, (message,))

    def train_received(self, socket: DatagramSocket, datagrams: Sequence[bytes], source: tuple[str, int]) -> None:
        """Several of a peer's, which came together."""
        owner = self._owners.get(socket.address)
        if owner is None:
            self.counters["dropped: no allocation"] += len(datagrams)
            return
        server, allocation = owner
        now = self._host.now()
        # All of a train have one size, but the last may be shorter.
        whole = datagrams if len(datagrams[-1]) == len(datagrams[0]) else datagrams[:-1]
        messages = server.train_from_peer(allocation, source, whole, now)
        for data in datagrams[len(whole) :]:
            message = server.from_peer(allocation, source, data, now)
            if message is not None:
                messages.append(message)
        if messages:
            self._to_client(allocation, messages)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """A peer is not there."""
        self.counters["network errors"] += 1

    def icmp_received(
        self, socket: DatagramSocket, destination: TransportAddress, icmp_type: int, code: int, info: int
    ) -> None:
        """The same, with what ICMP said, which the client is told."""
        owner = self._owners.get(socket.address)
        if owner is not None:
            server, allocation = owner
            icmp = Icmp(icmp_type, code, info)
            message = server.icmp_from_peer(allocation, destination, icmp, self._host.now())
            if message is not None:
                self._to_client(allocation, (message,))

    # --- inside --------------------------------------------------------------------------------------------------

    def _leave(self, way: tuple[TransportAddress, TransportAddress], datagrams: list[bytes]) -> None:
        relayed, peer = way
        socket = self._sockets.get(relayed)
        if socket is not None:
            send_all(socket, datagrams, self._names.places.get(peer, peer) if self._names.places else peer)

    def _try(self, wanted: Sequence[TransportAddress], told: Sequence[TransportAddress]) -> bool:
        opened: list[DatagramSocket] = []
        options = SocketOptions(receive_buffer=RECEIVE_BUFFER)
        # Nobody else pays for it.
        receiver = _Renaming(self, self._names) if self.places.are_renamed else self
        for address in wanted:
            try:
                opened.append(self._host.socket(address, receiver, options))
            except OSError as error:
                for socket in opened:
                    socket.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                return False
        self._sockets.update(zip(told, opened, strict=True))
        for place, name in zip(wanted, told, strict=True):
            self._names.add(place, name)
        return True


class _Renaming:
    """Hands on what comes to a relayed address behind a NAT of the server's: what comes from another one, under the
    name that clients know.
    """

    def __init__(self, receiver: RelaySockets, names: Names) -> None:
        self._receiver = receiver
        self._told = names.told

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        self._receiver.datagram_received(socket, data, self._told.get(source, source))

    def train_received(self, socket: DatagramSocket, datagrams: Sequence[bytes], source: tuple[str, int]) -> None:
        self._receiver.train_received(socket, datagrams, self._told.get(source, source))

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        self._receiver.error_received(socket, destination, errno)

    def icmp_received(
        self, socket: DatagramSocket, destination: TransportAddress, icmp_type: int, code: int, info: int
    ) -> None:
        peer = self._told.get(destination, destination)
        self._receiver.icmp_received(socket, peer, icmp_type, code, info)


def send_all(socket: DatagramSocket, datagrams: Sequence[bytes], destination: TransportAddress) -> None:
    """What the kernel does not take is lost, as on any router; one that is refused costs no other."""
    if len(datagrams) == 1:
        socket.send(datagrams[0], destination)
        return
    while datagrams:
        taken, number = socket.send_many(datagrams, destination)
        if not number or number == errno.EAGAIN:
            return
        datagrams = datagrams[taken + 1 :]

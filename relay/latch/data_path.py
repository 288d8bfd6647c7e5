"""What is the way of a datagram through a channel, in this process?

A socket of a side hands over what it received; what the latched peer sent waits until the loop comes round and leaves
the other side as trains (``iceagent/net/trains.py``). Nothing on this way is a task, a timer or a core: only a datagram
that is not the latched peer's, or begins like a Binding request, is shown to the core.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from typing import Protocol

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from iceagent.net.driver import Driver
from iceagent.net.host import DatagramSocket, Host, SocketOptions
from iceagent.net.trains import MAX_TRAIN
from relay.latch.channel import Channel, Side
from relay.latch.core import BINDING_REQUEST, LatchCore
from relay.udp_listening import explained

__all__ = ["DataPath", "Inbox", "Turns"]


class Turns(Protocol):
    """What an inbox asks for."""

    def admits(self, inbox: Inbox, data: bytes, source: tuple[str, int]) -> bool:
        """Show it to the core; true: it is to be forwarded."""

    def leave_soon(self, inbox: Inbox) -> None:
        """Call :meth:`Inbox.flush` when the loop comes round."""

    def is_used_up(self, channel: Channel) -> None:
        """The channel may have reached a cap."""

    def refused(self, base: TransportAddress, destination: TransportAddress, errno: int) -> None:
        """The network said no."""


class DataPath:
    """The sockets of all channels of a relay, and what pumps its core.

    Args:
        host: whose sockets.
        core: of the relay.
        on_event: is told every event of the core's.

    Attributes:
        driver: pumps the core.
    """

    def __init__(self, host: Host, core: LatchCore, on_event: Callable[[Event], None]) -> None:
        self._host = host
        self._core = core
        self._inboxes: dict[TransportAddress, Inbox] = {}
        self._leaving: list[Inbox] = []
        self.driver = Driver(core, host, self._send, on_event)

    # --- sockets ----------------------------------------------------------------------------------------------------

    def open_socket(self, channel: Channel, side: Side, base: TransportAddress, options: SocketOptions) -> None:
        """A side hears at this address from now on.

        Raises:
            OSError: the address cannot be had; the text says why.
        """
        inbox = Inbox(self, channel, side)
        try:
            inbox.socket = self._host.socket(base, inbox, options)
        except OSError as error:
            raise explained(error, "udp", base) from error
        self._inboxes[base] = inbox
        self._core.add_base(channel, side, base)

    def close_socket(self, channel: Channel, base: TransportAddress) -> None:
        """An address of ours has gone: whoever latched there has to do it anew."""
        self.driver.command(self._core.remove_base, channel, base)
        inbox = self._inboxes.pop(base, None)
        if inbox is not None and inbox.socket is not None:
            inbox.socket.close()

    def close_sockets(self, channel: Channel) -> None:
        """All of a channel that has ended."""
        for base in channel.bases:
            inbox = self._inboxes.pop(base, None)
            if inbox is not None and inbox.socket is not None:
                inbox.flush()
                inbox.socket.close()

    def connect(self, channel: Channel) -> None:
        """Each socket knows its peer, and the way to the other one, as the core has it now."""
        for side in channel.sides:
            across = channel.other(side)
            out = None if across.base is None else self._inboxes.get(across.base)
            way = None
            if out is not None and out.socket is not None and across.peer is not None:
                way = out.socket, across.peer
            for base in channel.bases:
                inbox = self._inboxes.get(base)
                if inbox is not None and inbox.side is side:
                    inbox.flush()
                    is_latched = base == side.base and side.peer is not None
                    inbox.peer = side.peer if is_latched else None
                    inbox.way = way if is_latched else None

    def _send(self, transmit: Transmit) -> int:
        inbox = self._inboxes.get(transmit.base)
        if inbox is None or inbox.socket is None:
            return errno.EADDRNOTAVAIL
        return inbox.socket.send(transmit.data, transmit.destination)

    # --- what an inbox asks -----------------------------------------------------------------------------------------

    def admits(self, inbox: Inbox, data: bytes, source: tuple[str, int]) -> bool:
        """Show a datagram to the core; true: it is to be forwarded."""
        if self.driver.is_closed or inbox.socket is None:
            return False
        datagram = Datagram(inbox.socket.address, TransportAddress._make(source), data)
        return self.driver.command(self._core.admits, datagram)

    def leave_soon(self, inbox: Inbox) -> None:
        """Let what waits leave when the loop comes round."""
        if not self._leaving:
            asyncio.get_running_loop().call_soon(self._leave)
        self._leaving.append(inbox)

    def is_used_up(self, channel: Channel) -> None:
        """The channel may have reached a cap."""
        if not self.driver.is_closed:
            self.driver.command(self._core.check_caps, channel)

    def refused(self, base: TransportAddress, destination: TransportAddress, errno: int) -> None:
        """The network said no."""
        self.driver.error(base, destination, errno)

    def _leave(self) -> None:
        leaving, self._leaving = self._leaving, []
        for inbox in leaving:
            inbox.flush()


class Inbox:
    """Takes what one socket of a side receives.

    Args:
        turns: what all of a relay share.
        channel: whose.
        side: of it.

    Attributes:
        socket: its own, once that is open.
        peer: the peer that is latched at this socket's address; ``None``: nobody is.
        way: the socket that what the peer sends leaves from, and where to; ``None``: nobody is latched on the other
            side.
    """

    __slots__ = ("_turns", "_waiting", "channel", "peer", "side", "socket", "way")

    def __init__(self, turns: Turns, channel: Channel, side: Side) -> None:
        self._turns = turns
        self._waiting: list[bytes] = []
        self.channel = channel
        self.side = side
        self.socket: DatagramSocket | None = None
        self.peer: tuple[str, int] | None = None
        self.way: tuple[DatagramSocket, tuple[str, int]] | None = None

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        if (source != self.peer or data[:2] == BINDING_REQUEST) and not self._turns.admits(self, data, source):
            return
        waiting = self._waiting
        if not waiting:
            self._turns.leave_soon(self)
        waiting.append(data)
        if len(waiting) >= MAX_TRAIN:
            self.flush()

    def train_received(self, socket: DatagramSocket, datagrams: Sequence[bytes], source: tuple[str, int]) -> None:
        """Several of one source."""
        if source != self.peer or BINDING_REQUEST in {data[:2] for data in datagrams}:
            for data in datagrams:
                self.datagram_received(socket, data, source)
            return
        if not self._waiting:
            self._turns.leave_soon(self)
        self._waiting += datagrams
        if len(self._waiting) >= MAX_TRAIN:
            self.flush()

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        if destination is not None:
            self._turns.refused(socket.address, destination, errno)

    def flush(self) -> None:
        """What waits leaves, as far as the channel may, or is dropped."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        channel, side = self.channel, self.side
        if self.way is None or not channel.is_open:
            side.unheard += len(waiting)
            return
        allowed: Sequence[bytes] = waiting
        octets = sum(map(len, waiting))
        if len(waiting) > channel.packets_left or octets > channel.octets_left:
            allowed = _within(channel, waiting)
        socket, destination = self.way
        if len(allowed) == 1:
            count = 0 if socket.send(allowed[0], destination) else 1
        else:
            count, _ = socket.send_many(allowed, destination)
        if count != len(waiting):
            side.dropped += len(waiting) - count
            octets = sum(map(len, allowed[:count]))
        side.packets += count
        side.octets += octets
        channel.packets_left -= count
        channel.octets_left -= octets
        if len(allowed) < len(waiting) and channel.packets_left > 0:
            channel.octets_left = 0  # The next one would not fit: that is its end.
        if channel.packets_left <= 0 or channel.octets_left <= 0:
            self._turns.is_used_up(channel)


def _within(channel: Channel, waiting: Sequence[bytes]) -> Sequence[bytes]:
    """Those of the first that the channel may still forward."""
    packets_left, octets_left = channel.packets_left, channel.octets_left
    count = 0
    for data in waiting:
        octets_left -= len(data)
        if count >= packets_left or octets_left < 0:
            break
        count += 1
    return waiting[:count]

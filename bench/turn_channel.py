"""How does a load get through a TURN server? By an allocation of ours with a channel to one peer."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from random import SystemRandom

from bench.contenders import TURN_PASSWORD, TURN_USER
from bench.processes import WorkerFailed
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram
from relay.turn import Allocation, AllocationRefused, AllocationState, TurnCredentials

__all__ = ["TurnChannel"]

SETUP_LIMIT_S = 10.0
SETUP_STEP_S = 0.02


class TurnChannel:
    """An allocation with a channel to one peer; both sockets are connected to the server afterwards.

    Args:
        client: bound, not blocking.
        peer: the same.
        server: its address.

    Raises:
        WorkerFailed: it was not made within ten seconds, or does not pass what is sent.
    """

    def __init__(self, client: socket.socket, peer: socket.socket, server: TransportAddress) -> None:
        self._client = client
        self._peer = TransportAddress(*peer.getsockname())
        client.connect(server)
        self._core = Allocation(
            TransportAddress(*client.getsockname()),
            server,
            TurnCredentials(username=TURN_USER, password=TURN_PASSWORD),
            SystemRandom(),
        )
        self._core.allocate(time.monotonic())
        self._until(lambda: bool(self._core.relayed))
        (relayed,) = self._core.relayed
        peer.connect(relayed)
        # The first one takes the permission along; what comes back makes the client bind a channel.
        self._core.send(self._peer, b"to the peer", time.monotonic())
        self._until(lambda: _received(peer) == b"to the peer")
        peer.send(b"to the client")
        self._until(lambda: any(channel.is_bound for channel in self._core.channels.values()))
        client.send(self.wrap(b"by channel"))
        self._until(lambda: _received(peer) == b"by channel")

    def wrap(self, data: bytes) -> bytes:
        """ChannelData."""
        message = self._core.wrap(self._peer, data)
        assert message is not None
        return message

    def release(self) -> None:
        """Give it back."""
        self._core.release(time.monotonic())
        self._until(lambda: self._core.state is AllocationState.OVER)

    def _until(self, is_so: Callable[[], bool]) -> None:
        """Do what the allocation wants done, until ``is_so``."""
        core, deadline = self._core, time.monotonic() + SETUP_LIMIT_S
        while not is_so():
            now = time.monotonic()
            if now > deadline:
                raise WorkerFailed(f"the TURN server at {core.server} does not do what it is asked for")
            core.handle_timeout(now)
            while (transmit := core.poll_transmit()) is not None:
                self._client.send(transmit.data)
            while (event := core.poll_event()) is not None:
                if isinstance(event, AllocationRefused):
                    raise WorkerFailed(f"the TURN server at {core.server} refuses: {event.reason}")
            select.select([self._client], [], [], SETUP_STEP_S)
            while (data := _received(self._client)) is not None:
                core.handle_datagram(Datagram(core.base, core.server, data), time.monotonic())


def _received(sock: socket.socket) -> bytes | None:
    """The next datagram, if there is one."""
    try:
        return sock.recv(2_048)
    except (BlockingIOError, ConnectionRefusedError):
        return None

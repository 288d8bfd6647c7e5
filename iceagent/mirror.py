"""What else does data take while its path is in doubt?

The pair that stands by: what is sent leaves twice, so that nothing is lost while the path is asked, if the other one
works. For the time of such an episode, :class:`Mirror` stands in the place of the component's
:class:`~iceagent.outgoing.Outgoing`, which therefore has nothing to ask while nothing is in doubt. An episode ends
after 1.5 s, 64 datagrams or 64 kB, whichever comes first, when the socket of the other pair refuses anything, and with
the doubt. What the path's own socket has no room for is not mirrored: twice as much would not help.

RFC 7675, 5.1: nothing leaves where consent is not fresh. So the pair is asked for anew with every datagram.

DEVIATION: RFC 8445, 12.1 sends over the selected pair only; pinned by
test_while_in_doubt_data_arrives_over_the_pair_that_stands_by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from iceagent.core.pair import Traffic
from iceagent.net.address import TransportAddress
from iceagent.net.host import DatagramSocket
from iceagent.outgoing import Outgoing
from relay.upgrade import TIMINGS

__all__ = ["MAX_BYTES", "MAX_DATAGRAMS", "MAX_S", "Mirror", "SecondWay"]

MAX_S = TIMINGS.lost_s
"""By then the path has answered, or is left."""
MAX_DATAGRAMS = 64
"""A call's in 1.3 s. Who sends more notices a gap by itself, and would fill a narrow way that stands by."""
MAX_BYTES = 64_000
"""A second of half a megabit: what the narrowest of relays lets through."""


class SecondWay(NamedTuple):
    """Where the other pair sends, and counts."""

    socket: DatagramSocket
    destination: TransportAddress
    traffic: Traffic


class MirrorListener(Protocol):
    """Who has it."""

    def mirrored(self, mirror: Mirror) -> None:
        """A datagram left on the other pair too."""

    def mirroring_ended(self, mirror: Mirror) -> None:
        """There is nothing to mirror any more: what is sent is to go to ``main`` again."""


class Mirror:
    """A way out with a second one beside it, for one episode.

    Args:
        main: the path's.
        standby: the pair that stands by now; ``None``: there is none.
        now: seconds, the host's clock.
        listener: see there.

    Attributes:
        main: as given.
    """

    __slots__ = ("_bytes_left", "_datagrams_left", "_ends_at", "_is_full", "_listener", "_now", "_standby", "main")

    def __init__(
        self,
        main: Outgoing,
        standby: Callable[[], SecondWay | None],
        now: Callable[[], float],
        listener: MirrorListener,
    ) -> None:
        self.main = main
        self._standby = standby
        self._now = now
        self._listener = listener
        self._ends_at = now() + MAX_S
        self._datagrams_left = MAX_DATAGRAMS
        self._bytes_left = MAX_BYTES
        self._is_full = False

    @property
    def traffic(self) -> Traffic:
        """The path's."""
        return self.main.traffic

    @property
    def is_waiting(self) -> bool:
        """As :attr:`Outgoing.is_waiting`: what was sent before the episode may be."""
        return self.main.is_waiting

    def take(self) -> list[bytes]:
        """As :meth:`Outgoing.take`."""
        return self.main.take()

    def flush(self) -> None:
        """As :meth:`Outgoing.flush`."""
        self.main.flush()

    def send(self, data: bytes) -> None:
        """Send one datagram at once, and once more.

        Raises:
            UsageError: it has more than 65,507 bytes.
        """
        self._is_full = False
        self.main.send(data)
        # Only what has left, or not, tells whether there is room.
        self.main.flush()
        if not self._is_full and not self._mirror(data):
            self._listener.mirroring_ended(self)

    def note_full(self) -> None:
        """The path's socket had no room."""
        self._is_full = True

    def _mirror(self, data: bytes) -> bool:
        """Whether the episode goes on."""
        if self._now() >= self._ends_at or len(data) > self._bytes_left:
            return False
        standby = self._standby()
        # Of a pair that no data has left on for long, nothing is expected to come back: its times stay as they are.
        if standby is None or standby.socket.send(data, standby.destination):
            return False
        standby.traffic.packets_sent += 1
        standby.traffic.bytes_sent += len(data)
        self._listener.mirrored(self)
        self._bytes_left -= len(data)
        self._datagrams_left -= 1
        return self._datagrams_left > 0

"""How does the application's data leave?

:class:`Outgoing` is the way out of one component: a socket and where to. The first datagram of a moment leaves at once.
One that follows within ``Config.coalesce_s`` belongs to a burst: it waits, together with the ones behind it, until the
loop comes round again, 64 are waiting, or another one is sent a millisecond later; then all leave in few calls
(``net/trains.py``). So one datagram at a time is never late, and a burst costs a fraction of as many calls.

Where nothing came behind the one that waited (datagrams in twos, or a round trip as short as that), the next 1, 2, 4, 8
and then 16 followers leave at once: a turn of the loop costs as much as the call it might save.
"""

from __future__ import annotations

import errno
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Protocol

from iceagent.core.pair import Traffic
from iceagent.errors import UsageError
from iceagent.net.address import TransportAddress
from iceagent.net.host import DatagramSocket
from iceagent.net.trains import MAX_SEGMENT, MAX_TRAIN

__all__ = ["MAX_DATAGRAM", "Outgoing"]

# Longer than this no datagram waits for one that follows in the same turn of the loop.
MAX_WAIT_S = 0.001
# A loop that comes round later than this was held up.
LATE_S = 0.05
# Followers that leave at once after one that waited in vain, where that happens again and again.
MAX_PATIENCE = 16
# What a UDP datagram over IPv4 can carry.
MAX_DATAGRAM = 65_507


class OutgoingListener(Protocol):
    """Who has it."""

    def sending_failed(self, out: Outgoing, lost: int, number: int) -> None:
        """The socket refused so many datagrams with this errno."""

    def sending_began(self, out: Outgoing) -> None:
        """Something left for the first time, or after a pause (``core/liveness.py``)."""


class Outgoing:
    """Where data of a component leaves.

    Args:
        socket: the base's.
        destination: the remote candidate's address.
        traffic: where what leaves is counted.
        loop: whose next turn ends a burst.
        now: seconds, the host's clock.
        coalesce_s: see :class:`iceagent.Config`.
        listener: hears what the socket refused, and when something leaves after a pause.
    """

    __slots__ = (
        "_coalesce_s",
        "_is_flush_due",
        "_is_late",
        "_listener",
        "_loop",
        "_now",
        "_patience",
        "_send",
        "_sent_at",
        "_to_pass",
        "_waiting",
        "destination",
        "socket",
        "traffic",
    )

    def __init__(
        self,
        socket: DatagramSocket,
        destination: TransportAddress,
        traffic: Traffic,
        loop: AbstractEventLoop,
        now: Callable[[], float],
        coalesce_s: float,
        listener: OutgoingListener,
    ) -> None:
        self.socket = socket
        self.destination = destination
        self.traffic = traffic
        self._send = socket.send
        self._loop = loop
        self._now = now
        self._coalesce_s = coalesce_s
        self._listener = listener
        self._waiting: list[bytes] = []
        self._sent_at = -1.0
        self._is_flush_due = False
        self._is_late = False
        self._patience = 0
        self._to_pass = 0

    def send(self, data: bytes) -> None:
        """Send one datagram, at once or with the others of its burst.

        Raises:
            UsageError: it has more than 65,507 bytes.
        """
        waiting = self._waiting
        if not waiting and not self._is_burst():
            self._send_now(data)
            self._note()
            return
        if type(data) is not bytes or len(data) > MAX_SEGMENT:
            # What may change until the loop comes round cannot wait, nor can what is no bytes at all.
            self.flush()
            self._send_now(data)
            self._note()
            return
        # First, because a debugging loop refuses other threads: then nothing waits.
        self._flush_soon()
        waiting.append(data)
        if len(waiting) == MAX_TRAIN or self._now() - self._sent_at > MAX_WAIT_S:
            self.flush()

    def flush(self) -> None:
        """Send what is waiting."""
        waiting = self.take()
        if not waiting:
            return
        self._learn(len(waiting))
        while waiting:
            taken, number = self.socket.send_many(waiting, self.destination)
            self.traffic.packets_sent += taken
            self.traffic.bytes_sent += sum(map(len, waiting[:taken]))
            if not number:
                break
            # A full socket takes none of the others either; any other refusal may be about this datagram alone.
            lost = len(waiting) - taken if number == errno.EAGAIN else 1
            waiting = waiting[taken + lost :]
            self._listener.sending_failed(self, lost, number)
        self._note()

    @property
    def is_waiting(self) -> bool:
        """Whether something waits for the rest of its burst."""
        return bool(self._waiting)

    def take(self) -> list[bytes]:
        """What is waiting, which is the caller's from now on: the path is not to be used any more."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def adopt(self, datagrams: list[bytes]) -> None:
        """Send what :meth:`take` gave, when the loop comes round; before anything was sent here."""
        self._waiting = datagrams
        if datagrams:
            self._sent_at = self._now()
            self._flush_soon()

    def _note(self) -> None:
        """Something left: see ``core/liveness.py``."""
        traffic = self.traffic
        self._sent_at = traffic.sent_at = now = self._now()
        if traffic.unanswered_at <= traffic.received_at:
            traffic.unanswered_at = now
        if traffic.is_asleep:
            traffic.is_asleep = False
            self._listener.sending_began(self)

    def _is_burst(self) -> bool:
        """Whether to expect more behind a datagram that nothing waits before; counts those that are let pass."""
        if self._now() - self._sent_at >= self._coalesce_s:
            return False
        if self._to_pass:
            self._to_pass -= 1
            return False
        return True

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._loop.call_soon(self._flush_due)
            self._is_flush_due = True

    def _flush_due(self) -> None:
        if not self._is_late and self._now() - self._sent_at > LATE_S:
            # The loop was held up. What else became due meanwhile comes first: it may be the end of consent.
            self._is_late = True
            self._loop.call_soon(self._flush_due)
            return
        self._is_late = self._is_flush_due = False
        self.flush()

    def _learn(self, count: int) -> None:
        """So many have waited for each other; one alone has waited in vain."""
        self._patience = 0 if count > 1 else min(self._patience * 2 or 1, MAX_PATIENCE)
        self._to_pass = self._patience

    def _send_now(self, data: bytes) -> None:
        number = self._send(data, self.destination)
        if number:
            if number == errno.EMSGSIZE and len(data) > MAX_DATAGRAM:
                raise UsageError(f"a datagram of {len(data)} bytes, at most {MAX_DATAGRAM} can be sent")
            self._listener.sending_failed(self, 1, number)
            return
        traffic = self.traffic
        traffic.packets_sent += 1
        traffic.bytes_sent += len(data)

"""How does data get from ``send`` to the socket, and from the socket to the application?

The half of :class:`iceagent.Agent` that every datagram goes through. Out: ``send`` calls the selected path's socket,
once for all datagrams of a burst (``outgoing.py``). In: the base (``gather/bases.py``) calls the *sink*, which is the
application's handler or the queue that ``recv`` reads. No task, no timer and no core on the way. While a path is in
doubt, data may leave on another pair too (``mirror.py``).
"""

from __future__ import annotations

import asyncio
import errno
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping

from iceagent.core.pair import CandidatePair
from iceagent.errors import NoPath, UsageError
from iceagent.events import AgentState
from iceagent.gather.bases import Base
from iceagent.mirror import Mirror, SecondWay
from iceagent.net.address import TransportAddress
from iceagent.net.host import Host
from iceagent.outgoing import Outgoing

__all__ = ["MAX_RECEIVE_BYTES", "MAX_RECEIVE_QUEUE", "DataPath"]

# Received datagrams that wait for recv(), per component; what comes beyond is dropped and counted.
MAX_RECEIVE_QUEUE = 8192
# The same in bytes: as much again as the socket's own buffer.
MAX_RECEIVE_BYTES = 4 * 2**20


class _Inbox:
    """What waits for ``recv`` on one component; made when something does, or somebody receives.

    Attributes:
        queue: the datagrams.
        size: their bytes.
        receiver: who waits for the next one.
    """

    __slots__ = ("queue", "receiver", "size")

    def __init__(self) -> None:
        self.queue: deque[bytes] = deque()
        self.size = 0
        self.receiver: asyncio.Future[None] | None = None


class DataPath(ABC):
    """Sends and receives on the selected paths."""

    # In the class, for an agent whose path was never in doubt has none.
    _mirrored = 0

    def __init__(self, host: Host, components: int, coalesce_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._host = host
        self._components = components
        self._coalesce_s = coalesce_s
        self._outgoing: dict[int, Outgoing | Mirror] = {}
        self._inboxes: dict[int, _Inbox] = {}
        self._handler: Callable[[bytes, int], None] | None = None
        self._receive_queue_dropped = 0
        self._send_dropped = 0
        self._path_switches = 0

    # --- for the application -------------------------------------------------------------------------------------

    def send(self, data: bytes, component: int = 1) -> None:
        """Send one datagram on the selected path; what the socket cannot take is dropped and counted.

        It leaves at once. Of a burst, the first leaves at once and the others together, when the loop comes round
        (``Config.coalesce_s``).

        Args:
            data: at most what UDP carries: 65,507 bytes over IPv4, 65,527 over IPv6.

        Raises:
            NoPath: there is none (yet, or any more).
            UsageError: it is too long.
            AgentClosed: after :meth:`iceagent.Agent.aclose`.
        """
        out = self._outgoing.get(component)
        if out is None:
            self._check()
            raise NoPath(f"component {component} has no path in the state {self.state.value}")
        out.send(data)

    async def recv(self, component: int = 1) -> bytes:
        """The next datagram of a component. Cancelling loses none.

        Raises:
            ConsentLost: the path is gone for good.
            ConnectFailed: there never was one.
            AgentClosed: the agent is closed.
            UsageError: another task receives on this component, or a data handler is set.
        """
        inbox = self._inbox(component)
        while not inbox.queue:
            self._check_receiver(component, inbox.receiver)
            waiter = inbox.receiver = self._loop.create_future()
            try:
                await waiter
            finally:
                if inbox.receiver is waiter:
                    inbox.receiver = None
        data = inbox.queue.popleft()
        inbox.size -= len(data)
        return data

    def set_data_handler(self, handler: Callable[[bytes, int], None] | None) -> None:
        """Call ``handler(data, component)`` for every datagram, instead of :meth:`recv`; first with what has been
        waiting.
        """
        self._check()
        self._handler = handler
        self._set_sink(handler or self._enqueue)
        if handler is not None:
            for component, inbox in self._inboxes.items():
                while inbox.queue and self._handler is handler:
                    data = inbox.queue.popleft()
                    inbox.size -= len(data)
                    handler(data, component)

    # --- for the agent -------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def state(self) -> AgentState:
        """See :class:`iceagent.events.AgentState`."""

    @abstractmethod
    def _check(self) -> None:
        """Raise if the agent is closed or in another thread."""

    @abstractmethod
    def _end(self) -> Exception | None:
        """Why nothing can be received any more."""

    @abstractmethod
    def _catch_up(self) -> None:
        """Do what is due by now."""

    @abstractmethod
    def _set_sink(self, sink: Callable[[bytes, int], None]) -> None:
        """Where the sockets deliver."""

    @abstractmethod
    def _on_network_error(self, base: TransportAddress, destination: TransportAddress, number: int) -> None:
        """A send failed with this errno."""

    def _set_path(self, component: int, pair: CandidatePair | None, bases: Mapping[TransportAddress, Base]) -> None:
        """Data of a component leaves on this pair from now on."""
        former = self._outgoing.pop(component, None)
        waiting = former.take() if former is not None else []
        base = bases.get(pair.base) if pair is not None else None
        if pair is None or base is None:
            if former is not None:
                # RFC 7675, 5.1: nothing leaves any more.
                former.traffic.packets_discarded += len(waiting)
                self._send_dropped += len(waiting)
            return
        self._path_switches += former is not None
        out = self._outgoing[component] = Outgoing(
            base.socket,
            pair.destination,
            pair.traffic,
            self._loop,
            base.now,
            self._coalesce_s,
            self,
        )
        out.adopt(waiting)

    def _begin_mirroring(
        self,
        component: int,
        standby_of: Callable[[int, float], CandidatePair | None],
        bases: Mapping[TransportAddress, Base],
    ) -> None:
        """Data of a component leaves on the pair that stands by as well, for a while."""

        def standby() -> SecondWay | None:
            pair = standby_of(component, self._host.now())
            base = bases.get(pair.base) if pair is not None else None
            if pair is None or base is None:
                return None
            return SecondWay(base.socket, pair.destination, pair.traffic)

        self._end_mirroring(component)
        out = self._outgoing.get(component)
        if isinstance(out, Outgoing):
            self._outgoing[component] = Mirror(out, standby, self._host.now, self)

    def _end_mirroring(self, component: int) -> None:
        """It leaves on the path alone, as ever."""
        out = self._outgoing.get(component)
        if isinstance(out, Mirror):
            self._outgoing[component] = out.main

    def _flush(self) -> None:
        """Send what waits for the rest of its burst; in a loop that was held up, consent may have ended meanwhile."""
        if any(out.is_waiting for out in self._outgoing.values()):
            self._catch_up()
            for out in list(self._outgoing.values()):
                out.flush()

    def _clear_paths(self) -> None:
        self._outgoing.clear()

    def _enqueue(self, data: bytes, component: int) -> None:
        """The sink behind :meth:`recv`."""
        inbox = self._inbox(component)
        size = inbox.size + len(data)
        if len(inbox.queue) >= MAX_RECEIVE_QUEUE or size > MAX_RECEIVE_BYTES:
            self._receive_queue_dropped += 1
            return
        inbox.queue.append(data)
        inbox.size = size
        waiter = inbox.receiver
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _wake_receivers(self) -> None:
        for inbox in self._inboxes.values():
            waiter = inbox.receiver
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    # --- inside --------------------------------------------------------------------------------------------------

    def _inbox(self, component: int) -> _Inbox:
        inbox = self._inboxes.get(component)
        if inbox is None:
            if not 1 <= component <= self._components:
                raise UsageError(f"component {component} of an agent with {self._components}")
            inbox = self._inboxes[component] = _Inbox()
        return inbox

    def _check_receiver(self, component: int, other: asyncio.Future[None] | None) -> None:
        if self._handler is not None:
            raise UsageError("recv() while a data handler is set")
        if other is not None and not other.cancelled():
            raise UsageError(f"two recv() at once on component {component}")
        self._check()
        end = self._end()
        if end is not None:
            raise end

    # --- what Outgoing tells (OutgoingListener) ------------------------------------------------------------------

    @abstractmethod
    def sending_began(self, out: Outgoing) -> None:
        """Data leaves, for the first time on this path or after a pause."""

    def sending_failed(self, out: Outgoing, lost: int, number: int) -> None:
        """The socket refused something."""
        out.traffic.packets_discarded += lost
        if number == errno.EAGAIN:
            self._send_dropped += lost
            mirror = self._outgoing.get(out.traffic.component)
            if isinstance(mirror, Mirror):
                mirror.note_full()
        else:
            self._on_network_error(out.socket.address, out.destination, number)

    # --- what Mirror tells (MirrorListener) ----------------------------------------------------------------------

    def mirrored(self, mirror: Mirror) -> None:
        """A datagram left twice."""
        self._mirrored += 1

    def mirroring_ended(self, mirror: Mirror) -> None:
        """The episode's measure is full."""
        component = mirror.traffic.component
        if self._outgoing.get(component) is mirror:
            self._outgoing[component] = mirror.main

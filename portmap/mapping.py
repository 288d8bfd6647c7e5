"""What does an application hold of a mapping, and what does it hear of it?"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from portmap.values import Gateway, ProtocolName, Transport, Trust, trust_of

__all__ = [
    "GatewayForgot",
    "MappingChanged",
    "MappingDeleted",
    "MappingEvent",
    "MappingGone",
    "MappingMade",
    "MappingRenewed",
    "MappingUnavailable",
    "PortMapping",
]

MAX_EVENTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingEvent(Event):
    """One thing that happened to a mapping. All of them derive from this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingMade(MappingEvent):
    """There is a mapping: for the first time, or again after :class:`MappingGone`.

    Attributes:
        protocol: by which.
        gateway: at which.
        external: where it is reached from outside; the host is ``0.0.0.0`` where the gateway does not know it.
        lifetime_s: seconds it lasts unless it is renewed, which happens by itself; 0: until it is deleted.
        trust: how far ``external`` may be believed.
        rtt_s: of the request; ``None``: it was repeated.
    """

    protocol: ProtocolName
    gateway: Gateway
    external: TransportAddress
    lifetime_s: int
    trust: Trust
    rtt_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingRenewed(MappingEvent):
    """It lasts longer.

    Attributes:
        lifetime_s: seconds from now.
    """

    lifetime_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingChanged(MappingEvent):
    """It is reached at another address from outside.

    Attributes:
        old: where it was.
        new: where it is.
        trust: how far ``new`` may be believed.
    """

    old: TransportAddress
    new: TransportAddress
    trust: Trust


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingGone(MappingEvent):
    """It is not there any more; others are tried for, at this gateway or another one.

    Attributes:
        external: where it was.
        reason: why.
    """

    external: TransportAddress
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingUnavailable(MappingEvent):
    """Nobody gives one. All are asked again later, and as soon as the network changes.

    Attributes:
        reasons: what each protocol said, or why it was not asked; empty: there is no gateway.
    """

    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayForgot(MappingEvent):
    """The gateway restarted without its mappings; they are being made again.

    Attributes:
        protocol: by which this was noticed.
    """

    protocol: ProtocolName


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingDeleted(MappingEvent):
    """It was closed.

    Attributes:
        is_confirmed: the gateway deleted it; else it ends with its lifetime.
    """

    is_confirmed: bool


class PortMapping:
    """A mapping that is wanted; it is kept until it is closed. Made by :class:`portmap.PortMapper`.

    An async iterator of its events: each goes to one reader; of more than 64 that wait, the oldest go.

    Attributes:
        transport: ``udp`` or ``tcp``.
        internal: where what comes in arrives; if a port alone was asked for, its host is ``0.0.0.0`` while there is no
            gateway.
        external_port: that was asked for; 0: any.
        lifetime_s: that was asked for.
        gateway: where it is; ``None``: there is none now.
        protocol: by which; likewise.
        external: where it is reached from outside; likewise. After the end it stays as it was at last.
        granted_s: seconds that the gateway gave at last; 0: until it is deleted.
    """

    def __init__(
        self,
        transport: Transport,
        internal: TransportAddress,
        external_port: int,
        lifetime_s: int,
        *,
        on_event: Callable[[PortMapping, MappingEvent], None] | None,
        release: Callable[[PortMapping], None],
    ) -> None:
        self.transport = transport
        self.internal = internal
        self.external_port = external_port
        self.lifetime_s = lifetime_s
        self.gateway: Gateway | None = None
        self.protocol: ProtocolName | None = None
        self.external: TransportAddress | None = None
        self.granted_s = 0
        self._on_event = on_event
        self._release = release
        self._events: deque[MappingEvent] = deque(maxlen=MAX_EVENTS)
        self._waiter: asyncio.Future[None] | None = None
        self._is_closed = False
        self._is_deleted = False
        self._has_ended = False
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()

    def __repr__(self) -> str:
        where = f"{self.external} by {self.protocol} at {self.gateway}" if self.external else "not mapped"
        if self._is_closed:
            where = "closed"
        return f"<PortMapping {self.transport} {self.internal}: {where}>"

    @property
    def trust(self) -> Trust:
        """How far :attr:`external` may be believed."""
        return Trust.UNKNOWN if self.external is None else trust_of(self.external.host)

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called, or the mapper closed."""
        return self._is_closed

    @property
    def is_deleted(self) -> bool:
        """Whether the gateway said that it is deleted."""
        return self._is_deleted

    def close(self) -> None:
        """Want it no more: it is deleted in the background. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._release(self)

    async def aclose(self) -> None:
        """Want it no more, and wait until the gateway says so, or half a second. Idempotent."""
        self.close()
        await asyncio.shield(self._ended)

    async def __aenter__(self) -> PortMapping:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[MappingEvent]:
        return self

    async def __anext__(self) -> MappingEvent:
        while not self._events:
            if self._has_ended:
                raise StopAsyncIteration
            if self._waiter is None or self._waiter.done():
                self._waiter = self._loop.create_future()
            # One reader that is cancelled costs no other its events.
            await asyncio.shield(self._waiter)
        return self._events.popleft()

    # --- the mapper's side ---------------------------------------------------------------------------------------

    def tell(self, event: MappingEvent) -> None:
        """Something happened to it; nothing does after its end.

        If the application's callback raises, the loop's exception handler is told.
        """
        if not self._has_ended:
            self._say(event)

    def end(self, *, is_confirmed: bool) -> None:
        """It is deleted, as far as that can be known. Idempotent."""
        if not self._has_ended:
            self._is_closed, self._is_deleted, self._has_ended = True, is_confirmed, True
            self._say(MappingDeleted(is_confirmed=is_confirmed))
            self._ended.set_result(None)

    def _say(self, event: MappingEvent) -> None:
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._on_event is not None:
            try:
                self._on_event(self, event)
            except Exception as error:  # The application's bug must cost no other mapping its events.
                context = {"message": f"The callback of {self!r} raised", "exception": error}
                self._loop.call_exception_handler(context)

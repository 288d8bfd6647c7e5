"""How does an ``asyncio.DatagramProtocol`` run over an agent?

:func:`create_datagram_endpoint` gives any protocol written for a UDP socket (aioquic's, say) a transport whose network
is the selected path. The peer's real address changes as paths do, so the transport shows one stable alias.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from iceagent.agent import Agent
from iceagent.errors import AgentClosed, NoPath, UsageError
from iceagent.events import AgentState, StateChanged
from iceagent.eventstream import EventStream
from iceagent.net.address import TransportAddress

__all__ = ["AgentTransport", "create_datagram_endpoint"]

P = TypeVar("P", bound=asyncio.DatagramProtocol)

# RFC 3849's documentation prefix: an address that nobody has, and a fixed one, because paths change below the protocol.
ALIAS = TransportAddress("2001:db8::1ce", 1)

# An agent has one data handler; where several components have an endpoint each, this says whose a datagram is.
_endpoints: WeakKeyDictionary[Agent, dict[int, AgentTransport]] = WeakKeyDictionary()


async def create_datagram_endpoint(
    factory: Callable[[], P], *, agent: Agent, component: int = 1
) -> tuple[AgentTransport, P]:
    """Connect, and run a datagram protocol over the agent.

    Args:
        factory: makes the protocol; its ``connection_made`` gets the transport once there is a path.
        agent: with its peer's description known, now or soon. It stays open when the transport closes.
        component: 1 … 256; while any component has an endpoint, ``recv`` cannot be used on the others.

    Raises:
        ConnectFailed: there is no path.
        AgentClosed: the agent was closed.
        UsageError: the agent has no such component, or it has an endpoint already.
    """
    await agent.connect()
    if agent.path(component) is None:
        raise UsageError(f"component {component} is none of this agent's")
    if component in _endpoints.get(agent, {}):
        raise UsageError(f"component {component} has an endpoint already")
    protocol = factory()
    return AgentTransport(agent, protocol, component), protocol


class AgentTransport(asyncio.DatagramTransport):
    """Sends on the agent's selected path, and hears what arrives on any.

    ``sendto`` ignores the address. ``get_extra_info`` knows ``peername`` (a stable alias), ``sockname``, ``agent``.
    """

    def __init__(self, agent: Agent, protocol: asyncio.DatagramProtocol, component: int) -> None:
        path = agent.path(component)
        extra: dict[str, Any] = {"agent": agent, "peername": tuple(ALIAS)}
        if path is not None:
            extra["sockname"] = tuple(path.base)
        super().__init__(extra)
        self._agent = agent
        self._protocol = protocol
        self._component = component
        self._is_closing = False
        self._loop = asyncio.get_running_loop()
        self._events = agent.events()
        self._watcher: asyncio.Task[None] | None = None
        protocol.connection_made(self)
        if not self._is_closing:
            self._attach()

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Send one datagram.

        Where that is not possible, ``error_received`` hears an OSError, as over a socket: ENETUNREACH while there is no
        path, EMSGSIZE if it is too long. Nothing happens once the transport or the agent is closed.
        """
        if self._is_closing:
            return
        try:
            self._agent.send(bytes(data) if isinstance(data, bytearray) else data, self._component)  # type: ignore[arg-type]
        except AgentClosed:
            # connection_lost is on its way.
            return
        except UsageError as error:
            code = errno.ENETUNREACH if isinstance(error, NoPath) else errno.EMSGSIZE
            self._protocol.error_received(OSError(code, str(error)))

    def close(self) -> None:
        """Take the protocol off the agent, which stays open."""
        self._finish(None)

    def abort(self) -> None:
        """The same: what was sent is on its way, and the agent stays open."""
        self._finish(None)

    def is_closing(self) -> bool:
        return self._is_closing

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if not isinstance(protocol, asyncio.DatagramProtocol):
            raise UsageError(f"{protocol!r} is no DatagramProtocol")
        self._protocol = protocol

    def get_write_buffer_size(self) -> int:
        """Always 0: a datagram leaves within this turn of the loop or is dropped, so writing is never paused."""
        return 0

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return 0, 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer to limit."""

    def _attach(self) -> None:
        endpoints = _endpoints.setdefault(self._agent, {})
        endpoints[self._component] = self
        self._watcher = self._loop.create_task(self._watch(self._events))
        self._agent.set_data_handler(lambda data, component: _deliver(endpoints, data, component))

    def _on_data(self, data: bytes) -> None:
        self._protocol.datagram_received(data, tuple(ALIAS))

    async def _watch(self, events: EventStream) -> None:
        """End the protocol when the agent ends or fails."""
        async for event in events:
            if isinstance(event, StateChanged) and event.new is AgentState.FAILED:
                self._finish(ConnectionError(event.reason))
                return
        self._finish(None)

    def _finish(self, error: Exception | None) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._events.close()
        if self._watcher is not None:
            self._watcher.cancel()
            self._detach()
        self._loop.call_soon(self._protocol.connection_lost, error)

    def _detach(self) -> None:
        endpoints = _endpoints[self._agent]
        del endpoints[self._component]
        if not endpoints:
            with contextlib.suppress(AgentClosed):
                self._agent.set_data_handler(None)


def _deliver(endpoints: dict[int, AgentTransport], data: bytes, component: int) -> None:
    endpoint = endpoints.get(component)
    if endpoint is not None:
        endpoint._on_data(data)

"""How does an ``asyncio.DatagramProtocol`` run over an agent?

:func:`create_datagram_endpoint` gives any protocol written for a UDP socket (aioquic's, say) a transport whose network is the selected path. The
peer's real address changes as paths do, so the transport shows one stable alias.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from iceagent.agent import Agent
from iceagent.errors import IceAgentError, NoPath, UsageError
from iceagent.events import AgentState, StateChanged
from iceagent.net.address import TransportAddress

__all__ = ["AgentTransport", "create_datagram_endpoint"]

P = TypeVar("P", bound=asyncio.DatagramProtocol)

# RFC 3849's documentation prefix: an address that nobody has, and a fixed one, because paths change below the protocol.
ALIAS = TransportAddress("2001:db8::1ce", 1)


async def create_datagram_endpoint(
    factory: Callable[[], P], *, agent: Agent, component: int = 1
) -> tuple[AgentTransport, P]:
    """Connect, and run a datagram protocol over the agent.

    Args:
        factory: makes the protocol; its ``connection_made`` gets the transport once there is a path.
        agent: with its peer's description known, now or soon. It stays open when the transport closes.

    Raises:
        ConnectFailed: there is no path.
        AgentClosed: the agent was closed.
    """
    await agent.connect()
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
        protocol.connection_made(self)
        agent.set_data_handler(self._on_data)
        self._watcher = self._loop.create_task(self._watch())

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Send one datagram; without a path it is lost, as a network's would be, and ``error_received`` hears of it."""
        if self._is_closing:
            return
        try:
            self._agent.send(bytes(data) if isinstance(data, bytearray) else data, self._component)  # type: ignore[arg-type]
        except NoPath as error:
            self._protocol.error_received(error)

    def close(self) -> None:
        """Take the protocol off the agent, which stays open."""
        self._finish(None)

    def abort(self) -> None:
        """The same: nothing is buffered."""
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
        """Always 0: a datagram leaves at once or is dropped, so writing is never paused."""
        return 0

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return 0, 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer to limit."""

    def _on_data(self, data: bytes, component: int) -> None:
        if component == self._component and not self._is_closing:
            self._protocol.datagram_received(data, tuple(ALIAS))

    async def _watch(self) -> None:
        """End the protocol when the agent ends or fails."""
        stream = self._agent.events()
        try:
            async for event in stream:
                if isinstance(event, StateChanged) and event.new is AgentState.FAILED:
                    self._finish(ConnectionError(event.reason))
                    return
        finally:
            stream.close()
        self._finish(None)

    def _finish(self, error: Exception | None) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._watcher.cancel()
        try:
            self._agent.set_data_handler(None)
        except IceAgentError:
            # The agent is closed already.
            pass
        self._loop.call_soon(self._protocol.connection_lost, error)

"""How is one gateway spoken to on a real host? The shell around :class:`portmap.session.GatewaySession`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random

from iceagent.net.address import TransportAddress
from iceagent.net.core import Event, PacketDropped, Transmit
from iceagent.net.driver import Driver
from iceagent.net.host import DatagramSocket, Host, SocketOptions
from portmap.errors import FetchFailed
from portmap.events import Fetch
from portmap.session import GatewaySession
from portmap.values import Gateway, MapRequest, ProtocolName

__all__ = ["Site"]


class Site:
    """One gateway: its session, its socket, its HTTP exchanges. Belongs to the running loop.

    Args:
        host: whose sockets it uses.
        gateway: which.
        protocols: that may be used.
        rng: jitter.
        system_rng: nonces and ports.
        on_event: called with every event of the session but ``Fetch`` and ``PacketDropped``.

    Attributes:
        gateway: as given.
        session: the core.

    Raises:
        OSError: there can be no socket on the gateway's ``source``.
    """

    def __init__(
        self,
        host: Host,
        gateway: Gateway,
        protocols: Sequence[ProtocolName],
        rng: Random,
        system_rng: Random,
        on_event: Callable[[Site, Event], None],
    ) -> None:
        self.gateway = gateway
        self._host = host
        self._tell = on_event
        self._fetches: set[asyncio.Task[None]] = set()
        options = SocketOptions(scope_id=gateway.index, egress_index=gateway.index)
        self._socket: DatagramSocket = host.socket(TransportAddress(gateway.source, 0), self, options)
        self.session = GatewaySession(gateway, self._socket.address, rng, system_rng, protocols)
        self._driver = Driver(self.session, host, self._send, self._on_event)

    def map(self, key: int, request: MapRequest, protocols: Sequence[ProtocolName] | None = None) -> None:
        """See :meth:`GatewaySession.map`."""
        self._driver.command(self.session.map, key, request, protocols=protocols)

    def unmap(self, key: int) -> bool:
        """See :meth:`GatewaySession.unmap`."""
        return self._driver.command(self.session.unmap, key)

    def refresh(self) -> None:
        """See :meth:`GatewaySession.refresh`."""
        self._driver.command(self.session.refresh)

    def list_mappings(self) -> None:
        """See :meth:`portmap.upnp.UpnpClient.list_mappings`."""
        if self.session.upnp is not None:
            self._driver.command(self.session.list_mappings)

    def announced(self, base: TransportAddress, source: tuple[str, int], data: bytes) -> None:
        """A multicast datagram of the gateway arrived on another socket."""
        self._driver.datagram(base, source, data)

    def close(self) -> None:
        """End everything at once; idempotent."""
        self._driver.close()
        self._socket.close()
        for task in self._fetches:
            task.cancel()

    # --- the socket's receiver -----------------------------------------------------------------------------------

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        self._driver.datagram(socket.address, source, data)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        if destination is not None:
            self._driver.error(socket.address, destination, errno)

    # --- inside --------------------------------------------------------------------------------------------------

    def _send(self, transmit: Transmit) -> int:
        return self._socket.send(transmit.data, transmit.destination, transmit.ttl)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Fetch):
            task = asyncio.get_running_loop().create_task(self._fetch(event))
            self._fetches.add(task)
            task.add_done_callback(self._fetches.discard)
        elif not isinstance(event, PacketDropped):
            self._tell(self, event)

    async def _fetch(self, request: Fetch) -> None:
        # With h11: only who has a UPnP gateway needs it.
        from portmap.http import fetch

        try:
            response = await fetch(self._host, request)
        except FetchFailed as error:
            self._driver.command(self.session.handle_failure, request.number, str(error))
        else:
            self._driver.command(
                self.session.handle_response, request.number, response.status, response.headers, response.body
            )

"""How is one gateway spoken to on a real host? The shell around :class:`portmap.session.GatewaySession`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Sequence
from random import Random

from iceagent.net.address import TransportAddress
from iceagent.net.core import Event, PacketDropped, Transmit
from iceagent.net.driver import Driver
from iceagent.net.host import DatagramSocket, Host, SocketOptions
from portmap.errors import FetchFailed
from portmap.events import Fetch, Mapped, MappingLost, NoMapping, Unmapped
from portmap.session import GatewaySession
from portmap.upnp import MappingsListed
from portmap.values import Gateway, MapRequest, ProtocolName

__all__ = ["CHANGED", "Site"]

CHANGED = "the network changed"
"""Why something ended."""


class Site:
    """One gateway: its session, its socket, its HTTP exchanges. Belongs to the running loop.

    Args:
        host: whose sockets it uses.
        gateway: which.
        protocols: that may be used.
        rng: jitter.
        system_rng: nonces and ports.
        on_event: called with every event of the session but ``Fetch``, ``PacketDropped``, and what answers the calls of
            this class.

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
        self._deletions: dict[int, Callable[[bool], None]] = {}
        self._probes: dict[int, asyncio.Future[Mapped | NoMapping]] = {}
        self._listing: asyncio.Future[MappingsListed] | None = None
        self._settled: asyncio.Future[None] | None = None
        self._is_left = False
        self._is_closed = False
        options = SocketOptions(scope_id=gateway.index, egress_index=gateway.index)
        self._socket: DatagramSocket = host.socket(TransportAddress(gateway.source, 0), self, options)
        self.session = GatewaySession(gateway, self._socket.address, rng, system_rng, protocols)
        self._driver = Driver(self.session, host, self._send, self._on_event)

    def map(self, key: int, request: MapRequest) -> None:
        """See :meth:`GatewaySession.map`."""
        self._driver.command(self.session.map, key, request)

    def unmap(self, key: int, then: Callable[[bool], None] = lambda _: None) -> None:
        """See :meth:`GatewaySession.unmap`.

        Args:
            key: of the mapping.
            then: called once, with whether the gateway has deleted it: within half a second, or when this is closed.
        """
        # Its end may be heard of before the command returns.
        self._deletions[key] = then
        is_asked = not self._is_closed and self._driver.command(self.session.unmap, key)
        if not is_asked:
            self._on_deleted(key, is_confirmed=False)

    def refresh(self) -> None:
        """See :meth:`GatewaySession.refresh`."""
        if not self._is_closed:
            self._driver.command(self.session.refresh)

    def ask_again(self) -> None:
        """See :meth:`GatewaySession.ask_again`."""
        if not self._is_closed:
            self._driver.command(self.session.ask_again)

    def probe(self, key: int, request: MapRequest, name: ProtocolName) -> asyncio.Future[Mapped | NoMapping]:
        """Map by one protocol.

        Raises:
            ValueError: see :meth:`GatewaySession.map`.
        """
        future = self._probes[key] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: self._probes.pop(key, None))
        if self._is_left:
            future.set_result(_closed(key, name))
            return future
        try:
            self._driver.command(self.session.map, key, request, protocols=(name,))
        except ValueError:
            future.cancel()
            raise
        return future

    def list_mappings(self) -> asyncio.Future[MappingsListed]:
        """See :meth:`portmap.upnp.UpnpClient.list_mappings`; all who ask at once get one answer."""
        if self._listing is None or self._listing.done():
            self._listing = asyncio.get_running_loop().create_future()
            if self._is_left:
                self._end_listing()
            else:
                self._driver.command(self.session.list_mappings)
        return self._listing

    def announced(self, base: TransportAddress, source: tuple[str, int], data: bytes) -> None:
        """A multicast datagram of the gateway arrived on another socket."""
        self._driver.datagram(base, source, data)

    def leave(self) -> None:
        """The gateway is not ours any more: nobody who asks of it is kept waiting. Deletions go on."""
        self._is_left = True
        for key, future in list(self._probes.items()):
            if not future.done():
                future.set_result(_closed(key, *self.session.protocols))
        self._end_listing()

    def come_back(self) -> None:
        """It is ours again."""
        self._is_left = False
        self.refresh()

    async def settle(self) -> None:
        """Wait until no mapping is being deleted."""
        while self._deletions:
            if self._settled is None or self._settled.done():
                self._settled = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._settled)

    def close(self) -> Collection[asyncio.Task[None]]:
        """End everything at once; idempotent.

        Returns:
            What ends in the next turns of the loop.
        """
        self._is_closed = True
        self._driver.close()
        self._socket.close()
        for task in self._fetches:
            task.cancel()
        for key in list(self._deletions):
            self._on_deleted(key, is_confirmed=False)
        self.leave()
        return tuple(self._fetches)

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
        elif isinstance(event, Unmapped):
            self._on_deleted(event.key, is_confirmed=event.is_confirmed)
        elif isinstance(event, MappingsListed):
            if self._listing is not None and not self._listing.done():
                self._listing.set_result(event)
        elif isinstance(event, Mapped | NoMapping | MappingLost) and event.key in self._probes:
            future = self._probes[event.key]
            if not future.done() and not isinstance(event, MappingLost):
                future.set_result(event)
        elif not isinstance(event, PacketDropped):
            self._tell(self, event)

    def _on_deleted(self, key: int, *, is_confirmed: bool) -> None:
        then = self._deletions.pop(key, None)
        if then is not None:
            then(is_confirmed)
        if not self._deletions and self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    def _end_listing(self) -> None:
        if self._listing is not None and not self._listing.done():
            self._listing.set_result(MappingsListed(protocol="upnp", mappings=(), reason=CHANGED))

    async def _fetch(self, request: Fetch) -> None:
        # With h11: only who has a UPnP gateway needs it.
        from portmap.http import fetch

        try:
            response = await fetch(self._host, request)
        except FetchFailed as error:
            if not self._is_closed:
                self._driver.command(self.session.handle_failure, request.number, str(error))
        else:
            if not self._is_closed:
                self._driver.command(
                    self.session.handle_response, request.number, response.status, response.headers, response.body
                )


def _closed(key: int, *names: ProtocolName) -> NoMapping:
    return NoMapping(key=key, reasons=dict.fromkeys(names, CHANGED), retry_s=math.inf)

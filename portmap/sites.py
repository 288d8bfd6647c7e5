"""Which gateways are spoken to, and which ones were?

A gateway that goes is left, but not forgotten: when it is back, which may be in a second, it knows us by the same nonce
(RFC 6887, 11.2), without which it would keep a port that it could not be told to give up.

What gateways announce is heard here, on port 5350, for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from random import Random

from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from iceagent.net.host import DatagramSocket, Host, SocketOptions
from portmap.site import Site
from portmap.values import Gateway, ProtocolName

__all__ = ["Sites"]

MAX_LEFT = 4
"""Gateways that are not ours any more, and are remembered."""

ANNOUNCEMENT_PORT = 5350
"""RFC 6886, 3.2.1, and RFC 6887, 14.1.3 (19.1): where gateways announce that they restarted."""

_LISTENING_HOSTS = {4: "224.0.0.1", 6: "::"}
"""RFC 6886, 3.2.1: "bind specifically to 224.0.0.1:5350, not to 0.0.0.0:5350". Every host is in that group, and in
ff02::1, which is one for each interface, so that all are listened on together. Two routers with one link-local address
on two interfaces are then heard by both: at worst they are asked whether they restarted."""


class Sites:
    """The gateways of one mapper. An iterable of those that are ours.

    Args:
        host: whose.
        protocols: that may be used.
        rng: jitter.
        system_rng: nonces and ports.
        on_event: see :class:`portmap.site.Site`.
    """

    def __init__(
        self,
        host: Host,
        protocols: Sequence[ProtocolName],
        rng: Random,
        system_rng: Random,
        on_event: Callable[[Site, Event], None],
    ) -> None:
        self._host = host
        self._protocols = protocols
        self._rng = rng
        self._system_rng = system_rng
        self._on_event = on_event
        self._ours: dict[Gateway, Site] = {}
        self._left: dict[Gateway, Site] = {}
        self._multicast: dict[int, DatagramSocket | None] = {}
        self._is_closed = False

    def __iter__(self) -> Iterator[Site]:
        # Whoever hears of one may make or leave another one.
        return iter(tuple(self._ours.values()))

    def open(self, gateway: Gateway) -> Site:
        """Whom a gateway is asked through.

        Raises:
            OSError: there can be no socket.
            RuntimeError: this is closed.
        """
        site = self._ours.get(gateway)
        if site is not None:
            return site
        if self._is_closed:
            raise RuntimeError("the port mapper is closed")
        site = self._left.pop(gateway, None)
        if site is None:
            site = Site(self._host, gateway, self._protocols, self._rng, self._system_rng, self._on_event)
            self._ours[gateway] = site
        else:
            self._ours[gateway] = site
            site.come_back()
        self._listen(gateway.version)
        return site

    def leave(self, site: Site) -> None:
        """Its gateway is not ours any more. What is being deleted there goes on."""
        if self._ours.get(site.gateway) is not site:
            return
        self._left[site.gateway] = self._ours.pop(site.gateway)
        site.leave()
        while len(self._left) > MAX_LEFT:
            self._left.pop(next(iter(self._left))).close()

    async def settle(self) -> None:
        """Wait until no mapping is being deleted anywhere."""
        for site in (*self._ours.values(), *self._left.values()):
            await site.settle()

    def close(self) -> list[asyncio.Task[None]]:
        """Close all that is open; idempotent.

        Returns:
            What ends in the next turns of the loop.
        """
        self._is_closed = True
        sites = (*self._ours.values(), *self._left.values())
        self._ours.clear()
        self._left.clear()
        for socket in self._multicast.values():
            if socket is not None:
                socket.close()
        self._multicast.clear()
        return [task for site in sites for task in site.close()]

    def _listen(self, version: int) -> None:
        """Hear what gateways announce; where that is not possible, restarts are noticed when mappings are renewed."""
        if version not in self._multicast and not self._is_closed:
            self._multicast[version] = None
            group = TransportAddress(_LISTENING_HOSTS[version], ANNOUNCEMENT_PORT)
            with contextlib.suppress(OSError):
                self._multicast[version] = self._host.socket(group, self, SocketOptions(is_shared=True))

    # --- the socket's receiver -----------------------------------------------------------------------------------

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """A gateway, or somebody else, announces something."""
        for site in self:
            if site.gateway.host == source[0]:
                site.announced(socket.address, source, data)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """Nothing is sent from there."""

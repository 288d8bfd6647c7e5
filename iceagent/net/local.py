"""This machine, as a host: sockets, streams, names, interfaces and time of Linux on the running loop."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

from iceagent.net import resolve, sockets, streams
from iceagent.net.address import TransportAddress, canonical_host
from iceagent.net.host import (
    DatagramReceiver,
    DatagramSocket,
    DefaultRoute,
    Interface,
    Listener,
    Proxy,
    SocketOptions,
    SrvRecord,
    Stream,
    StreamListener,
    Subscription,
)
from iceagent.net.interfaces import read_interfaces
from iceagent.net.netlink import INTERFACE_GROUPS, open_netlink
from iceagent.net.routes import ROUTE_GROUPS, may_change_default_routes, read_default_routes
from iceagent.net.tables import KernelTable

__all__ = ["LocalHost", "local_host"]

_Socket = socket.socket  # In the class, ``socket`` is a method.
_hosts: WeakKeyDictionary[asyncio.AbstractEventLoop, LocalHost] = WeakKeyDictionary()


def local_host() -> LocalHost:
    """The one :class:`LocalHost` of the running loop, made at the first call.

    Raises:
        OSError: this system is not Linux.
        RuntimeError: no loop is running.
    """
    loop = asyncio.get_running_loop()
    host = _hosts.get(loop)
    if host is None:
        host = _hosts[loop] = LocalHost()
    return host


class LocalHost:
    """This machine; implements :class:`iceagent.net.host.Host`. Belongs to one loop, not thread-safe.

    Args:
        open_netlink: opens netlink sockets; another network namespace's for a laboratory.
        open_socket: makes sockets of streams, of a family and a kind; likewise.
        ssl_context: how TLS verifies servers, instead of by the system's authorities.

    Raises:
        OSError: this system is not Linux.
    """

    def __init__(
        self,
        *,
        open_netlink: Callable[[int], socket.socket] = open_netlink,
        open_socket: Callable[[int, int], socket.socket] = socket.socket,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError(f"iceagent runs on Linux; on {sys.platform} a Host of another make must be given")
        self._interfaces = KernelTable(read_interfaces, INTERFACE_GROUPS, open_netlink)
        self._routes = KernelTable(read_default_routes, ROUTE_GROUPS, open_netlink, may_change_default_routes)
        self._open_socket = open_socket
        self._ssl_context = ssl_context

    now = staticmethod(time.monotonic)
    """Seconds of the monotonic clock.

    asyncio's own; uvloop's timers use it too, but tell it in whole milliseconds, too coarse for round trips. The C
    function itself: the data path reads the time for every datagram.
    """

    def socket(self, local: TransportAddress, receiver: DatagramReceiver, options: SocketOptions) -> DatagramSocket:
        """Open and bind a UDP socket; port 0 takes a free one. See :func:`iceagent.net.sockets.open_socket`."""
        return sockets.open_socket(local, receiver, options, asyncio.get_running_loop())

    async def connect_tcp(
        self,
        remote: TransportAddress,
        listener: StreamListener,
        *,
        local: TransportAddress | None = None,
        tls_server_name: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        alpn: Sequence[str] = (),
        proxy: Proxy | None = None,
    ) -> Stream:
        """Connect; with ``tls_server_name``, TLS. See :func:`iceagent.net.streams.connect_tcp`."""
        return await streams.connect_tcp(
            remote,
            listener,
            local=local,
            tls_server_name=tls_server_name,
            ssl_context=self._ssl_context if ssl_context is None else ssl_context,
            alpn=alpn,
            proxy=proxy,
            resolve=self.resolve,
            open_socket=self._open_socket,
        )

    async def listen_tcp(
        self,
        local: TransportAddress,
        accept: Callable[[Stream], StreamListener],
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> Listener:
        """Accept TCP streams; with ``ssl_context``, TLS. See :func:`iceagent.net.streams.listen_tcp`."""
        return await streams.listen_tcp(local, accept, ssl_context=ssl_context, open_socket=self._open_socket)

    async def resolve(self, name: str) -> Sequence[str]:
        """Addresses of a name, in RFC 6724 order. See :func:`iceagent.net.resolve.resolve`."""
        return await resolve.resolve(name)

    async def resolve_srv(self, name: str) -> Sequence[SrvRecord]:
        """SRV records of a name; empty on failure. See :func:`iceagent.net.resolve.resolve_srv`."""
        return await resolve.resolve_srv(name)

    async def interfaces(self) -> Sequence[Interface]:
        """The table as it is now; at once while anybody watches it and nothing changed."""
        return await self._interfaces.read()

    def watch_interfaces(self, callback: Callable[[Sequence[Interface]], None]) -> Subscription:
        """Keep the table warm, and call ``callback`` with the whole of it whenever it changed."""
        return self._interfaces.subscribe(callback)

    async def default_routes(self) -> Sequence[DefaultRoute]:
        """All default routes as they are now, those with the lowest metric first."""
        return await self._routes.read()

    def watch_default_routes(self, callback: Callable[[Sequence[DefaultRoute]], None]) -> Subscription:
        """Keep them in mind, and call ``callback`` with all of them whenever they changed."""
        return self._routes.subscribe(callback)

    def source_host(self, destination: TransportAddress) -> str | None:
        """The local address that the routes choose for ``destination``; ``None``: no route. Sends nothing.

        A new socket every time (10 µs): one that was connected before would keep its first address.
        """
        family = socket.AF_INET6 if destination.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(tuple(destination))
            except OSError:
                return None
            return canonical_host(probe.getsockname()[0])

    def netlink(self, protocol: int) -> _Socket:
        """Open a netlink socket of this protocol (NETLINK_*).

        Raises:
            OSError: netlink is not allowed here.
        """
        return open_netlink(0, protocol)

    def suspended_s(self) -> float:
        """How many seconds this machine was suspended since it was started, by the kernel's two clocks."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()

    def close(self) -> None:
        """End what is kept warm; idempotent. Sockets and streams belong to who opened them."""
        self._interfaces.close()
        self._routes.close()

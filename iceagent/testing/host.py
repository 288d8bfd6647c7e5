"""How does a program get a host without leaving its process?

A :class:`MemoryHost` is one machine on a ``MemoryInternet``, with everything that :class:`iceagent.net.host.Host` asks
for; what a real machine's owner does by hand (plug in, roam, lose an address) is a method. Sockets are bound to one
address each: there are no wildcard addresses and no multicast.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from iceagent.net.address import TransportAddress, canonical_host, ip_address
from iceagent.net.core import Datagram, Transmit
from iceagent.net.host import (
    AddressFlag,
    DatagramReceiver,
    DefaultRoute,
    Interface,
    InterfaceAddress,
    InterfaceKind,
    Proxy,
    SocketOptions,
    SrvRecord,
    Stream,
    StreamListener,
    Subscription,
    send_each,
)
from iceagent.testing import streams
from iceagent.testing.links import DEFAULT_LATENCY_S
from iceagent.testing.network import IcmpError
from iceagent.testing.streams import MemoryListener
from iceagent.testing.topology import Link, NatNode, Node

if TYPE_CHECKING:
    from iceagent.testing.internet import MemoryInternet

__all__ = ["MemoryHost", "MemorySocket"]

EPHEMERAL_PORTS = range(32768, 61000)
"""Linux's ``ip_local_port_range``."""

PREFIX_LENGTHS = {4: 24, 6: 64}
LOOPBACK = Interface(
    name="lo",
    index=1,
    kind=InterfaceKind.LOOPBACK,
    mtu=65536,
    addresses=(InterfaceAddress(host="127.0.0.1", prefix_length=8), InterfaceAddress(host="::1", prefix_length=128)),
)


class MemorySocket:
    """A UDP socket; implements :class:`iceagent.net.host.DatagramSocket`."""

    def __init__(self, host: MemoryHost, address: TransportAddress, receiver: DatagramReceiver) -> None:
        self.address = address
        self._host = host
        self._receiver = receiver
        self._is_open = True

    def send(self, data: bytes, destination: tuple[str, int], ttl: int | None = None) -> int:
        """Send at once; returns 0 or an errno (EBADF once closed; else see :meth:`Network.send`)."""
        if not self._is_open:
            return errno.EBADF
        return self._host.send(Transmit(self.address, TransportAddress._make(destination), bytes(data), ttl))

    def send_many(self, datagrams: Sequence[bytes], destination: tuple[str, int]) -> tuple[int, int]:
        """Send these in order; returns how many left, and 0 or the errno of the next one."""
        return send_each(self, datagrams, destination)

    def close(self) -> None:
        """Close; idempotent. The receiver hears nothing afterwards."""
        if self._is_open:
            self._is_open = False
            self._host.release(self)

    def _datagram(self, data: bytes, source: TransportAddress) -> None:
        if self._is_open:
            self._receiver.datagram_received(self, data, source)

    def _error(self, destination: TransportAddress, code: int) -> None:
        if self._is_open:
            self._receiver.error_received(self, destination, code)


@dataclass(slots=True)
class _Attachment:
    """An interface and the link under it."""

    interface: Interface
    link: Link


class MemoryHost:
    """A machine in memory; implements :class:`iceagent.net.host.Host`. Made by ``MemoryInternet.host``.

    Attributes:
        node: the machine in the network; its links may be changed (loss, latency, cuts).
        names: names that this host alone knows, as in a hosts file.
    """

    def __init__(self, internet: MemoryInternet, node: Node) -> None:
        self.node = node
        self.names: dict[str, Sequence[str]] = {}
        self._internet = internet
        self._attachments: dict[str, _Attachment] = {}
        self._next_index = LOOPBACK.index + 1
        self._sockets: dict[TransportAddress, MemorySocket] = {}
        self._listeners: dict[TransportAddress, MemoryListener] = {}
        self._watchers: list[Callable[[Sequence[Interface]], None]] = []
        self._is_telling = False
        self._routes: tuple[DefaultRoute, ...] = ()
        self._route_watchers: list[Callable[[Sequence[DefaultRoute]], None]] = []
        self._suspended_s = 0.0

    def add_interface(
        self,
        name: str,
        addresses: Iterable[str],
        behind: NatNode | None = None,
        *,
        kind: InterfaceKind = InterfaceKind.ETHERNET,
        is_metered: bool = False,
        latency_s: float = DEFAULT_LATENCY_S,
    ) -> Link:
        """Plug in an interface and return its link.

        Raises:
            ValueError: the name or an address is taken.
        """
        if name in self._attachments or name == LOOPBACK.name:
            raise ValueError(f"{self.node.name} has an interface {name!r} already")
        link = self._internet.network.attach(self.node, (), behind, latency_s=latency_s)
        interface = Interface(name=name, index=self._next_index, kind=kind, metered=is_metered)
        self._next_index += 1
        self._attachments[name] = _Attachment(interface, link)
        for address in addresses:
            self.add_address(name, address)
        self._changed()
        return link

    def remove_interface(self, name: str) -> None:
        """Unplug an interface. Sockets bound to its addresses stay open and cannot send.

        Raises:
            KeyError: there is none of that name.
        """
        self._internet.network.detach(self._attachments.pop(name).link)
        self._changed()

    def add_address(self, name: str, address: str, flags: Iterable[AddressFlag] = ()) -> None:
        """Give an interface one more address.

        Raises:
            KeyError: there is no such interface.
            ValueError: the address is taken.
        """
        attachment = self._attachments[name]
        self._internet.network.add_address(attachment.link, address)
        host = canonical_host(address)
        prefix_length = PREFIX_LENGTHS[ip_address(host).version]
        added = InterfaceAddress(host=host, prefix_length=prefix_length, flags=frozenset(flags))
        interface = attachment.interface
        attachment.interface = replace(interface, addresses=(*interface.addresses, added))
        self._changed()

    def remove_address(self, name: str, address: str) -> None:
        """Take an address from an interface.

        Raises:
            KeyError: there is no such interface.
            ValueError: it does not have the address.
        """
        attachment = self._attachments[name]
        self._internet.network.remove_address(attachment.link, address)
        host = canonical_host(address)
        left = tuple(each for each in attachment.interface.addresses if each.host != host)
        attachment.interface = replace(attachment.interface, addresses=left)
        self._changed()

    def set_up(self, name: str, is_up: bool) -> None:
        """Lose the carrier of an interface, or get it back.

        Raises:
            KeyError: there is no such interface.
        """
        attachment = self._attachments[name]
        attachment.interface = replace(attachment.interface, is_up=is_up)
        if is_up:
            attachment.link.restore()
        else:
            attachment.link.cut()
        self._changed()

    def set_router(self, host: str | None, name: str = "eth0") -> None:
        """Have a default route by this router through an interface, in place of any other of its IP version; ``None``:
        no default routes. How packets find their way does not depend on it.

        Raises:
            KeyError: there is no such interface.
        """
        kept: tuple[DefaultRoute, ...] = ()
        if host is not None:
            version = ip_address(host).version
            index = self._attachments[name].interface.index
            others = tuple(route for route in self._routes if route.version != version)
            kept = (*others, DefaultRoute(index=index, router=canonical_host(host), version=version))
        self._routes = kept
        for watcher in tuple(self._route_watchers):
            self._internet.loop.call_soon(watcher, self._routes)

    def suspend(self, seconds: float) -> None:
        """Have been suspended: it is so much later for everybody else. The clock of the loop stands still by that, and
        what was under way stays so.
        """
        self._suspended_s += seconds

    def link(self, name: str = "eth0") -> Link:
        """The link under an interface.

        Raises:
            KeyError: there is no such interface.
        """
        return self._attachments[name].link

    def now(self) -> float:
        """Seconds of the loop's clock."""
        return self._internet.loop.time()

    def socket(self, local: TransportAddress, receiver: DatagramReceiver, options: SocketOptions) -> MemorySocket:
        """Open and bind a UDP socket; port 0 takes a free one.

        Raises:
            OSError: EADDRNOTAVAIL (not our address), EADDRINUSE, ENODEV (no such interface).
        """
        interface = options.interface
        if interface is not None and interface not in self._attachments and interface != LOOPBACK.name:
            raise OSError(errno.ENODEV, f"{self.node.name} has no interface {interface!r}")
        address = self._bindable(local, self._sockets)
        opened = self._sockets[address] = MemorySocket(self, address, receiver)
        if self.node.ports is not None:
            self.node.ports.add(address)
        return opened

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
        """Connect; with ``tls_server_name``, to a listener that has an ``ssl_context``.

        ``ssl_context`` and ``alpn`` have no effect.

        Raises:
            OSError: see :func:`iceagent.testing.streams.connect`; ENOTSUP with a ``proxy``: there are none in memory.
        """
        if proxy is not None:
            raise OSError(errno.ENOTSUP, f"{self.node.name} is in memory, where there are no proxies")
        if local is None:
            host = self.source_host(remote)
            if host is None:
                raise OSError(errno.ENETUNREACH, f"{self.node.name} has no route to {remote}")
            local = TransportAddress(host, 0)
        source = self._bindable(local, self._listeners)
        route = streams.find_route(self.node, source, remote)

        def find_listener(node: Node) -> MemoryListener | None:
            return self._internet.listener_at(node, remote)

        is_tls = tls_server_name is not None
        return await streams.connect(route, find_listener, source, remote, listener, is_tls=is_tls)

    async def listen_tcp(
        self,
        local: TransportAddress,
        accept: Callable[[Stream], StreamListener],
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> MemoryListener:
        """Accept streams; with ``ssl_context`` (not looked into), only from clients that speak TLS.

        Raises:
            OSError: EADDRNOTAVAIL (not our address) or EADDRINUSE.
        """
        address = self._bindable(local, self._listeners)

        def release() -> None:
            if self._listeners.get(address) is opened:
                del self._listeners[address]

        opened = self._listeners[address] = MemoryListener(address, accept, ssl_context is not None, release)
        return opened

    async def resolve(self, name: str) -> Sequence[str]:
        """Addresses from :attr:`names`, then from ``MemoryInternet.names``; IP addresses resolve to themselves.

        Raises:
            socket.gaierror: no such name.
        """
        try:
            return (canonical_host(name),)
        except ValueError:
            found = self.names.get(name) or self._internet.names.get(name)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, f"no address for {name!r}")
        return tuple(canonical_host(host) for host in found)

    async def resolve_srv(self, name: str) -> Sequence[SrvRecord]:
        """SRV records from ``MemoryInternet.services``; empty where there are none."""
        return tuple(self._internet.services.get(name, ()))

    async def interfaces(self) -> Sequence[Interface]:
        """The table as it is now, ``lo`` first."""
        return self._table()

    def watch_interfaces(self, callback: Callable[[Sequence[Interface]], None]) -> Subscription:
        """Call ``callback`` with the whole table, soon after it changed; changes made at once are told at once."""
        self._watchers.append(callback)

        def release() -> None:
            self._watchers.remove(callback)

        return Subscription(release)

    async def default_routes(self) -> Sequence[DefaultRoute]:
        """What :meth:`set_router` said."""
        return self._routes

    def watch_default_routes(self, callback: Callable[[Sequence[DefaultRoute]], None]) -> Subscription:
        """Call ``callback`` with all of them, soon after they changed."""
        self._route_watchers.append(callback)

        def release() -> None:
            self._route_watchers.remove(callback)

        return Subscription(release)

    def source_host(self, destination: TransportAddress) -> str | None:
        """The first address of its IP version on an interface that is up; a destination's own if it is ours."""
        if self.node.has(destination.host):
            return destination.host
        for attachment in self._attachments.values():
            for address in attachment.interface.addresses:
                is_fit = ip_address(address.host).version == destination.version
                if is_fit and attachment.interface.is_up and AddressFlag.DEPRECATED not in address.flags:
                    return address.host
        return None

    def suspended_s(self) -> float:
        """What :meth:`suspend` said, all in all."""
        return self._suspended_s

    def listener_at(self, address: TransportAddress) -> MemoryListener | None:
        """Who accepts streams there."""
        return self._listeners.get(address)

    def send(self, transmit: Transmit) -> int:
        """Put a datagram of one of our sockets on the network; returns 0 or an errno."""
        code = self._internet.network.send(self.node, transmit, self.now())
        self._internet.wake()
        return code

    def release(self, closed: MemorySocket) -> None:
        """Free the address of a socket that was closed."""
        del self._sockets[closed.address]
        if self.node.ports is not None:
            self.node.ports.discard(closed.address)

    def deliver(self, datagram: Datagram) -> None:
        """A datagram arrived. It gets a callback of its own: one receiver's error costs no other its datagram."""
        receiver = self._sockets.get(datagram.base)
        if receiver is not None:
            self._internet.loop.call_soon(receiver._datagram, datagram.data, datagram.source)

    def report(self, error: IcmpError) -> None:
        """An ICMP error arrived."""
        receiver = self._sockets.get(error.base)
        if receiver is not None:
            self._internet.loop.call_soon(receiver._error, error.destination, error.errno)

    def _bindable(self, local: TransportAddress, taken: Container[TransportAddress]) -> TransportAddress:
        if not self.node.has(local.host):
            raise OSError(errno.EADDRNOTAVAIL, f"{local.host} is not an address of {self.node.name}")
        if local.port:
            if local in taken:
                raise OSError(errno.EADDRINUSE, f"{local} is in use")
            return local
        start = self._internet.network.rng.randrange(len(EPHEMERAL_PORTS))
        for offset in range(len(EPHEMERAL_PORTS)):
            port = EPHEMERAL_PORTS[(start + offset) % len(EPHEMERAL_PORTS)]
            if (address := TransportAddress(local.host, port)) not in taken:
                return address
        raise OSError(errno.EADDRINUSE, f"no free port on {local.host}")

    def _table(self) -> tuple[Interface, ...]:
        return (LOOPBACK, *(attachment.interface for attachment in self._attachments.values()))

    def _changed(self) -> None:
        if not self._is_telling:
            self._is_telling = True
            self._internet.loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._is_telling = False
        for watcher in tuple(self._watchers):
            watcher(self._table())

"""Which sockets does a host punch from, or listen on?

One on the address that leads to the other end; or, for who is asked, one on every address, now and whenever addresses
come and go, since an answer has to leave from where it was asked.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from random import Random

from iceagent.config import Config
from iceagent.errors import ConnectFailed
from iceagent.gather.bases import open_socket, socket_options
from iceagent.gather.host import HostAddress, select_addresses
from iceagent.net.address import TransportAddress, canonical_host, ip_address
from iceagent.net.core import Core, Event, Transmit
from iceagent.net.driver import Driver
from iceagent.net.host import DatagramSocket, Host, Interface, InterfaceKind, SocketOptions
from relay.udp_listening import UdpHooks, UdpSockets, each_address, with_free_port

__all__ = ["DEFAULT_CONFIG", "PunchFailed", "Sockets", "fits", "way_out", "way_to"]

DEFAULT_CONFIG = Config(loopback=True)

PORT_ATTEMPTS = 64
"""Ports that are tried before none counts as free on all addresses."""

# Port 9 is discard: nothing is sent, the routes are asked.
_SOMEWHERE = {4: TransportAddress("192.0.2.1", 9), 6: TransportAddress("2001:db8::1", 9)}


class PunchFailed(ConnectFailed):
    """Nobody has answered in time, or there is no way to the other end; the text says why, address by address."""


class Sockets:
    """Sockets of one core; a receiver of theirs.

    Args:
        host: where they are.
        config: how they are opened.
        rng: chooses ports, where the configuration has a range of them.

    Attributes:
        by_base: those that are open.
        receive: is told what they receive; ``None``: nobody is.
        report: is told of errors, likewise.
    """

    def __init__(self, host: Host, config: Config, rng: Random) -> None:
        self.host = host
        self.config = config
        self.rng = rng
        self.by_base: dict[TransportAddress, DatagramSocket] = {}
        self.receive: Callable[[TransportAddress, tuple[str, int], bytes], None] | None = None
        self.report: Callable[[TransportAddress, TransportAddress, int], None] | None = None
        self._listening = UdpSockets(host)
        self._told: frozenset[TransportAddress] | None = None

    def open(self, address: HostAddress) -> TransportAddress:
        """A new one.

        Raises:
            OSError: the address cannot be bound, or no port is free.
        """
        socket = open_socket(self.host, address, self, self.config, self.rng)
        self.by_base[socket.address] = socket
        return socket.address

    async def listen(self, changed: Callable[[], None]) -> None:
        """Have a socket on every address that may be used, all on one port, and follow when addresses come and go.

        Args:
            changed: is called when they have, from now on.

        Raises:
            PunchFailed: there is none.
            OSError: a port cannot be had; the text says which.
        """
        listeners = listening_addresses(await self.host.interfaces(), self.config)
        if not listeners:
            raise PunchFailed("this host has no address that may be used")

        def followed(_: Sequence[Interface]) -> None:
            bases = frozenset(self.by_base)
            if self._told not in (None, bases):
                self._told = bases
                changed()

        hooks = UdpHooks(inbox=lambda: self, opened=self._on_opened, closed=self._on_closed, not_opened=lambda: None)
        clash: OSError | None = None
        for port in self._ports(listeners[0]):
            try:
                await self._listening.follow(partial(self._wanted, port), hooks, followed)
            except OSError as error:
                self._stop_listening()
                if error.errno != errno.EADDRINUSE:
                    raise
                clash = error
            else:
                self._told = frozenset(self.by_base)
                return
        assert clash is not None
        raise clash

    def close(self, bases: Iterable[TransportAddress] | None = None) -> None:
        """Close these, or all; those that are closed already are fine."""
        if bases is None:
            self._stop_listening()
        for base in list(self.by_base if bases is None else bases):
            socket = self.by_base.pop(base, None)
            if socket is not None:
                socket.close()

    def send(self, transmit: Transmit) -> int:
        """For a driver: 0, or an errno."""
        socket = self.by_base.get(transmit.base)
        if socket is None:
            return errno.EADDRNOTAVAIL
        return socket.send(transmit.data, transmit.destination, transmit.ttl)

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """Something came in."""
        if self.receive is not None:
            self.receive(socket.address, source, data)

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """The network said no."""
        if self.report is not None and destination is not None:
            self.report(socket.address, destination, errno)

    def pump(self, core: Core, on_event: Callable[[Event], None]) -> Driver:
        """Give all that comes in to ``core``."""
        driver = Driver(core, self.host, self.send, on_event)
        self.receive, self.report = driver.datagram, driver.error
        return driver

    def _stop_listening(self) -> None:
        for base in self._listening.by_address:
            self.by_base.pop(base, None)
        self._listening.close()

    def _wanted(self, port: int, interfaces: Sequence[Interface]) -> dict[TransportAddress, SocketOptions]:
        addresses = listening_addresses(interfaces, self.config)
        return {TransportAddress(each.host, port): socket_options(each, self.config) for each in addresses}

    def _ports(self, first: HostAddress) -> Iterator[int]:
        """What may be listened on, in the order of being tried; free on the first address, where there is no range."""
        if self.config.port_range is None:
            for _ in range(PORT_ATTEMPTS):
                options = socket_options(first, self.config)
                yield with_free_port(self.host, TransportAddress(first.host, 0), options).port
        else:
            low, high = self.config.port_range
            yield from self.rng.sample(range(low, high + 1), min(high - low + 1, PORT_ATTEMPTS))

    def _on_opened(self, base: TransportAddress) -> None:
        self.by_base[base] = self._listening.by_address[base]

    def _on_closed(self, base: TransportAddress) -> None:
        self.by_base.pop(base, None)


def way_to(host: Host, interfaces: Sequence[Interface], config: Config, remote: TransportAddress) -> HostAddress | None:
    """The address of ours to speak to ``remote`` from: the one that the routes choose, if it may be used."""
    chosen = host.source_host(remote)
    usable = [address for address in _own_addresses(interfaces, config) if fits(address.host, remote)]
    return next((address for address in usable if address.host == chosen), usable[0] if usable else None)


def way_out(host: Host, interfaces: Sequence[Interface], config: Config, version: int) -> HostAddress | None:
    """The address of ours for whoever is not known yet: as if it were far away; loopback is for who has named it."""
    usable = [each for each in _own_addresses(interfaces, config) if ip_address(each.host).version == version]
    if not config.bind_hosts:
        usable = [address for address in usable if not ip_address(address.host).is_loopback]
    chosen = host.source_host(_SOMEWHERE[version])
    return next((address for address in usable if address.host == chosen), usable[0] if usable else None)


def fits(ours: str, remote: TransportAddress) -> bool:
    """Whether packets between the two can go both ways."""
    ip, other = ip_address(ours), ip_address(remote.host)
    if ip.version != other.version:
        return False
    return ip.is_loopback == other.is_loopback and ip.is_link_local == other.is_link_local


def listening_addresses(interfaces: Sequence[Interface], config: Config) -> list[HostAddress]:
    """Addresses of ours to be asked at: also those that are not to be spoken from, as stable ones beside temporary
    ones (RFC 8981), for others may know them.
    """
    found = [
        HostAddress(
            host=address.host,
            interface=interface.name,
            index=interface.index,
            kind=interface.kind,
            metered=interface.metered,
        )
        for interface, address in each_address(interfaces)
        if config.interface_filter is None or config.interface_filter(interface)
    ]
    found += _loopback_hosts(config, {each.host for each in found})
    return [address for address in found if _may_be(address, config)]


def _may_be(address: HostAddress, config: Config) -> bool:
    ip = ip_address(address.host)
    named = {canonical_host(host) for host in config.bind_hosts}
    is_wanted = address.host in named if named else config.loopback or not ip.is_loopback
    is_admitted = config.address_filter is None or config.address_filter(ip)
    return is_wanted and is_admitted and (config.ipv4 if ip.version == 4 else config.ipv6)


def _own_addresses(interfaces: Sequence[Interface], config: Config) -> list[HostAddress]:
    """Addresses of ours to speak from."""
    found = select_addresses(interfaces, config)
    return [*found, *_loopback_hosts(config, {each.host for each in found})]


def _loopback_hosts(config: Config, known: Iterable[str]) -> list[HostAddress]:
    """Every address of 127/8 that is named is one of ours, whatever the interfaces say."""
    return [
        HostAddress(host=host, interface="lo", index=0, kind=InterfaceKind.LOOPBACK, metered=False)
        for host in config.bind_hosts
        if ip_address(host).is_loopback and host not in known
    ]

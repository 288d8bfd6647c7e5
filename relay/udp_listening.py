"""How does a service answer over UDP from exactly the address that it was asked at?

A socket on a wildcard address cannot, on a host with several addresses: the routes choose the source. So a wildcard
stands for one socket on each address of the host, now and whenever the addresses change.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iceagent.net.address import TransportAddress, canonical_host, ip_address
from iceagent.net.host import (
    AddressFlag,
    DatagramReceiver,
    DatagramSocket,
    Host,
    Interface,
    InterfaceAddress,
    SocketOptions,
    Subscription,
)
from relay.stun_server import BROADCAST

__all__ = [
    "Deaf",
    "UdpHooks",
    "UdpSockets",
    "bound_hosts",
    "check_interface",
    "each_address",
    "explained",
    "scope_of",
    "with_free_port",
]

_UNUSABLE = frozenset({AddressFlag.TENTATIVE, AddressFlag.DADFAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpHooks:
    """Who hears of the sockets.

    Attributes:
        inbox: makes who is told what a socket receives.
        opened: a socket is there.
        closed: one has gone, with its address.
        not_opened: one that was wanted could not be had; it may later on.
    """

    inbox: Callable[[], DatagramReceiver]
    opened: Callable[[TransportAddress], None]
    closed: Callable[[TransportAddress], None]
    not_opened: Callable[[], None]


Wanted = Callable[[Sequence[Interface]], Mapping[TransportAddress, SocketOptions]]
"""Which sockets there are to be, of a table of interfaces."""


class UdpSockets:
    """UDP sockets on addresses of a host: on fixed ones, and on those that are wanted as the interfaces are.

    Args:
        host: whose.

    Attributes:
        by_address: the sockets.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._fixed: set[TransportAddress] = set()
        self._subscription = Subscription()
        self.by_address: dict[TransportAddress, DatagramSocket] = {}

    def open(self, address: TransportAddress, hooks: UdpHooks, options: SocketOptions | None = None) -> None:
        """A socket on this address, until :meth:`close`.

        Raises:
            OSError: it cannot be used; the text says why.
        """
        self._fixed.add(self._open(address, hooks, options or SocketOptions()))

    async def follow(
        self, wanted: Wanted, hooks: UdpHooks, followed: Callable[[Sequence[Interface]], None] | None = None
    ) -> None:
        """Have the sockets that are wanted, from now on; ``followed`` is called whenever that was done.

        Raises:
            OSError: an address cannot be used, because its port is in use for instance. One that has just gone, and
                later on whatever cannot be had, is no error.
        """

        def change(interfaces: Sequence[Interface], *, is_start: bool = False) -> None:
            self._follow(wanted(interfaces), hooks, is_start=is_start)
            if followed is not None:
                followed(interfaces)

        # Watched first, read then: no change falls between the two.
        self._subscription = self._host.watch_interfaces(change)
        change(await self._host.interfaces(), is_start=True)

    def stop_following(self) -> None:
        """What is open stays so; idempotent."""
        self._subscription.close()

    def close(self) -> None:
        """Close everything; idempotent."""
        self.stop_following()
        for socket in self.by_address.values():
            socket.close()
        self.by_address.clear()
        self._fixed.clear()

    def _open(self, address: TransportAddress, hooks: UdpHooks, options: SocketOptions) -> TransportAddress:
        try:
            socket = self._host.socket(address, hooks.inbox(), options)
        except OSError as error:
            raise explained(error, "udp", address) from error
        self.by_address[socket.address] = socket
        hooks.opened(socket.address)
        return socket.address

    def _follow(self, wanted: Mapping[TransportAddress, SocketOptions], hooks: UdpHooks, *, is_start: bool) -> None:
        for address in [each for each in self.by_address if each not in wanted and each not in self._fixed]:
            self.by_address.pop(address).close()
            hooks.closed(address)
        for address, options in wanted.items():
            if address in self.by_address:
                continue
            try:
                self._open(address, hooks, options)
            except OSError as error:
                # An address that has just gone is no failure; later on, neither is a port that somebody else took.
                if is_start and error.errno != errno.EADDRNOTAVAIL:
                    raise
                hooks.not_opened()


def each_address(interfaces: Iterable[Interface]) -> Iterable[tuple[Interface, InterfaceAddress]]:
    """Every address that a socket can be bound to."""
    for interface in interfaces:
        for address in interface.addresses:
            if not address.flags & _UNUSABLE:
                yield interface, address


def scope_of(interface: Interface, host: str) -> int:
    """The scope id of a socket on an address of an interface; 0 where none is needed."""
    ip = ip_address(host)
    return interface.index if ip.version == 6 and ip.is_link_local else 0


def check_interface(interfaces: Iterable[Interface], name: str | None) -> None:
    """See that there is an interface of this name; ``None``: any will do.

    Raises:
        OSError: there is none (ENODEV); the text says which there are.
    """
    names = [each.name for each in interfaces]
    if name is not None and name not in names:
        raise OSError(errno.ENODEV, f"there is no interface {name}; there are {', '.join(names)}", name)


def bound_hosts(value: Any, versions: Container[int] = (4, 6)) -> tuple[str, ...]:
    """The addresses of a setting ``bind``, canonical, each once.

    Args:
        versions: the IP versions that are to be used.

    Raises:
        ValueError: it is something else, or one of them is no address of a host, or of another IP version.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ValueError(f'bind is {value!r}, several addresses are expected, as in ("192.0.2.1",)')
    found = []
    for each in value:
        try:
            host = canonical_host(each)
        except (ValueError, AttributeError):
            raise ValueError(f"bind: {each!r} is not an IP address") from None
        if ip_address(host).version not in versions:
            raise ValueError(f"bind: {host} is of an IP version that is not to be used")
        if ip_address(host).is_multicast or host == BROADCAST:
            raise ValueError(f"bind: {host} is a multicast or broadcast address, which belongs to no host")
        found.append(host)
    return tuple(dict.fromkeys(found))


def with_free_port(host: Host, address: TransportAddress, options: SocketOptions | None = None) -> TransportAddress:
    """The same address with a port that is free now.

    Raises:
        OSError: the address cannot be used.
    """
    try:
        socket = host.socket(address, Deaf(), options or SocketOptions())
    except OSError as error:
        raise explained(error, "udp", address) from error
    try:
        return address._replace(port=socket.address.port)
    finally:
        socket.close()


class Deaf:
    """For a socket that nobody was told of, and that sends nothing."""

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """It is for nobody."""

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """It sends nothing."""


def explained(error: OSError, transport: str, address: TransportAddress) -> OSError:
    """The same error; the text says for what, and where."""
    number = error.errno or errno.EIO
    reason = "the port is in use" if number == errno.EADDRINUSE else error.strerror or str(error)
    return OSError(number, f"cannot listen on {address} ({transport}): {reason}")

"""What does a STUN and TURN server listen on?

Every listen address gets UDP and TCP, and TLS where a certificate is given. Over UDP, "the source IP address and port
of the response are equal to the destination IP address and port of the received request message" (RFC 8489, 6.3.1.2). A
socket on a wildcard address cannot keep that on a host with several addresses: the routes choose. So a wildcard stands
for one socket on each address of the host, now and whenever the addresses change.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from iceagent.net.address import TransportAddress, canonical_host, ip_address, quoted
from iceagent.net.host import (
    AddressFlag,
    DatagramReceiver,
    DatagramSocket,
    Host,
    Interface,
    Listener,
    SocketOptions,
    Stream,
    StreamListener,
    Subscription,
)
from relay.stun_server import BROADCAST, discovery_table

__all__ = [
    "Hooks",
    "Listening",
    "NoAddressOfOurs",
    "Sockets",
    "check_own",
    "discovery_pairs",
    "plan",
    "wanted_addresses",
]

_UNUSABLE = frozenset({AddressFlag.TENTATIVE, AddressFlag.DADFAILED})
_FAMILY_MISSING = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})

Transport = Literal["udp", "tcp", "tls"]


class NoAddressOfOurs(OSError):
    """Something is to be on an address that this host does not have, or cannot use; ``filename`` is that address."""


class Listening(NamedTuple):
    """One thing that a server listens on."""

    transport: Transport
    address: TransportAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Who hears of what a server listens on.

    Attributes:
        inbox: makes who is told what a UDP socket receives.
        accept: takes a new stream.
        opened: a UDP socket is there.
        closed: one has gone, with its address.
        not_opened: one that was wanted could not be had; it may later on.
    """

    inbox: Callable[[], DatagramReceiver]
    accept: Callable[[Stream], StreamListener]
    opened: Callable[[TransportAddress], None]
    closed: Callable[[TransportAddress], None]
    not_opened: Callable[[], None]


class Sockets:
    """Everything that a server listens on.

    Args:
        host: whose.

    Attributes:
        listening: what; a wildcard is told as such.
        udp: the sockets, by address.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._streams: list[Listener] = []
        self._wildcards: list[TransportAddress] = []
        self._subscription = Subscription()
        self.listening: list[Listening] = []
        self.udp: dict[TransportAddress, DatagramSocket] = {}

    async def open(
        self, addresses: Sequence[TransportAddress], hooks: Hooks, *, tls: ssl.SSLContext | None, tls_port: int
    ) -> None:
        """Open UDP and TCP on each address, and with a context TLS on each host.

        Raises:
            OSError: an address cannot be used; the text says which one, and for what.
        """
        for address in addresses:
            await self._listen(address, hooks, is_only=len(addresses) == 1)
        if tls is not None:
            for host in dict.fromkeys(each.address.host for each in self.listening):
                await self._listen_tls(TransportAddress(host, tls_port), hooks, tls)
        if self._wildcards:
            # Watched first, read then: no change falls between the two.
            self._subscription = self._host.watch_interfaces(
                lambda interfaces: self._follow(interfaces, hooks, is_start=False)
            )
            self._follow(await self._host.interfaces(), hooks, is_start=True)
        if not self.listening:
            raise OSError(errno.EADDRNOTAVAIL, "no address of this host can be listened on")

    def stop_accepting(self) -> None:
        """No new streams, and no new addresses."""
        self._subscription.close()
        for listener in self._streams:
            listener.close()
        self._streams.clear()
        self._wildcards.clear()
        self.listening.clear()

    def close(self) -> None:
        """Close everything; idempotent."""
        self.stop_accepting()
        for socket in self.udp.values():
            socket.close()
        self.udp.clear()

    async def _listen(self, address: TransportAddress, hooks: Hooks, *, is_only: bool) -> None:
        """UDP and TCP on one address. A wildcard of an IP version that this host does not have is left out."""
        is_wildcard = ip_address(address.host).is_unspecified
        try:
            listener = await self._host.listen_tcp(address, hooks.accept)
        except OSError as error:
            if is_wildcard and not is_only and error.errno in _FAMILY_MISSING:
                return
            raise _explained(error, "tcp", address) from error
        self._streams.append(listener)
        if is_wildcard:
            self._wildcards.append(address)
        else:
            self._open_socket(address, hooks, SocketOptions())
        self.listening += [Listening("udp", address), Listening("tcp", address)]

    async def _listen_tls(self, address: TransportAddress, hooks: Hooks, context: ssl.SSLContext) -> None:
        try:
            listener = await self._host.listen_tcp(address, hooks.accept, ssl_context=context)
        except OSError as error:
            raise _explained(error, "tls", address) from error
        self._streams.append(listener)
        self.listening.append(Listening("tls", listener.address))

    def _open_socket(self, address: TransportAddress, hooks: Hooks, options: SocketOptions) -> None:
        try:
            socket = self._host.socket(address, hooks.inbox(), options)
        except OSError as error:
            raise _explained(error, "udp", address) from error
        self.udp[socket.address] = socket
        hooks.opened(socket.address)

    def _follow(self, interfaces: Sequence[Interface], hooks: Hooks, *, is_start: bool) -> None:
        """Have a socket on each address that a wildcard stands for, and on no other."""
        wanted = dict(_each_address(interfaces, self._wildcards))
        kept = {each.address for each in self.listening}
        for address in [each for each in self.udp if each not in wanted and each not in kept]:
            self.udp.pop(address).close()
            hooks.closed(address)
        for address, options in wanted.items():
            if address in self.udp:
                continue
            try:
                self._open_socket(address, hooks, options)
            except OSError as error:
                # An address that has just gone is no failure; later on, neither is a port that somebody else took.
                if is_start and error.errno != errno.EADDRNOTAVAIL:
                    raise
                hooks.not_opened()


def wanted_addresses(listen: Any) -> tuple[TransportAddress, ...]:
    """The addresses to listen on, canonical, each once.

    Raises:
        ValueError: there are none, or something is no address of a host; the text says what is expected.
    """
    if isinstance(listen, TransportAddress):
        raise ValueError(f"listen is one address, several are expected: [{listen!r}]")
    if isinstance(listen, str | bytes):
        raise ValueError('listen is a text, addresses are expected: [TransportAddress("0.0.0.0", 3478)]')
    if not isinstance(listen, Iterable):
        raise ValueError(f"listen is of type {type(listen).__name__}, addresses are expected")
    found = tuple(dict.fromkeys(_wanted(each) for each in listen))
    if not found:
        raise ValueError("a server needs an address to listen on")
    return found


def _wanted(address: Any) -> TransportAddress:
    if not isinstance(address, TransportAddress):
        is_pair = isinstance(address, tuple) and len(address) == 2
        hint = f"TransportAddress{address!r}" if is_pair else 'TransportAddress("0.0.0.0", 3478)'
        raise ValueError(f"listen has something of type {type(address).__name__} in it, expected is {hint}")
    # A named tuple checks nothing.
    host: Any = address.host
    port: Any = address.port
    try:
        host = canonical_host(host)
    except (ValueError, AttributeError):
        raise ValueError(f"listen: {quoted(str(host))} is not an IP address; a name is to be resolved first") from None
    if ip_address(host).is_multicast or host == BROADCAST:
        raise ValueError(f"listen: {host} is a multicast or broadcast address, which belongs to no host")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ValueError(f"listen: {port!r} is not a port; allowed are 0, for a free one, to 65535")
    return TransportAddress(host, port)


def check_own(host: Host, wanted: Iterable[str]) -> None:
    """See that sockets can be opened on these addresses.

    Raises:
        NoAddressOfOurs: on one they cannot; the text says which.
    """
    for each in wanted:
        try:
            host.socket(TransportAddress(each, 0), _Deaf(), SocketOptions()).close()
        except OSError as error:
            is_absent = error.errno == errno.EADDRNOTAVAIL
            reason = "it is no address of this host" if is_absent else error.strerror or str(error)
            text = f"cannot relay on {each}: {reason}"
            raise NoAddressOfOurs(error.errno or errno.EIO, text, each) from error


def plan(
    host: Host, asked: Sequence[TransportAddress], *, behaviour_discovery: bool = False
) -> tuple[TransportAddress, ...]:
    """The addresses with ports: a free one in place of each 0; one for all where there is behaviour discovery.

    Raises:
        OSError: an address cannot be used.
    """
    if all(address.port for address in asked):
        return tuple(asked)
    if not behaviour_discovery:
        return tuple(address if address.port else _with_free_port(host, address) for address in asked)
    port = _with_free_port(host, asked[0]).port
    return tuple(address if address.port else address._replace(port=port) for address in asked)


def discovery_pairs(addresses: Sequence[TransportAddress]) -> list[tuple[TransportAddress, TransportAddress]]:
    """Primary and alternate address of each IP version in use.

    Raises:
        ValueError: there are not exactly two concrete ones, or they do not go together.
    """
    pairs = []
    for version in sorted({address.version for address in addresses}):
        same = [address for address in addresses if address.version == version]
        if len(same) != 2 or any(ip_address(address.host).is_unspecified for address in same):
            raise ValueError(
                f"behaviour discovery needs exactly two concrete IPv{version} addresses to listen on "
                f"(RFC 5780, 6), not {', '.join(address.host for address in same)}"
            )
        primary, alternate = same
        if alternate.port == primary.port:
            alternate = alternate._replace(port=primary.port % 65535 + 1)
        discovery_table([(primary, alternate)])
        pairs.append((primary, alternate))
    return pairs


def _with_free_port(host: Host, address: TransportAddress) -> TransportAddress:
    try:
        socket = host.socket(address, _Deaf(), SocketOptions())
    except OSError as error:
        raise _explained(error, "udp", address) from error
    try:
        return address._replace(port=socket.address.port)
    finally:
        socket.close()


class _Deaf:
    """For a socket that only finds a free port."""

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """Nobody was told of this port."""

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """It sends nothing."""


def _each_address(
    interfaces: Iterable[Interface], wildcards: Sequence[TransportAddress]
) -> Iterable[tuple[TransportAddress, SocketOptions]]:
    """What the wildcards stand for: every usable address of their IP version, with their port."""
    for interface in interfaces:
        for address in interface.addresses:
            if address.flags & _UNUSABLE:
                continue
            ip = ip_address(address.host)
            scope_id = interface.index if ip.version == 6 and ip.is_link_local else 0
            for wildcard in wildcards:
                if wildcard.version == ip.version:
                    yield TransportAddress(address.host, wildcard.port), SocketOptions(scope_id=scope_id)


def _explained(error: OSError, transport: Transport, address: TransportAddress) -> OSError:
    number = error.errno or errno.EIO
    reason = "the port is in use" if number == errno.EADDRINUSE else error.strerror or str(error)
    return OSError(number, f"cannot listen on {address} ({transport}): {reason}")

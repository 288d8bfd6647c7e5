"""What does a STUN and TURN server listen on?

Every listen address gets UDP and TCP, and TLS where a certificate is given. Over UDP, "the source IP address and port
of the response are equal to the destination IP address and port of the received request message" (RFC 8489, 6.3.1.2):
for that, ``relay/udp_listening.py`` has a socket on each address that a wildcard stands for.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from iceagent.net.address import TransportAddress, canonical_host, ip_address, quoted
from iceagent.net.host import Host, Interface, Listener, SocketOptions, Stream, StreamListener
from relay.stun_server import BROADCAST, discovery_table
from relay.udp_listening import Deaf, UdpHooks, UdpSockets, each_address, explained, scope_of, with_free_port

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

_FAMILY_MISSING = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})

Transport = Literal["udp", "tcp", "tls"]


class NoAddressOfOurs(OSError):
    """Something is to be on an address that this host does not have, or cannot use; ``filename`` is that address."""


class Listening(NamedTuple):
    """One thing that a server listens on."""

    transport: Transport
    address: TransportAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks(UdpHooks):
    """Who hears of what a server listens on.

    Attributes:
        accept: takes a new stream.
    """

    accept: Callable[[Stream], StreamListener]


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
        self._udp = UdpSockets(host)
        self.listening: list[Listening] = []
        self.udp = self._udp.by_address

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
            await self._udp.follow(lambda interfaces: _stands_for(interfaces, self._wildcards), hooks)
        if not self.listening:
            raise OSError(errno.EADDRNOTAVAIL, "no address of this host can be listened on")

    def stop_accepting(self) -> None:
        """No new streams, and no new addresses."""
        self._udp.stop_following()
        for listener in self._streams:
            listener.close()
        self._streams.clear()
        self._wildcards.clear()
        self.listening.clear()

    def close(self) -> None:
        """Close everything; idempotent."""
        self.stop_accepting()
        self._udp.close()

    async def _listen(self, address: TransportAddress, hooks: Hooks, *, is_only: bool) -> None:
        """UDP and TCP on one address. A wildcard of an IP version that this host does not have is left out."""
        is_wildcard = ip_address(address.host).is_unspecified
        try:
            listener = await self._host.listen_tcp(address, hooks.accept)
        except OSError as error:
            if is_wildcard and not is_only and error.errno in _FAMILY_MISSING:
                return
            raise explained(error, "tcp", address) from error
        self._streams.append(listener)
        if is_wildcard:
            self._wildcards.append(address)
        else:
            self._udp.open(address, hooks)
        self.listening += [Listening("udp", address), Listening("tcp", address)]

    async def _listen_tls(self, address: TransportAddress, hooks: Hooks, context: ssl.SSLContext) -> None:
        try:
            listener = await self._host.listen_tcp(address, hooks.accept, ssl_context=context)
        except OSError as error:
            raise explained(error, "tls", address) from error
        self._streams.append(listener)
        self.listening.append(Listening("tls", listener.address))


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
            host.socket(TransportAddress(each, 0), Deaf(), SocketOptions()).close()
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
        return tuple(address if address.port else with_free_port(host, address) for address in asked)
    port = with_free_port(host, asked[0]).port
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


def _stands_for(
    interfaces: Iterable[Interface], wildcards: Sequence[TransportAddress]
) -> dict[TransportAddress, SocketOptions]:
    """What the wildcards stand for: every usable address of their IP version, with their port."""
    return {
        TransportAddress(address.host, wildcard.port): SocketOptions(scope_id=scope_of(interface, address.host))
        for interface, address in each_address(interfaces)
        for wildcard in wildcards
        if wildcard.version == ip_address(address.host).version
    }

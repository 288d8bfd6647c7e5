"""What is a host, to everything above the ground floor?

A :class:`Host` gives sockets, streams, names, interfaces and time. Agent, port mapper and servers take one, so that one
process can hold a whole Internet: the default is this machine (:class:`iceagent.net.local.LocalHost`), the laboratory
supplies one per network namespace, the test kit one in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from iceagent.net.address import TransportAddress, canonical_host, quoted

if TYPE_CHECKING:
    import ssl

__all__ = [
    "AddressFlag",
    "DatagramReceiver",
    "DatagramSocket",
    "DefaultRoute",
    "Host",
    "Interface",
    "InterfaceAddress",
    "InterfaceKind",
    "Listener",
    "Proxy",
    "SocketOptions",
    "SrvRecord",
    "Stream",
    "StreamListener",
    "Subscription",
    "TtlSocket",
    "send_each",
]

# RFC 9110, 4.2.1. curl takes 1080 for a proxy without a port, from the days of SOCKS; most others take the scheme's.
_HTTP_PORT = 80
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
# Of any script: the resolver knows IDNA.
_PROXY_NAME = re.compile(r"[\w-]+(\.[\w-]+)*\.?")
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
# CTL of RFC 5234, B.1.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class InterfaceKind(Enum):
    """What an interface is made of; decides the order of candidates (``iceagent/priority.py``)."""

    ETHERNET = "ethernet"
    WIFI = "wifi"
    CELLULAR = "cellular"
    VPN = "vpn"
    CONTAINER = "container"
    LOOPBACK = "loopback"
    OTHER = "other"


class AddressFlag(Enum):
    """State of an address, as the kernel tells it (RFC 4862, RFC 8981)."""

    TENTATIVE = "tentative"
    DEPRECATED = "deprecated"
    TEMPORARY = "temporary"
    DADFAILED = "dadfailed"


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceAddress:
    """One address of an interface.

    Attributes:
        host: canonical IP address, without zone.
        prefix_length: 0 … 32 or 0 … 128.
        flags: what the kernel says of it.
    """

    host: str
    prefix_length: int
    flags: frozenset[AddressFlag] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface as it is now.

    Attributes:
        name: as the system calls it (``eth0``).
        index: the kernel's number, which is the scope id of its link-local addresses.
        kind: see :class:`InterfaceKind`.
        mtu: bytes.
        is_up: administratively up and with carrier.
        metered: traffic here costs money.
        addresses: in the kernel's order.
    """

    name: str
    index: int
    kind: InterfaceKind
    mtu: int = 1500
    is_up: bool = True
    metered: bool = False
    addresses: tuple[InterfaceAddress, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultRoute:
    """A way to everywhere.

    Attributes:
        index: of the interface that it leads through.
        router: the next hop's address, without zone; ``None``: the interface is a tunnel and has none.
        version: 4 or 6.
        metric: the lower, the more preferred.
    """

    index: int
    router: str | None
    version: int
    metric: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """How a socket is to be opened.

    Attributes:
        interface: bind to this device, so that traffic leaves through it whatever the routes say; ``None``: by address.
            Not applied to a socket on a loopback address.
        mark: SO_MARK (needs CAP_NET_ADMIN); ``None``: unset.
        dscp: differentiated services code point, 0 … 63 (RFC 8445, 7.2.3).
        receive_buffer: SO_RCVBUF in bytes; ``None``: the system's.
        send_buffer: SO_SNDBUF in bytes; ``None``: the system's.
        egress_index: send through the interface with this index, and for IPv4 receive from any: what a socket on the
            second interface's address sends must not leave by the default route of the first (RFC 1122's weak host
            model); 0: as the routes say. Not applied where ``interface`` is.
        is_shared: others may bind the same address (SO_REUSEADDR, SO_REUSEPORT), as listeners to multicast do.
        scope_id: zone of link-local IPv6 addresses on this socket: the interface's index; 0: none.
        tells_ttl: the socket is a :class:`TtlSocket`, as far as the host has any.
    """

    interface: str | None = None
    mark: int | None = None
    dscp: int = 0
    receive_buffer: int | None = None
    send_buffer: int | None = None
    scope_id: int = 0
    egress_index: int = 0
    is_shared: bool = False
    tells_ttl: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """An HTTP proxy that streams go through; see :mod:`iceagent.net.proxy`.

    Attributes:
        host: its name or IP address, without brackets.
        port: 1 … 65535.
        username: for Basic authentication (RFC 7617); ``None``: none is tried.
        password: goes with ``username``; ``None``: empty. Not in the ``repr``.
    """

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Read ``http://[user[:password]@]host[:port]``; without a port 80, without a scheme ``http``.

        User and password may have any character percent-encoded, in UTF-8; ``/``, ``?`` and ``#`` must be.

        Raises:
            ValueError: says what is wrong; never quotes what may be the password, even if an ``@`` was forgotten.
        """
        scheme, separator, rest = url.strip().partition("://")
        if not separator:
            scheme, rest = "http", scheme
        if scheme.lower() != "http":
            found = f"{quoted(scheme)} is not a kind of proxy known here: " if _SCHEME.fullmatch(scheme) else ""
            raise ValueError(f"{found}a proxy is written http://[user:password@]host:port")
        user_info, at, authority = rest.rpartition("@")
        if any(character in user_info for character in "/?#"):
            raise ValueError("a proxy's user and password must have '/', '?' and '#' percent-encoded")
        host, port = _proxy_address(authority.removesuffix("/"))
        if not at:
            return cls(host=host, port=port)
        username, colon, password = user_info.partition(":")
        return cls(host=host, port=port, username=_decoded(username), password=_decoded(password) if colon else None)


def _proxy_address(authority: str) -> tuple[str, int]:
    """Host and port. What stands behind a colon is not quoted: without its ``@``, it could be a password."""
    if authority.startswith("["):
        host, bracket, port_text = authority[1:].partition("]")
        if not bracket or (port_text and not port_text.startswith(":")):
            raise ValueError("a proxy's IPv6 address is written [address]:port")
        port_text = port_text[1:]
        # A zone would be lost.
        is_valid = ":" in host and "%" not in host and _is_ip(host)
        if not is_valid:
            raise ValueError("what stands in a proxy's brackets is not an IPv6 address without zone")
    else:
        host, _, port_text = authority.partition(":")
        if not _PROXY_NAME.fullmatch(host):
            raise ValueError(f"{quoted(host)} is neither a host name nor an IP address of a proxy")
    if not port_text:
        port = _HTTP_PORT
    elif port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and 0 < int(port_text) < 65536:
        port = int(port_text)
    else:
        raise ValueError("a proxy's port is a number from 1 to 65535 (an IPv6 address stands in brackets)")
    return canonical_host(host) if _is_ip(host) else host, port


def _is_ip(host: str) -> bool:
    try:
        canonical_host(host)
    except ValueError:
        return False
    return True


def _decoded(text: str) -> str:
    try:
        data = _PERCENT.sub(lambda match: bytes.fromhex(match[1].decode()), text.encode())
        decoded = data.decode()
    except UnicodeError:
        # Not "from error": that one quotes.
        raise ValueError("a proxy's user and password must be UTF-8") from None
    if _CONTROL.search(decoded):
        raise ValueError("a proxy's user and password may not have control characters (RFC 7617, 2)")
    return decoded


class DatagramReceiver(Protocol):
    """Who is told what a :class:`DatagramSocket` receives. Neither method may raise.

    A receiver may have a method ``train_received(socket, datagrams, source)`` as well: several datagrams of one source
    that arrived together go there. And a method ``icmp_received(socket, destination, type, code, info)``: what an ICMP
    error, which is told by :meth:`error_received` as well, said; ``info`` is the MTU, where it is about that.
    """

    def datagram_received(self, socket: DatagramSocket, data: bytes, source: tuple[str, int]) -> None:
        """``source`` equals (and hashes like) a :class:`TransportAddress`, but may be a plain tuple."""

    def error_received(self, socket: DatagramSocket, destination: TransportAddress | None, errno: int) -> None:
        """An ICMP error for a datagram sent to ``destination`` (``None`` where the kernel does not say)."""


class DatagramSocket(Protocol):
    """A bound UDP socket: one base."""

    @property
    def address(self) -> TransportAddress:
        """What it is bound to."""

    def send(self, data: bytes, destination: tuple[str, int], ttl: int | None = None) -> int:
        """Send at once, or not at all.

        Returns:
            0 when the kernel took it, else the errno (``EAGAIN``: the socket is full, the datagram is lost).
        """

    def send_many(self, datagrams: Sequence[bytes], destination: tuple[str, int]) -> tuple[int, int]:
        """Send these in order, at once, with as few calls of the system as it takes.

        Returns:
            How many the kernel took, and the errno of the next one; 0: it took all.
        """

    def close(self) -> None:
        """Close; idempotent. The receiver hears nothing afterwards."""


class TtlSocket(DatagramSocket, Protocol):
    """One that knows the TTL (IPv6: hop limit) of what it receives, where ``SocketOptions.tells_ttl`` asks for it. A
    socket without the attribute is none.

    Attributes:
        received_ttl: of what its receiver is being told, 1 … 255; 0: not known.
    """

    received_ttl: int

    def set_ttl(self, ttl: int) -> None:
        """Send with this TTL from now on, 1 … 255."""


def send_each(socket: DatagramSocket, datagrams: Sequence[bytes], destination: tuple[str, int]) -> tuple[int, int]:
    """:meth:`DatagramSocket.send_many`, one by one."""
    for count, data in enumerate(datagrams):
        number = socket.send(data, destination)
        if number:
            return count, number
    return len(datagrams), 0


class Stream(Protocol):
    """A TCP or TLS connection."""

    @property
    def local_address(self) -> TransportAddress: ...

    @property
    def remote_address(self) -> TransportAddress: ...

    def write(self, data: bytes) -> None:
        """Queue ``data``; a peer that does not read gets its stream aborted once 1 MiB waits."""

    def close(self) -> None:
        """Close once what is queued is out (a second at most); idempotent. The listener hears nothing afterwards."""


class StreamListener(Protocol):
    """Who is told what a :class:`Stream` receives. Neither method may raise."""

    def data_received(self, stream: Stream, data: bytes) -> None: ...

    def connection_lost(self, stream: Stream, errno: int) -> None:
        """The other side or the network ended it. ``errno`` 0: closed in order."""


class Listener(Protocol):
    """A bound TCP socket that accepts streams."""

    @property
    def address(self) -> TransportAddress:
        """What it is bound to."""

    def close(self) -> None:
        """Accept no more; idempotent. Streams accepted before stay open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SrvRecord:
    """One DNS SRV answer (RFC 2782), in the order to be tried."""

    host: str
    port: int
    priority: int = 0
    weight: int = 0


def _no_op() -> None:
    """Nothing to release."""


@dataclass(slots=True, eq=False)
class Subscription:
    """Ends a subscription when closed; idempotent."""

    _release: Callable[[], None] = field(default=_no_op)

    def close(self) -> None:
        release, self._release = self._release, _no_op
        release()


class Host(Protocol):
    """Everything a program may ask of the machine it runs on."""

    def now(self) -> float:
        """Seconds of the monotonic clock that the running loop's timers use."""

    def socket(self, local: TransportAddress, receiver: DatagramReceiver, options: SocketOptions) -> DatagramSocket:
        """Open and bind a UDP socket; port 0 takes a free one.

        Raises:
            OSError: the address cannot be bound.
        """

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
        """Connect; with ``tls_server_name``, TLS with verification of that name.

        Args:
            remote: where to.
            listener: who is told what the stream receives.
            local: the address to connect from; ``None``: what the routes say, any port. Through a proxy whose addresses
                are all of the other family, it has no effect.
            tls_server_name: use TLS, and verify that the server is this.
            ssl_context: how TLS verifies, instead of the host's own way.
            alpn: the application protocols to offer (RFC 7301); where a context is given, by this call or to the host,
                that one's count instead.
            proxy: go through this one; TLS is then spoken through it, with the server at ``remote``. The stream's
                ``remote_address`` is the proxy's.

        Raises:
            OSError: refused (by the proxy: :class:`iceagent.net.proxy.ProxyRefused`), unreachable, the certificate is
                not valid, or this host knows no proxies (ENOTSUP).
        """

    async def listen_tcp(
        self,
        local: TransportAddress,
        accept: Callable[[Stream], StreamListener],
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> Listener:
        """Accept TCP streams; with ``ssl_context``, TLS. Port 0 takes a free one.

        Args:
            local: where to listen.
            accept: called with every new stream (over TLS, after the handshake); returns who hears what it receives.
            ssl_context: a server's context, with its certificate loaded.

        Raises:
            OSError: the address cannot be bound.
        """

    async def resolve(self, name: str) -> Sequence[str]:
        """IPv6 and IPv4 addresses of a name, in RFC 6724 order, without blocking the loop.

        Raises:
            OSError: no such name, or no answer.
        """

    async def resolve_srv(self, name: str) -> Sequence[SrvRecord]:
        """SRV records of a name; empty where there are none or no answer came."""

    async def interfaces(self) -> Sequence[Interface]:
        """The table as it is now. The first call may take tens of milliseconds; later ones are kept warm."""

    def watch_interfaces(self, callback: Callable[[Sequence[Interface]], None]) -> Subscription:
        """Call ``callback`` with the whole table whenever it changed."""

    async def default_routes(self) -> Sequence[DefaultRoute]:
        """All default routes as they are now, those with the lowest metric first."""

    def watch_default_routes(self, callback: Callable[[Sequence[DefaultRoute]], None]) -> Subscription:
        """Call ``callback`` with all default routes whenever they changed."""

    def source_host(self, destination: TransportAddress) -> str | None:
        """The local address that the routes choose for ``destination``; ``None``: no route. Sends nothing."""

    def suspended_s(self) -> float:
        """How many seconds this machine was suspended so far, while :meth:`now` stood still; only differences count."""

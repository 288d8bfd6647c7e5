"""What is a transport address, and what kind of address is it?

A transport address is an IP address and a port (RFC 8445, 4). Host texts are canonical (``ipaddress`` spelling, lower
case, compressed), carry neither brackets nor a zone: scope ids of link-local IPv6 addresses belong to the socket that
the address is used on and never leave it (``iceagent.net.sockets`` puts them back).

Pure: no sockets, no name resolution.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import NamedTuple

__all__ = ["TransportAddress", "canonical_host", "ip_address", "is_reserved", "parse_address", "quoted"]

# Of a text that is refused; whoever wrote it recognizes it, and nobody can fill a log with it.
_MAX_QUOTED = 40
# 65535.
_MAX_PORT_DIGITS = 5

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class TransportAddress(NamedTuple):
    """An IP address and a port.

    Compares and hashes like the plain tuple ``(host, port)``, so that what a socket reports can be looked up as it is.

    Attributes:
        host: canonical text of an IPv4 or IPv6 address, without zone.
        port: 0 … 65535.
    """

    host: str
    port: int

    @property
    def ip(self) -> IPAddress:
        """The address as an :mod:`ipaddress` object (cached)."""
        return ip_address(self.host)

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.host else 4

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@lru_cache(maxsize=4096)
def ip_address(host: str) -> IPAddress:
    """Parse an IP address.

    Raises:
        ValueError: if ``host`` is no IP address.
    """
    return ipaddress.ip_address(host)


def is_reserved(ip: IPAddress) -> bool:
    """Whether it is of 0.0.0.0/8 (but for the unspecified address) or 240.0.0.0/4, which no host can have (RFC 1122,
    3.2.1.3; RFC 1112, 4).
    """
    return ip.version == 4 and int(ip) != 0 and (int(ip) >> 24 == 0 or int(ip) >> 28 == 15)


def canonical_host(host: str) -> str:
    """The one spelling of an IP address that this project uses: compressed, lower case, zone removed.

    An IPv4-mapped IPv6 address (``::ffff:192.0.2.1``) becomes the IPv4 address.

    Raises:
        ValueError: if ``host`` is no IP address.
    """
    ip = ip_address(host.partition("%")[0])
    if ip.version == 6 and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return str(ip)


def quoted(text: str) -> str:
    """A text in quotes, for messages: what cannot be printed is escaped; after 40 characters comes ``…``."""
    return f"{text[:_MAX_QUOTED]!r}{'…' if len(text) > _MAX_QUOTED else ''}"


def parse_address(text: str, default_port: int | None = None) -> TransportAddress:
    """Read ``host:port``, ``[host]:port``, and, where ``default_port`` is given, a bare IP address.

    Raises:
        ValueError: with a message that quotes (the beginning of) ``text`` and says what is wrong.
    """
    host, port_text = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{quoted(text)}: an IPv6 address with a port is written [address]:port")
        port_text = rest[1:]
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
    try:
        canonical = canonical_host(host)
    except ValueError as error:
        raise ValueError(f"{quoted(text)}: {quoted(host)} is not an IP address") from error
    if not port_text:
        if default_port is None:
            raise ValueError(f"{quoted(text)}: the port is missing")
        return TransportAddress(canonical, default_port)
    is_number = port_text.isascii() and port_text.isdigit() and len(port_text) <= _MAX_PORT_DIGITS
    if not is_number or int(port_text) > 65535:
        raise ValueError(f"{quoted(text)}: {quoted(port_text)} is not a port (0 to 65535)")
    return TransportAddress(canonical, int(port_text))

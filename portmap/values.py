"""What is a gateway, a request for a mapping, and what may be believed of the answer? Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from iceagent.net.address import TransportAddress, ip_address, is_reserved

__all__ = ["PROTOCOLS", "Gateway", "MapRequest", "ProtocolName", "Transport", "Trust", "trust_of"]

ProtocolName = Literal["pcp", "nat-pmp", "upnp"]
Transport = Literal["udp", "tcp"]

PROTOCOLS: tuple[ProtocolName, ...] = ("pcp", "nat-pmp", "upnp")
"""In the order in which they are preferred."""

# RFC 6598: between a carrier's NAT and its customers.
_CARRIER = ipaddress.ip_network("100.64.0.0/10")


class Trust(Enum):
    """How far the external address of a mapping may be believed. Only a check from outside proves that it works."""

    GLOBAL = "global"
    """It is one that anybody could reach, unless the gateway lies (one behind a carrier's NAT may)."""
    PRIVATE = "private"
    """It is a private one: there is another NAT in front of the gateway."""
    CARRIER = "carrier"
    """It is between a carrier's NAT and its customers (RFC 6598): likewise."""
    UNKNOWN = "unknown"
    """The gateway does not know its external address, or told one that no host can have."""


def trust_of(host: str | None) -> Trust:
    """Judge an external address; ``None``: none was told."""
    if host is None:
        return Trust.UNKNOWN
    ip = ip_address(host)
    if ip.is_unspecified or ip.is_multicast or ip.is_loopback or ip.is_link_local or is_reserved(ip):
        return Trust.UNKNOWN
    if ip.version == 4 and ip in _CARRIER:
        return Trust.CARRIER
    return Trust.GLOBAL if ip.is_global else Trust.PRIVATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A router that a default route of ours leads to.

    Attributes:
        host: its address on our network: IPv4, or IPv6 (mostly link-local).
        interface: the name of ours that leads there.
        index: that interface's number, the zone of link-local addresses.
        source: our address that mappings are for and that it is spoken to from: IPv4; or global IPv6.
        network: our network on that interface, as ``192.168.1.0/24``.
    """

    host: str
    interface: str
    index: int
    source: str
    network: str

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.host else 4

    def __str__(self) -> str:
        return f"{self.host} ({self.interface})"


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRequest:
    """A mapping that is wanted.

    Attributes:
        transport: of what is to come in.
        internal: where it is to arrive: an address of this host, with its port (1 … 65535).
        external_port: which port is asked for outside; 0: any. A gateway may give another one.
        lifetime_s: seconds it is to last before it is renewed, 120 … 86400; a gateway may give fewer.
        description: for the gateway's own list (UPnP): ``A-Z a-z 0-9 . _ - space``, at most 64 characters.
    """

    transport: Transport
    internal: TransportAddress
    external_port: int
    lifetime_s: int = 3600
    description: str = "iceagent"

"""Which remote candidates are used, and why are the others refused?

Whatever the peer signals, our host sends packets there. So addresses that no peer can have, or that would make us
talk to ourselves or to a whole network, are refused, each with its reason.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container

from iceagent.candidate import Candidate
from iceagent.config import Config
from iceagent.net.address import IPAddress, TransportAddress, is_reserved

__all__ = ["refusal"]


def refusal(candidate: Candidate, config: Config, own: Container[TransportAddress], components: int) -> str | None:
    """Why a remote candidate is not used; ``None`` if it is.

    Args:
        own: the addresses that our sockets are bound to.
        components: how many components this session has.
    """
    if candidate.transport != "udp":
        return "TCP candidates are not supported (RFC 6544)"
    if candidate.component > components:
        return f"component {candidate.component} of a session with {components}"
    if candidate.has_name:
        return "its name was not resolved"
    if candidate.address.port == 0:
        return "its port is 0"
    if candidate.address in own:
        return "it is one of our own sockets"
    reason = _address_refusal(candidate.address.ip, config) or _family_refusal(candidate.address.ip, config)
    if reason is None and config.remote_filter is not None and not config.remote_filter(candidate):
        return "the remote filter refuses it"
    return reason


def _address_refusal(ip: IPAddress, config: Config) -> str | None:
    if ip.is_unspecified:
        return "its address is unspecified"
    if ip.is_multicast:
        return "its address is multicast"
    if ip.version == 4 and int(ip) == 0xFFFFFFFF:
        return "its address is broadcast"
    if is_reserved(ip):
        return "its address is reserved"
    embedded = _embedded(ip)
    if embedded is not None and _address_refusal(embedded, config) is not None:
        return "the IPv4 address in it cannot be a peer's"
    if ip.is_loopback and not config.loopback:
        return "its address is loopback, which was not asked for"
    return None


def _family_refusal(ip: IPAddress, config: Config) -> str | None:
    if ip.version == 6 and not config.ipv6:
        return "IPv6 is switched off"
    if ip.version == 4 and not config.ipv4:
        return "IPv4 is switched off"
    return None


def _embedded(ip: IPAddress) -> IPAddress | None:
    """The IPv4 address that a translator would send to (RFC 6052), or that an old tunnel would (RFC 4291, 2.5.5.1)."""
    if ip.version == 4 or ip.is_loopback or ip.is_unspecified:
        return None
    is_translated = int(ip) >> 32 in (0, 0x0064FF9B << 64)
    return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if is_translated else None

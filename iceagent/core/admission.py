"""Which remote candidates are used, and why are the others refused?

Whatever the peer signals, our host sends packets there. So addresses that no peer can have, or that would make us
talk to ourselves or to a whole network, are refused, each with its reason.
"""

from __future__ import annotations

from collections.abc import Container

from iceagent.candidate import Candidate
from iceagent.config import Config
from iceagent.net.address import IPAddress, TransportAddress

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
    reason = _address_refusal(candidate.address.ip, config)
    if reason is None and config.remote_filter is not None and not config.remote_filter(candidate):
        return "the remote filter refuses it"
    return reason


def _address_refusal(ip: IPAddress, config: Config) -> str | None:
    if ip.is_unspecified:
        return "its address is unspecified"
    if ip.is_multicast:
        return "its address is multicast"
    # 240.0.0.0/4 is reserved; 255.255.255.255 in it is the limited broadcast address.
    if ip.version == 4 and int(ip) >> 24 in (0, 255):
        return "its address is broadcast" if int(ip) == 0xFFFFFFFF else "its address is reserved"
    if ip.is_loopback and not config.loopback:
        return "its address is loopback, which was not asked for"
    if ip.version == 6 and not config.ipv6:
        return "IPv6 is switched off"
    if ip.version == 4 and not config.ipv4:
        return "IPv4 is switched off"
    return None

"""Which peers does a relay send to?

None that a stranger on the Internet could not reach by itself: a relay that sends to loopback, to private networks or
to a cloud's metadata service is a way in for whoever has an account. IANA's special-purpose registries decide (RFC
6890), and of IPv6 only what is global unicast; addresses that contain another one (compatible, 6to4, Teredo, NAT64)
are refused whatever they contain, as RFC 6156, 9.1 asks for some of them; one that is mapped (::ffff:0:0/96) is the
IPv4 address that it contains, to the codec already. The list is written out: what the standard library calls global has
changed between versions.

Exceptions are the operator's: ``allow`` and ``deny``, of which the latter counts more. A relayed address of this same
server is a peer like any other while it lives, since two clients behind firewalls need it; every other address of ours
is not; and a TCP one (RFC 6062) over TCP only, since another service of ours may have the same port over UDP. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from iceagent.net.address import TransportAddress

__all__ = ["PeerPolicy"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

REFUSED_4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
)
GLOBAL_6 = "2000::/3"
REFUSED_6 = ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
# Peers whose answer is remembered.
CACHE_SIZE = 4096


class PeerPolicy:
    """What is admitted and what is not.

    Args:
        allow: networks that are admitted although they are special.
        deny: networks that are refused, also where ``allow`` has them.

    Raises:
        ValueError: one is no network; the message quotes it.

    Attributes:
        own: hosts of ours: only live relayed addresses there are peers.
        relayed: our relayed addresses that live, over UDP.
        relayed_tcp: the same, over TCP.
    """

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        self._allow = _networks(allow)
        self._deny = _networks(deny)
        self.own: set[str] = set()
        self.relayed: set[TransportAddress] = set()
        self.relayed_tcp: set[TransportAddress] = set()
        self._admits_host = lru_cache(maxsize=CACHE_SIZE)(self._judge)

    def admits_host(self, host: str) -> bool:
        """Whether a permission for this IP address may be given; of a host of ours, :meth:`admits` decides the rest."""
        return host in self.own or self._admits_host(host)

    def admits(self, peer: TransportAddress, *, is_tcp: bool = False) -> bool:
        """Whether anything may be sent there, over UDP or TCP."""
        if peer.host in self.own:
            return peer in (self.relayed_tcp if is_tcp else self.relayed) and not self._is_denied(peer.host)
        return peer.port != 0 and self._admits_host(peer.host)

    def _is_denied(self, host: str) -> bool:
        ip = ipaddress.ip_address(host)
        return any(ip in network for network in self._deny if network.version == ip.version)

    def _judge(self, host: str) -> bool:
        ip = ipaddress.ip_address(host)
        if self._is_denied(host):
            return False
        if any(ip in network for network in self._allow if network.version == ip.version):
            return True
        if ip.version == 4:
            return not any(ip in network for network in _REFUSED_4)
        return ip in _GLOBAL_6 and not any(ip in network for network in _REFUSED_6)


def _networks(texts: Iterable[str]) -> tuple[Network, ...]:
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ValueError(f"{text[:50]!r} is no network like 10.0.0.0/8: {error}") from None
    return tuple(found)


_REFUSED_4 = _networks(REFUSED_4)
_REFUSED_6 = _networks(REFUSED_6)
(_GLOBAL_6,) = _networks((GLOBAL_6,))

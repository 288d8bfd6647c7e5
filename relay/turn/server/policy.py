"""Which peers does a relay send to?

None that a stranger on the Internet could not reach by itself: a relay that sends to loopback, to private networks or
to a cloud's metadata service is a way in for whoever has an account. IANA's special-purpose registries decide (RFC
6890), and of IPv6 only what is global unicast; addresses that contain another one (compatible, 6to4, Teredo, NAT64)
are refused whatever they contain, as RFC 6156, 9.1 asks for some of them; one that is mapped (::ffff:0:0/96) is the
IPv4 address that it contains, to the codec already. The list is written out: what the standard library calls global has
changed between versions.

Exceptions are the operator's: ``allow`` and ``deny``, of which the latter counts more. A relayed address of this same
server is a peer like any other while it lives, since two clients behind firewalls need it; and a TCP one (RFC 6062)
over TCP only, since another service of ours may have the same port over UDP. Every other address of this host is none,
public or not, unless ``allow`` covers it; and where this server itself listens, nothing is ever sent. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from iceagent.net.address import TransportAddress, ip_address
from relay.turn.server.checks import texts

__all__ = ["PeerPolicy", "is_global"]

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
        ValueError: one is no network; the message quotes it. Or there is one text instead of several.

    Attributes:
        own: hosts of ours: of those that ``allow`` does not cover, only live relayed addresses are peers.
        relayed: our relayed addresses that live, over UDP.
        relayed_tcp: the same, over TCP.
    """

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        self._allow = _networks(texts("allow", allow, '("10.0.0.0/8",)'))
        self._deny = _networks(texts("deny", deny, '("10.0.0.0/8",)'))
        self.own: set[str] = set()
        self.relayed: set[TransportAddress] = set()
        self.relayed_tcp: set[TransportAddress] = set()
        self._services: set[TransportAddress] = set()
        self._service_ports: set[int] = set()
        self._admits_host = lru_cache(maxsize=CACHE_SIZE)(self._judge)
        self._allows_host = lru_cache(maxsize=CACHE_SIZE)(self._is_allowed)

    def protect(self, address: TransportAddress) -> None:
        """We listen there ourselves: it is no peer, whatever is allowed. A wildcard stands for every host of ours."""
        if ip_address(address.host).is_unspecified:
            # Of either IP version: a socket on :: may take what comes over IPv4.
            self._service_ports.add(address.port)
        else:
            self._services.add(address)

    def admits_host(self, host: str) -> bool:
        """Whether a permission for this IP address may be given; of a host of ours, :meth:`admits` decides the rest."""
        return host in self.own or self._admits_host(host)

    def admits(self, peer: TransportAddress, *, is_tcp: bool = False) -> bool:
        """Whether anything may be sent there, over UDP or TCP."""
        if peer.host not in self.own:
            return peer.port != 0 and self._admits_host(peer.host) and not self._is_service(peer)
        if peer in (self.relayed_tcp if is_tcp else self.relayed):
            return not self._is_denied(peer.host)
        return peer.port != 0 and self._allows_host(peer.host) and not self._is_service(peer)

    def _is_service(self, peer: TransportAddress) -> bool:
        if peer.port in self._service_ports:
            # All of 127.0.0.0/8 leads to a wildcard.
            return peer.host in self.own or ip_address(peer.host).is_loopback
        return peer in self._services

    def _is_denied(self, host: str) -> bool:
        ip = ipaddress.ip_address(host)
        return any(ip in network for network in self._deny if network.version == ip.version)

    def _is_allowed(self, host: str) -> bool:
        ip = ipaddress.ip_address(host)
        is_covered = any(ip in network for network in self._allow if network.version == ip.version)
        return is_covered and not self._is_denied(host)

    def _judge(self, host: str) -> bool:
        return self._is_allowed(host) or (is_global(host) and not self._is_denied(host))


@lru_cache(maxsize=CACHE_SIZE)
def is_global(host: str) -> bool:
    """Whether this IP address is one that anybody on the Internet could reach."""
    ip = ipaddress.ip_address(host)
    if ip.version == 4:
        return not any(ip in network for network in _REFUSED_4)
    return ip in _GLOBAL_6 and not any(ip in network for network in _REFUSED_6)


def _networks(wanted: Iterable[str]) -> tuple[Network, ...]:
    found = []
    for text in wanted:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ValueError(f"{text[:50]!r} is no network like 10.0.0.0/8: {error}") from None
    return tuple(found)


_REFUSED_4 = _networks(REFUSED_4)
_REFUSED_6 = _networks(REFUSED_6)
(_GLOBAL_6,) = _networks((GLOBAL_6,))

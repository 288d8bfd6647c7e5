"""Where are the relayed addresses of a TURN server, and which address is told for them?

On the hosts that the operator names; else near the client: on the address that it speaks to, and for the other IP
version on one of the same interface, if there is one. What is told must be reachable for who asks: whoever speaks to an
address of the Internet is given none of a private network, of this machine or of its link, such as a container bridge
has; rather none at all.

Behind a 1:1 NAT, as clouds and containers have them, the public address is told, with the same port. The cores know a
relayed address by what is told of it, and sockets and listeners by where they are: :class:`Names` leads from one to the
other, so that of two clients of this server each reaches the other's relay without leaving the host. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from iceagent.net.address import TransportAddress, ip_address
from iceagent.net.host import AddressFlag, Interface
from relay.turn.server import PeerPolicy, TurnOptions
from relay.turn.server.checks import check_ports, hosts, public_hosts, texts
from relay.turn.server.policy import is_global

__all__ = ["DEFAULT_PORTS", "Names", "Places", "Relaying"]

# RFC 8656, 7.2: ports "in the Dynamic and/or Private Port range".
DEFAULT_PORTS = (49152, 65535)

# How far an address is known.
MACHINE, LINK, SITE, INTERNET = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaying:
    """What a server relays, and for whom.

    Attributes:
        turn: accounts, quotas, lifetimes.
        hosts: where relayed addresses are, of each IP version the first counts; empty: see the module.
        ports: first and last of relayed addresses.
        external: public address → address of this host that a 1:1 NAT gives it to, or ``None``: every one of its IP
            version but loopback ones.
        allow: networks of peers that are admitted although they are private, say.
        deny: networks of peers that are refused.

    Raises:
        ValueError: something is not what it should be.
    """

    turn: TurnOptions
    hosts: tuple[str, ...] = ()
    ports: tuple[int, int] = DEFAULT_PORTS
    external: Mapping[str, str | None] = field(default_factory=dict)
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "hosts", hosts("hosts", self.hosts))
        object.__setattr__(self, "ports", check_ports("ports", self.ports))
        object.__setattr__(self, "external", public_hosts("external", self.external))
        object.__setattr__(self, "allow", texts("allow", self.allow, '("10.0.0.0/8",)'))
        object.__setattr__(self, "deny", texts("deny", self.deny, '("10.0.0.0/8",)'))
        PeerPolicy(self.allow, self.deny)

    @property
    def local_hosts(self) -> tuple[str, ...]:
        """Those of this host that are named."""
        mapped = [local for local in self.external.values() if local is not None]
        return tuple(dict.fromkeys((*self.hosts, *mapped)))


class Places:
    """Where relayed addresses are.

    Args:
        relaying: says it, if the operator does.
        listened: hosts of the server itself, where it does not.
    """

    def __init__(self, relaying: Relaying, listened: Callable[[], Sequence[str]]) -> None:
        self._hosts = relaying.hosts
        self._listened = listened
        self._public = {local: public for public, local in relaying.external.items() if local is not None}
        self._public_of_all = {
            ip_address(public).version: public for public, local in relaying.external.items() if local is None
        }
        self._interfaces: dict[str, int] = {}
        self._passing: set[str] = set()
        self.ports = relaying.ports

    @property
    def are_renamed(self) -> bool:
        """Whether other addresses are told for some."""
        return bool(self._public or self._public_of_all)

    def follow(self, interfaces: Sequence[Interface]) -> None:
        """Know which addresses are of one interface, and which of them are about to go."""
        self._interfaces = {each.host: interface.index for interface in interfaces for each in interface.addresses}
        self._passing = {
            each.host
            for interface in interfaces
            for each in interface.addresses
            if AddressFlag.DEPRECATED in each.flags or AddressFlag.TEMPORARY in each.flags
        }

    def host_of(self, version: int, near: str) -> str:
        """The host for a client that speaks to the host ``near``.

        Raises:
            LookupError: there is none of this IP version.
        """
        if self._hosts:
            fitting = [host for host in self._hosts if self._reach(host) >= min(self._reach(near), SITE)]
        else:
            # A link's address is one of IPv6 together with its zone only.
            reachable = [host for host in self._listened() if self._reach(host) >= self._reach(near)]
            fitting = [host for host in (near, *reachable) if not (":" in host and self._reach(host) == LINK)]
            fitting.sort(key=lambda host: self._rank(host, near))
        found = next((host for host in fitting if (6 if ":" in host else 4) == version), None)
        if found is None:
            raise LookupError(f"there are no relayed addresses of IPv{version}")
        return found

    def told_of(self, host: str) -> str:
        """What clients are told in place of an address of this host."""
        public = self._public.get(host)
        ip = ip_address(host)
        if public is None and not (ip.is_loopback or ip.is_unspecified):
            public = self._public_of_all.get(ip.version)
        return host if public is None else public

    def told(self) -> tuple[str, ...]:
        """The hosts that clients may be told, those that are known farthest first."""
        found: dict[str, int] = {}
        for near in self._listened():
            for version in (4, 6):
                try:
                    host = self.host_of(version, near)
                except LookupError:
                    continue
                found.setdefault(self.told_of(host), self._reach(host))
        return tuple(sorted(found, key=lambda host: -found[host]))

    def _rank(self, host: str, near: str) -> tuple[bool, bool, int, bool]:
        interface = self._interfaces.get(near)
        is_near = interface is not None and self._interfaces.get(host) == interface
        return host != near, not is_near, -self._reach(host), host in self._passing

    def _reach(self, host: str) -> int:
        if is_global(self.told_of(host)):
            return INTERNET
        ip = ip_address(host)
        return MACHINE if ip.is_loopback else LINK if ip.is_link_local else SITE


class Names:
    """What is told of relayed addresses that are elsewhere than they say.

    Attributes:
        told: where one is → what is told of it.
        places: the other way round.
    """

    def __init__(self) -> None:
        self.told: dict[tuple[str, int], TransportAddress] = {}
        self.places: dict[TransportAddress, TransportAddress] = {}

    def add(self, place: TransportAddress, told: TransportAddress) -> None:
        """There is one."""
        if place != told:
            self.told[place], self.places[told] = told, place

    def discard(self, told: TransportAddress) -> None:
        """It has ended."""
        place = self.places.pop(told, None)
        if place is not None:
            del self.told[place]

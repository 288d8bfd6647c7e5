"""Who is connected to whom, in the simulated network?

A :class:`Realm` is a place where addresses mean one thing: the Internet, or the inside of one NAT. A :class:`Node` is a
machine with one :class:`Link` per attachment; a :class:`NatNode` is a router between an inner and an outer realm, so
NATs nest. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from iceagent.net.address import TransportAddress, ip_address
from iceagent.testing.links import Pipe
from iceagent.testing.nat import Middlebox

__all__ = ["Link", "NatNode", "Node", "Realm"]


@dataclass(slots=True, eq=False)
class Realm:
    """A space of addresses.

    Attributes:
        name: for traces.
        gateway: the router that leads out; ``None``: this is the Internet.
        hops: routers between two members; each takes 1 from the TTL.
        members: who answers to an address.
    """

    name: str
    gateway: NatNode | None = None
    hops: int = 0
    members: dict[str, Link | NatNode] = field(default_factory=dict)

    def announce(self, host: str, member: Link | NatNode) -> None:
        """Make ``host`` reachable here, and further out wherever a gateway does not translate it.

        Raises:
            ValueError: the address is taken here.
        """
        holder = self.members.get(host, member)
        if holder is not member:
            raise ValueError(f"{host} is taken in {self.name}: {holder.name}")
        if self.gateway is not None and self._is_known_outside(host):
            self.gateway.outer.announce(host, self.gateway)
        self.members[host] = member

    def withdraw(self, host: str) -> None:
        """Undo :meth:`announce`."""
        self.members.pop(host, None)
        if self.gateway is not None and self._is_known_outside(host):
            self.gateway.outer.withdraw(host)

    def _is_known_outside(self, host: str) -> bool:
        if self.gateway is None or ip_address(host).is_link_local:
            return False
        box = self.gateway.box(ip_address(host).version)
        return box is not None and not box.external_hosts


@dataclass(slots=True, eq=False)
class Link:
    """What attaches a machine to a realm.

    Attributes:
        name: for traces; the machine's name, or ``machine/1`` from the second link on.
        realm: where its addresses mean something.
        hosts: its addresses.
        up: the direction away from the machine.
        down: the direction to the machine.
        node: the machine; ``None``: a router.
    """

    name: str
    realm: Realm
    hosts: list[str]
    up: Pipe
    down: Pipe
    node: Node | None = None

    def cut(self) -> None:
        """Nothing passes, either way."""
        self.up.is_cut = self.down.is_cut = True

    def restore(self) -> None:
        """Undo :meth:`cut`."""
        self.up.is_cut = self.down.is_cut = False


@dataclass(slots=True, eq=False)
class Node:
    """A machine.

    Attributes:
        name: unique in its network.
        links: its attachments; the first is the default.
        ports: addresses that something listens on; ``None``: all do.
        sent: packets that it has sent.
    """

    name: str
    links: list[Link] = field(default_factory=list)
    ports: set[TransportAddress] | None = None
    sent: int = 0

    @property
    def link(self) -> Link:
        """The first link."""
        return self.links[0]

    @property
    def hosts(self) -> list[str]:
        """All addresses, in the order of the links."""
        return [host for link in self.links for host in link.hosts]

    def link_of(self, host: str) -> Link | None:
        """The link that has an address."""
        return next((link for link in self.links if host in link.hosts), None)

    def has(self, host: str) -> bool:
        """Whether an address is its own; loopback addresses are."""
        return self.link_of(host) is not None or ip_address(host).is_loopback


class NatNode:
    """A router with a NAT or a firewall.

    Args:
        name: unique in its network.
        model: what it does to IPv4.
        ipv6: what it does to IPv6; ``None``: it does not forward it.
        link: its attachment to the outer realm.

    Attributes:
        inner: the realm behind it.
        udp_ports: destination ports that UDP may leave to; ``None``: any. An empty set is a network without UDP.
        tcp_ports: the same for TCP.
        blocked_hosts: addresses that nothing may leave to.
    """

    def __init__(self, name: str, model: Middlebox, ipv6: Middlebox | None, link: Link) -> None:
        self.name = name
        self.model = model
        self.ipv6 = ipv6
        self.link = link
        self.inner = Realm(name, self)
        self.udp_ports: frozenset[int] | None = None
        self.tcp_ports: frozenset[int] | None = None
        self.blocked_hosts: set[str] = set()

    @property
    def outer(self) -> Realm:
        """The realm it is attached to."""
        return self.link.realm

    @property
    def hosts(self) -> list[str]:
        """External addresses."""
        return [host for box in (self.model, self.ipv6) if box is not None for host in box.external_hosts]

    def box(self, version: int) -> Middlebox | None:
        """What it does to an IP version."""
        return self.ipv6 if version == 6 else self.model

    def lets_out(self, destination: TransportAddress, ports: Iterable[int] | None) -> bool:
        """Whether its policy allows traffic to ``destination``, with ``ports`` one of the two sets above."""
        return destination.host not in self.blocked_hosts and (ports is None or destination.port in ports)

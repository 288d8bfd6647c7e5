"""How does a datagram get from one machine to another, in memory?

A :class:`Network` is a discrete-event simulation: :meth:`Network.send` puts a packet on the sender's link, and
:meth:`Network.deliver` carries everything on its way up to a time, hop by hop, through NATs and firewalls, each step at
its own time. Nothing here sleeps or has a clock.

A packet is looked up in the realm it is in; what is not there goes out through the gateway. Routers take 1 from the TTL
before they do anything else: the sender's NAT is one, the core of the Internet is ``internet_hops`` (1), the receiver's
NAT is one. So between two hosts behind a NAT each, TTL 1 dies in the own NAT without a mapping, as on Linux, TTL 2
makes the mapping and dies on the Internet, TTL 3 dies in front of the peer's NAT and TTL 4 arrives.

Every packet's fate is counted (:attr:`Network.counters`) and logged (:attr:`Network.log`). The queue is bounded. Pure.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from iceagent.net.address import TransportAddress, canonical_host, ip_address
from iceagent.net.core import Datagram, Transmit
from iceagent.testing.links import DEFAULT_LATENCY_S, Fate, Pipe
from iceagent.testing.nat import Middlebox, NatModel
from iceagent.testing.topology import Link, NatNode, Node, Realm

__all__ = ["IcmpError", "Link", "LogEntry", "NatNode", "Network", "Node", "Packet"]

QUEUE_LIMIT = 65_536
"""Packets on their way."""

LOG_LIMIT = 20_000
"""Entries of the log; the oldest go first."""

ERROR_LIMIT = 1_024
"""ICMP errors that nobody has polled; the oldest go first."""

DEFAULT_TTL = 64
MAX_PAYLOAD = 65_507
"""RFC 791 and 768: 65,535 bytes less 20 and 8."""

HEADERS = {4: 28, 6: 48}
"""Bytes of IP and UDP headers, by IP version."""


class Packet(NamedTuple):
    """A datagram on its way, addressed as it is at this point.

    Attributes:
        source: after the NATs behind it.
        destination: before the NATs ahead of it.
        data: payload.
        ttl: left.
        origin: who sent it.
        base: the address it was sent from.
        target: the address it was sent to.
        sent_at: seconds.
    """

    source: TransportAddress
    destination: TransportAddress
    data: bytes
    ttl: int
    origin: Node
    base: TransportAddress
    target: TransportAddress
    sent_at: float


class LogEntry(NamedTuple):
    """Something that happened to a packet: when, what, where, and how the packet was addressed then."""

    at: float
    fate: Fate
    where: str
    packet: Packet


class IcmpError(NamedTuple):
    """What the network says to a sender.

    Attributes:
        node: whom it is for.
        base: the socket that sent.
        destination: where to.
        errno: ECONNREFUSED (port closed) or EHOSTUNREACH (no route, or the TTL expired), as Linux reports them.
    """

    node: Node
    base: TransportAddress
    destination: TransportAddress
    errno: int


_Step = Callable[[Packet, float], None]

_ICMP_ERRNO = {
    Fate.PORT_CLOSED: errno.ECONNREFUSED,
    Fate.TTL_EXPIRED: errno.EHOSTUNREACH,
    Fate.UNROUTABLE: errno.EHOSTUNREACH,
}


class Network:
    """Machines, routers and the packets between them.

    Args:
        rng: all chance: loss, jitter, order.
        seed: what ``rng`` was made from, if known; printed with errors.
        internet_hops: routers in the core of the Internet.
        icmp_errors: whether senders hear of closed ports, missing routes and expired TTLs; see :meth:`poll_error`.
        queue_limit: packets on their way; further ones are dropped and counted.

    Attributes:
        counters: packets by fate.
        log: the last fates, oldest first.
        internet: the outermost realm.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        seed: int | None = None,
        internet_hops: int = 1,
        icmp_errors: bool = False,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        self.rng = rng
        self.seed = seed
        self.icmp_errors = icmp_errors
        self.counters: Counter[Fate] = Counter()
        self.log: deque[LogEntry] = deque(maxlen=LOG_LIMIT)
        self.internet = Realm("internet", hops=internet_hops)
        self.nodes: dict[str, Node | NatNode] = {}
        self._queue_limit = queue_limit
        self._queue: list[tuple[float, int, _Step, Packet]] = []
        self._order = itertools.count()
        self._delivered: list[tuple[Node, Datagram]] = []
        self._errors: deque[IcmpError] = deque(maxlen=ERROR_LIMIT)

    @classmethod
    def seeded(cls, seed: int, *, icmp_errors: bool = False) -> Network:
        """A network whose every run with the same input is the same."""
        return cls(random.Random(seed), seed=seed, icmp_errors=icmp_errors)

    def add_node(
        self,
        name: str,
        addresses: Sequence[str] = (),
        behind: NatNode | None = None,
        *,
        latency_s: float = DEFAULT_LATENCY_S,
    ) -> Node:
        """Add a machine.

        Args:
            name: unique.
            addresses: its IP addresses; none: :meth:`attach` it later.
            behind: the router it is behind; ``None``: on the Internet.
            latency_s: of its link, each way.

        Raises:
            ValueError: the name or an address is taken.
        """
        node = Node(name)
        self._register(name, node)
        if addresses:
            self.attach(node, addresses, behind, latency_s=latency_s)
        return node

    def add_nat(
        self,
        name: str,
        model: Middlebox,
        *,
        ipv6: Middlebox | None = None,
        behind: NatNode | None = None,
        latency_s: float = 0.0,
    ) -> NatNode:
        """Add a router.

        Args:
            name: unique.
            model: what it does to IPv4; its external addresses are announced in the realm that the router is in.
            ipv6: what it does to IPv6; ``None``: it does not forward it.
            behind: the router it is behind; ``None``: on the Internet.
            latency_s: of its outer link, each way.

        Raises:
            ValueError: the name or an external address is taken.
        """
        link = self._new_link(name, [], behind, latency_s)
        nat = NatNode(name, model, ipv6, link)
        self._register(name, nat)
        for host in nat.hosts:
            link.realm.announce(host, nat)
        return nat

    def attach(
        self,
        node: Node,
        addresses: Sequence[str],
        behind: NatNode | None = None,
        *,
        latency_s: float = DEFAULT_LATENCY_S,
    ) -> Link:
        """Give a machine one more link (a second interface, another network after roaming).

        Raises:
            ValueError: an address is taken.
        """
        name = f"{node.name}/{len(node.links)}" if node.links else node.name
        link = self._new_link(name, [], behind, latency_s, node)
        node.links.append(link)
        for address in addresses:
            self.add_address(link, address)
        return link

    def detach(self, link: Link) -> None:
        """Take a link away; packets on their way to it are lost."""
        for host in tuple(link.hosts):
            self.remove_address(link, host)
        if link.node is not None:
            link.node.links.remove(link)

    def add_address(self, link: Link, address: str) -> None:
        """Give a link one more address.

        Raises:
            ValueError: it is no address, a loopback address, or taken.
        """
        host = canonical_host(address)
        if ip_address(host).is_loopback:
            raise ValueError(f"{host}: every node has its loopback addresses without being given them")
        link.realm.announce(host, link)
        link.hosts.append(host)

    def remove_address(self, link: Link, address: str) -> None:
        """Take an address from a link.

        Raises:
            ValueError: the link does not have it.
        """
        host = canonical_host(address)
        link.hosts.remove(host)
        link.realm.withdraw(host)

    def readdress(self, nat: NatNode, external: Sequence[str]) -> None:
        """Give a NAT other external IPv4 addresses; it forgets its mappings.

        Raises:
            ValueError: an address is taken, or the router does not translate.
        """
        if not isinstance(nat.model, NatModel):
            raise ValueError(f"{nat.name} does not translate IPv4: it has no external addresses")
        for host in nat.model.external_hosts:
            nat.outer.withdraw(host)
        nat.model.readdress(external)
        for host in nat.model.external_hosts:
            nat.outer.announce(host, nat)

    def send(self, node: Node, transmit: Transmit, now: float) -> int:
        """Send a datagram.

        Returns:
            0, or the errno of a machine that cannot send it: EADDRNOTAVAIL (the base is not its address), EMSGSIZE,
            EAFNOSUPPORT (base and destination differ in IP version), EINVAL (loopback to elsewhere or back).
        """
        base, target = transmit.base, transmit.destination
        link = node.link_of(base.host)
        is_own = node.has(target.host)
        if not node.has(base.host):
            return errno.EADDRNOTAVAIL
        if len(transmit.data) > MAX_PAYLOAD:
            return errno.EMSGSIZE
        if base.version != target.version:
            return errno.EAFNOSUPPORT
        if not is_own and (link is None or ip_address(target.host).is_loopback):
            return errno.EINVAL
        ttl = DEFAULT_TTL if transmit.ttl is None else transmit.ttl
        packet = Packet(base, target, transmit.data, ttl, node, base, target, now)
        node.sent += 1
        self._note(Fate.SENT, node.name, packet, now)
        if is_own or link is None:
            self._push(now, partial(self._arrive, node), packet)
        else:
            self._carry(link.up, link.name, packet, now, partial(self._route, link.realm))
        return 0

    def poll_timeout(self) -> float | None:
        """When the next packet gets somewhere; ``None``: nothing is on its way."""
        return self._queue[0][0] if self._queue else None

    def deliver(self, now: float) -> list[tuple[Node, Datagram]]:
        """Carry packets up to ``now``; what arrived, in order."""
        while self._queue and self._queue[0][0] <= now:
            at, _, step, packet = heapq.heappop(self._queue)
            step(packet, at)
        delivered, self._delivered = self._delivered, []
        return delivered

    def poll_error(self) -> IcmpError | None:
        """One ICMP error that got back to its sender, or ``None``. Filled by :meth:`deliver`."""
        return self._errors.popleft() if self._errors else None

    @property
    def in_flight(self) -> int:
        """Packets (and ICMP errors) on their way."""
        return len(self._queue)

    def _register(self, name: str, node: Node | NatNode) -> None:
        if self.nodes.setdefault(name, node) is not node:
            raise ValueError(f"there is a node {name!r} already")

    def _new_link(
        self, name: str, hosts: list[str], behind: NatNode | None, latency_s: float, node: Node | None = None
    ) -> Link:
        realm = self.internet if behind is None else behind.inner
        return Link(name, realm, hosts, Pipe(latency_s), Pipe(latency_s), node)

    def _carry(self, pipe: Pipe, where: str, packet: Packet, at: float, then: _Step) -> None:
        arrivals = pipe.carry(len(packet.data) + HEADERS[packet.source.version], at, self.rng)
        if isinstance(arrivals, Fate):
            self._note(arrivals, where, packet, at)
            return
        for _ in arrivals[1:]:
            self._note(Fate.DUPLICATED, where, packet, at)
        for arrival in arrivals:
            self._push(arrival, then, packet)

    def _push(self, at: float, step: _Step, packet: Packet) -> None:
        if len(self._queue) >= self._queue_limit:
            self._note(Fate.QUEUE_FULL, "queue", packet, at)
            return
        heapq.heappush(self._queue, (at, next(self._order), step, packet))

    def _route(self, realm: Realm, packet: Packet, at: float) -> None:
        """A packet is in ``realm``: to a member, or out."""
        member = realm.members.get(packet.destination.host)
        if member is None and realm.gateway is not None:
            self._leave(realm.gateway, packet, at)
        else:
            self._hand_over(realm, member, packet, at, realm.hops)

    def _leave(self, nat: NatNode, packet: Packet, at: float) -> None:
        """A packet goes out through a router, or back in (RFC 4787, 6)."""
        hopped = self._hop(packet, nat.name, at)
        box = nat.box(packet.source.version)
        if hopped is None:
            return
        if box is None or _is_link_local(packet):
            self._note(Fate.UNROUTABLE, nat.name, hopped, at)
            return
        if not nat.lets_out(packet.destination, nat.udp_ports):
            self._note(Fate.BLOCKED, nat.name, hopped, at)
            return
        is_hairpin = packet.destination.host in box.external_hosts
        source = None if is_hairpin and not box.hairpin else box.outbound(packet.source, packet.destination, at)
        if source is None:
            self._note(Fate.FILTERED, nat.name, hopped, at)
            return
        translated = hopped._replace(source=source)
        if is_hairpin:
            self._translate_in(nat, box, translated, at)
        else:
            self._carry(nat.link.up, nat.name, translated, at, partial(self._route, nat.outer))

    def _enter(self, nat: NatNode, packet: Packet, at: float) -> None:
        """A packet comes in through a router."""
        hopped = self._hop(packet, nat.name, at)
        box = nat.box(packet.source.version)
        if hopped is None:
            return
        if box is None:
            self._note(Fate.UNROUTABLE, nat.name, hopped, at)
        else:
            self._translate_in(nat, box, hopped, at)

    def _translate_in(self, nat: NatNode, box: Middlebox, packet: Packet, at: float) -> None:
        inside = box.inbound(packet.source, packet.destination, at)
        if inside is None:
            self._note(Fate.FILTERED, nat.name, packet, at)
            return
        member = nat.inner.members.get(inside.host)
        self._hand_over(nat.inner, member, packet._replace(destination=inside), at, hops=0)

    def _hand_over(self, realm: Realm, member: Link | NatNode | None, packet: Packet, at: float, hops: int) -> None:
        hopped = self._hop(packet, realm.name, at, hops)
        if hopped is None:
            return
        if member is None:
            self._note(Fate.UNROUTABLE, realm.name, hopped, at)
        elif isinstance(member, NatNode):
            self._carry(member.link.down, member.name, hopped, at, partial(self._enter, member))
        elif member.node is not None:
            self._carry(member.down, member.name, hopped, at, partial(self._arrive, member.node))

    def _hop(self, packet: Packet, where: str, at: float, hops: int = 1) -> Packet | None:
        """Cross routers; ``None``: the TTL expired on one of them."""
        ttl = packet.ttl - hops
        if hops and ttl <= 0:
            self._note(Fate.TTL_EXPIRED, where, packet, at)
            return None
        return packet._replace(ttl=ttl)

    def _arrive(self, node: Node, packet: Packet, at: float) -> None:
        if not node.has(packet.destination.host):
            self._note(Fate.UNROUTABLE, node.name, packet, at)
        elif node.ports is not None and packet.destination not in node.ports:
            self._note(Fate.PORT_CLOSED, node.name, packet, at)
        else:
            self._note(Fate.DELIVERED, node.name, packet, at)
            self._delivered.append((node, Datagram(packet.destination, packet.source, packet.data)))

    def _note(self, fate: Fate, where: str, packet: Packet, at: float) -> None:
        self.counters[fate] += 1
        self.log.append(LogEntry(at, fate, where, packet))
        if self.icmp_errors and fate in _ICMP_ERRNO and len(self._queue) < self._queue_limit:
            code = _ICMP_ERRNO[fate]
            self._push(at + (at - packet.sent_at), partial(self._return_error, code), packet)

    def _return_error(self, code: int, packet: Packet, at: float) -> None:
        """The error took as long back as the packet had taken there; NATs let it pass (RFC 4787, REQ-12)."""
        self._errors.append(IcmpError(packet.origin, packet.base, packet.target, code))


def _is_link_local(packet: Packet) -> bool:
    return ip_address(packet.source.host).is_link_local or ip_address(packet.destination.host).is_link_local

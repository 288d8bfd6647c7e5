"""How does a core under test meet the gateway, in virtual time?

:class:`GatewayCore` is the gateway with the contract of ``iceagent/net/core.py``; :func:`gateway_peer` puts it on a
node of ``iceagent.testing``'s network. There is no multicast there: a search finds it by unicast, and announcements
need a unicast destination. Answers that come from another host need that host's address on the same node. Pure.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count

from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Event, Transmit
from iceagent.testing import Network, Peer
from iceagent.testing.topology import NatNode
from tests.fakes.gateway.gateway import FakeGateway
from tests.fakes.gateway.journal import Outgoing, PortClosed
from tests.fakes.gateway.state import PCP_PORT, SSDP_PORT

__all__ = ["MAX_PENDING", "GatewayCore", "gateway_peer"]

MAX_PENDING = 10_000
"""Datagrams that wait for their time; further ones are dropped."""


class GatewayCore:
    """A gateway's ports 5351 and 1900. Implements :class:`iceagent.net.core.Core`.

    Args:
        gateway: answers.
    """

    def __init__(self, gateway: FakeGateway) -> None:
        self.gateway = gateway
        self._order = count()
        self._pending: list[tuple[float, int, Transmit]] = []
        self._due: deque[Transmit] = deque()

    def send(self, outgoing: Iterable[Outgoing], now: float) -> None:
        """Send what nobody asked for."""
        for each in outgoing:
            self._schedule(now + each.delay_s, Transmit(each.source, each.destination, each.data), now)

    def handle_datagram(self, datagram: Datagram, now: float) -> None:
        """Answer a datagram."""
        try:
            replies = self.gateway.answer_udp(datagram.data, datagram.source, now, destination=datagram.base)
        except PortClosed:
            return  # Whether the sender hears of it is the network's affair: see gateway_peer.
        for reply in replies:
            self._schedule(now + reply.delay_s, Transmit(reply.source, datagram.source, reply.data), now)

    def handle_error(self, base: TransportAddress, destination: TransportAddress, errno: int, now: float) -> None:
        """A client is gone, or an answer was to come from an address that the node does not have."""
        self.gateway.counters["send failed"] += 1

    def handle_timeout(self, now: float) -> None:
        """Send what is due."""
        while self._pending and self._pending[0][0] <= now:
            self._due.append(heapq.heappop(self._pending)[2])

    def poll_timeout(self) -> float | None:
        """When the next datagram leaves."""
        return self._pending[0][0] if self._pending else None

    def poll_transmit(self) -> Transmit | None:
        """One datagram to send."""
        return self._due.popleft() if self._due else None

    def poll_event(self) -> Event | None:
        """Nothing: the gateway's journal says what happened."""
        return None

    def _schedule(self, at: float, transmit: Transmit, now: float) -> None:
        if len(self._pending) + len(self._due) >= MAX_PENDING:
            self.gateway.counters["dropped"] += 1
        else:
            heapq.heappush(self._pending, (at, next(self._order), transmit))
            self.handle_timeout(now)


def gateway_peer(
    network: Network, gateway: FakeGateway, behind: NatNode | None = None, *, more_hosts: Sequence[str] = ()
) -> Peer[GatewayCore]:
    """Put a gateway on a node of its own.

    Ports that are closed when this is called refuse: in a network with ``icmp_errors`` the sender hears of it.

    Args:
        network: where.
        gateway: which; its IPv4 and IPv6 addresses are taken.
        behind: the router in whose inner realm it is to be found; ``None``: on the Internet.
        more_hosts: other addresses of the node, that forged or misled answers come from.
    """
    hosts = (gateway.options.host, gateway.options.host6)
    node = network.add_node(f"gateway {hosts[0]}", [*hosts, *more_hosts], behind)
    ports = (PCP_PORT, SSDP_PORT)
    node.ports = {TransportAddress(host, port) for host in hosts for port in ports if not gateway.is_closed(port)}
    return Peer(node.name, GatewayCore(gateway), node)

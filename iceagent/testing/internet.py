"""How do hosts in memory reach each other?

A :class:`MemoryInternet` moves the packets of a simulated network on an event loop: in virtual time where that is an
``iceagent.testing.clock.VirtualLoop``, and then without waiting. One timer serves all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from iceagent.net.address import TransportAddress
from iceagent.net.core import Core, Datagram
from iceagent.net.host import InterfaceKind, SrvRecord
from iceagent.testing.host import MemoryHost
from iceagent.testing.links import DEFAULT_LATENCY_S
from iceagent.testing.network import IcmpError, Network
from iceagent.testing.peers import Exchange, Peer
from iceagent.testing.streams import MemoryListener
from iceagent.testing.topology import NatNode, Node

__all__ = ["MemoryInternet"]


class MemoryInternet:
    """Moves packets between hosts in memory.

    Args:
        network: its machines and routers.
        loop: whose time it keeps; ``None``: the running loop.

    Attributes:
        network: as given.
        names: what the resolver knows: name → addresses.
        loop: as given.
        services: what the resolver knows: name → SRV records, in the order to be tried.

    Raises:
        RuntimeError: no loop is running and none is given.
    """

    def __init__(self, network: Network, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.network = network
        self.names: dict[str, Sequence[str]] = {}
        self.services: dict[str, Sequence[SrvRecord]] = {}
        self.loop = loop or asyncio.get_running_loop()
        self._hosts: dict[Node, MemoryHost] = {}
        self._exchange = Exchange(network, on_datagram=self._on_datagram, on_error=self._on_error)
        self._timer: asyncio.TimerHandle | None = None

    def host(
        self,
        name: str,
        addresses: Sequence[str] = (),
        behind: NatNode | None = None,
        *,
        kind: InterfaceKind = InterfaceKind.ETHERNET,
        latency_s: float = DEFAULT_LATENCY_S,
    ) -> MemoryHost:
        """Add a machine, with an interface ``eth0`` if it is given addresses.

        Args:
            name: unique in the network.
            addresses: of ``eth0``.
            behind: the router it is behind; ``None``: on the Internet.
            kind: of ``eth0``.
            latency_s: of its link, each way.

        Raises:
            ValueError: the name or an address is taken.
        """
        node = self.network.add_node(name)
        node.ports = set()
        host = self._hosts[node] = MemoryHost(self, node)
        if addresses:
            host.add_interface("eth0", addresses, behind, kind=kind, latency_s=latency_s)
        return host

    def add_peer(self, peer: Peer[Core]) -> None:
        """Run a core (a server's) on a node of its own.

        Raises:
            ValueError: its node has a core already.
        """
        self._exchange.add(peer)
        self.wake()

    def remove_peer(self, peer: Peer[Core]) -> None:
        """Stop a core: the server died."""
        self._exchange.remove(peer)

    def wake(self) -> None:
        """Something was sent, or a core was given a command: look at the deadlines again."""
        self._exchange.drain(self.loop.time())
        deadline = self._exchange.poll_timeout()
        if self._timer is not None:
            if deadline is not None and self._timer.when() <= deadline:
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer = self.loop.call_at(deadline, self._advance)

    def close(self) -> None:
        """Nothing moves any more; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def listener_at(self, node: Node, address: TransportAddress) -> MemoryListener | None:
        """Who accepts streams there."""
        host = self._hosts.get(node)
        return None if host is None else host.listener_at(address)

    def _advance(self) -> None:
        self._timer = None
        try:
            self._exchange.advance(self.loop.time())
        finally:
            self.wake()

    def _on_datagram(self, node: Node, datagram: Datagram) -> None:
        host = self._hosts.get(node)
        if host is not None:
            host.deliver(datagram)

    def _on_error(self, error: IcmpError) -> None:
        host = self._hosts.get(error.node)
        if host is not None:
            host.report(error)

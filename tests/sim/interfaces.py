"""A second interface, and data: what the tests of paths that compete need beyond :mod:`tests.sim.world`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from iceagent.net.address import TransportAddress
from iceagent.net.core import Transmit
from iceagent.testing.network import Link
from tests.sim.world import PORT, Side, World, host_candidate, relayed_candidate

PAYLOAD = b"\x80 data"
RELAY_HOST = "198.51.100.9"
RELAY = TransportAddress(RELAY_HOST, 40000)


def add_interface(world: World, side: Side, host: str, *, latency_s: float = 0.010) -> Link:
    """Give a side one more address on the Internet, with a link of its own; not a candidate yet."""
    link = world.network.attach(side.node, [host], latency_s=latency_s)
    add_port(side, TransportAddress(host, PORT))
    return link


def add_port(side: Side, base: TransportAddress) -> None:
    side.bases.append(base)
    assert side.node.ports is not None
    side.node.ports.add(base)


def add_relay(world: World, side: Side, relay: TransportAddress = RELAY, *, latency_s: float = 0.010) -> Link:
    """Give a side a relayed address: what a TURN server would take in and hand over, without the server."""
    link = world.network.attach(side.node, [relay.host], latency_s=latency_s)
    assert side.node.ports is not None
    side.node.ports.add(relay)
    side.session.add_local_candidate(relayed_candidate(relay), world.now)
    return link


def add_host(world: World, side: Side, index: int, *, cost: int = 0) -> None:
    """Make a base of a side a candidate, the ``index``-th best one."""
    candidate = host_candidate(side.bases[index], index=index)
    side.session.add_local_candidate(replace(candidate, network_id=index + 1, network_cost=cost), world.now)


def talk(world: World, seconds: float, *, until: Callable[[], bool] = lambda: False, every_s: float = 0.5) -> bool:
    """Both sides send a datagram on their own path now and then, for so long or until something is so."""
    end = world.now + seconds
    while world.now < end and not until():
        for side in (world.a, world.b):
            path = side.session.path()
            if path is not None:
                world.network.send(side.node, Transmit(path.base, path.remote.address, PAYLOAD), world.now)
        world.run(every_s)
    return until()


def base_of(side: Side) -> TransportAddress:
    """Where its data leaves from."""
    path = side.session.path()
    assert path is not None
    return path.base

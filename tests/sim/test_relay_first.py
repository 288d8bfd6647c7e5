"""``Config.relay_first``: does data flow over a relay at once, and directly as soon as that works?"""

from __future__ import annotations

import pytest

from iceagent.config import Config
from iceagent.events import Path, SelectedPathChanged
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Transmit
from iceagent.testing.firewall import FirewallModel
from tests.sim.interfaces import PAYLOAD, add_relay
from tests.sim.world import Side, World, make_world

RTT_S = 0.040
RELAYS = (TransportAddress("198.51.100.8", 40000), TransportAddress("198.51.100.9", 40001))
CONFIG = Config(relay_first=True)


class Flow:
    """Both sides send as soon as they have a path, fifty times a second."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sent = 0
        self.arrived = 0
        self.first_at: float | None = None
        for side in (world.a, world.b):
            side.peer.lets_in = self._lets_in

    def _lets_in(self, datagram: Datagram, now: float) -> bool:
        if datagram.data == PAYLOAD:
            self.arrived += 1
            self.first_at = self.first_at or now
        return True

    def run(self, seconds: float) -> None:
        end = self.world.now + seconds
        while self.world.now < end:
            for side in (self.world.a, self.world.b):
                path = side.session.path()
                if path is not None:
                    transmit = Transmit(path.base, path.remote.address, PAYLOAD)
                    self.sent += not self.world.network.send(side.node, transmit, self.world.now)
            self.world.run(0.020)


def with_relays(config: Config = CONFIG, *, hosts: int = 1, dead: bool = False, late: bool = False) -> World:
    """Both sides have a relay of their own. ``dead``: no direct path works; ``late``: relays come later than that."""
    world = make_world(
        hosts_a=[f"10.1.0.{i + 1}" for i in range(hosts)],
        hosts_b=[f"10.2.0.{i + 1}" for i in range(hosts)],
        config_a=config,
        config_b=config,
        rtt_s=RTT_S,
    )
    if dead:
        for side in (world.a, world.b):
            side.node.link.cut()
    if not late:
        add_relays(world)
    world.gather()
    return world


def add_relays(world: World) -> None:
    for side, relay in zip((world.a, world.b), RELAYS, strict=True):
        add_relay(world, side, relay, latency_s=RTT_S / 4)


def paths(side: Side) -> list[Path]:
    return [event.new for event in side.events(SelectedPathChanged) if event.new is not None]


def is_relayed(path: Path) -> bool:
    return not {path.base, path.remote.address}.isdisjoint(RELAYS)


@pytest.mark.parametrize("hosts", [1, 3])
def test_data_begins_on_a_relay_and_goes_on_directly(hosts: int) -> None:
    """Two round trips after both relayed candidates are known, data has come; nothing is lost when it moves."""
    world = with_relays(hosts=hosts)
    world.exchange()
    start = world.now
    flow = Flow(world)
    flow.run(5.0)
    world.run(1.0)
    assert flow.first_at is not None and flow.first_at <= start + 2 * RTT_S + 0.020
    for side in (world.a, world.b):
        first, *_, last = paths(side)
        assert is_relayed(first) and not is_relayed(last)
    assert world.is_mirrored() and world.a.is_settled and world.b.is_settled
    assert flow.arrived == flow.sent > 400


def test_by_default_whatever_works_first_is_used() -> None:
    world = with_relays(Config())
    world.exchange()
    world.settle()
    assert not any(is_relayed(path) for side in (world.a, world.b) for path in paths(side))


def test_addresses_that_do_not_answer_keep_no_relay_waiting() -> None:
    """Eight on either side are 64 pairs in front of it, at one check per 50 ms; they may become direct paths later."""
    took = {}
    for config in (CONFIG, Config()):
        world = with_relays(config, hosts=8, dead=True)
        world.exchange()
        took[config.relay_first] = world.connect()
    assert took[True] <= 2 * RTT_S and took[False] >= 0.2, took


def test_a_relay_that_comes_late_has_the_next_turn() -> None:
    """Its 10 ms for signalling stay, and what already waits steps back."""
    world = with_relays(hosts=8, dead=True, late=True)
    world.exchange()
    world.run(0.5)
    assert world.a.session.path() is None
    add_relays(world)
    start = world.now
    for side in (world.a, world.b):
        relay = side.session.local_candidates[-1]
        world.other(side).session.add_remote_candidate(type(relay).parse(relay.to_sdp()), world.now)
    world.connect()
    # One check per 50 ms of the eight pairs of one's own relay, and those of the peer's.
    assert world.now - start <= 0.010 + 2 * RTT_S + 0.050
    path = world.a.session.path()
    assert path is not None and is_relayed(path)


@pytest.mark.parametrize("opened_after_s", [0.5, 5.0, 40.0])
def test_a_direct_path_that_opens_later_is_moved_to_at_once(opened_after_s: float) -> None:
    """Neither the wait before nomination nor the nomination of the relay keep data there."""
    world = with_relays(dead=True)
    world.exchange()
    flow = Flow(world)
    flow.run(opened_after_s)
    assert all(is_relayed(path) for side in (world.a, world.b) for path in paths(side))
    for side in (world.a, world.b):
        assert paths(side)
        side.node.link.restore()
    opened_at = world.now
    while is_relayed(paths(world.a)[-1]) or is_relayed(paths(world.b)[-1]):
        flow.run(0.1)
        assert world.now <= opened_at + 12.0, world
    flow.run(2.0)
    world.run(1.0)
    assert world.is_mirrored() and flow.arrived == flow.sent


def test_pairs_with_a_relay_at_both_ends_come_first() -> None:
    """Whatever NATs do, they work: a peer's relay need not be opened, ours sends to it by a permission."""
    world = with_relays(hosts=2)
    world.exchange()
    order = [(pair.base in RELAYS) + (pair.destination in RELAYS) for pair in world.a.session.pairs]
    assert order == sorted(order, reverse=True) and order[0] == 2


def test_the_limit_of_pairs_drops_no_relay() -> None:
    config = Config(relay_first=True, max_pairs=10)
    world = with_relays(config, hosts=8, dead=True)
    world.exchange()
    assert world.connect() <= 2 * RTT_S
    assert any(pair.is_relayed for pair in world.a.session.pairs)


def test_behind_firewalls_too() -> None:
    """Direct checks have to open both first; the relay is not waited for by that."""
    world = make_world(config_a=CONFIG, config_b=CONFIG, box_a=FirewallModel(), box_b=FirewallModel(), rtt_s=RTT_S)
    add_relays(world)
    world.gather()
    world.exchange()
    flow = Flow(world)
    flow.run(3.0)
    world.run(1.0)
    for side in (world.a, world.b):
        first, *_, last = paths(side)
        assert is_relayed(first) and not is_relayed(last)
    assert flow.arrived == flow.sent

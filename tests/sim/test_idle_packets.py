"""How many packets does a connected session cost that carries no data, or next to none? All are counted, by kind.

A minute has 60 s, and RFC 7675, 5.1, between 4 and 6 of them from one check of the pair in use to the next; what stands
by has 12 to 18. So each bound here is exact, but for the check at either edge of what is counted.
"""

from __future__ import annotations

import math
from collections import Counter

import pytest

from iceagent.config import Config
from iceagent.net.address import TransportAddress
from relay.stun import parse
from relay.upgrade import TIMINGS
from tests.sim.interfaces import add_interface, add_relay, talk
from tests.sim.world import Side, World, make_world

MINUTES = 30
SECONDS = 60 * MINUTES
# From one check to the next, seconds.
IN_USE = (4.0, 6.0)
STANDING_BY = (12.0, 18.0)

CONFIGS = [Config(), Config(standby=False), Config(consent_follows=False)]


def direct(config: Config) -> World:
    """One pair each side."""
    return connected(make_world(config_a=config, config_b=config))


def direct_with_others(config: Config) -> World:
    """Two more pairs stand by."""
    world = make_world(config_a=config, config_b=config)
    add_interface(world, world.a, "10.1.0.2")
    add_interface(world, world.a, "10.1.0.3")
    return connected(world)


def relayed(config: Config) -> World:
    """The direct way is blocked for good; what is counted goes over the relay of ``a``."""
    world = make_world(config_a=config, config_b=config)
    add_relay(world, world.a)
    world.a.node.links[0].cut()
    return connected(world)


def connected(world: World) -> World:
    world.gather()
    world.exchange()
    world.settle()
    # Past the PAC timer, and what repeats itself on pairs that do not work.
    world.run(60.0)
    return world


class Count:
    """What a side sent in a time, by (kind, base)."""

    def __init__(self, side: Side, since: float) -> None:
        self.requests: Counter[TransportAddress] = Counter()
        self.answers: Counter[TransportAddress] = Counter()
        self.others = 0
        for at, transmit in side.peer.transmits:
            if at >= since and transmit.data[0] < 4:
                message = parse(transmit.data)
                key = transmit.base if side.peer.name == "a" else transmit.destination
                if message.is_request:
                    self.requests[key] += 1
                elif message.is_success:
                    self.answers[key] += 1
                else:
                    self.others += 1


def bounds(gap: tuple[float, float], seconds: float) -> range:
    """How many checks leave in a time, if from one to the next ``gap`` passes."""
    return range(math.floor(seconds / gap[1]), math.ceil(seconds / gap[0]) + 1)


def count(world: World) -> tuple[Count, Count]:
    """Both sides, and whether each answers what the other one asks."""
    start = world.now
    world.run(SECONDS)
    mine, theirs = Count(world.a, start), Count(world.b, start)
    for one, other in ((mine, theirs), (theirs, mine)):
        assert one.others == 0
        for base, requests in other.requests.items():
            assert abs(one.answers[base] - requests) <= 1, world
        assert set(one.answers) == set(other.requests)
    return mine, theirs


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("make", [direct, relayed])
def test_idle_a_path_costs_ten_to_fifteen_checks_a_minute_and_as_many_answers(make: object, config: Config) -> None:
    """Direct or relayed, whatever stands by: on one pair, and nothing else."""
    world = make(config)  # type: ignore[operator]
    for each in count(world):
        (base,) = each.requests
        assert each.requests[base] in bounds(IN_USE, SECONDS), world


def test_idle_with_others_that_stand_by_it_costs_the_same_after_five_minutes() -> None:
    world = direct_with_others(Config())
    world.run(TIMINGS.keep_idle_s)
    for each in count(world):
        (base,) = each.requests
        assert each.requests[base] in bounds(IN_USE, SECONDS), world


@pytest.mark.parametrize("config", CONFIGS)
def test_with_data_each_that_stands_by_costs_three_to_five_checks_a_minute_more(config: Config) -> None:
    """And as many answers; none with ``Config.standby`` off."""
    world = direct_with_others(config)
    start = world.now
    talk(world, SECONDS, every_s=10.0)
    in_use = world.a.session.path().base  # type: ignore[union-attr]
    for side in (world.a, world.b):
        requests = Count(side, start).requests
        assert requests.pop(in_use) in bounds(IN_USE, SECONDS)
        assert len(requests) == (2 if config.standby else 0)
        assert all(each in bounds(STANDING_BY, SECONDS) for each in requests.values()), requests


def test_with_data_a_relayed_path_costs_looks_for_a_direct_one_besides() -> None:
    """A pair that does not work gets a check every 10 s, after the first minute of data."""
    world = relayed(Config())
    talk(world, 70.0)
    start = world.now
    talk(world, SECONDS)
    path = world.a.session.path()
    assert path is not None
    for side in (world.a, world.b):
        requests = Count(side, start).requests
        assert requests.pop(path.base) in bounds(IN_USE, SECONDS)
        (looks,) = requests.values()
        assert looks in bounds((TIMINGS.search_later_s, TIMINGS.search_later_s), SECONDS)

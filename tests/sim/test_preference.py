"""Does data take the path it should, when several work: away from what is about to go, costs money or is slow?"""

from __future__ import annotations

import pytest

from iceagent.config import Config
from iceagent.core.pair import CandidatePair
from iceagent.events import AgentState, SelectedPathChanged
from tests.sim.interfaces import add_host, add_interface, add_relay, base_of, talk
from tests.sim.world import Side, World, make_world

ROLES = [(True, False), (False, True)]
COSTLY = 900


def two_ways(
    *,
    first_s: float = 0.010,
    second_s: float = 0.010,
    costs: tuple[int, int] = (0, 0),
    config: Config | None = None,
    controlling: tuple[bool, bool] = (True, False),
    seed: int = 1,
) -> World:
    """``a`` has two interfaces, of which the first has the higher priority, so long from the Internet; ``b`` has one.

    Round trips are 20 ms more than twice that. Not connected yet.
    """
    world = make_world(seed, config_a=config, config_b=config, controlling=controlling)
    world.a.node.link.up.latency_s = world.a.node.link.down.latency_s = first_s
    add_interface(world, world.a, "10.1.0.2", latency_s=second_s)
    for index, cost in enumerate(costs):
        add_host(world, world.a, index, cost=cost)
    world.a.session.end_local_candidates(world.now)
    world.gather(sides=[world.b])
    return world


def settled(world: World) -> World:
    world.exchange()
    world.settle()
    world.run(1.0)
    return world


def moves(side: Side) -> list[tuple[str, str]]:
    """(from which address of a data goes on, why), each time."""
    return [
        ((event.new.base if side_is_a(side) else event.new.remote.address).host, event.reason)
        for event in side.events(SelectedPathChanged)
        if event.new is not None
    ]


def side_is_a(side: Side) -> bool:
    return side.peer.name == "a"


def pair_at(side: Side, host: str) -> CandidatePair:
    """The pair that leads over an address of a."""
    return next(p for p in side.session.pairs if host in (p.base.host, p.destination.host))


# --- an address that is about to go ----------------------------------------------------------------------------------


@pytest.mark.parametrize("controlling", ROLES)
def test_report_17_the_source_stays_while_the_address_is_merely_deprecated(controlling: tuple[bool, bool]) -> None:
    """libjuice#360: the kernel changed the source when an IPv6 temporary address was deprecated. There is no other."""
    world = make_world(controlling=controlling)
    world.gather()
    settled(world)
    before = moves(world.a)
    world.a.session.deprecate(world.a.bases[0], True, world.now)
    talk(world, 60.0)
    assert base_of(world.a) == world.a.bases[0] and world.is_mirrored()
    assert moves(world.a) == before
    assert world.a.states()[-1] is AgentState.CONNECTED


def test_report_17_data_moves_on_purpose_where_there_is_another_address() -> None:
    """libjuice#360. One nomination there: a round trip of 40 ms; and it stays there, though its priority is lower."""
    world = settled(two_ways())
    assert base_of(world.a) == world.a.bases[0]
    start = world.now
    world.a.session.deprecate(world.a.bases[0], True, world.now)
    assert world.run_until(lambda: base_of(world.a) == world.a.bases[1] and world.is_mirrored(), 1.0), world
    assert world.now - start <= 0.080
    assert moves(world.a)[-1] == ("10.1.0.2", "nominated: the address of the other one is about to go")
    talk(world, 300.0)
    assert base_of(world.a) == world.a.bases[1]
    # It is to stay, after all.
    world.a.session.deprecate(world.a.bases[0], False, world.now)
    assert world.run_until(lambda: base_of(world.a) == world.a.bases[0] and world.is_mirrored(), 20.0), world


def test_report_17_even_to_a_relay() -> None:
    world = make_world()
    add_relay(world, world.a)
    world.gather()
    settled(world)
    assert base_of(world.a) == world.a.bases[0]
    world.a.session.deprecate(world.a.bases[0], True, world.now)
    assert world.run_until(lambda: base_of(world.a) != world.a.bases[0] and world.is_mirrored(), 1.0), world


def test_report_17_the_controlled_side_can_but_wish_and_be_obliged() -> None:
    """What it wishes has the lower priority; who nominates knows no reason, goes there at once."""
    world = settled(two_ways(controlling=(False, True)))
    wishing, nominating = world.a.session._selection, world.b.session._selection
    assert wishing.wished(1, world.now) is None
    world.a.session.deprecate(world.a.bases[0], True, world.now)
    world.run(60.0)
    assert base_of(world.a) == world.a.bases[0]
    talk(world, 20.0)
    wished = wishing.wished(1, world.now)
    assert wished is not None and wished.base == world.a.bases[1]
    assert nominating.oblige(pair_at(world.b, "10.1.0.2"), "the peer asks for it", world.now)
    world.b.session._decide(world.now)
    assert world.run_until(lambda: base_of(world.a) == world.a.bases[1] and world.is_mirrored(), 1.0), world
    assert moves(world.b)[-1] == ("10.1.0.2", "the peer asks for it")
    assert wishing.wished(1, world.now) is None
    # What it did not want is tried again after 5 s, for it may be wanted by then; these two tell each other nothing.
    talk(world, 4.5)
    assert base_of(world.a) == world.a.bases[1]
    assert not nominating.oblige(pair_at(world.b, "10.1.0.1"), "the peer asks for it", world.now)
    talk(world, 60.0)
    assert base_of(world.a) == world.a.bases[0] and world.is_mirrored()
    wished = wishing.wished(1, world.now)
    assert wished is not None and wished.base == world.a.bases[1]


def test_who_is_controlled_obliges_nobody_and_who_nominated_for_good_neither() -> None:
    world = settled(two_ways())
    assert not world.b.session._selection.oblige(pair_at(world.b, "10.1.0.2"), "", world.now)
    assert world.a.session._selection.wished(1, world.now) is None
    world = settled(two_ways(config=Config(renomination=False)))
    other = next(p for p in world.a.session.pairs if p is not world.a.session.selected())
    assert not world.a.session._selection.oblige(other, "", world.now)


def test_a_deprecated_address_is_taken_when_everything_else_dies() -> None:
    world = settled(two_ways())
    world.a.session.deprecate(world.a.bases[0], True, world.now)
    world.run(1.0)
    world.a.node.links[1].cut()
    talk(world, 10.0)
    assert base_of(world.a) == world.a.bases[0] and world.is_mirrored()
    assert world.a.states()[-1] is AgentState.CONNECTED


# --- round trips -----------------------------------------------------------------------------------------------------


def test_a_faster_interface_is_moved_to_after_several_samples_and_stayed_on() -> None:
    """80 ms and 40 ms. ICE's priority comes first; nothing is lost when it is overruled, and nothing comes back."""
    world = settled(two_ways(first_s=0.030))
    start = world.now
    assert base_of(world.a) == world.a.bases[0]
    assert talk(world, 120.0, until=lambda: base_of(world.a) == world.a.bases[1]), world
    assert world.now - start >= 28.0
    assert moves(world.a)[-1] == ("10.1.0.2", "nominated: it is faster")
    world.run(1.0)
    assert world.is_mirrored()
    count = len(moves(world.a))
    talk(world, 1200.0)
    assert len(moves(world.a)) == count
    for side in (world.a, world.b):
        assert side.states() == [AgentState.CHECKING, AgentState.CONNECTED]


@pytest.mark.parametrize(("first_s", "second_s"), [(0.012, 0.010), (0.190, 0.182), (0.010, 0.010)])
def test_what_is_hardly_faster_changes_nothing(first_s: float, second_s: float) -> None:
    """44 ms and 40 ms; 400 ms and 384 ms; the same."""
    world = settled(two_ways(first_s=first_s, second_s=second_s))
    count = len(moves(world.a))
    talk(world, 600.0)
    assert len(moves(world.a)) == count and base_of(world.a) == world.a.bases[0]


def test_data_goes_back_when_the_better_priority_is_as_fast_again() -> None:
    world = settled(two_ways(first_s=0.030))
    assert talk(world, 120.0, until=lambda: base_of(world.a) == world.a.bases[1]), world
    left_at = world.now
    world.a.node.link.up.latency_s = world.a.node.link.down.latency_s = 0.010
    # Its smoothed round trip comes down slowly.
    assert talk(world, 900.0, until=lambda: base_of(world.a) == world.a.bases[0]), world
    assert world.now - left_at >= 60.0
    assert moves(world.a)[-1] == ("10.1.0.1", "nominated: it has the higher priority")
    world.run(1.0)
    assert world.is_mirrored()


@pytest.mark.parametrize("seed", range(5))
def test_noise_makes_data_move_a_few_times_in_an_hour_at_most(seed: int) -> None:
    """30 ms of jitter on both: each move in vain doubles the time to the next."""
    world = settled(two_ways(seed=seed))
    for link in world.a.node.links:
        link.up.jitter_s = link.down.jitter_s = 0.030
    count = len(moves(world.a))
    talk(world, 3600.0, every_s=5.0)
    assert len(moves(world.a)) - count <= 9, world


@pytest.mark.parametrize("seed", range(5))
def test_what_loses_a_sixth_each_way_is_left_for_what_loses_nothing(seed: int) -> None:
    """Its checks are answered often enough that it never counts as dead, and its priority is the higher one."""
    world = settled(two_ways(seed=seed))
    link, count = world.a.node.links[0], len(moves(world.a))
    link.up.loss = link.down.loss = 0.16
    seconds = 0
    for _ in range(600):
        talk(world, 1.0, every_s=0.25)
        seconds += base_of(world.a) == world.a.bases[0]
    assert seconds <= 300
    assert "nominated: it loses less" in [reason for _, reason in moves(world.a)[count:]]
    assert len(moves(world.a)) - count <= 7


@pytest.mark.parametrize("config", [Config(liveness=False), Config(renomination=False), Config(standby=False)])
def test_without_samples_or_renomination_a_faster_interface_is_not_moved_to(config: Config) -> None:
    world = settled(two_ways(first_s=0.030, config=config))
    count = len(moves(world.a))
    talk(world, 300.0)
    assert len(moves(world.a)) == count


def test_a_direct_path_wins_over_a_relay_that_is_faster() -> None:
    """240 ms against 40: across classes round trips decide nothing, and a direct path is moved to at once."""
    world = make_world(hosts_b=("10.2.0.1",))
    world.a.node.link.up.latency_s = world.a.node.link.down.latency_s = 0.110
    add_relay(world, world.a)
    world.gather()
    world.exchange()
    assert world.run_until(lambda: base_of_or_none(world.a) == world.a.bases[0], 2.0), world
    world.settle()
    assert base_of(world.a) == world.a.bases[0]
    talk(world, 300.0)
    assert base_of(world.a) == world.a.bases[0] and world.is_mirrored()


def base_of_or_none(side: Side) -> object:
    path = side.session.path()
    return None if path is None else path.base


# --- what costs money ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("controlling", ROLES)
@pytest.mark.parametrize("is_known_to_a", [True, False])
def test_a_metered_interface_comes_last_even_behind_a_relay(
    controlling: tuple[bool, bool], is_known_to_a: bool
) -> None:
    """Whoever nominates, and whichever end pays: both know, by NETWORK-COST."""
    world = make_world(controlling=controlling)
    payer, other = (world.a, world.b) if is_known_to_a else (world.b, world.a)
    add_host(world, payer, 0, cost=COSTLY)
    add_relay(world, payer, latency_s=0.030)
    world.gather(sides=[other])
    payer.session.end_local_candidates(world.now)
    settled(world)
    # What works first carries data; the direct path did.
    assert world.a.path_reasons()[0] == "the first valid pair"
    for side in (world.a, world.b):
        current = side.session.current()
        assert current is not None and current.is_relayed and not current.is_metered
    assert world.is_mirrored()
    talk(world, 120.0)
    assert all(side.session.current().is_relayed for side in (world.a, world.b))  # type: ignore[union-attr]


def test_a_metered_interface_is_left_when_another_one_comes_up() -> None:
    world = make_world()
    add_host(world, world.a, 0, cost=COSTLY)
    world.a.session.end_local_candidates(world.now)
    world.gather(sides=[world.b])
    settled(world)
    assert base_of(world.a) == world.a.bases[0]
    add_interface(world, world.a, "10.1.0.2")
    # As of a worse kind as can be, but free.
    add_host(world, world.a, 1, cost=899)
    world.signal(world.a)
    assert world.run_until(lambda: base_of(world.a) == world.a.bases[1] and world.is_mirrored(), 1.0), world
    assert moves(world.a)[-1] == ("10.1.0.2", "nominated: the other one's network costs")


@pytest.mark.parametrize(("cost", "first"), [(0, 0), (899, 0), (900, 1), (998, 1), (999, 0)])
def test_a_cost_that_says_nothing_changes_nothing(cost: int, first: int) -> None:
    """libwebrtc says 999 of sockets on the wildcard address: who knows what network that is?"""
    world = settled(two_ways(costs=(cost, 0)))
    talk(world, 10.0)
    assert base_of(world.a) == world.a.bases[first] and world.is_mirrored()


def test_a_metered_interface_carries_data_where_there_is_nothing_else() -> None:
    world = settled(two_ways(costs=(0, COSTLY)))
    world.a.node.link.cut()
    talk(world, 10.0)
    assert base_of(world.a) == world.a.bases[1] and world.is_mirrored()
    world.a.node.link.restore()
    # It was left because it was dead, a moment ago; then it comes first again.
    assert talk(world, 90.0, until=lambda: base_of(world.a) == world.a.bases[0]), world


def test_what_a_peer_learns_later_about_a_network_moves_data_then() -> None:
    """A check that says another cost than the one before is no routine."""
    world = settled(two_ways(controlling=(False, True)))
    assert base_of(world.a) == world.a.bases[0]
    pair = pair_at(world.b, "10.1.0.1")
    assert pair.remote_cost == 0
    object.__setattr__(pair_at(world.a, "10.1.0.1").local, "network_cost", COSTLY)
    talk(world, 10.0)
    assert pair.remote_cost == COSTLY
    assert base_of(world.a) == world.a.bases[1] and world.is_mirrored()


def test_a_carrier_that_comes_back_makes_no_deprecated_address_a_good_one() -> None:
    world = settled(two_ways())
    session, base = world.a.session, world.a.bases[0]
    pair = next(each for each in session.pairs if each.base == base)

    def stays() -> bool:
        return session._selection.preference.standing(pair, world.now).is_staying

    session.deprecate(base, True, world.now)
    session.set_link(base, False, world.now)
    session.set_link(base, True, world.now)
    assert not stays()
    session.deprecate(base, False, world.now)
    assert stays()

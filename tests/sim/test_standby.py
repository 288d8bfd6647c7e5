"""Is what stands by warm when it is needed, and how many packets does that cost?"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from iceagent.candidate import CandidateType
from iceagent.config import Config
from iceagent.core.pair import CandidatePair
from iceagent.nat.kinds import Filtering
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram
from iceagent.testing.allocation import Allocation
from iceagent.testing.nat import NatModel
from relay.stun import parse
from relay.upgrade import TIMINGS
from tests.sim.interfaces import add_interface, base_of, talk
from tests.sim.world import EXTERNAL_A, Side, World, make_world

# Each end by itself: then the times of one end's checks are its own.
BY_ITSELF = Config(consent_follows=False)


def three_ways(seed: int = 1, config: Config | None = None) -> World:
    """``a`` has three interfaces; two of the three pairs stand by."""
    world = make_world(seed, config_a=config or BY_ITSELF, config_b=config or BY_ITSELF)
    add_interface(world, world.a, "10.1.0.2")
    add_interface(world, world.a, "10.1.0.3")
    return settled(world)


def settled(world: World) -> World:
    world.gather()
    world.exchange()
    world.settle()
    world.run(1.0)
    return world


def checks(side: Side, base: TransportAddress, since: float) -> list[float]:
    """When requests left from a base."""
    return [at for at, t in side.peer.transmits if at >= since and t.base == base and parse_request(t.data)]


def parse_request(data: bytes) -> bool:
    return data[0] < 4 and parse(data).is_request


def gaps(times: list[float]) -> list[float]:
    return [later - sooner for sooner, later in pairwise(times)]


def standby_bases(world: World) -> list[TransportAddress]:
    return [base for base in world.a.bases if base != base_of(world.a)]


@pytest.mark.parametrize("seed", range(5))
def test_what_stands_by_is_checked_every_fifteen_seconds_with_a_check_for_consent(seed: int) -> None:
    """Varied by 0.8 … 1.2, like those (RFC 7675, 5.1), and at their times: nothing wakes up for it."""
    world = three_ways(seed)
    start = world.now
    talk(world, 600.0)
    in_use = checks(world.a, base_of(world.a), start)
    for base in standby_bases(world):
        times = checks(world.a, base, start)
        assert set(times) <= set(in_use)
        assert all(12.0 <= round(gap, 6) <= 18.0 for gap in gaps(times)), world
        assert 600 / 18 - 1 <= len(times) <= 600 / 12 + 1
    assert all(4.0 <= round(gap, 6) <= 6.0 for gap in gaps(in_use))


@pytest.mark.parametrize("seed", range(5))
def test_one_lost_check_leaves_it_ready_to_carry_data(seed: int) -> None:
    """It is repeated with the next check for consent, 4 to 6 s later; consent lasts 30 s."""
    world = three_ways(seed)
    base = standby_bases(world)[0]
    lost = 0
    requests = 0

    def lets_in(datagram: Datagram, now: float) -> bool:
        # Every second check from there.
        nonlocal lost, requests
        if datagram.source.host != base.host or not parse_request(datagram.data):
            return True
        requests += 1
        lost += requests % 2
        return requests % 2 == 0

    world.b.peer.lets_in = lets_in
    ready = []
    for _ in range(1200):
        talk(world, 0.5)
        current = world.a.session.current()
        assert current is not None
        ready.append(any(p.base == base for p in world.a.session._selection.alternatives(current, world.now)))
    assert all(ready) and lost >= 10
    assert all(gap <= 18.0 for gap in gaps(checks(world.a, base, 0.0)))


def test_two_lost_checks_in_a_row_leave_it_ready_too() -> None:
    world = three_ways(3)
    base = standby_bases(world)[0]
    start = world.now
    talk(world, 30.0)
    pair = pair_of(world.a, base)
    missed: list[float] = []

    def lets_in(datagram: Datagram, now: float) -> bool:
        if datagram.source.host != base.host or not parse_request(datagram.data) or len(missed) == 2:
            return True
        missed.append(now)
        return False

    world.b.peer.lets_in = lets_in
    assert talk(world, 40.0, until=lambda: len(missed) == 2 and pair.answered_at > missed[-1])
    assert max(gaps(checks(world.a, base, start))) <= 18.0
    assert pair.answered_at - missed[0] <= 12.1


def pair_of(side: Side, base: TransportAddress) -> CandidatePair:
    return next(p for p in side.session.pairs if p.base == base)


def test_without_it_nothing_but_the_path_in_use_is_checked() -> None:
    """``Config.standby`` off."""
    world = three_ways(config=Config(consent_follows=False, standby=False))
    start = world.now
    talk(world, 120.0)
    assert all(not checks(world.a, base, start) for base in standby_bases(world))
    assert checks(world.a, base_of(world.a), start)


def test_five_minutes_after_the_last_datagram_nothing_stands_by_and_with_the_next_one_it_does() -> None:
    world = three_ways()
    talk(world, 60.0)
    quiet_since = world.now
    world.run(900.0)
    for base in standby_bases(world):
        times = checks(world.a, base, quiet_since)
        assert quiet_since + TIMINGS.keep_idle_s - 20.0 <= times[-1] < quiet_since + TIMINGS.keep_idle_s
    start = world.now
    talk(world, 7.0)
    assert all(len(checks(world.a, base, start)) == 1 for base in standby_bases(world))


def test_before_the_first_datagram_it_stands_by_for_five_minutes() -> None:
    world = three_ways()
    world.run(900.0)
    for base in standby_bases(world):
        assert 280.0 <= checks(world.a, base, 0.0)[-1] <= 302.0


def test_who_only_hears_keeps_it_warm_too() -> None:
    world = three_ways()
    start = world.now
    for _ in range(900):
        world.a.session.handle_datagram(Datagram(base_of(world.a), world.b.bases[0], b"\x80 media"), world.now)
        world.run(1.0)
    for base in standby_bases(world):
        assert checks(world.a, base, start)[-1] >= world.now - 18.0


# --- short bindings --------------------------------------------------------------------------------------------------


def behind_a_nat(lifetime_s: float, seed: int = 1) -> World:
    """Both addresses of ``a`` stand behind one NAT, which forgets after so long and gives another port then. ``b``
    keeps nothing warm: its checks, answered, would keep that binding alive, too.
    """
    nat = NatModel(
        [EXTERNAL_A],
        Random(seed),
        filtering=Filtering.EIF,
        allocation=Allocation.RANDOM,
        lifetime_s=lifetime_s,
        inbound_refresh=False,
    )
    hosts = ("10.1.0.1", "10.1.0.2")
    alone = Config(consent_follows=False, standby=False)
    return settled(make_world(seed, hosts_a=hosts, box_a=nat, config_a=BY_ITSELF, config_b=alone))


def last_gap(side: Side, base: TransportAddress) -> float:
    return gaps(checks(side, base, 0.0))[-1]


@pytest.mark.parametrize(("lifetime_s", "shortest", "longest"), [(13.0, 8.0, 12.0), (7.0, 4.0, 6.0)])
def test_where_bindings_are_seen_to_die_checks_leave_more_often_from_there(
    lifetime_s: float, shortest: float, longest: float
) -> None:
    """15, 10, 5 s: learnt from answers that show another mapped address, for each socket that stands by."""
    world = behind_a_nat(lifetime_s)
    # A peer-reflexive address has a higher priority than a server-reflexive one: data moves, and both are learnt.
    talk(world, 300.0)
    learnt = world.a.session.counters["bindings seen to die"]
    assert learnt >= (2 if lifetime_s < 8 else 1)
    (base,) = standby_bases(world)
    start = world.now
    talk(world, 300.0)
    assert all(shortest <= round(gap, 6) <= longest for gap in gaps(checks(world.a, base, start)))
    # Nothing dies any more.
    assert world.a.session.counters["bindings seen to die"] == learnt


def test_bindings_that_live_long_enough_teach_nothing() -> None:
    world = behind_a_nat(30.0)
    (base,) = standby_bases(world)
    talk(world, 300.0)
    assert world.a.session.counters["bindings seen to die"] == 0
    assert all(gap >= 12.0 for gap in gaps(checks(world.a, base, 20.0)))


def test_a_pause_after_which_a_binding_is_dead_teaches_nothing() -> None:
    """Nobody kept it alive, and the NAT is in its right."""
    world = behind_a_nat(30.0)
    world.run(900.0)
    talk(world, 60.0)
    assert world.a.session.counters["bindings seen to die"] == 0


def test_checks_that_are_not_answered_in_a_row_shorten_the_interval_and_what_is_dead_is_asked_no_more_often() -> None:
    """Such a NAT may let no answer in. After 30 s it is a dead path like any other."""
    world = three_ways()
    base = standby_bases(world)[0]
    other = standby_bases(world)[1]
    talk(world, 30.0)
    cut_at = world.now
    cut(world, base)
    talk(world, 300.0)
    assert world.a.session.counters["standby checks missed in a row"] == 2
    times = checks(world.a, base, cut_at + 60.0)
    assert all(12.0 <= round(gap, 6) <= 18.0 for gap in gaps(times))
    assert all(12.0 <= round(gap, 6) <= 18.0 for gap in gaps(checks(world.a, other, cut_at)))
    # It comes back, and is kept warm as often as was learnt.
    restore(world, base)
    talk(world, 60.0)
    start = world.now
    talk(world, 120.0)
    assert all(4.0 <= round(gap, 6) <= 6.0 for gap in gaps(checks(world.a, base, start)))


def test_one_lost_check_teaches_nothing() -> None:
    world = three_ways()
    base = standby_bases(world)[0]
    for _ in range(10):
        cut(world, base)
        count = len(checks(world.a, base, 0.0))
        talk(world, 30.0, until=lambda count=count: len(checks(world.a, base, 0.0)) > count)  # type: ignore[misc]
        world.run(0.1)
        restore(world, base)
        talk(world, 30.0)
    assert world.a.session.counters["standby checks missed in a row"] == 0


def test_what_was_learnt_of_a_base_goes_with_it() -> None:
    world = behind_a_nat(7.0)
    talk(world, 120.0)
    assert world.a.session._standby._every_s
    for base in world.a.bases:
        world.a.session.remove_base(base, "gone", world.now)
    assert not world.a.session._standby._every_s


def link_of(world: World, base: TransportAddress) -> Callable[[], object]:
    return lambda: next(link for link in world.a.node.links if base.host in link.hosts)


def cut(world: World, base: TransportAddress) -> None:
    link_of(world, base)().cut()  # type: ignore[attr-defined]


def restore(world: World, base: TransportAddress) -> None:
    link_of(world, base)().restore()  # type: ignore[attr-defined]


# --- which -----------------------------------------------------------------------------------------------------------


def test_with_long_intervals_of_consent_it_goes_by_its_own_time() -> None:
    """``Config.consent_interval_s`` 20 s: nothing would leave with those in time."""
    config = Config(consent_follows=False, consent_interval_s=20.0)
    world = three_ways(config=config)
    start = world.now
    talk(world, 600.0)
    for base in standby_bases(world):
        times = checks(world.a, base, start)
        assert all(12.0 <= round(gap, 6) <= 18.0 for gap in gaps(times))
        assert len({round(gap, 3) for gap in gaps(times)}) > len(times) / 2


def test_one_that_answers_stands_by_in_place_of_one_that_does_not() -> None:
    waits = dict.fromkeys(CandidateType, 0.5)
    world = make_world(config_a=Config(consent_follows=False, nomination_wait_s=waits), config_b=BY_ITSELF)
    for n in (2, 3, 4):
        add_interface(world, world.a, f"10.1.0.{n}")
    world.gather()
    # The best one comes last, so that all are checked.
    world.a.node.link.cut()
    world.exchange()
    world.run(0.3)
    world.a.node.link.restore()
    world.settle()
    first, _, last = standby_bases(world)
    talk(world, 30.0)
    assert not checks(world.a, last, 2.0)
    cut(world, first)
    talk(world, 90.0)
    start = world.now
    talk(world, 60.0)
    assert checks(world.a, last, start) and not checks(world.a, first, start)

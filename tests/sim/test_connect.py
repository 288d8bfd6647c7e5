"""How fast do two agents connect, and how many packets does it take?"""

from __future__ import annotations

from collections import Counter

import pytest

from iceagent.config import Config
from iceagent.core.pacing import TokenBucket
from iceagent.events import AgentState
from iceagent.net.address import TransportAddress
from iceagent.testing.firewall import FirewallModel
from iceagent.testing.links import Fate
from relay.stun import parse
from tests.sim.world import PORT, World, make_session, make_world, relayed_candidate

TA_S = 0.050


def firewalled(seed: int, rtt_s: float) -> World:
    """Both ends behind a stateful firewall: nothing comes in from where nothing went out to."""
    world = make_world(seed, box_a=FirewallModel(), box_b=FirewallModel(), rtt_s=rtt_s)
    world.gather()
    return world


@pytest.mark.parametrize("rtt_s", [0.0004, 0.040, 0.600])
def test_two_hosts_connect_in_one_round_trip_and_agree_in_a_second_one(rtt_s: float) -> None:
    world = make_world(rtt_s=rtt_s)
    world.gather()
    world.exchange()
    assert world.connect() == pytest.approx(rtt_s)
    assert world.settle() == pytest.approx(rtt_s), world
    assert world.is_mirrored()
    for side in (world.a, world.b):
        assert side.states() == [AgentState.CHECKING, AgentState.CONNECTED]


@pytest.mark.parametrize("rtt_s", [0.001, 0.100])
@pytest.mark.parametrize("late_s", [0.010, 0.050, 0.300, 0.700, 3.0])
def test_stateful_firewalls_on_both_sides_cost_no_retransmission_timeout(late_s: float, rtt_s: float) -> None:
    """RFC 8445, 7.3.1.4: a request on an In-Progress pair triggers a new check at once.

    B's first check finds A's firewall open. A answers it, and sends its own check, which finds B's open: 1.5 round
    trips
    after B began, and Ta more where A had sent one just before.
    """
    world = firewalled(1, rtt_s)
    world.signal(world.b)
    world.run(late_s)
    start = world.now
    world.signal(world.a)
    world.connect()
    assert world.now - start <= 1.5 * rtt_s + TA_S + 1e-6, world


@pytest.mark.parametrize("seed", range(10))
def test_a_lost_first_packet_costs_less_than_a_retransmission_timeout(seed: int) -> None:
    """An early new check leaves after 100 ms; RFC 8445, 14.3 would repeat after 500 ms."""
    rtt_s = 0.040
    world = make_world(seed, rtt_s=rtt_s)
    world.gather()
    world.exchange()
    for side in (world.a, world.b):
        side.node.link.up.is_cut = True
    # The first check of both leaves now, and is lost.
    world.pair.drain(world.a.peer)
    world.pair.drain(world.b.peer)
    assert world.network.counters[Fate.CUT] == 2
    for side in (world.a, world.b):
        side.node.link.up.is_cut = False
    assert world.connect() <= 0.100 + rtt_s + 1e-6, world


def test_after_connecting_there_is_little_traffic() -> None:
    """Consent on the path in use and two standby pairs, and nothing else: no ping-pong, no endless checks."""
    hosts = [[f"10.{n}.0.{i}" for i in range(1, 4)] for n in (1, 2)]
    world = make_world(hosts_a=hosts[0], hosts_b=hosts[1])
    world.gather()
    world.exchange()
    world.settle()
    world.run(2.0)
    start = world.now
    world.run(60.0)
    per_second = Counter(int(at - start) for side in (world.a, world.b) for at, _ in side.peer.transmits if at >= start)
    # Three checks and three answers of either side can fall into one second.
    assert max(per_second.values()) <= 12, world
    # In a minute, the pair in use is checked 10 to 15 times by either side and the two others 3 to 5 times, and every
    # check is answered.
    assert (10 + 2 * 3) * 4 <= sum(per_second.values()) <= (15 + 2 * 5) * 4, world


def sixteen_by_sixteen(seed: int, good: int, config: Config) -> World:
    """One address of each side is alive; the routing table knows which."""
    hosts = [[f"10.{n}.0.{i}" for i in range(1, 17)] for n in (1, 2)]
    alive = [each[good] for each in hosts]
    world = make_world(
        seed,
        hosts_a=hosts[0],
        hosts_b=hosts[1],
        config_a=config,
        config_b=config,
        routes=(alive[0], alive[1]),
    )
    world.gather()
    for side in (world.a, world.b):
        for host in [h for h in side.node.hosts if h not in alive]:
            world.network.remove_address(side.node.link, host)
    world.exchange()
    return world


@pytest.mark.parametrize("good", [0, 7, 15])
def test_one_pair_of_sixteen_by_sixteen_addresses_works(good: int) -> None:
    """Dead addresses (a VPN that is down, containers) cost time by their number, not by its square.

    DEVIATION from RFC 8445, 6.1.4.2: pairs with the base that the kernel would use come before better ones.
    """
    for seed in range(3):
        world = sixteen_by_sixteen(seed, good, Config())
        assert world.connect(10.0) <= 1.0, world
        world.settle()
        path = world.a.session.path()
        assert path is not None
        assert (path.base, path.remote.address) == (world.a.bases[good], world.b.bases[good])


def test_without_route_order_the_good_pair_waits_until_its_priority_is_due() -> None:
    """``Config.route_order`` off is RFC 8445, 6.1.4.2: the 64th pair is checked after 63 others, one per Ta."""
    world = sixteen_by_sixteen(1, 7, Config(route_order=False))
    assert world.connect(10.0) > 2.0, world


def test_a_process_with_many_sessions_keeps_one_ceiling() -> None:
    """RFC 8445, 14.2: all agents of a process together begin one check per 5 ms on average."""
    ceiling = TokenBucket(rate=200, capacity=20)
    sessions = [make_session(True, seed, ceiling=ceiling) for seed in range(50)]
    world = make_world()
    world.gather()
    description = world.b.description()
    for session in sessions:
        session.add_local_candidate(world.a.session.local_candidates[0], 0.0)
        session.set_remote_description(description, 0.0)
    first_sent_at: dict[bytes, float] = {}
    for step in range(1000):
        for session in sessions:
            session.handle_timeout(step / 1000)
            while (transmit := session.poll_transmit()) is not None:
                first_sent_at.setdefault(parse(transmit.data).transaction_id, step / 1000)
    times = sorted(first_sent_at.values())
    assert times.count(0.0) == 20
    assert times[49] == pytest.approx(30 / 200, abs=0.002)
    # 50 first checks, and early ones after them; in no tenth of a second more than the bucket has and gets.
    assert 100 <= len(times) <= 200
    for i, sooner in enumerate(times):
        within = [at for at in times[i:] if at - sooner < 0.1]
        assert len(within) <= 20 + 0.1 * 200 + 1


def test_candidates_of_one_side_are_enough() -> None:
    """A peer that signals nothing but credentials is learnt from its checks (RFC 8445, 7.3.1.3)."""
    world = make_world()
    world.gather()
    world.signal(world.a)
    world.signal(world.b, candidates=False)
    world.settle()
    path = world.a.session.path()
    assert path is not None
    assert path.remote.type.value == "prflx"
    assert path.remote.address == world.b.bases[0]


def test_half_trickle() -> None:
    """RFC 8838, 16: one side signals everything in one go, the other one trickles."""
    world = make_world()
    world.gather()
    world.signal(world.a)
    world.signal(world.b, complete=False, candidates=False)
    world.run(0.3)
    for candidate in world.b.session.local_candidates:
        world.a.session.add_remote_candidate(candidate, world.now)
    world.a.session.end_remote_candidates(world.now)
    world.settle()
    assert world.a.session.remote_done
    assert world.is_mirrored()


def test_both_trickle_one_by_one() -> None:
    """RFC 8838: credentials first, candidates as they are found, a dead one before the good one."""
    world = make_world(hosts_a=("10.1.0.1", "10.1.0.2"), hosts_b=("10.2.0.1", "10.2.0.2"))
    for side in (world.a, world.b):
        world.signal(side, complete=False, candidates=False)
        side.node.links[0].hosts.remove(side.bases[0].host)
    world.gather()
    for index in range(2):
        for side in (world.a, world.b):
            world.other(side).session.add_remote_candidate(side.session.local_candidates[index], world.now)
        world.run(0.2)
    assert world.a.is_connected and world.b.is_connected, world
    world.settle()
    assert world.a.session.path().remote.address == world.b.bases[1]  # type: ignore[union-attr]


def test_two_components_both_get_a_path() -> None:
    """RFC 8445, 6.1.2.2: only candidates of the same component are paired; connected means all of them."""
    config = Config(components=2)
    world = make_world(config_a=config, config_b=config)
    world.gather()
    world.exchange()
    world.settle()
    for number in (1, 2):
        assert world.is_mirrored(number), world
        path = world.a.session.path(number)
        assert path is not None and path.base.port == PORT + number - 1
        assert {pair.component for pair in world.a.session.pairs} == {1, 2}


def test_one_component_without_a_path_is_not_connected() -> None:
    config = Config(components=2)
    world = make_world(config_a=config, config_b=config)
    world.gather()
    world.b.node.ports = {world.b.bases[0]}
    world.exchange()
    world.run(5.0)
    assert world.a.session.path(1) is not None
    assert world.a.session.state is AgentState.CHECKING


def test_a_relayed_pair_connects_at_once_and_gives_way_to_a_direct_one() -> None:
    """Data flows on the first valid pair; the relay is not nominated while something better can still come."""
    world = make_world()
    relay = TransportAddress("198.51.100.9", 40000)
    world.network.attach(world.b.node, [relay.host])
    assert world.b.node.ports is not None
    world.b.node.ports.add(relay)
    world.gather()
    world.b.session.add_local_candidate(relayed_candidate(relay), world.now)
    direct = world.b.node.links[0]
    direct.cut()
    world.exchange()
    world.connect()
    assert world.a.session.path().is_relayed  # type: ignore[union-attr]
    direct.restore()
    assert world.run_until(lambda: world.a.is_settled and world.b.is_settled, 5.0), world
    path = world.a.session.path()
    assert path is not None and path.kind == "direct", world
    assert world.is_mirrored()


def test_no_session_ever_asks_to_be_woken_in_the_past() -> None:
    """After ``handle_timeout(now)`` the deadline is later than ``now``: no busy loop, whatever pacing holds back."""
    hosts = [[f"10.{n}.0.{i}" for i in range(1, 9)] for n in (1, 2)]
    world = make_world(hosts_a=hosts[0], hosts_b=hosts[1], loss=0.2, rtt_s=0.2)
    world.gather()
    world.exchange()
    for _ in range(5000):
        before = world.now
        if not world.pair.step() or world.now > 30.0:
            break
        for side in (world.a, world.b):
            session = side.session
            session.handle_timeout(world.now)
            at = session.poll_timeout()
            assert at is None or at > world.now, world
        assert world.now >= before
    assert AgentState.CONNECTED in world.a.states(), world

"""What users of other agents reported: does it happen to us?

Reports 1, 3 and 24 are in ``test_nomination.py``, 4 and 23 in ``test_roles.py``, 5 in ``test_consent.py``, 7 in
``test_restart.py`` and, with whole agents, ``tests/shell/test_reports_restart.py``, 22 in
``tests/shell/test_reports_roaming.py``.
"""

from __future__ import annotations

import itertools
from collections import Counter
from random import Random

import pytest

from iceagent.candidate import CandidateType
from iceagent.config import Config
from iceagent.description import Description
from iceagent.events import AgentState, RemoteCandidateAdded, SelectedPathChanged, StateChanged
from iceagent.net.address import TransportAddress
from iceagent.net.core import Transmit
from iceagent.testing.nat import NatModel
from relay.stun import USE_CANDIDATE, parse
from tests.sim.world import EXTERNAL_A, EXTERNAL_B, Side, World, host_candidate, make_session, make_world, parsed


def test_report_02_the_selected_local_candidate_is_the_mapped_one() -> None:
    """pion#82: it showed the host candidate. RFC 8445, 7.2.5.3.2: the valid pair's local is at the mapped address."""
    world = natted()
    world.exchange()
    world.settle()
    for side, external in ((world.a, EXTERNAL_A), (world.b, EXTERNAL_B)):
        path = side.session.path()
        assert path is not None
        assert (path.local.type, path.local.address.host) == (CandidateType.SERVER_REFLEXIVE, external)
        assert path.base == side.bases[0]


def natted(seed: int = 1) -> World:
    boxes = [NatModel((external,), Random(seed)) for external in (EXTERNAL_A, EXTERNAL_B)]
    world = make_world(seed, hosts_a=("192.168.1.2",), hosts_b=("192.168.2.2",), box_a=boxes[0], box_b=boxes[1])
    world.gather()
    return world


@pytest.mark.parametrize("seed", range(10))
def test_report_06_triggered_checks_do_not_answer_each_other(seed: int) -> None:
    """pion 99fbdea: ping-pong at one check per round trip. All responses are lost here, all requests arrive."""
    world = make_world(seed, rtt_s=0.002)
    world.gather()
    world.exchange()
    for side in (world.a, world.b):
        drop_responses(side)
    world.run(10.0)
    for side in (world.a, world.b):
        requests = [at for at, t in side.peer.transmits if parse(t.data).is_request]
        per_second = Counter(int(at - requests[0]) for at in requests)
        # A bucket of 5 and one per Ta: each incoming check may trigger one, and each triggered one is a request.
        assert max(per_second.values()) <= 5 + 20 + 3, world


def drop_responses(side: Side) -> None:
    side.peer.lets_in = lambda datagram, now: parse(datagram.data).is_request


def test_report_06_a_million_packets_are_not_sent_after_connecting() -> None:
    """The bound per second is in ``test_connect.py``; here: nothing but consent for an hour, on one pair."""
    world = make_world()
    world.gather()
    world.exchange()
    world.settle()
    start = world.now
    world.run(3600.0)
    for side in (world.a, world.b):
        # Own checks every 4 to 6 s, and an answer to each of the peer's.
        assert len(world.transmits_since(side, start)) <= 2 * 3600 / 4


def test_report_08_a_learnt_candidate_that_is_signalled_later_keeps_its_path() -> None:
    """pion f2ff5ba, str0m: replacing a peer-reflexive candidate in use disconnected, and lost its statistics."""
    world = make_world()
    world.gather()
    world.signal(world.a)
    world.signal(world.b, candidates=False, complete=False)
    world.settle()
    pair = world.a.session.current()
    assert pair is not None and pair.remote.type.value == "prflx"
    data = Transmit(world.b.bases[0], world.a.bases[0], b"\x80 data")
    world.network.send(world.b.node, data, world.now)
    world.run(1.0)
    rtt, received = pair.rtt_s, pair.traffic.packets_received
    assert received == 1
    changes = len(world.a.events(SelectedPathChanged)) + len(world.a.events(StateChanged))
    for candidate in world.b.session.local_candidates:
        world.a.session.add_remote_candidate(candidate, world.now)
    world.run(10.0)
    assert world.a.session.current() is pair
    assert pair.remote.type.value == "host"
    assert pair.remote.foundation == world.b.session.local_candidates[0].foundation
    assert pair.traffic.packets_received == received
    assert pair.rtt_s == pytest.approx(rtt)
    assert len(world.a.events(SelectedPathChanged)) + len(world.a.events(StateChanged)) == changes
    assert [event.via for event in world.a.events(RemoteCandidateAdded)] == ["check", "signalling"]
    assert len(world.a.session.remote_candidates) == 1


ARRIVALS = ("local a", "local b", "description of a", "description of b", "candidate of a", "candidate of b")


@pytest.mark.parametrize("first", ARRIVALS)
def test_report_15_every_order_of_arrival_connects(first: str) -> None:
    """libjuice#85: no pair when remote candidates came before local ones. All 720 orders of six inputs."""
    others = [name for name in ARRIVALS if name != first]
    for order in itertools.permutations(others):
        world = make_world()
        for name in (first, *order):
            arrive(world, name)
            world.run(0.005)
        world.notes.append(f"order: {(first, *order)}")
        for side in (world.a, world.b):
            side.session.end_local_candidates(world.now)
            side.session.end_remote_candidates(world.now)
        world.settle(3.0)
        assert world.is_mirrored(), world


def arrive(world: World, name: str) -> None:
    side = world.a if name.endswith("a") else world.b
    if name.startswith("local"):
        side.session.add_local_candidate(host_candidate(side.bases[0]), world.now)
    elif name.startswith("description"):
        world.signal(side, candidates=False, complete=False)
    else:
        world.other(side).session.add_remote_candidate(host_candidate(side.bases[0]), world.now)


def test_report_18_ids_are_never_reused_and_only_nominations_say_use_candidate() -> None:
    """libjuice#262, #263: reused transaction ids, USE-CANDIDATE on keepalives; #219 to #221: busy spins."""
    world = make_world(hosts_a=("10.1.0.1", "10.1.0.2"), hosts_b=("10.2.0.1", "10.2.0.2"), loss=0.1)
    world.gather()
    world.exchange()
    world.settle()
    world.run(600.0)
    for side in (world.a, world.b):
        contents: dict[bytes, bytes] = {}
        for _, transmit in side.peer.transmits:
            message = parse(transmit.data)
            if message.is_request:
                assert contents.setdefault(message.transaction_id, transmit.data) == transmit.data
    nominating = {m.transaction_id for m in parsed([t for _, t in world.a.peer.transmits]) if m.get(USE_CANDIDATE)}
    assert 1 <= len(nominating) <= 8
    assert not [m for m in parsed([t for _, t in world.b.peer.transmits]) if m.get(USE_CANDIDATE)]


def test_report_18_no_busy_spin() -> None:
    """Between packets a session is woken for what it said, and each wake-up does something within a few."""
    world = make_world(hosts_a=("10.1.0.1", "10.1.0.2"), hosts_b=("10.2.0.1", "10.2.0.2"))
    world.gather()
    world.b.node.link.cut()
    world.exchange()
    wakes = 0
    start = world.now
    while world.now - start < 120.0 and world.pair.step():
        wakes += 1
        assert wakes < 3000, world
    assert world.a.state() is AgentState.FAILED


def test_report_19_data_flows_on_the_first_valid_pair() -> None:
    """libdatachannel#559: waiting for nomination is three times slower."""
    world = make_world(config_a=Config(nomination_wait_s=dict.fromkeys(CandidateType, 1e6)), hosts_b=("10.2.0.1",))
    world.gather()
    world.exchange()
    took = world.connect()
    assert took == pytest.approx(0.040)
    path = world.a.session.path()
    assert path is not None and not path.nominated
    payload = b"\x80 data"
    for side in (world.a, world.b):
        path = side.session.path()
        assert path is not None
        world.network.send(side.node, Transmit(path.base, path.remote.address, payload), world.now)
    world.run(0.1)
    for side in (world.a, world.b):
        assert traffic_of(side).packets_received == 1


def traffic_of(side: Side):  # type: ignore[no-untyped-def]
    pair = side.session.current()
    assert pair is not None
    return pair.traffic


def test_report_20_a_candidate_that_comes_late_delays_nothing() -> None:
    """janus#2982, aioice#4: a dead server holds everything up. Checks run from the first candidate on."""
    world = make_world()
    for side in (world.a, world.b):
        side.session.add_local_candidate(host_candidate(side.bases[0]), world.now)
    # Gathering is not done on either side, and will not be.
    world.signal(world.a, complete=False)
    world.signal(world.b, complete=False)
    assert world.connect() == pytest.approx(0.040)
    world.settle()


@pytest.mark.parametrize("junk_first", [True, False])
def test_report_21_thirty_junk_addresses_cost_less_than_the_round_trip_again(junk_first: bool) -> None:
    """floe#150, pjproject#2686: docker bridges and dead interfaces cost 20 to 30 s; here, connect within 2× of a
    clean host.

    ``iceagent/priority.py`` puts containers and tunnels last. If the junk looks like an ordinary interface, the
    kernel's route
    puts the good base first.
    """
    clean = make_world()
    clean.gather()
    clean.exchange()
    expected = clean.connect()
    junk = [f"172.17.{i}.1" for i in range(30)]
    good = "10.1.0.1"
    hosts = [*junk, good] if junk_first else [good, *junk]
    world = make_world(hosts_a=hosts, routes=(good if junk_first else None, None))
    side = world.a
    for host in junk:
        world.network.remove_address(side.node.link, host)
    world.gather()
    world.exchange()
    assert world.connect() <= 2 * expected, world
    world.settle()


def test_report_25_a_list_stays_running_while_the_peer_trickles() -> None:
    """rawrtc#64: failed while candidates were still to come. RFC 8838, 8 and RFC 8863, 4."""
    world = make_world()
    world.gather()
    world.signal(world.a)
    world.signal(world.b, candidates=False, complete=False)
    session = world.a.session
    world.b.node.link.up.is_cut = True
    dead = host_candidate(TransportAddress("10.2.0.99", 5000))
    session.add_remote_candidate(dead, world.now)
    world.run(300.0)
    assert [pair.state.value for pair in session.pairs] == ["failed"]
    assert world.a.state() is AgentState.CHECKING
    session.end_remote_candidates(world.now)
    assert world.a.state() is AgentState.FAILED
    # Even then a late candidate brings it back.
    world.b.node.link.up.is_cut = False
    for candidate in world.b.session.local_candidates:
        session.add_remote_candidate(candidate, world.now)
    assert world.a.state() is AgentState.CHECKING
    world.settle()


def test_report_25_nothing_fails_before_the_pac_timer() -> None:
    """RFC 8863, 4: no remote candidates and end-of-candidates is no reason to give up: the peer may reach us."""
    world = make_world()
    world.gather()
    empty = Description(credentials=world.b.session.local_credentials, complete=True)
    world.a.session.set_remote_description(empty, world.now)
    world.run(39.0)
    assert world.a.state() is AgentState.CHECKING
    world.run(1.0)
    assert world.a.state() is AgentState.FAILED
    assert world.a.events(StateChanged)[-1].reason == "no pair was formed"


def test_report_25_a_peer_that_reaches_us_first_is_enough_within_the_pac_timer() -> None:
    world = make_world()
    world.gather()
    empty = Description(credentials=world.b.session.local_credentials, complete=True)
    world.a.session.set_remote_description(empty, world.now)
    world.run(30.0)
    world.signal(world.a)
    world.settle(3.0)
    assert world.is_mirrored()


def test_report_26_when_every_send_fails_the_session_fails_and_says_why() -> None:
    """ice4j#280: every send errors and it never fails."""
    world = make_world()
    world.gather()
    world.exchange()
    # The address is gone, but nobody told the session.
    world.network.remove_address(world.a.node.link, world.a.bases[0].host)
    world.b.node.link.cut()
    assert world.run_until(lambda: world.a.state() is AgentState.FAILED, 120.0), world
    reason = world.a.session.state_reason
    assert reason.endswith("no response, last network error: Cannot assign requested address"), reason
    assert world.a.session.counters["network errors"] >= 7


def test_a_silent_peer_is_given_up_after_the_time_of_one_check() -> None:
    """RFC 8489's schedule: 39.5 s after the first check, no earlier and not much later."""
    world = make_world()
    world.gather()
    world.b.node.link.cut()
    world.exchange()
    assert world.run_until(lambda: world.a.state() is AgentState.FAILED, 120.0)
    assert world.now == pytest.approx(39.5, abs=0.01)


def test_a_session_with_hundreds_of_dead_candidates_is_no_cannon() -> None:
    """RFC 8445, 19.5.1: a hundred addresses of one victim get no more than the pace of checks, each 20 in a minute."""
    session = make_session(True, 1)
    base = TransportAddress("10.1.0.1", 5000)
    session.add_local_candidate(host_candidate(base), 0.0)
    session.end_local_candidates(0.0)
    other = make_session(False, 2)
    victims = tuple(host_candidate(TransportAddress("198.51.100.7", 1024 + i), index=i) for i in range(200))
    session.set_remote_description(Description(credentials=other.local_credentials, candidates=victims), 0.0)
    sent: list[tuple[float, TransportAddress]] = []
    now = 0.0
    for _ in range(20_000):
        while (transmit := session.poll_transmit()) is not None:
            sent.append((now, transmit.destination))
        at = session.poll_timeout()
        if at is None or at > 600.0:
            break
        now = max(now, at)
        session.handle_timeout(now)
    per_victim = Counter(destination for at, destination in sent if at < 60.0)
    assert max(per_victim.values()) <= 20
    assert len(per_victim) <= 100
    per_second = Counter(int(at) for at, _ in sent)
    # New checks at Ta, repetitions thinned out by an RTO of Ta * checks.
    assert max(per_second.values()) <= 5 + 20 * 2, per_second.most_common(3)

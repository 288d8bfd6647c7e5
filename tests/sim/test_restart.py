"""Can either side begin anew at any moment (RFC 8445, 9), and does data keep flowing meanwhile?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from iceagent.config import Config
from iceagent.credentials import Credentials
from iceagent.events import AgentState, IceRestarted, PathDoubted, RemoteCandidateRefused
from iceagent.net.core import Transmit
from tests.sim.interfaces import add_host, add_interface
from tests.sim.world import Side, World, make_session, make_world


def before_any_description(world: World) -> None:
    """Candidates are there, nobody knows of the other."""


def mid_checking(world: World) -> None:
    """Both check, nothing was answered yet."""
    world.exchange()
    world.run(0.010)
    assert world.a.state() is AgentState.CHECKING


def one_side_knows(world: World) -> None:
    """b has a's description, a has nothing of b's but early checks."""
    world.signal(world.a)
    world.run(0.1)


def nominating(world: World) -> None:
    """Connected, the nomination is under way."""
    world.exchange()
    world.connect()
    assert world.a.session.selected() is None


def connected(world: World) -> None:
    world.exchange()
    world.settle()
    world.run(20.0)


def failed(world: World) -> None:
    world.b.node.link.cut()
    world.exchange()
    world.run(120.0)
    assert world.a.state() is AgentState.FAILED
    world.b.node.link.restore()


STAGES: list[Callable[[World], None]] = [
    before_any_description,
    one_side_knows,
    mid_checking,
    nominating,
    connected,
    failed,
]


def negotiate_restart(world: World, initiator: Side) -> None:
    """The initiator restarts and signals; the other side answers, as its application does on ``IceRestarted``."""
    other = world.other(initiator)
    old = initiator.session.local_credentials
    initiator.session.restart(world.now)
    assert initiator.session.local_credentials != old
    world.signal(initiator)
    world.run(0.020)
    world.signal(other)


@pytest.mark.parametrize("initiator", ["a", "b"])
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_report_07_a_restart_at_every_stage_connects(stage: Callable[[World], None], initiator: str) -> None:
    """pion#942: a restart in the middle wedged the state."""
    world = make_world(hosts_a=("10.1.0.1", "10.1.0.2"), hosts_b=("10.2.0.1", "10.2.0.2"))
    world.gather()
    stage(world)
    side = world.a if initiator == "a" else world.b
    negotiate_restart(world, side)
    assert world.run_until(lambda: is_on_new_generation(world), 10.0), world
    world.settle(10.0)
    assert world.is_mirrored(), world
    world.run(60.0)
    assert world.is_mirrored() and world.a.is_connected and world.b.is_connected, world


def is_on_new_generation(world: World) -> bool:
    return all(
        (pair := side.session.current()) is not None
        and pair.keys.local == side.session.local_credentials
        and pair.keys.remote == world.other(side).session.local_credentials
        for side in (world.a, world.b)
    )


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_both_restart_at_once(stage: Callable[[World], None]) -> None:
    """Glare: both have new credentials already, so neither answers the other's with yet newer ones."""
    world = make_world()
    world.gather()
    stage(world)
    for side in (world.a, world.b):
        side.session.restart(world.now)
    fresh = [side.session.local_credentials for side in (world.a, world.b)]
    world.exchange()
    assert [side.session.local_credentials for side in (world.a, world.b)] == fresh
    assert world.run_until(lambda: is_on_new_generation(world), 10.0), world
    world.settle(10.0)


@pytest.mark.parametrize("restarter", ["a", "b"])
def test_who_restarts_without_a_path_is_no_path_for_the_peer(restarter: str) -> None:
    """Consent has ended on both sides, one restarts, and its signalling is lost. Then the network heals, and the other
    one has a new address: its checks are not answered, or it would talk to somebody who cannot.
    """
    world = make_world()
    world.gather()
    connected(world)
    for link in world.a.node.links:
        link.up.is_cut = link.down.is_cut = True
    world.run(45.0)
    one, other = (world.a, world.b) if restarter == "a" else (world.b, world.a)
    one.session.restart(world.now)
    for link in world.a.node.links:
        link.up.is_cut = link.down.is_cut = False
    add_interface(world, other, "10.9.0.1")
    add_host(world, other, len(other.bases) - 1)
    world.run(20.0)
    assert other.session.current() is None and not other.is_connected
    world.signal(one)
    world.signal(other)
    assert world.run_until(lambda: is_on_new_generation(world), 10.0), world


@pytest.mark.parametrize("times", [2, 3, 10])
def test_however_often_a_restart_is_begun_the_path_of_before_goes_on(times: int) -> None:
    """The peer knows of none of them, and goes on checking with the credentials that both have agreed on."""
    world = make_world()
    world.gather()
    connected(world)
    for _ in range(times):
        world.a.session.restart(world.now)
        world.run(1.0)
    world.run(60.0)
    for side in (world.a, world.b):
        assert AgentState.DISCONNECTED not in side.states() and side.session.current() is not None
        assert not side.events(PathDoubted)
    assert len(world.a.session._responder._keys) <= 3
    world.exchange()
    assert world.run_until(lambda: is_on_new_generation(world), 10.0), world


def test_the_old_path_carries_data_until_the_new_one_is_found() -> None:
    """RFC 8445, 9: "during the restart, data can continue to be sent using existing data sessions"; consent is kept for
    it, too.
    """
    world = make_world()
    world.gather()
    connected(world)
    old = world.a.session.current()
    assert old is not None
    world.a.session.restart(world.now)
    # The peer's answer takes its time.
    world.run(60.0)
    assert world.a.session.current() is old
    assert world.a.state() is AgentState.CONNECTED
    assert old.responded_at is not None and world.now - old.responded_at < 7.0
    for side in (world.a, world.b):
        data = Transmit(side.bases[0], world.other(side).bases[0], b"\x80 data")
        world.network.send(side.node, data, world.now)
    before = [side.session.peers(side.bases[0])[world.other(side).bases[0]].packets_received for side in sides(world)]
    world.run(0.1)
    after = [side.session.peers(side.bases[0])[world.other(side).bases[0]].packets_received for side in sides(world)]
    assert [x + 1 for x in before] == after
    world.signal(world.a)
    world.signal(world.b)
    assert world.run_until(lambda: is_on_new_generation(world), 10.0), world
    assert world.a.path_reasons()[-2:] == ["the first valid pair after the restart", "nominated"] or (
        world.a.path_reasons()[-1] == "the first valid pair after the restart"
    )
    assert AgentState.DISCONNECTED not in world.a.states()


def sides(world: World) -> tuple[Side, Side]:
    return world.a, world.b


def test_the_peers_new_credentials_are_answered_by_new_ones_once() -> None:
    """RFC 8445, 9: both sides' credentials change; the same description again is no restart."""
    world = make_world()
    world.gather()
    connected(world)
    old = world.b.session.local_credentials
    world.a.session.restart(world.now)
    world.signal(world.a)
    world.pair.drain(world.b.peer)
    answer = world.b.session.local_credentials
    assert answer != old
    assert [event.by_peer for event in world.b.events(IceRestarted)] == [True]
    world.signal(world.a)
    world.pair.drain(world.b.peer)
    assert world.b.session.local_credentials == answer
    assert [event.by_peer for event in world.b.events(IceRestarted)] == [True]
    world.signal(world.b)
    world.pair.drain(world.a.peer)
    assert [event.by_peer for event in world.a.events(IceRestarted)] == [False]


def test_ten_restarts_in_a_row() -> None:
    world = make_world()
    world.gather()
    connected(world)
    for count in range(10):
        negotiate_restart(world, (world.a, world.b)[count % 2])
        world.run(0.010 * count)
    assert world.run_until(lambda: is_on_new_generation(world), 10.0), world
    world.settle(10.0)
    assert len(world.a.session.pairs) == 1


def test_candidates_of_a_later_generation_wait_for_its_credentials() -> None:
    """RFC 8838, 9: they are tagged with the user name fragment, and may overtake the description."""
    world = make_world()
    world.gather()
    connected(world)
    world.b.session.restart(world.now)
    tag = (("ufrag", world.b.session.local_credentials.ufrag),)
    for candidate in world.b.session.local_candidates:
        world.a.session.add_remote_candidate(replace(candidate, base=None, extensions=tag), world.now)
    assert world.a.session.remote_candidates[0].extensions == ()
    world.signal(world.b, candidates=False)
    assert [c.ufrag for c in world.a.session.remote_candidates] == [tag[0][1]]
    world.signal(world.a)
    assert world.run_until(lambda: is_on_new_generation(world), 10.0), world


def test_candidates_of_an_earlier_generation_are_refused() -> None:
    world = make_world()
    world.gather()
    connected(world)
    old = world.b.session.local_credentials.ufrag
    negotiate_restart(world, world.b)
    # b began, so it is a that has to signal once more.
    world.signal(world.a)
    late = replace(world.b.session.local_candidates[0], base=None, extensions=(("ufrag", old),))
    world.a.session.add_remote_candidate(late, world.now)
    world.pair.drain(world.a.peer)
    refusals = [event.reason for event in world.a.events(RemoteCandidateRefused)]
    assert refusals == ["it belongs to an earlier generation"]


def test_a_restart_keeps_the_role_and_starts_the_nominations_anew() -> None:
    world = make_world()
    world.gather()
    connected(world)
    negotiate_restart(world, world.b)
    assert world.run_until(lambda: is_on_new_generation(world), 10.0), world
    world.settle()
    assert world.a.session.controlling and not world.b.session.controlling


def test_a_restart_revives_a_session_whose_components_lost_their_paths() -> None:
    config = Config(components=2)
    world = make_world(config_a=config, config_b=config)
    world.gather()
    connected(world)
    world.b.node.link.cut()
    world.run(120.0)
    assert world.a.state() is AgentState.FAILED
    world.b.node.link.restore()
    negotiate_restart(world, world.a)
    world.settle(10.0)
    assert all(world.is_mirrored(number) for number in (1, 2))


# --- restarts that cross each other --------------------------------------------------------------------------------


def known(world: World) -> dict[Side, Credentials]:
    """What each side's application has signalled."""
    return {side: side.session.local_credentials for side in (world.a, world.b)}


def gossip(world: World, seen: dict[Side, Credentials], rounds: int = 20) -> tuple[int, int]:
    """Each side signals its credentials when they changed, 100 ms later; returns how often each did."""
    counts = dict.fromkeys(seen, 0)
    for _ in range(rounds):
        changed = [side for side in seen if side.session.local_credentials != seen[side]]
        for side in changed:
            seen[side] = side.session.local_credentials
            counts[side] += 1
        world.run(0.1)
        for side in changed:
            world.signal(side)
    return counts[world.a], counts[world.b]


def test_two_restarts_in_a_row_are_answered_once() -> None:
    """Both offers are under way when the first answer leaves: without care, every answer looks like a restart, for
    ever.
    """
    world = make_world()
    world.gather()
    connected(world)
    seen = known(world)
    first = world.a.session.restart(world.now)
    world.signal(world.a)
    assert world.a.session.restart(world.now) != first
    assert gossip(world, seen) == (1, 1)
    assert world.run_until(lambda: is_on_new_generation(world), 10.0), world


def test_credentials_that_are_over_are_no_answer_to_a_restart() -> None:
    """The peer signals its old description once more, for a late candidate, before it heard of the restart."""
    world = make_world()
    world.gather()
    connected(world)
    seen = known(world)
    world.a.session.restart(world.now)
    world.signal(world.b)
    assert world.a.session.remote_credentials is None
    assert gossip(world, seen) == (1, 1)
    assert world.run_until(lambda: is_on_new_generation(world), 10.0), world


def test_a_peer_that_is_started_anew_is_answered_once_by_each_side() -> None:
    """A new process, with credentials of its own, reads our old description first; its checks then overtake its
    files.
    """
    world = make_world()
    world.gather()
    connected(world)
    seen = known(world)
    anew = make_session(False, 99, name="anew")
    for candidate in world.b.session.local_candidates:
        anew.add_local_candidate(candidate, world.now)
    anew.end_local_candidates(world.now)
    world.b.peer.core = anew
    world.signal(world.a)
    assert gossip(world, seen) == (1, 2)
    assert world.run_until(lambda: is_on_new_generation(world), 10.0), world


def test_a_second_restart_before_any_check_passed_is_answered_by_what_is_known() -> None:
    """The peer keeps its credentials, and signals nothing new: its check shows that it goes on with them."""
    world = make_world()
    world.gather()
    connected(world)
    seen = known(world)
    for side in (world.a, world.b):
        side.node.link.cut()
    world.a.session.restart(world.now)
    gossip(world, seen, rounds=5)
    world.a.session.restart(world.now)
    gossip(world, seen, rounds=5)
    for side in (world.a, world.b):
        side.node.link.restore()
    assert world.run_until(lambda: is_on_new_generation(world), 30.0), world


def test_a_restart_of_the_peers_after_two_of_ours() -> None:
    """The answer to the first of two overtakes the second; then the peer restarts."""
    world = make_world()
    world.gather()
    connected(world)
    seen = known(world)
    world.a.session.restart(world.now)
    gossip(world, seen, rounds=2)
    world.a.session.restart(world.now)
    gossip(world, seen, rounds=2)
    for side in (world.a, world.b):
        side.node.link.cut()
    world.run(4.0)
    world.b.session.restart(world.now)
    gossip(world, seen, rounds=5)
    for side in (world.a, world.b):
        side.node.link.restore()
    assert world.run_until(lambda: is_on_new_generation(world), 30.0), world

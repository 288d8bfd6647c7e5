"""When does a session ask for a new socket, and what does it do with it?"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from iceagent.candidate import Candidate
from iceagent.config import Config
from iceagent.core.reroll import WAIT_CONTROLLED_S, WAIT_CONTROLLING_S
from iceagent.events import AgentState, RerollDue
from iceagent.net.address import TransportAddress
from iceagent.testing.firewall import FirewallModel
from iceagent.testing.links import Fate
from iceagent.testing.nat import NatModel
from relay.stun import parse
from tests.sim.world import (
    EXTERNAL_A,
    EXTERNAL_B,
    Side,
    World,
    host_candidate,
    make_world,
    reflexive_candidate,
    relayed_candidate,
)

BEGIN = 1.0
INSIDE = "192.168.1.2"
SECOND = TransportAddress(INSIDE, 6000)


def world_of(config: Config | None = None, **options: Any) -> World:
    """A host behind a NAT on either side; both have gathered, and the clock is at BEGIN."""
    options = {
        "hosts_a": (INSIDE,),
        "hosts_b": ("192.168.2.2",),
        "box_a": NatModel((EXTERNAL_A,), Random(1)),
        "box_b": NatModel((EXTERNAL_B,), Random(2)),
        **options,
    }
    world = make_world(config_a=config, config_b=config, **options)
    world.gather()
    world.run(BEGIN - world.now)
    return world


def alone(config: Config | None = None, **options: Any) -> World:
    """Only a hears of the other: nothing will answer."""
    world = world_of(config, **options)
    world.signal(world.b)
    return world


def due(side: Side) -> list[RerollDue]:
    return side.events(RerollDue)


def add_second(world: World) -> Candidate:
    """What the shell does: a new socket, whose reflexive address a server told."""
    side = world.a
    assert side.node.ports is not None
    side.node.ports.add(SECOND)
    side.session.use_openers_only(SECOND, world.now)
    mapped = world._ask_server(side.node, SECOND)
    assert mapped is not None
    candidate = replace(reflexive_candidate(host_candidate(SECOND, index=1), mapped), foundation="again")
    assert side.session.add_local_candidate(candidate, world.now)
    return candidate


def of_second(world: World) -> list[tuple[float, TransportAddress, int | None, bool]]:
    """What left from the new socket: when, where to, TTL, and whether it is a request."""
    return [
        (at, transmit.destination, transmit.ttl, parse(transmit.data).is_request)
        for at, transmit in world.a.peer.transmits
        if transmit.base == SECOND
    ]


# --- when --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("controlling", "wait_s"), [((True, False), WAIT_CONTROLLING_S), ((False, True), WAIT_CONTROLLED_S)]
)
def test_the_controlled_side_after_a_second_the_controlling_one_half_a_second_later(
    controlling: tuple[bool, bool], wait_s: float
) -> None:
    """Once: not again for as long as nothing answers."""
    world = alone(controlling=controlling)
    world.run(wait_s - 0.001)
    assert due(world.a) == []
    world.run(0.002)
    assert due(world.a) == [RerollDue(component=1, base=world.a.bases[0])]
    world.run(60.0)
    assert len(due(world.a)) == 1
    assert due(world.b) == []


def test_the_second_begins_with_the_first_reflexive_pair() -> None:
    """Candidates that trickle in: the credentials of the peer alone say nothing."""
    world = world_of(controlling=(False, True))
    world.signal(world.b, complete=False, candidates=False)
    world.run(3.0)
    host, reflexive = world.b.session.local_candidates
    world.a.session.add_remote_candidate(host, world.now)
    world.run(3.0)
    assert due(world.a) == []
    world.a.session.add_remote_candidate(reflexive, world.now)
    world.run(WAIT_CONTROLLED_S + 0.001)
    assert len(due(world.a)) == 1


def test_an_answer_between_reflexive_addresses_ends_it() -> None:
    world = world_of()
    world.exchange()
    world.settle()
    world.run(10.0)
    assert due(world.a) == due(world.b) == []


def test_a_socket_with_a_valid_pair_is_kept() -> None:
    """Two hosts of one home, whose NAT does not hairpin: the host candidates work."""
    world = make_world()
    world.gather()
    for side, external in ((world.a, EXTERNAL_A), (world.b, EXTERNAL_B)):
        (host,) = side.session.local_candidates
        mapped = TransportAddress(external, 5000)
        side.session.add_local_candidate(reflexive_candidate(host, mapped), world.now)
    world.exchange()
    world.settle()
    world.run(10.0)
    assert due(world.a) == due(world.b) == []


def test_a_relayed_path_does_not_stop_it() -> None:
    """It works, but the direct one is what is wanted, and its socket has no valid pair."""
    world = make_world(controlling=(False, True))
    a, b = world.a.session, world.b.session
    lost = host_candidate(TransportAddress("10.1.0.9", 5000))
    for session, candidate in (
        (a, relayed_candidate(world.a.bases[0])),
        (a, lost),
        (a, reflexive_candidate(lost, TransportAddress(EXTERNAL_A, 5000))),
        (b, host_candidate(world.b.bases[0])),
        (b, reflexive_candidate(host_candidate(world.b.bases[0]), TransportAddress(EXTERNAL_B, 5000))),
    ):
        session.add_local_candidate(candidate, world.now)
    world.exchange()
    world.run(WAIT_CONTROLLED_S + 0.001)
    assert world.a.is_connected
    assert due(world.a) == [RerollDue(component=1, base=lost.address)]


def test_a_host_on_the_internet_may_have_spoilt_ours_too() -> None:
    """It knocked at our NAT before we sent, and its firewall takes nothing from the port that our flow has now."""
    world = world_of(box_b=FirewallModel(), hosts_b=("20.0.9.2",))
    world.signal(world.b)
    world.run(WAIT_CONTROLLING_S)
    assert due(world.a) == [RerollDue(component=1, base=world.a.session.local_candidates[0].address)]
    world = world_of()
    world.a.session.set_remote_description(world.b.description(candidates=False), world.now)
    world.a.session.add_remote_candidate(host_candidate(TransportAddress("192.168.2.2", 5000)), world.now)
    world.run(10.0)
    assert due(world.a) == []


def test_a_host_that_is_not_behind_a_nat_has_no_flows_to_lose() -> None:
    world = alone(box_a=FirewallModel())
    world.run(10.0)
    assert due(world.a) == []


@pytest.mark.parametrize(
    "config",
    [
        Config(reroll=False),
        Config(openers=False),
        Config(late_candidates=False),
    ],
)
def test_the_switches(config: Config) -> None:
    world = alone(config)
    world.run(10.0)
    assert due(world.a) == []


def test_each_component_has_its_own() -> None:
    world = alone(Config(components=2))
    world.run(WAIT_CONTROLLING_S + 0.001)
    assert due(world.a) == [RerollDue(component=i + 1, base=base) for i, base in enumerate(world.a.bases)]


def test_after_a_restart_the_second_begins_anew() -> None:
    """With the peer's new credentials."""
    world = alone()
    world.run(1.0)
    world.a.session.restart(world.now)
    world.run(5.0)
    assert due(world.a) == []
    world.b.session.restart(world.now)
    world.signal(world.b)
    world.run(WAIT_CONTROLLING_S - 0.001)
    assert due(world.a) == []
    world.run(0.002)
    assert len(due(world.a)) == 1


# --- what then ---------------------------------------------------------------------------------------------------


def test_a_new_socket_sends_openers_and_no_check() -> None:
    """TTL 2 before the application hears of the candidate, TTL 3 after 100 ms, to the reflexive address alone."""
    world = alone()
    world.run(2.0)
    target = world.b.session.local_candidates[-1].address
    add_second(world)
    start = world.now
    first = world.a.session.poll_transmit()
    assert first is not None and (first.base, first.destination, first.ttl) == (SECOND, target, 2)
    world.run(60.0)
    ((at, destination, ttl, is_request),) = of_second(world)
    assert at - start == pytest.approx(0.1)
    assert (destination, ttl, is_request) == (target, 3, False)
    assert Fate.FILTERED not in {
        entry.fate for entry in world.network.log if entry.at >= start and entry.packet.base == SECOND
    }


def test_the_peers_check_sets_it_free() -> None:
    """From there on it is a base like any other: a triggered check, and the other pairs in their turn."""
    world = alone()
    world.run(2.0)
    candidate = add_second(world)
    world.run(1.0)
    assert not any(is_request for *_, is_request in of_second(world))
    # The old pair works no more, whatever comes: so it can only be the new one.
    old = world.a.bases[0]
    world.a.peer.lets_in = lambda datagram, now: datagram.base != old
    world.signal(world.a)
    world.connect()
    path = world.a.session.path()
    assert path is not None and (path.base, path.local.address) == (SECOND, candidate.address)
    assert any(is_request for *_, is_request in of_second(world))


def test_many_addresses_of_the_peer_do_not_wait_for_tokens() -> None:
    """The candidate is told at once, so their openers leave at once: with what the bucket has, and as much again."""
    world = alone()
    world.run(2.0)
    host = world.b.session.local_candidates[0]
    for port in range(6001, 6012):
        remote = reflexive_candidate(host, TransportAddress(EXTERNAL_B, port))
        world.a.session.add_remote_candidate(Candidate.parse(remote.to_sdp()), world.now)
    world.run(2.0)
    add_second(world)
    at_once = []
    while (transmit := world.a.session.poll_transmit()) is not None:
        at_once += [transmit.ttl] if transmit.base == SECOND else []
    assert at_once == [2] * 10
    world.run(3.0)
    assert sum(ttl == 2 for _, _, ttl, _ in of_second(world)) == 2


def test_what_is_held_does_not_keep_an_agent_from_failing() -> None:
    """Its pairs wait for the peer's check, which never comes."""
    world = alone(Config(pac_timeout_s=5.0))
    world.run(2.0)
    add_second(world)
    assert world.run_until(lambda: world.a.state() is AgentState.FAILED, 120.0), world


def test_a_base_that_is_gone_is_held_no_more() -> None:
    world = alone()
    world.run(2.0)
    add_second(world)
    world.a.session.remove_base(SECOND, "its local address is gone", world.now)
    world.a.session.add_local_candidate(replace(host_candidate(SECOND, index=1), foundation="third"), world.now)
    world.run(1.0)
    assert any(is_request for *_, is_request in of_second(world))


def test_what_can_improve_nothing_any_more_is_left_alone() -> None:
    """The server answered after the peer did."""
    world = world_of()
    world.exchange()
    world.settle()
    add_second(world)
    world.run(5.0)
    assert of_second(world) == []


def test_lost_paths_are_not_looked_for_from_it() -> None:
    """When the path in use is lost, all other pairs are checked again, but for these."""
    world = world_of()
    world.exchange()
    world.settle()
    add_second(world)
    world.b.node.link.cut()
    world.run(60.0)
    assert AgentState.DISCONNECTED in world.a.states()
    assert not any(is_request for *_, is_request in of_second(world))

"""Do two agents agree who controls, whatever they were told (RFC 8445, 7.3.1.1), and do we get along with lite
agents?
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from iceagent.config import Config
from iceagent.core.session import IceSession
from iceagent.events import AgentState, RoleChanged
from relay.stun import ICE_CONTROLLED, ICE_CONTROLLING, USE_CANDIDATE, parse
from tests.sim.world import World, make_world


def conflicting(seed: int, controlling: bool, *, loss: float = 0.0, hosts: int = 1) -> World:
    world = make_world(
        seed,
        controlling=(controlling, controlling),
        loss=loss,
        hosts_a=[f"10.1.0.{i + 1}" for i in range(hosts)],
        hosts_b=[f"10.2.0.{i + 1}" for i in range(hosts)],
    )
    world.gather()
    world.exchange()
    return world


@pytest.mark.parametrize("controlling", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_report_04_equal_roles_are_settled_by_the_tie_breaker(seed: int, controlling: bool) -> None:
    """pion#359, #789: the comparison was the wrong way round. The larger tie-breaker controls, and one side changes
    once.
    """
    world = conflicting(seed, controlling, hosts=2)
    larger = tie_breaker(world.a.session) >= tie_breaker(world.b.session)
    world.settle(10.0)
    assert (world.a.session.controlling, world.b.session.controlling) == (larger, not larger), world
    assert world.is_mirrored(), world
    changes = world.a.events(RoleChanged) + world.b.events(RoleChanged)
    assert [change.controlling for change in changes] == [not controlling]
    # Both begin at the same moment: this costs no more than the round trip of the conflict.
    assert world.now <= 0.040 * 3 + 0.1


@pytest.mark.parametrize("controlling", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_report_04_equal_tie_breakers_are_drawn_anew(seed: int, controlling: bool) -> None:
    """RFC 8445, 7.2.5.1: after a 487 the tie-breaker changes, so two equal ones do not stay in step for ever."""
    world = make_world(seed, controlling=(controlling, controlling))
    for side in (world.a, world.b):
        side.session._context.tie_breaker = 42
    world.gather()
    world.exchange()
    world.settle(20.0)
    assert world.a.session.controlling is not world.b.session.controlling, world
    assert world.is_mirrored()


@pytest.mark.parametrize("seed", range(20))
def test_equal_roles_under_loss(seed: int) -> None:
    world = conflicting(seed, seed % 2 == 0, loss=0.1, hosts=2)
    world.settle(30.0)
    assert world.a.session.controlling is not world.b.session.controlling, world
    world.run(8.0)
    assert world.is_mirrored(), world


def test_a_role_switch_ranks_the_pairs_anew() -> None:
    """RFC 8445, 7.3.1.1: pair priorities depend on the role."""
    seed = next(s for s in range(50) if loses(s))
    world = conflicting(seed, True, hosts=2)
    world.settle(10.0)
    for side in (world.a, world.b):
        for pair in side.session.pairs:
            mine, theirs = pair.local.priority, pair.remote.priority
            g, d = (mine, theirs) if side.session.controlling else (theirs, mine)
            assert pair.priority == 2**32 * min(g, d) + 2 * max(g, d) + (g > d)


def loses(seed: int) -> bool:
    world = make_world(seed, controlling=(True, True))
    return tie_breaker(world.a.session) < tie_breaker(world.b.session)


def tie_breaker(session: IceSession) -> int:
    return session._context.tie_breaker


def roles_sent(world: World, name: str) -> list[str]:
    side = world.a if name == "a" else world.b
    messages = [parse(transmit.data) for _, transmit in side.peer.transmits]
    return [
        "controlling" if message.get(ICE_CONTROLLING) is not None else "controlled"
        for message in messages
        if message.is_request and (message.get(ICE_CONTROLLING) is not None or message.get(ICE_CONTROLLED) is not None)
    ]


def test_the_loser_repeats_its_checks_in_the_new_role() -> None:
    """RFC 8445, 7.2.5.1: after a 487 the pair is checked again, as a triggered check."""
    seed = next(s for s in range(50) if loses(s))
    world = conflicting(seed, True)
    world.settle(10.0)
    sent = roles_sent(world, "a")
    assert sent[0] == "controlling" and set(sent[1:]) == {"controlled"}
    assert set(roles_sent(world, "b")) == {"controlling"}


# --- lite (RFC 8445, 2.5) ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("controlling", [True, False])
def test_a_full_agent_controls_a_lite_one(controlling: bool) -> None:
    """RFC 8445, 6.1.1: "the full agent MUST take the controlling role", whatever it was told to be."""
    world = make_world(
        hosts_b=("10.2.0.1", "10.2.0.2"), config_b=Config(lite=True), controlling=(controlling, not controlling)
    )
    world.gather()
    world.exchange()
    world.settle()
    assert world.a.session.controlling and not world.b.session.controlling
    assert [event.reason for event in world.a.events(RoleChanged)] == ["the peer is a lite agent"] * (not controlling)
    assert world.is_mirrored()
    world.run(120.0)
    assert world.a.is_connected and world.b.is_connected, world


def test_a_lite_agent_answers_and_never_asks() -> None:
    world = make_world(config_b=Config(lite=True))
    world.gather()
    world.exchange()
    world.settle()
    world.run(60.0)
    messages = [parse(transmit.data) for _, transmit in world.b.peer.transmits]
    assert messages and all(message.is_success or message.is_indication for message in messages)
    # RFC 8445, 11: "All endpoints MUST send keepalives"; a minute has four.
    assert sum(message.is_indication for message in messages) == 4
    assert world.b.states() == [AgentState.CHECKING, AgentState.CONNECTED]


def test_a_lite_agent_is_connected_when_the_peer_nominates() -> None:
    """RFC 8445, 7.3.2: not when it merely checks."""
    world = make_world(config_b=Config(lite=True))
    world.gather()
    world.exchange()
    world.run_until(lambda: world.a.is_connected)
    assert not world.b.is_connected
    nominating = [t for _, t in world.a.peer.transmits if parse(t.data).get(USE_CANDIDATE)]
    assert len(nominating) <= 1
    assert world.run_until(lambda: world.b.is_connected, 1.0)


def test_a_lite_agent_follows_a_later_nomination() -> None:
    world = make_world(hosts_a=("10.1.0.1", "10.1.0.2"), hosts_b=("10.2.0.1",), config_b=Config(lite=True))
    world.gather()
    world.network.remove_address(world.a.node.link, "10.1.0.1")
    world.exchange()
    world.settle()
    assert world.b.session.path().remote.address == world.a.bases[1]  # type: ignore[union-attr]
    world.network.add_address(world.a.node.link, "10.1.0.1")
    assert world.run_until(
        lambda: world.b.session.path().remote.address == world.a.bases[0],  # type: ignore[union-attr]
        20.0,
    ), world
    world.run(1.0)
    assert world.is_mirrored()


def test_report_23_consent_goes_on_after_a_timeout_against_a_lite_peer() -> None:
    """werift#649: the consent loop ended after its first timeout against ice-lite."""
    world = make_world(config_b=Config(lite=True))
    world.gather()
    world.exchange()
    world.settle()
    world.b.node.link.cut()
    world.run(12.0)
    world.b.node.link.restore()
    start = world.now
    world.run(120.0)
    checks = [t for t in world.transmits_since(world.a, start) if parse(t.data).is_request]
    assert 120 / 6 - 1 <= len(checks) <= 120 / 4 + 1
    assert world.a.is_connected


def test_a_lite_peer_that_says_so_later_takes_nothing_from_us() -> None:
    """The same description again, now with ice-lite, changes no role: credentials are the same."""
    world = make_world()
    world.gather()
    world.exchange()
    world.settle()
    world.b.session.set_remote_description(replace(world.a.description(), lite=True), world.now)
    assert not world.b.session.controlling


def test_two_lite_agents_are_told_at_once() -> None:
    """RFC 8445, 6.1.1 and 8.2 would pair them without a check; whether the pair works nobody would know."""
    world = make_world(config_a=Config(lite=True), config_b=Config(lite=True))
    world.gather()
    world.exchange()
    for side in (world.a, world.b):
        assert side.state() is AgentState.FAILED
        assert side.session.state_reason == "both agents are lite"

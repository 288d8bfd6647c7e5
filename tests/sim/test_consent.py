"""Is consent kept, lost and never taken for granted (RFC 7675)?"""

from __future__ import annotations

from itertools import pairwise

import pytest

from iceagent.config import Config
from iceagent.events import AgentState, RestartAdvised, StateChanged
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Transmit
from relay.stun import USE_CANDIDATE, parse, short_term_key
from tests.sim.world import Side, World, make_world

DAY_S = 86_400.0


BY_ITSELF = Config(consent_follows=False)
# Nothing but RFC 7675.
CONSENT_ALONE = Config(liveness=False)


def settled(seed: int = 1, *, rtt_s: float = 0.040, hosts: int = 1, config: Config | None = None) -> World:
    world = make_world(
        seed,
        config_a=config,
        config_b=config,
        rtt_s=rtt_s,
        hosts_a=[f"10.1.0.{i + 1}" for i in range(hosts)],
        hosts_b=[f"10.2.0.{i + 1}" for i in range(hosts)],
    )
    world.gather()
    world.exchange()
    world.settle()
    world.run(5 * rtt_s)
    return world


def requests_of(side: Side, since: float) -> list[tuple[float, Transmit]]:
    return [(at, t) for at, t in side.peer.transmits if at >= since and parse(t.data).is_request]


def test_a_day_of_consent() -> None:
    """24 hours of virtual time: checks every 4 to 6 s, each interval drawn anew, and the path never leaves."""
    world = settled()
    start = world.now
    for _ in range(24):
        world.run(DAY_S / 24)
        for side in (world.a, world.b):
            times = [at for at, _ in requests_of(side, start)]
            gaps = [later - sooner for sooner, later in pairwise(times)]
            assert min(gaps) >= 4.0 and max(gaps) <= 6.0, world
            assert len({round(gap, 3) for gap in gaps}) > len(gaps) * 0.6, world
            assert 3600 / 6 - 2 <= len(times) <= 3600 / 4 + 2
            assert side.states() == [AgentState.CHECKING, AgentState.CONNECTED]
            side.peer.transmits.clear()


@pytest.mark.parametrize("seed", range(10))
def test_the_peers_check_takes_ours_along(seed: int) -> None:
    """One end's check leaves when its timer says so, the other one's half a round trip later, with the answer; each is
    awake twice for both, and not three times. Who is first stays first, and RFC 7675's 4 to 6 s hold for either.
    """
    world = settled(seed)
    world.run(30.0)
    start = world.now
    world.run(600.0)
    first, second = sorted(([at for at, _ in requests_of(side, start)] for side in (world.a, world.b)), key=min)
    assert second == pytest.approx([at + 0.020 for at in first[: len(second)]])
    for times in (first, second):
        gaps = [later - sooner for sooner, later in pairwise(times)]
        assert min(gaps) >= 4.0 and max(gaps) <= 6.0, world
        assert len({round(gap, 3) for gap in gaps}) > len(gaps) * 0.6, world
    for side in (world.a, world.b):
        awake = {round(at, 3) for at, _ in side.peer.transmits if at >= start}
        assert len(awake) <= len(first) * 2


def test_without_following_each_end_keeps_its_own_time() -> None:
    """``Config.consent_follows`` off: RFC 7675, 5.1, "To prevent synchronization of consent checks"."""
    world = settled(config=BY_ITSELF)
    world.run(600.0)
    first, second = ({round(at, 3) for at, _ in requests_of(side, 30.0)} for side in (world.a, world.b))
    assert len(second & {round(at + 0.020, 3) for at in first}) < 5


@pytest.mark.parametrize("seed", range(10))
def test_who_follows_does_not_wait_for_a_check_that_was_lost(seed: int) -> None:
    """Its own leaves 6 s after the one before, at the latest, and then it goes by its own time."""
    world = settled(seed, config=CONSENT_ALONE)
    world.run(30.0)
    (of_a, *_), of_b = requests_of(world.a, 15.0), requests_of(world.b, 15.0)
    is_a = any(at == pytest.approx(of_a[0] + 0.020) for at, _ in of_b)
    leader, follower = (world.a, world.b) if is_a else (world.b, world.a)
    leader.node.link.cut()
    start = world.now
    world.run(20.0)
    times = [at for at, _ in requests_of(follower, 0.0)]
    last = max(at for at in times if at <= start)
    gaps = [later - sooner for sooner, later in pairwise(at for at in times if at >= last)]
    assert gaps[0] == pytest.approx(6.0), world
    assert all(4.0 <= round(gap, 6) <= 6.0 for gap in gaps) and len(gaps) >= 3


def test_a_check_that_comes_too_early_takes_nothing_along() -> None:
    """RFC 7675, 5.1: "MUST NOT set the period between checks to less than 4 seconds", whatever the peer's is."""
    world = settled(1)
    start = world.now
    for _ in range(200):
        world.b.session.handle_error(world.b.bases[0], world.a.bases[0], 111, world.now)
        world.run(0.1)
    gaps = [later - sooner for sooner, later in pairwise(at for at, _ in requests_of(world.a, start))]
    assert min(gaps) >= 4.0 and max(gaps) <= 6.0


def test_consent_checks_are_sent_once_with_new_ids_and_do_not_nominate() -> None:
    """RFC 7675, 5.1: not retransmitted, a new transaction id each. libjuice#263: no USE-CANDIDATE on keepalives."""
    world = settled(config=CONSENT_ALONE)
    world.b.node.link.cut()
    start = world.now
    world.run(20.0)
    messages = [parse(transmit.data) for _, transmit in requests_of(world.a, start)]
    assert 3 <= len(messages) <= 5
    assert len({message.transaction_id for message in messages}) == len(messages)
    assert not [message for message in messages if message.get(USE_CANDIDATE)]


@pytest.mark.parametrize("seed", range(10))
def test_consent_expires_after_thirty_seconds_and_transmission_stops(seed: int) -> None:
    """RFC 7675, 5.1; before that, silence is told as "disconnected" within 8.6 s, though nobody sends anything."""
    world = settled(seed)
    last_answer = world.a.session.current().responded_at  # type: ignore[union-attr]
    assert last_answer is not None
    world.b.node.link.cut()
    assert world.run_until(lambda: AgentState.DISCONNECTED in world.a.states(), 60.0), world
    assert world.now < last_answer + 8.6
    assert world.a.session.path() is not None
    assert world.run_until(lambda: world.a.session.path() is None, 60.0), world
    assert world.now == pytest.approx(last_answer + 30.0)
    assert world.a.path_reasons()[-1] == "consent expired"


def test_a_dead_five_tuple_is_never_used_again_with_these_credentials() -> None:
    """RFC 7675, 5.1: "the same ICE credentials MUST NOT be used on the affected 5-tuple again"."""
    world = settled()
    world.b.node.link.up.is_cut = True
    world.run(60.0)
    assert world.a.session.path() is None, world
    assert world.a.state() is AgentState.FAILED
    world.b.node.link.up.is_cut = False
    start = world.now
    world.run(60.0)
    assert requests_of(world.a, start) == [], world
    assert world.a.session.path() is None


def test_new_credentials_revive_a_dead_five_tuple() -> None:
    world = settled()
    world.b.node.link.cut()
    world.run(60.0)
    assert world.a.state() is AgentState.FAILED
    world.b.node.link.restore()
    world.a.session.restart(world.now)
    world.signal(world.a)
    world.signal(world.b)
    world.settle(10.0)
    assert world.is_mirrored()


def test_report_05_only_responses_renew_consent() -> None:
    """pion#767: any traffic renewed consent. Data and authenticated requests come in here, and consent still ends."""
    world = settled()
    last_answer = world.a.session.current().responded_at  # type: ignore[union-attr]
    assert last_answer is not None
    # The peer hears nothing of us any more, but we hear it.
    world.a.node.link.up.is_cut = True
    while world.now < last_answer + 29.0:
        data = Transmit(world.b.bases[0], world.a.bases[0], b"\x80 media")
        world.network.send(world.b.node, data, world.now)
        world.run(1.0)
    received_before = world.a.session.current().requests_received  # type: ignore[union-attr]
    assert received_before > 5, world
    assert world.run_until(lambda: world.a.session.path() is None, 5.0), world
    assert world.now == pytest.approx(last_answer + 30.0)


def test_a_round_trip_of_two_seconds_lives() -> None:
    """A response may take longer than the next check: any response to any of our checks counts."""
    world = settled(rtt_s=2.0)
    world.run(600.0)
    for side in (world.a, world.b):
        assert side.states() == [AgentState.CHECKING, AgentState.CONNECTED], world
    pair = world.a.session.current()
    assert pair is not None and pair.rtt_s == pytest.approx(2.0)


def test_a_blackout_of_four_seconds_is_survived_in_silence() -> None:
    world = settled()
    world.run(0.1)
    world.b.node.link.cut()
    world.run(4.0)
    world.b.node.link.restore()
    world.run(60.0)
    assert [event.new for event in world.a.events(StateChanged)][-1] is AgentState.CONNECTED
    assert len(world.a.path_reasons()) == len(world.b.path_reasons()) == 1


@pytest.mark.parametrize("seconds", [10.0, 20.0])
def test_a_blackout_is_told_and_its_end_too(seconds: float) -> None:
    world = settled()
    world.b.node.link.cut()
    world.run(seconds)
    world.b.node.link.restore()
    world.run(4.5)
    tail = [(event.new, event.reason) for event in world.a.events(StateChanged)][-2:]
    assert tail == [
        (AgentState.DISCONNECTED, "a check was not answered; no path answers"),
        (AgentState.CONNECTED, "the peer answers again"),
    ]
    (advice,) = world.a.events(RestartAdvised)
    assert advice.reason == tail[0][1]
    assert world.a.path_reasons() == ["the first valid pair"] or "consent expired" not in world.a.path_reasons()


def test_a_forbidden_ends_consent_at_once() -> None:
    """RFC 7675, 5.2: "a valid and authenticated STUN response with error code Forbidden (403)"."""
    world = settled()
    _answer_with_403(world, key_of=world.b)
    world.run(0.1)
    assert world.a.session.path() is None, world
    assert world.a.path_reasons()[-1] == "the peer revoked consent"


def test_a_forbidden_of_a_stranger_ends_nothing() -> None:
    """Without the right integrity it is as if it had not arrived."""
    world = settled()
    _answer_with_403(world, key_of=world.a)
    world.run(0.1)
    assert world.a.session.path() is not None
    assert world.a.session.counters["dropped: response with wrong integrity"] == 1


def _answer_with_403(world: World, *, key_of: Side) -> None:
    """Answer the next consent check of a in place of b, with the password of one side."""
    start = world.now
    world.b.node.link.cut()
    assert world.run_until(lambda: bool(requests_of(world.a, start)), 10.0), world
    _, transmit = requests_of(world.a, start)[0]
    key = short_term_key(key_of.session.local_credentials.password)
    answer = parse(transmit.data).error_response(403, "Forbidden").encode(key)
    world.a.peer.handle_datagram(Datagram(transmit.base, transmit.destination, answer), world.network, world.now)


def test_an_icmp_error_asks_for_a_check_and_kills_nothing() -> None:
    """ICMP is easily forged: doubt, never death; and RFC 7675, 5.1 holds, "MUST NOT set the period between checks to
    less
    than 4 seconds", whoever forges it.
    """
    world = settled(config=BY_ITSELF)
    world.run(1.0)
    base, destination = world.a.bases[0], world.b.bases[0]
    start = world.now
    for _ in range(100):
        world.a.session.handle_error(base, destination, 111, world.now)
        world.run(0.01)
    assert len(requests_of(world.a, start)) == 1
    assert world.a.state() is AgentState.CONNECTED
    world.run(30.0)
    assert world.a.state() is AgentState.CONNECTED
    unknown = TransportAddress("192.0.2.9", 9)
    world.a.session.handle_error(base, unknown, 111, world.now)
    assert world.a.session.counters["network errors"] == 101

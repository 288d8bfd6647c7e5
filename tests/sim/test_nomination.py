"""Do both ends end on the same path, and do they move together when a better one appears or the old one dies?

Deviations of ours pinned here: a later nomination (RFC 8445, 8.1.1) and standby pairs that are kept (8.3.1).
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from iceagent.candidate import CandidateType
from iceagent.config import Config
from iceagent.core.pair import CandidatePair, PairState
from iceagent.events import AgentState, SelectedPathChanged
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, Transmit
from relay.stun import (
    ICE_CONTROLLING,
    NOMINATION,
    PRIORITY,
    USE_CANDIDATE,
    USERNAME,
    Message,
    MessageClass,
    Method,
    build,
    parse,
    short_term_key,
)
from tests.sim.world import Side, World, make_world, relayed_candidate

RELAY = TransportAddress("198.51.100.9", 40000)


def two_by_two(seed: int = 1, config: Config | None = None) -> World:
    """Two addresses on each side: four pairs. Only the last address of a works at first; the first one is unplugged."""
    world = make_world(
        seed,
        hosts_a=("10.1.0.1", "10.1.0.2"),
        hosts_b=("10.2.0.1", "10.2.0.2"),
        config_a=config,
        config_b=config,
    )
    world.gather()
    return world


def unplug(world: World, side: Side, index: int) -> None:
    world.network.remove_address(side.node.link, side.bases[index].host)


def plug(world: World, side: Side, index: int) -> None:
    world.network.add_address(side.node.link, side.bases[index].host)


def nominations(side: Side) -> list[tuple[TransportAddress, int]]:
    """(destination, NOMINATION) of each nominating request, each transaction once."""
    seen: dict[bytes, tuple[TransportAddress, int]] = {}
    for _, transmit in side.peer.transmits:
        message = parse(transmit.data)
        if message.is_request and message.get(USE_CANDIDATE):
            seen.setdefault(message.transaction_id, (transmit.destination, message.get(NOMINATION) or -1))
    return list(seen.values())


# --- both ends on the same path ------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(10))
def test_report_01_selected_pairs_mirror_each_other(block: int) -> None:
    """pion#28, #34: the ends picked different pairs. Five by five candidates, 200 seeds, latencies and losses that
    differ.
    """
    hosts = [[f"10.{n}.0.{i}" for i in range(1, 6)] for n in (1, 2)]
    for seed in range(block * 20, block * 20 + 20):
        world = make_world(seed, hosts_a=hosts[0], hosts_b=hosts[1], loss=0.05)
        for side in (world.a, world.b):
            side.node.link.up.jitter_s = side.node.link.down.jitter_s = 0.030
        world.gather()
        world.exchange()
        world.settle(30.0)
        world.run(8.0)
        assert world.a.session.selected() is world.a.session.current(), world
        assert world.b.session.selected() is world.b.session.current(), world
        assert world.is_mirrored(), world


def test_nomination_is_regular_and_happens_once() -> None:
    """RFC 8445, 8.1.1: checks first, then USE-CANDIDATE on the pair that is to be used; one check, where nothing is
    better.
    """
    world = make_world()
    world.gather()
    world.exchange()
    world.settle()
    world.run(60.0)
    assert nominations(world.a) == [(world.b.bases[0], 1)]
    assert nominations(world.b) == []


def test_a_host_pair_does_not_wait() -> None:
    """Its nomination leaves as soon as its first check is answered."""
    world = make_world(rtt_s=0.040)
    world.gather()
    world.exchange()
    world.settle()
    assert world.now == pytest.approx(0.080)


def test_a_relayed_pair_waits_for_a_direct_one_and_not_for_ever() -> None:
    """A wait by type (``Config.nomination_wait_s``): relay 1 s, while a better pair is unfinished."""
    world = make_world(hosts_b=("10.2.0.1",))
    world.network.attach(world.b.node, [RELAY.host])
    assert world.b.node.ports is not None
    world.b.node.ports.add(RELAY)
    world.gather()
    world.b.session.add_local_candidate(relayed_candidate(RELAY), world.now)
    world.b.node.links[0].cut()
    world.exchange()
    connected_after = world.connect()
    settled_after = connected_after + world.settle()
    # The answer to the nomination takes a round trip of 40 ms.
    assert settled_after == pytest.approx(connected_after + 1.0 + 0.040, abs=0.005), world
    assert nominations(world.a) == [(RELAY, 1)]


def test_a_relayed_pair_does_not_wait_when_nothing_better_is_left() -> None:
    world = make_world(hosts_b=(RELAY.host,))
    world.b.bases[0] = RELAY
    world.b.node.ports = {RELAY}
    world.b.session.add_local_candidate(relayed_candidate(RELAY), world.now)
    world.gather(sides=[world.a])
    world.exchange()
    world.settle()
    assert world.now == pytest.approx(0.080)


# --- later nomination (DEVIATION from 8.1.1) -----------------------------------------------------------------------


def test_a_better_pair_that_becomes_valid_later_is_nominated_again() -> None:
    """Renomination with USE-CANDIDATE and a rising NOMINATION; both ends move, and no state is lost on the way."""
    world = two_by_two()
    unplug(world, world.a, 0)
    world.exchange()
    world.settle()
    assert world.a.session.path().base == world.a.bases[1]  # type: ignore[union-attr]
    world.run(3.0)
    plug(world, world.a, 0)
    assert world.run_until(lambda: world.a.session.path().base == world.a.bases[0], 20.0), world  # type: ignore[union-attr]
    world.run(1.0)
    assert world.is_mirrored(), world
    values = [value for _, value in nominations(world.a)]
    assert values == sorted(values) and len(set(values)) == len(values) >= 2
    for side in (world.a, world.b):
        assert side.states() == [AgentState.CHECKING, AgentState.CONNECTED]
        assert side.session.selected() is side.session.current()


def test_without_renomination_the_first_nomination_stands() -> None:
    """``Config.renomination`` off is RFC 8445, 8.1.1 to the letter, and USE-CANDIDATE carries no NOMINATION."""
    world = two_by_two(config=Config(renomination=False))
    unplug(world, world.a, 0)
    world.exchange()
    world.settle()
    plug(world, world.a, 0)
    world.run(60.0)
    assert world.a.session.path().base == world.a.bases[1]  # type: ignore[union-attr]
    assert [value for _, value in nominations(world.a)] == [-1]
    assert world.is_mirrored()


# --- standby pairs (DEVIATION from 8.3.1) --------------------------------------------------------------------------


def test_pairs_that_were_not_selected_are_kept_alive_and_take_over() -> None:
    """When the selected pair answers no more, the next one carries data: it was asked too, and answered."""
    world = two_by_two()
    world.exchange()
    world.settle()
    # Long after the standby pairs were first valid.
    world.run(300.0)
    assert len(valid(world.a)) >= 3
    unplug(world, world.a, 0)
    world.run(8.0)
    moved = next(e for e in world.a.events(SelectedPathChanged) if "another path answers" in e.reason)
    assert moved.reason == "the network says: Cannot assign requested address; another path answers", world
    assert moved.new is not None and moved.new.base == world.a.bases[1]
    world.run(2.0)
    for side in (world.a, world.b):
        assert side.is_connected, world
        assert side.session.current().is_valid  # type: ignore[union-attr]
    assert world.a.session.path().base == world.a.bases[1]  # type: ignore[union-attr]
    world.run(120.0)
    assert world.is_mirrored(), world
    assert world.a.is_connected and world.b.is_connected, world


def test_a_socket_that_goes_takes_its_pairs_and_the_next_one_takes_over_at_once() -> None:
    world = two_by_two()
    world.exchange()
    world.settle()
    world.run(100.0)
    unplug(world, world.a, 0)
    world.a.session.remove_base(world.a.bases[0], "its interface is gone", world.now)
    path = world.a.session.path()
    assert path is not None and path.base == world.a.bases[1]
    world.pair.drain(world.a.peer)
    assert world.a.path_reasons()[-1] == "its interface is gone"
    world.run(1.0)
    assert world.is_mirrored(), world
    assert all(pair.base != world.a.bases[0] for pair in world.a.session.pairs)


def test_without_keeping_pairs_the_others_are_freed_after_nomination() -> None:
    """``Config.keep_pairs`` off is RFC 8445, 8.3.1."""
    world = two_by_two(config=Config(keep_pairs=False))
    world.exchange()
    world.settle()
    world.run(10.0)
    assert [pair.key for pair in world.a.session.pairs] == [world.a.session.current().key]  # type: ignore[union-attr]
    start = world.now
    world.run(60.0)
    assert {t.destination for t in world.transmits_since(world.a, start)} == {world.b.bases[0]}


def valid(side: Side) -> list[CandidatePair]:
    return [pair for pair in side.session.pairs if pair.is_valid]


# --- failing nominations -------------------------------------------------------------------------------------------


def test_report_24_one_nomination_failure_does_not_fail_the_session() -> None:
    """werift#416: other valid pairs are nominated."""
    world = two_by_two()
    world.exchange()
    refused = (world.a.bases[0], world.b.bases[0])
    answer_nominations_with_400(world, refused)
    assert world.run_until(lambda: world.a.is_settled, 10.0), world
    selected = world.a.session.selected()
    assert selected is not None and selected.key != refused
    world.run(2.0)
    assert len(nominations(world.a)) <= 4, nominations(world.a)
    assert AgentState.FAILED not in world.a.states()


def test_a_peer_that_refuses_every_nomination_is_not_asked_for_ever() -> None:
    """RFC 8445, 8.1.1: a pair whose nomination fails is Failed. No check follows check at the pace of the round
    trip.
    """
    world = make_world()
    world.gather()
    world.exchange()
    answer_nominations_with_400(world, (world.a.bases[0], world.b.bases[0]))
    world.run(30.0)
    assert len(nominations(world.a)) <= 10, len(nominations(world.a))


def answer_nominations_with_400(world: World, key: tuple[TransportAddress, TransportAddress]) -> None:
    """Let b answer the nominations of one of a's pairs with an error; checks are answered as ever."""
    password = short_term_key(world.b.session.local_credentials.password)

    def lets_in(datagram: Datagram, now: float) -> bool:
        message = parse(datagram.data)
        if message.is_request and message.get(USE_CANDIDATE) and (datagram.source, datagram.base) == key:
            refusal = message.error_response(400, "Bad Request").encode(password)
            world.network.send(world.b.node, Transmit(datagram.base, datagram.source, refusal), now)
            return False
        return True

    world.b.peer.lets_in = lets_in


def test_an_unanswered_nomination_gives_way_to_another_valid_pair() -> None:
    """After 4 s (three transmissions and an RTO), where there is one."""
    world = two_by_two()
    world.exchange()
    assert world.run_until(lambda: len(valid(world.a)) >= 2 and world.now >= 0.040, 5.0), world
    unplug(world, world.b, 0)
    start = world.now
    assert world.run_until(lambda: world.a.is_settled, 20.0), world
    assert world.now - start <= 4.0 + 0.5
    assert world.a.session.path().remote.address == world.b.bases[1]  # type: ignore[union-attr]


# --- controlled ----------------------------------------------------------------------------------------------------


class Nominator:
    """Plays a controlling peer of another make towards b, with a's credentials and from a's addresses."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.side = world.b
        local, remote = world.a.session.local_credentials, world.b.session.local_credentials
        self._username = f"{remote.ufrag}:{local.ufrag}"
        self._key = short_term_key(remote.password)
        self._count = 0

    def nominate(self, index_a: int, index_b: int, *, value: int | None = None, plain: bool = True) -> Message:
        """Send a nominating request; returns the answer."""
        self._count += 1
        extra = [(USE_CANDIDATE, True)] * plain
        request = build(
            Method.BINDING,
            MessageClass.REQUEST,
            self._count.to_bytes(12, "big"),
            (USERNAME, self._username),
            (PRIORITY, 1862270975),
            (ICE_CONTROLLING, 2**64 - 1),
            *extra,
            *([] if value is None else [(NOMINATION, value)]),
        )
        base, source = self.world.b.bases[index_b], self.world.a.bases[index_a]
        self.world.b.session.handle_datagram(Datagram(base, source, request.encode(self._key)), self.world.now)
        answers = list(self._answers(request.transaction_id))
        assert len(answers) == 1
        return answers[0]

    def _answers(self, identity: bytes) -> Iterable[Message]:
        self.world.pair.drain(self.world.b.peer)
        for _, transmit in self.side.peer.transmits:
            message = parse(transmit.data)
            if message.transaction_id == identity:
                yield message

    @property
    def selected(self) -> tuple[TransportAddress, TransportAddress] | None:
        """(a's address, b's address) of the pair that b has selected."""
        pair = self.side.session.selected()
        return None if pair is None else (pair.destination, pair.base)


def all_pairs_valid() -> tuple[World, Nominator]:
    """b is controlled and every pair of it is valid; a checks but does not nominate by itself."""
    waits = dict.fromkeys(CandidateType, 1e6)
    # An address that never answers keeps a waiting: something better may still come.
    world = make_world(
        hosts_a=("10.1.0.1", "10.1.0.2", "10.1.0.3"),
        hosts_b=("10.2.0.1", "10.2.0.2"),
        config_a=Config(nomination_wait_s=waits),
    )
    world.network.remove_address(world.a.node.link, "10.1.0.1")
    world.gather()
    world.exchange()
    working = {(x, y) for x in world.a.bases[1:] for y in world.b.bases}
    found = world.run_until(lambda: {(p.destination, p.base) for p in valid(world.b)} >= working, 10.0)
    assert found and world.b.session.selected() is None, world
    return world, Nominator(world)


def test_the_highest_nomination_wins_whatever_the_order() -> None:
    world, peer = all_pairs_valid()
    a, b = world.a.bases, world.b.bases
    assert peer.nominate(1, 1, value=5).is_success
    assert peer.selected == (a[1], b[1])
    assert peer.nominate(1, 0, value=4).is_success
    assert peer.selected == (a[1], b[1])
    assert peer.nominate(2, 1, value=6).is_success
    assert peer.selected == (a[2], b[1])
    assert world.b.session.path().base == b[1]  # type: ignore[union-attr]


def test_nomination_without_use_candidate_counts_too() -> None:
    """libwebrtc and pion renominate so."""
    world, peer = all_pairs_valid()
    peer.nominate(1, 0, value=1)
    peer.nominate(2, 1, value=2, plain=False)
    assert peer.selected == (world.a.bases[2], world.b.bases[1])


def test_a_plain_use_candidate_does_not_undo_a_nomination_with_a_value() -> None:
    world, peer = all_pairs_valid()
    peer.nominate(1, 1, value=1)
    peer.nominate(1, 0)
    assert peer.selected == (world.a.bases[1], world.b.bases[1])


def test_aggressive_nomination_ends_on_the_pair_of_highest_priority() -> None:
    """RFC 5245, 8.1.1.2: USE-CANDIDATE on every check; nothing was received yet, so priority decides."""
    world, peer = all_pairs_valid()
    for x, y in ((2, 1), (1, 1), (1, 0), (2, 0)):
        peer.nominate(x, y)
    assert peer.selected == (world.a.bases[1], world.b.bases[0])


def test_report_03_a_renomination_without_value_is_followed_with_the_data() -> None:
    """pion#440: the remote renominates, we answer success and keep the old pair. Data decides here, in both
    directions.
    """
    world, peer = all_pairs_valid()
    a, b = world.a.bases, world.b.bases
    peer.nominate(1, 0)
    send_data(world, 1, 0)
    assert peer.selected == (a[1], b[0])
    assert peer.nominate(2, 1).is_success
    send_data(world, 2, 1)
    assert peer.selected == (a[2], b[1]), world
    assert world.b.session.path().base == b[1]  # type: ignore[union-attr]
    # USE-CANDIDATE counts once per pair: repeated on the old one it changes nothing, the data does.
    peer.nominate(1, 0)
    assert peer.selected == (a[2], b[1])
    send_data(world, 1, 0)
    assert peer.selected == (a[1], b[0])


def test_data_that_was_on_its_way_when_a_better_pair_was_nominated_decides_nothing() -> None:
    """libwebrtc nominates what works first, sends a little there, and ten milliseconds later nominates the best. What
    it goes on sending there is followed all the same.
    """
    world, peer = all_pairs_valid()
    a, b = world.a.bases, world.b.bases
    peer.nominate(2, 1)
    send_data(world, 2, 1)
    assert peer.selected == (a[2], b[1])
    peer.nominate(1, 0)
    assert peer.selected == (a[1], b[0])
    for _ in range(5):
        send_data(world, 2, 1)
        assert peer.selected == (a[1], b[0])
    world.run(0.5)
    send_data(world, 2, 1)
    assert peer.selected == (a[2], b[1])


def test_data_on_a_pair_that_was_never_nominated_moves_nothing() -> None:
    world, peer = all_pairs_valid()
    peer.nominate(1, 0)
    send_data(world, 2, 1)
    assert peer.selected == (world.a.bases[1], world.b.bases[0])


def send_data(world: World, index_a: int, index_b: int) -> None:
    world.run(0.010)
    datagram = Datagram(world.b.bases[index_b], world.a.bases[index_a], b"\x80 data")
    world.b.session.handle_datagram(datagram, world.now)


def test_a_nomination_before_our_own_check_succeeded_waits_for_it() -> None:
    """RFC 8445, 7.3.1.5: the nominated flag is set when the triggered check succeeds."""
    world = make_world()
    world.gather()
    # b knows a, a does not know b: b's checks are answered late, after the signalling.
    world.signal(world.a)
    world.b.node.link.up.is_cut = True
    world.run(0.001)
    peer = Nominator(world)
    assert peer.nominate(0, 0, value=1).is_success
    assert peer.selected is None
    pair = world.b.session.pairs[0]
    assert pair.nominate_with == 1 and pair.state is PairState.IN_PROGRESS
    world.b.node.link.up.is_cut = False
    assert world.run_until(lambda: peer.selected is not None, 2.0), world
    assert peer.selected == (world.a.bases[0], world.b.bases[0])


def test_a_nomination_that_was_lost_again_and_again_comes_with_the_next_consent_check() -> None:
    """Its own repetitions are 8 s apart by then."""
    world = make_world()
    world.gather()
    world.b.peer.lets_in = lambda datagram, now: now > 8.0 or parse(datagram.data).get(USE_CANDIDATE) is None
    world.exchange()
    world.connect()
    assert not world.run_until(lambda: world.a.is_settled, 8.0 - world.now), world
    assert world.run_until(lambda: world.a.is_settled and world.b.is_settled, 6.5), world

"""Does a packet that dies on the way keep the early-packet trap shut?

The trap: a NAT that a stranger's packet reaches before our own first one to that stranger gives our flow another port.
In this world the peer's check reaches our NAT 10 ms after it left, like our own packets. So whoever begins later than
the peer is caught; with openers, whoever begins later by more than their lead of 10 ms.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from random import Random

import pytest

from iceagent.candidate import Candidate
from iceagent.config import Config
from iceagent.credentials import Credentials
from iceagent.description import Description
from iceagent.nat.kinds import Filtering, Mapping
from iceagent.nat.openers import EXPIRY_S, LEAD_S
from iceagent.net.address import TransportAddress
from iceagent.net.core import Transmit
from iceagent.testing.links import Fate
from iceagent.testing.nat import NatModel
from relay.stun import Message, parse
from tests.sim.world import EXTERNAL_A, EXTERNAL_B, Side, World, host_candidate, make_world, relayed_candidate

WITHOUT = Config(openers=False)
# Both have gathered by then, seconds.
BEGIN = 1.0
TRAPPED_S = 5.0


def nat(external: str, *, naive: bool, filtering: Filtering = Filtering.APDF) -> NatModel:
    return NatModel((external,), Random(external), mapping=Mapping.EIM, filtering=filtering, early_packet_trap=naive)


def world_of(
    config: Config | None = None,
    *,
    naive: str = "a",
    config_b: Config | None = None,
    icmp_errors: bool = False,
) -> World:
    """A host behind a NAT on either side; the named ones have the trap."""
    world = make_world(
        hosts_a=("192.168.1.2",),
        hosts_b=("192.168.2.2",),
        box_a=nat(EXTERNAL_A, naive="a" in naive),
        box_b=nat(EXTERNAL_B, naive="b" in naive),
        config_a=config,
        config_b=config if config_b is None else config_b,
        icmp_errors=icmp_errors,
    )
    return gathered(world)


def gathered(world: World) -> World:
    """Both sides know their candidates; the clock is at BEGIN."""
    world.gather()
    world.run(BEGIN - world.now)
    return world


def start(world: World, *, late: Side, late_s: float) -> None:
    """One side hears of the other this much later."""
    world.signal(late)
    world.run(late_s)
    world.signal(world.other(late))


def sent(side: Side, *, openers: bool) -> list[tuple[float, Transmit, Message]]:
    """Openers, or requests, of a side, and how long after BEGIN."""
    found = [(at - BEGIN, transmit, parse(transmit.data)) for at, transmit in side.peer.transmits]
    return [each for each in found if (each[2].is_indication if openers else each[2].is_request)]


def reflexive(side: Side, other: Side) -> list[float]:
    """When requests left for the other's reflexive address."""
    mapped = other.session.local_candidates[-1].address
    return [at for at, transmit, _ in sent(side, openers=False) if transmit.destination == mapped]


# --- the trap ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("naive", ["a", "b", "ab"])
def test_without_openers_whoever_is_a_little_late_is_trapped(naive: str) -> None:
    world = world_of(WITHOUT, naive=naive)
    late = world.a if "a" in naive else world.b
    start(world, late=late, late_s=0.008)
    assert not world.run_until(lambda: world.a.is_connected or world.b.is_connected, TRAPPED_S), world


@pytest.mark.parametrize("naive", ["a", "b", "ab"])
def test_with_openers_it_connects(naive: str) -> None:
    """As soon as the check of whoever was first has its answer: the lead and a round trip."""
    world = world_of(naive=naive)
    late = world.a if "a" in naive else world.b
    start(world, late=late, late_s=0.008)
    assert world.connect() <= LEAD_S - 0.008 + 2 * 0.040, world
    world.settle()
    assert world.is_mirrored(), world


@pytest.mark.parametrize("naive", ["a", "b", "ab", ""])
@pytest.mark.parametrize("config", [None, WITHOUT], ids=["with", "without"])
def test_two_that_begin_together_are_in_no_danger(naive: str, config: Config | None) -> None:
    world = world_of(config, naive=naive)
    world.exchange()
    assert world.connect() <= LEAD_S + 0.040 + 1e-6, world


def test_a_peer_without_openers_is_guarded_by_nobody_but_itself() -> None:
    """Ours keep our NAT, not the peer's: it began after our check had knocked at its door."""
    world = world_of(naive="b", config_b=WITHOUT)
    start(world, late=world.b, late_s=0.035)
    assert not world.run_until(lambda: world.a.is_connected, TRAPPED_S), world


# --- what leaves -------------------------------------------------------------------------------------------------


def test_openers_go_before_the_first_check_and_farther_before_each_early_one() -> None:
    """TTL 2, 3, 4, 5: a Binding indication with FINGERPRINT and no credentials (RFC 8445, 11), to the reflexive
    address alone.
    """
    world = world_of()
    world.signal(world.b)
    world.run(3.0)
    found = sent(world.a, openers=True)
    target = world.b.session.local_candidates[-1].address
    assert [(transmit.destination, transmit.ttl) for _, transmit, _ in found] == [(target, ttl) for ttl in (2, 3, 4, 5)]
    # The third is 30 ms late: what tokens the checks had left over, the openers have used up.
    times = [LEAD_S, LEAD_S + 0.1, 0.25, LEAD_S + 0.4]
    assert [at for at, _, _ in found] == pytest.approx([0.0, *times[1:]], abs=1e-5)
    for _, _, message in found:
        assert message.has_fingerprint and not message.has_integrity
    assert all(transmit.ttl is None for _, transmit, _ in sent(world.a, openers=False))
    # The check to the host address does not wait; the others follow their openers, the first one 20 ms later.
    host = world.b.session.local_candidates[0].address
    assert next(at for at, t, _ in sent(world.a, openers=False) if t.destination == host) == pytest.approx(0.0)
    assert reflexive(world.a, world.b)[:4] == pytest.approx(times, abs=1e-5)
    assert world.a.session.counters["openers sent"] == 4


def test_an_answer_ends_them() -> None:
    world = world_of(naive="")
    world.exchange()
    world.settle()
    world.run(3.0)
    for side in (world.a, world.b):
        assert [transmit.ttl for _, transmit, _ in sent(side, openers=True)] == [2], world


def test_they_die_between_the_nats() -> None:
    world = world_of()
    world.signal(world.b)
    world.run(0.010)
    world.run(0.009)
    assert world.network.counters[Fate.TTL_EXPIRED] == 1
    assert world.network.counters[Fate.FILTERED] == 0, "nothing knocked at the peer's NAT"


def test_the_switch_turns_them_off() -> None:
    world = world_of(WITHOUT, naive="")
    world.exchange()
    world.settle()
    world.run(3.0)
    assert sent(world.a, openers=True) == sent(world.b, openers=True) == []
    assert reflexive(world.a, world.b)[0] == pytest.approx(0.0)
    assert "openers sent" not in world.a.session.counters


def test_host_candidates_have_none() -> None:
    """Two hosts on the Internet connect with the packets that it always took."""
    world = gathered(make_world())
    world.exchange()
    world.settle()
    world.run(30.0)
    assert sent(world.a, openers=True) == sent(world.b, openers=True) == []


def test_a_host_on_the_internet_gives_the_nat_at_the_other_end_its_time() -> None:
    """It has no NAT to be opened, but may have a firewall; the one behind the NAT has nobody to be careful with."""
    world = gathered(make_world(hosts_b=("192.168.2.2",), box_b=nat(EXTERNAL_B, naive=True)))
    start(world, late=world.b, late_s=0.008)
    world.settle()
    assert sent(world.a, openers=True)[0][1].ttl == 2
    assert reflexive(world.a, world.b)[0] == pytest.approx(LEAD_S)
    assert sent(world.b, openers=True) == []


@pytest.mark.parametrize(("count", "openers"), [(1, 1), (2, 4), (3, 4)])
def test_with_several_addresses_the_best_pairs_have_theirs(count: int, openers: int) -> None:
    """Three at the cost of what waits behind them, and the last one, behind which nothing waits."""
    world = gathered(
        make_world(
            hosts_a=tuple(f"192.168.1.{2 + number}" for number in range(count)),
            hosts_b=tuple(f"192.168.2.{2 + number}" for number in range(count)),
            box_a=nat(EXTERNAL_A, naive=True),
            box_b=nat(EXTERNAL_B, naive=True),
        )
    )
    world.signal(world.b)
    world.run(3.0)
    first = {(transmit.base, transmit.destination) for _, transmit, _ in sent(world.a, openers=True)}
    assert len(first) == openers


def test_a_peer_that_signals_anew_without_end_gets_twenty() -> None:
    """One for one with signalling, that would be no cannon; but it would take the tokens of other sessions."""
    world = world_of()
    target = TransportAddress("20.0.9.9", 1000)
    line = f"candidate:1 1 udp 1694498815 {target.host} {target.port} typ srflx raddr 10.0.0.1 rport 1"
    for number in range(200):
        credentials = Credentials.random(Random(number))
        description = Description(credentials=credentials, candidates=(Candidate.parse(line),), options=("trickle",))
        world.a.session.set_remote_description(description, world.now)
        world.run(0.060)
    found = sent(world.a, openers=True)
    assert len(found) == 20 and {transmit.destination for _, transmit, _ in found} == {target}


def test_relayed_addresses_have_none() -> None:
    world = world_of()
    address = world.b.session.local_candidates[-1].address
    world.a.session.set_remote_description(world.b.description(candidates=False), world.now)
    world.a.session.add_remote_candidate(relayed_candidate(address), world.now)
    world.run(3.0)
    assert len(sent(world.a, openers=False)) > 3
    assert sent(world.a, openers=True) == []


def test_a_peer_whose_nat_takes_a_port_for_each_destination_gets_none() -> None:
    """Two servers saw its socket at two ports; what it sends us comes from a third one. The token is for our answer."""
    world = world_of()
    seen = next(c for c in world.b.session.local_candidates if c.related_address is not None)
    elsewhere = replace(
        seen,
        address=seen.address._replace(port=seen.address.port + 1),
        priority=seen.priority - 256,
        foundation="another",
    )
    description = replace(world.b.description(candidates=False), candidates=(seen, elsewhere))
    world.a.session.set_remote_description(description, world.now)
    world.run(3.0)
    assert {each.destination for _, each, _ in sent(world.a, openers=False)} == {seen.address, elsewhere.address}
    assert sent(world.a, openers=True) == []


def test_a_lite_peer_gets_none() -> None:
    """It does not send before our check; its candidate is reflexive here only for this test."""
    world = world_of(config_b=Config(lite=True))
    world.signal(world.b)
    world.run(3.0)
    assert reflexive(world.a, world.b)[0] == pytest.approx(0.0)
    assert sent(world.a, openers=True) == []


def world_with_an_open_door() -> World:
    """a's NAT lets everybody in (EIF)."""
    world = make_world(
        hosts_a=("192.168.1.2",),
        hosts_b=("192.168.2.2",),
        box_a=nat(EXTERNAL_A, naive=False, filtering=Filtering.EIF),
        box_b=nat(EXTERNAL_B, naive=False),
    )
    return gathered(world)


def test_a_triggered_check_has_none() -> None:
    """The peer's check is here: our NAT is open to it. b's address is learnt from the check, and answered at once."""
    world = world_with_an_open_door()
    # a knows no candidate of b's.
    world.a.session.set_remote_description(world.b.description(candidates=False), world.now)
    world.signal(world.a)
    assert world.connect() == pytest.approx(LEAD_S + 1.5 * 0.040), world
    assert sent(world.a, openers=True) == []
    assert [transmit.ttl for _, transmit, _ in sent(world.b, openers=True)] == [2]


def test_the_peers_check_does_not_wait_for_our_lead() -> None:
    """Its check arrives between our opener and ours: the triggered check leaves at once, and is the only one."""
    world = world_with_an_open_door()
    start(world, late=world.a, late_s=0.030)
    world.run(LEAD_S)
    assert reflexive(world.a, world.b) == pytest.approx([LEAD_S + 0.020]), world
    world.connect()


# --- pacing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "at"), [(None, 0.050), (WITHOUT, 0.021)], ids=["with", "without"])
def test_an_opener_takes_a_token_like_a_check(config: Config | None, at: float) -> None:
    """Of five, one for the check to the host address, one for the opener, one for the check behind it, and two stay for
    urgent ones: a candidate that comes now waits until the first is back.
    """
    world = world_of(config)
    world.signal(world.b)
    world.run(0.021)
    late = TransportAddress("192.168.2.3", 5000)
    world.a.session.add_remote_candidate(host_candidate(late, index=1), world.now)
    world.run(0.1)
    first = next(at for at, transmit, _ in sent(world.a, openers=False) if transmit.destination == late)
    assert first == pytest.approx(at, abs=1e-5)


def test_where_tokens_are_short_the_checks_leave_and_the_openers_do_not() -> None:
    """Six addresses of either side are more than the bucket holds: no check is later than without openers."""
    hosts = [[f"192.168.{n}.{i}" for i in range(2, 8)] for n in (1, 2)]
    firsts = []
    for config in (None, WITHOUT):
        world = make_world(
            hosts_a=hosts[0],
            hosts_b=hosts[1],
            box_a=nat(EXTERNAL_A, naive=False),
            box_b=nat(EXTERNAL_B, naive=False),
            config_a=config,
        )
        gathered(world)
        world.signal(world.b)
        world.run(1.0)
        first_at: dict[tuple[object, object], float] = {}
        for at, transmit, _ in sent(world.a, openers=False):
            first_at.setdefault((transmit.base, transmit.destination), at)
        firsts.append(first_at)
        assert sent(world.a, openers=True) == []
    assert firsts[0] == firsts[1]


@pytest.mark.parametrize("burst", [1, 2])
def test_a_burst_that_has_no_room_for_one_sends_none(burst: int) -> None:
    """RFC 8445, 6.1.4.2 to the letter stays so."""
    world = world_of(Config(burst=burst))
    world.signal(world.b)
    world.run(3.0)
    assert sent(world.a, openers=True) == []
    assert reflexive(world.a, world.b)[0] == pytest.approx(0.050, abs=1e-5)


# --- what becomes of them ----------------------------------------------------------------------------------------


def test_the_time_exceeded_that_an_opener_causes_says_nothing_about_the_pair() -> None:
    world = world_of(icmp_errors=True)
    world.signal(world.b)
    world.run(0.090)
    session = world.a.session
    (pair,) = [p for p in session.pairs if p.openers]
    assert session.counters["openers expired"] == 1
    assert pair.last_error == 0
    # Nor is it counted among the errors: those are of the host address, which no router of the Internet knows.
    host = world.b.session.local_candidates[0].address
    assert session.counters["network errors"] == sum(
        transmit.destination == host for _, transmit, _ in sent(world.a, openers=False)
    )


def test_other_errors_and_later_ones_do() -> None:
    world = world_of()
    world.signal(world.b)
    world.run(LEAD_S)
    session = world.a.session
    (pair,) = [p for p in session.pairs if p.openers]
    session.handle_error(pair.base, pair.destination, errno.ECONNREFUSED, world.now)
    assert pair.last_error == errno.ECONNREFUSED
    world.run(0.5 + EXPIRY_S)
    session.handle_error(pair.base, pair.destination, errno.EHOSTUNREACH, world.now)
    assert pair.last_error == errno.EHOSTUNREACH
    assert (session.counters["openers expired"], session.counters["network errors"]) == (0, 2)

"""What arrived too early, how long is it kept, and how much of it?"""

from __future__ import annotations

import pytest

from iceagent.core.held import HOLD_S, MAX_EARLY_CHECKS, MAX_HELD_CANDIDATES, MAX_HELD_DATAGRAMS, Held
from iceagent.core.responder import IncomingCheck
from iceagent.events import DataReceived, RemoteCandidateRefused
from iceagent.net.address import TransportAddress
from iceagent.net.core import Datagram, PacketDropped
from tests.unit.core.kit import BASE, REMOTE, STRANGER, THEIRS, Play, context, remote_candidate

DATA = b"\x16\xfe\xff first flight"


def check(port: int = 1, nomination: int | None = None) -> IncomingCheck:
    source = TransportAddress("203.0.113.1", port)
    return IncomingCheck(base=BASE, source=source, priority=1, nomination=nomination, ufrag="x", own_ufrag="y")


# --- checks before the credentials ---------------------------------------------------------------------------------


def test_a_hundred_early_checks_are_kept_in_order() -> None:
    held = Held(shared := context())
    for port in range(1, 151):
        held.hold_check(check(port))
    assert [c.source.port for c in held.take_checks()] == list(range(1, 101))
    assert MAX_EARLY_CHECKS == 100
    assert shared.counters == {"early checks over the limit": 50}
    assert held.take_checks() == []


def test_a_repeated_early_check_counts_once_and_keeps_its_nomination() -> None:
    held = Held(context())
    for nomination in (None, 3, None):
        held.hold_check(check(nomination=nomination))
    assert held.take_checks() == [check(nomination=3)]


# --- data of an address that has not authenticated itself ----------------------------------------------------------


def test_data_of_the_peer_that_comes_before_its_check_is_delivered_after_it() -> None:
    """A lost first DTLS flight costs a second."""
    play = Play(controlling=False)
    for number in range(3):
        assert play.deliver(DATA + bytes([number])) == []
    assert play.events_of(DataReceived) == []
    play.pass_time(0.5)
    play.check()
    received = play.events_of(DataReceived)
    assert [event.data for event in received] == [DATA + bytes([number]) for number in range(3)]
    assert {(event.component, event.base, event.source) for event in received} == {(1, BASE, REMOTE)}
    assert play.session.peers(BASE)[REMOTE].packets_received == 3


def test_data_of_a_stranger_is_dropped_after_a_second_exactly() -> None:
    play = Play(controlling=False)
    play.now = 10.0
    play.deliver(DATA, source=STRANGER)
    play.session.handle_timeout(10.0 + HOLD_S - 0.001)
    play.drain()
    assert play.events_of(PacketDropped) == []
    play.pass_time(HOLD_S)
    (dropped,) = play.events_of(PacketDropped)
    assert (dropped.source, dropped.size) == (STRANGER, len(DATA))
    assert dropped.reason == "data from an address that never authenticated"


def test_sixteen_datagrams_are_held_and_no_more() -> None:
    play = Play(controlling=False)
    for number in range(50):
        play.deliver(bytes([0x80, number]), source=STRANGER)
    assert len(play.events_of(PacketDropped)) == 50 - MAX_HELD_DATAGRAMS == 34
    play.check(source=STRANGER)
    assert [event.data[1] for event in play.events_of(DataReceived)] == list(range(16))


def test_a_stranger_who_sends_much_gives_way_to_the_peer() -> None:
    """Else sixteen datagrams a second would cost a peer its first flight."""
    play = Play(controlling=False)
    for number in range(50):
        play.deliver(bytes([0x80, number]), source=STRANGER)
    for number in (100, 101, 102):
        play.deliver(bytes([0x80, number]))
    play.check()
    assert [event.data[1] for event in play.events_of(DataReceived)] == [100, 101, 102]


def test_only_the_data_of_the_address_that_authenticated_is_taken() -> None:
    held = Held(context())
    mine, other = Datagram(BASE, REMOTE, DATA), Datagram(BASE, STRANGER, DATA)
    for datagram in (mine, other, mine):
        held.hold_data(datagram, 0.0)
    assert held.take_data(BASE, REMOTE) == [mine, mine]
    assert held.take_data(BASE, REMOTE) == []
    assert held.take_data(BASE, STRANGER) == [other]


def test_the_hold_ends_in_order_of_arrival() -> None:
    held = Held(shared := context())
    assert held.poll_timeout() is None
    for at in (0.0, 0.3):
        held.hold_data(Datagram(BASE, STRANGER, DATA), at)
    assert held.poll_timeout() == 1.0
    held.handle_timeout(1.0)
    assert held.poll_timeout() == pytest.approx(1.3)
    assert shared.counters["dropped: data from an address that never authenticated"] == 1


def test_data_of_the_peer_is_delivered_at_once() -> None:
    play = Play(controlling=False)
    play.check()
    play.deliver(DATA)
    assert [event.data for event in play.events_of(DataReceived)] == [DATA]


def test_authentication_holds_for_one_five_tuple() -> None:
    """Data from another port of the peer's host is a stranger's, and so is data to another socket of ours."""
    other = TransportAddress("10.1.0.2", 5000)
    play = Play(controlling=False, bases=(BASE, other))
    play.check()
    play.deliver(DATA, source=REMOTE._replace(port=1))
    play.deliver(DATA, base=other)
    assert play.events_of(DataReceived) == []


# --- candidates before their credentials ---------------------------------------------------------------------------


def test_a_hundred_candidates_wait_for_the_description() -> None:
    play = Play(described=False)
    for i in range(150):
        play.session.add_remote_candidate(remote_candidate(TransportAddress("10.2.0.1", 1000 + i)), play.now)
    play.drain()
    refused = play.events_of(RemoteCandidateRefused)
    assert len(refused) == 150 - MAX_HELD_CANDIDATES == 50
    assert {event.reason for event in refused} == {"too many candidates wait for a description"}
    play.describe(THEIRS)
    # The oldest give way: nobody can fill the room and keep the candidates of the generation that comes out of it.
    assert [c.address.port for c in play.session.remote_candidates] == list(range(1050, 1150))

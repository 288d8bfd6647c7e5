"""Does the PCP client keep its mappings, whatever the gateway forgets? RFC 6887, 8.5, 11.2.1, 14 and 16.3.1."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from portmap.events import GatewayRestarted, Mapped, MappingLost
from tests.unit.portmap.client_kit import ANNOUNCEMENTS, SERVER, request, silent
from tests.unit.portmap.pcp_kit import EXTERNAL, PcpPlay, announcement, error, header, packed, success


def playing(*ports: int, lifetime: int = 3600, seed: int = 1) -> PcpPlay:
    """With mappings; the key is the port."""
    play = PcpPlay(seed=seed)
    play.lifetime = lifetime
    for port in ports:
        play.client.map(port, request(port), play.now)
    play.run(0.02)
    assert len(play.take()) == len(ports)
    play.sent.clear()
    return play


def kinds(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


# --- renewal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_a_renewal_that_is_not_answered_is_repeated_at_the_times_of_the_rfc(seed: int) -> None:
    """11.2.1: "1/2 to 5/8 of expiration time …, 3/4 to 3/4 + 1/16 …, 7/8 to 7/8 + 1/32 …, and so on"; "MUST NOT be sent
    less than four seconds apart"."""
    play = playing(5000, lifetime=1000, seed=seed)
    play.fall_silent()
    play.run(999.9)
    part = [(at - 0.02) / 1000 for at in play.times]
    assert 1 / 2 <= part[0] <= 5 / 8
    assert 3 / 4 <= part[1] <= 3 / 4 + 1 / 16
    assert 7 / 8 <= part[2] <= 7 / 8 + 1 / 32
    assert 15 / 16 <= part[3] <= 15 / 16 + 1 / 64
    assert all(later - earlier >= 4 for earlier, later in pairwise(play.times))
    assert len(play.times) <= 8
    assert play.take() == []


def test_renewals_have_jitter() -> None:
    firsts = set()
    for seed in range(20):
        play = playing(5000, lifetime=1000, seed=seed)
        play.run(630)
        firsts.add(play.times[0])
    assert len(firsts) == 20


def test_a_renewal_suggests_what_there_is_and_tells_the_new_lifetime() -> None:
    """11.2.1: "SHOULD also include the currently assigned external IP address and port"."""
    play = playing(5000)
    play.run(3600 * 5 / 8)
    ((_, data),) = play.sent
    assert data[42:] == struct.pack("!H", EXTERNAL[1]) + packed(EXTERNAL[0])
    event = play.only(Mapped)
    assert (event.key, event.lifetime_s) == (5000, 3600)
    assert event.rtt_s == pytest.approx(0.02)


def test_a_renewal_that_gets_another_address_tells_it() -> None:
    play = playing(5000)
    play.external = ("203.0.113.6", 40001)
    play.run(3600 * 5 / 8)
    assert play.only(Mapped).external == TransportAddress("203.0.113.6", 40001)


def test_a_mapping_that_is_not_renewed_is_lost_and_made_again() -> None:
    play = playing(5000, lifetime=120)
    play.fall_silent()
    play.run(130)
    ((at, event),) = play.events
    assert at == pytest.approx(120.02)
    assert event == MappingLost(protocol="pcp", key=5000, reason="not renewed in its lifetime")
    after = [at for at in play.times if at >= 120.02]
    assert after[0] <= 124.02
    assert 2.7 <= after[1] - after[0] <= 3.3
    play.take()
    play.answer = play.obey
    play.run(10)
    assert play.only(Mapped).external == TransportAddress(*EXTERNAL)


@pytest.mark.parametrize("lifetime", [1, 2, 5, 8, 60])
def test_short_lifetimes_are_renewed_no_oftener_than_every_four_seconds(lifetime: int) -> None:
    play = playing(5000, lifetime=lifetime)
    play.run(300)
    assert all(later - earlier >= 4 - 1e-6 for earlier, later in pairwise([0.0, *play.times]))
    assert 300 / max(5 / 8 * lifetime, 5) - 2 <= len(play.times)


def test_refresh_renews_all_at_once_but_not_twice_within_four_seconds() -> None:
    play = playing(5000, 5001)
    play.run(10)
    play.client.refresh(play.now)
    play.client.refresh(play.now)
    play.run(1)
    assert play.times == [10.02, 10.02]
    assert kinds(play.take()) == ["Mapped", "Mapped"]
    play.client.refresh(play.now)
    play.run(1)
    assert play.times == [10.02, 10.02]
    play.run(3)
    assert play.times == [10.02, 10.02, 14.02, 14.02]


def test_a_refresh_without_an_answer_goes_on_as_retransmission() -> None:
    """8.1.1: it is a request of its own; the lease lasts meanwhile."""
    play = playing(5000, lifetime=3600)
    play.run(10)
    play.fall_silent()
    play.client.refresh(play.now)
    play.run(30)
    assert play.times[0] == 10.02
    assert 2.7 <= play.times[1] - play.times[0] <= 3.3
    assert play.take() == []


def test_retransmissions_begin_anew_with_what_is_asked_anew() -> None:
    """8.1.1: "The RT value is initialized based on IRT"."""
    play = playing(5000, lifetime=86400)
    play.run(10)
    play.fall_silent()
    play.client.refresh(play.now)
    play.run(500)
    play.sent.clear()
    play.client.refresh(play.now)
    play.run(8)
    assert 2.7 <= play.times[1] - play.times[0] <= 3.3


# --- updates -----------------------------------------------------------------------------------------------------


def test_an_update_that_nobody_asked_for_is_told_once() -> None:
    """14.2: "the PCP server device SHOULD transmit such packets three times"."""
    play = playing(5000)
    play.run(3600 * 5 / 8)
    play.take()
    request_data = play.sent[0][1]
    for _ in range(3):
        play.receive(success(request_data, play.epoch, 3000, ("203.0.113.9", 41000)))
        play.run(0.25)
    event = play.only(Mapped)
    assert event.external == TransportAddress("203.0.113.9", 41000)
    assert (event.lifetime_s, event.rtt_s) == (3000, None)
    assert play.dropped == ["a duplicate", "a duplicate"]
    play.sent.clear()
    play.run(3000 * 5 / 8)
    assert play.sent[0][1][42:] == struct.pack("!H", 41000) + packed("203.0.113.9")


def test_an_update_that_shortens_the_lifetime_is_believed() -> None:
    play = PcpPlay()
    play.client.map(1, request(), play.now)
    play.run(1)
    play.take()
    play.receive(success(play.sent[0][1], play.epoch, 60))
    assert play.only(Mapped).lifetime_s == 60
    play.run(38)
    assert kinds(play.take()) == ["Mapped"]


def test_an_update_that_ends_a_mapping_is_believed() -> None:
    play = PcpPlay()
    play.client.map(1, request(), play.now)
    play.run(1)
    play.take()
    play.receive(success(play.sent[0][1], play.epoch, 0))
    assert play.only(MappingLost).reason == "a lifetime of 0 s"


# --- rapid recovery ----------------------------------------------------------------------------------------------


def restart(play: PcpPlay) -> None:
    play.epoch_0 = play.now


@pytest.mark.parametrize("base", [ANNOUNCEMENTS, None])
def test_an_announced_restart_renews_all_after_a_random_time(base: TransportAddress | None) -> None:
    """14.1.3: "a unicasted or multicasted PCP ANNOUNCE …, it MUST wait a random amount of time between 0 and 5 seconds
    …, then for all PCP mappings it made … issues new PCP requests"."""
    delays = set()
    for seed in range(10):
        play = playing(5000, 5001, seed=seed)
        play.run(100)
        restart(play)
        for _ in range(10):
            play.receive(announcement(play.epoch), base=base)
        assert play.take() == [GatewayRestarted(protocol="pcp")]
        play.run(5)
        assert kinds(play.take()) == ["Mapped", "Mapped"]
        assert len(play.sent) == 2
        assert play.times[0] == play.times[1]
        assert {data[42:44] for _, data in play.sent} == {struct.pack("!H", EXTERNAL[1])}
        delays.add(play.times[0] - 100.02)
    assert len(delays) == 10
    assert max(delays) - min(delays) > 2


def test_an_announcement_without_a_restart_renews_nothing() -> None:
    play = playing(5000)
    play.run(100)
    play.receive(announcement(play.epoch), base=ANNOUNCEMENTS)
    play.run(10)
    assert (play.take(), play.sent, play.dropped) == ([], [], [])


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (announcement(0), TransportAddress("192.168.1.2", 5351)),
        (announcement(0), TransportAddress("192.168.1.1", 1024)),
        (announcement(0, result=2), SERVER),
        (announcement(0)[:20], SERVER),
        (b"\x02\0" + announcement(0)[2:], SERVER),
        (header(2), SERVER),
    ],
)
def test_a_forged_or_broken_announcement_renews_nothing(data: bytes, source: TransportAddress) -> None:
    play = playing(5000)
    play.run(100)
    play.receive(data, base=ANNOUNCEMENTS, source=source)
    play.run(10)
    assert (play.take(), play.sent) == ([], [])
    assert len(play.dropped) == 1


def test_the_answer_about_one_mapping_renews_the_others_at_once() -> None:
    """8.5: "promptly renews all its active port mapping leases"."""
    play = playing(5000, 5001, 5002)
    play.run(100)
    restart(play)
    play.client.map(1, request(1), play.now)
    play.run(1)
    events = play.take()
    assert kinds(events) == ["GatewayRestarted", "Mapped", "Mapped", "Mapped", "Mapped"]
    assert [event.key for event in events if isinstance(event, Mapped)] == [1, 5000, 5001, 5002]
    play.run(100)
    assert play.take() == []


def test_a_repeated_update_shows_a_restart_too() -> None:
    """8.5: "Whenever a client receives a PCP response, the client validates the received Epoch Time value"."""
    play = playing(5000, 5001)
    play.client.map(1, request(1), play.now)
    play.run(100)
    play.take()
    ((_, data),) = play.sent
    restart(play)
    play.receive(success(data, play.epoch, 3500))
    assert kinds(play.take()) == ["GatewayRestarted"]
    assert play.dropped == ["a duplicate"]
    play.run(1)
    assert {event.key for event in play.take() if isinstance(event, Mapped)} == {5000, 5001}


@pytest.mark.parametrize("seed", range(5))
def test_a_restart_that_discovery_shows_renews_all_at_once(seed: int) -> None:
    """The random time is for what many clients hear together."""
    play = playing(5000, seed=seed)
    play.run(100)
    restart(play)
    play.client.discover(play.now)
    play.run(0.05)
    assert kinds(play.take()) == ["GatewayRestarted", "Discovered", "Mapped"]


def test_a_restart_is_believed_of_nobody_who_does_not_know_the_nonce() -> None:
    """8.3: the epoch is looked at "after these matches are successful"."""
    play = PcpPlay()
    play.client.map(1, request(), play.now)
    play.run(100)
    play.take()
    forged = bytearray(success(play.sent[0][1], 0))
    forged[24] ^= 1
    play.receive(bytes(forged))
    play.run(10)
    assert (play.take(), len(play.sent), play.dropped) == ([], 1, ["another nonce"])


def test_mappings_that_are_not_made_again_are_asked_for_as_retransmissions() -> None:
    play = playing(5000)
    play.run(100)
    restart(play)
    play.receive(announcement(play.epoch), base=ANNOUNCEMENTS)
    play.fall_silent()
    play.run(40)
    waits = [later - earlier for earlier, later in pairwise(play.times)]
    assert 2.7 <= waits[0] <= 3.3
    assert 1.8 * waits[0] <= waits[1] <= 2.2 * waits[0]
    assert kinds(play.take()) == ["GatewayRestarted"]


def test_a_gateway_whose_epoch_makes_no_sense_does_not_keep_us_busy() -> None:
    play = playing(5000, 5001)
    epochs = count(10**6, -100)
    play.answer = lambda data: (success(data, next(epochs)),)
    play.client.map(1, request(1), play.now)
    play.run(600)
    assert 2 * 600 / 20 <= len(play.sent) <= 3 * (600 / 15 + 2)
    restarts = [event for event in play.take() if isinstance(event, GatewayRestarted)]
    assert 600 / 20 <= len(restarts) <= 600 / 15 + 2


# --- whatever happens --------------------------------------------------------------------------------------------


class Fuzzed(PcpPlay):
    """With the ports that were mapped, by key."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[int] = []


Step = Callable[[Fuzzed], None]


def map_one(play: Fuzzed, port: int) -> None:
    play.client.map(len(play.keys), request(port), play.now)
    play.keys.append(port)


def behave(play: PcpPlay, mode: str) -> None:
    answers = {
        "obey": play.obey,
        "silent": silent,
        "error": lambda data: (error(data, 8, play.lifetime, play.epoch),),
        "old": lambda data: (b"\0\x80\0\x01\0\0\0\0",),
        "noise": lambda data: (b"\x02\x81\0\0" + bytes(56), data, success(data, 2**32 - 1), success(data, 0, 3)),
    }
    play.answer = answers[mode]


def replay(play: PcpPlay, index: int) -> None:
    if play.sent:
        play.receive(success(play.sent[index % len(play.sent)][1], play.epoch, play.lifetime % 5000))


steps: st.SearchStrategy[Step] = st.one_of(
    st.floats(0, 5000).map(lambda seconds: lambda play: play.run(seconds)),
    st.integers(1, 6).map(lambda port: lambda play: map_one(play, port)),
    st.integers(0, 20).map(lambda key: lambda play: play.client.unmap(key, play.now)),
    st.integers(0, 20).map(lambda key: lambda play: play.client.abandon(key)),
    st.just(lambda play: play.client.discover(play.now)),
    st.just(lambda play: play.client.refresh(play.now)),
    st.just(lambda play: play.refuse()),
    st.just(restart),
    st.just(lambda play: play.receive(announcement(play.epoch), base=ANNOUNCEMENTS)),
    st.sampled_from(["obey", "silent", "error", "old", "noise"]).map(lambda mode: lambda play: behave(play, mode)),
    st.integers(0, 2**32 - 1).map(lambda lifetime: lambda play: setattr(play, "lifetime", lifetime)),
    st.integers(0, 200).map(lambda index: lambda play: replay(play, index)),
    st.binary(max_size=70).map(lambda data: lambda play: play.receive(data)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=25))
def test_whatever_happens_time_goes_on_and_nothing_grows(sequence: list[Step]) -> None:
    play = Fuzzed()
    for step in sequence:
        try:
            step(play)
        except ValueError as error:
            assert "is mapped already" in str(error)
        play.drain()
        # The first wake-up at a time does all that is due then.
        play.client.handle_timeout(play.now)
        play.drain()
        deadline = play.client.poll_timeout()
        assert deadline is None or deadline > play.now
    asked = set(range(len(play.keys)))
    for kind in ("Mapped", "MappingRefused", "MappingLost", "Unmapped"):
        told = [event for _, event in play.events if type(event).__name__ == kind]
        assert {getattr(event, "key", None) for event in told} <= asked
    unmapped = [event for _, event in play.events if type(event).__name__ == "Unmapped"]
    assert len({getattr(event, "key", None) for event in unmapped}) == len(unmapped)
    for key in asked:
        play.client.unmap(key, play.now)
    play.run(1)
    assert play.client.poll_timeout() is None
    assert len(play.client.counters) <= 16
